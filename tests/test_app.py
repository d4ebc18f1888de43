"""The Space as a visitor and a client meet it: its own process, which has nothing of this repo."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

import app
from modeling_ttds.reranker_ttds import FEATURES, TTDSReranker
from recipes.config import TTDSArguments
from recipes.data.split import split_data
from recipes.data.toyshop import generate
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.tuning.examples import UserStates
from tests.conftest import altered, build_model, build_tokenizer

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = '<img src=x onerror="window.hurt=1"> ${window.hurt=1} {{value}} `\''


@pytest.fixture(scope="module")
def folder(built, split, tmp_path_factory):
    """A model with a co-occurrence memory, an unfitted re-ranker, and one hostile title."""
    folder = tmp_path_factory.mktemp("app") / "model"
    built.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    model = type(built).from_pretrained(folder).eval()
    torch.manual_seed(0)
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    popular = int(model.cooccurrence.popularity.argmax())
    model.catalogue[popular]["title"] = f"{HOSTILE} {model.catalogue[popular]['title']}"
    model.save_pretrained(folder)
    return folder


@contextmanager
def serving(folder, where):
    """The address of `python app.py` for a model, run where nothing else of this repo is."""
    shutil.copy(ROOT / "app.py", where)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    settings |= {"HF_MODULES_CACHE": str(where / "modules"), "TTDS_MODEL": str(folder)}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = where / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=where, env=environment | settings, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(600):
            time.sleep(0.5)
            if "Running on" in log.read_text() or server.poll() is not None:
                break
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text()
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("space")) as url:
        yield url


@pytest.fixture
def client(url):
    return Client(url, verbose=False)


def ask(client, name, *arguments):
    return client.predict(*arguments, api_name=f"/{name}")


# Endpoints


def test_about_and_search(client, built):
    about = ask(client, "about")
    assert about["num_items"] == len(built.catalogue) and about["num_levels"] == 3
    assert "Kitchen > Kettles" in about["categories"] and len(about["examples"]) == 4
    kettles = ask(client, "search", "KETTLE")
    assert kettles and all("kettle" in item["title"].lower() for item in kettles)
    codes = built.item_sids[built.row_of[kettles[0]["item_id"]]].tolist()
    assert kettles[0]["codes"] == codes
    assert kettles[0]["sid_tokens"] == "".join(f"<item_{n}_{c}>" for n, c in enumerate(codes))
    assert ask(client, "search", "no such thing") == []
    assert ask(client, "search", "onerror")[0]["title"].startswith(HOSTILE)


@pytest.mark.parametrize("rerank", [True, False])
def test_recommend_gives_the_list_of_the_model(client, folder, built, rerank):
    history = [built.catalogue[row]["item_id"] for row in (3, 9, 12)]
    found = ask(client, "recommend", history, 7, "", rerank)
    model = type(built).from_pretrained(folder).eval()
    expected = model.recommend([history], top_k=7, rerank=rerank)[0]
    assert [item["item_id"] for item in found["items"]] == [best.item_id for best in expected]
    for place, (item, best) in enumerate(zip(found["items"], expected, strict=True), 1):
        assert item["score"] == pytest.approx(best.score, abs=1e-4) and item["place"] == place
    written = model.recommend([history], top_k=7, rerank=False)[0]
    beams = {best.item_id for best in written} - {best.item_id for best in expected}
    assert {item["item_id"] for item in found["left_out"]} <= beams
    assert [item["item_id"] for item in found["history"]] == history


def test_recommend_within_a_category_and_for_nobody(client):
    found = ask(client, "recommend", [], 20, "Kitchen")["items"]
    assert found and all(item["categories"].startswith("Kitchen >") for item in found)
    narrow = [
        item["item_id"] for item in ask(client, "recommend", [], 20, "Kitchen > Knives")["items"]
    ]
    assert len(narrow) < 20
    assert ask(client, "recommend", narrow, 5, "Kitchen > Knives")["items"] == []


def test_ask_finds_the_nearest_texts(client, built):
    title = built.catalogue[5]["title"]
    found = ask(client, "ask", app.clean(title, "title"), [])
    assert found["written"] == [], "the model was not tuned for it"
    found = found["nearest"]
    similarities = [item["similarity"] for item in found]
    assert similarities == sorted(similarities, reverse=True)
    table = built.embed_texts([title]) @ built.item_text.T
    assert found[0]["item_id"] == built.catalogue[int(table.argmax())]["item_id"]


def test_words_that_no_item_has_are_answered_as_such(client):
    for text in ("zugzwang", "zugzwang xyzzy for a"):
        assert ask(client, "ask", text, []) == {
            "written": [], "nearest": [], "unknown": app.UNKNOWN,
        }  # fmt: skip
    for text in ("KETTLES", "kettle zugzwang", "kéttle"):
        found = ask(client, "ask", text, [])
        assert found["nearest"] and not found["unknown"], text


def test_rankings_stand_side_by_side(client, folder, built):
    history = [built.catalogue[row]["item_id"] for row in (3, 9, 12)]
    found = ask(client, "compare", history, "Kitchen")
    model = type(built).from_pretrained(folder).eval()
    kitchen = [i["item_id"] for i in model.catalogue if i["categories"].startswith("Kitchen")]
    how = {"TTDS": {}, "TTDS, language model only": {"rerank": False, "memory": False}}
    assert found.keys() == how.keys(), "the model has no priors"
    for name, settings in how.items():
        expected = model.recommend([history], top_k=5, allowed=kitchen, **settings)[0]
        assert [item["item_id"] for item in found[name]] == [best.item_id for best in expected]


def test_texts_are_shown_as_they_are_read(model):
    model.catalogue[7] |= {
        "title": "Caf&eacute; &amp; tea set",
        "categories": "Home &amp; Bar > Tea",
    }
    shop = app.Shop(model)
    for words in ("cafe & tea", "CAFÉ set"):
        (found,) = shop.search(words)
        assert found["title"] == "Café & tea set" and found["categories"] == "Home & Bar > Tea"
    assert [item["title"] for item in shop.recommend([], 5, "Home &amp; Bar")["items"]] == [
        "Café & tea set"
    ]
    names = app.branches(["Kitchen > Knives", "A > B > C", "Kitchen", "Home &amp; Bar"])
    assert [value for _, value in names] == [
        "A > B > C", "Home &amp; Bar", "Kitchen", "Kitchen > Knives",
    ]  # fmt: skip
    assert [name.strip() for name, _ in names] == ["C", "Home & Bar", "Kitchen", "Knives"]
    assert [len(name) - len(name.strip()) for name, _ in names] == [2, 0, 0, 1]
    assert "Home &amp; Bar › Tea" in app.found_cards(shop.search("cafe"))


def test_a_model_tuned_for_queries_writes_for_words_and_history(model):
    model.config.prompts = {"query": "Query: {query}, item: ", "search": "<user>,<item>,{query}: "}
    shop, history = app.Shop(model), [model.catalogue[3]["item_id"]]
    for past in ([], history):
        found = shop.ask("a walnut kettle", past)["written"]
        expected = model.recommend([past], queries=["a walnut kettle"], top_k=4)[0]
        assert [(item["item_id"], item["score"]) for item in found] == [
            (best.item_id, best.score) for best in expected
        ]


def test_an_added_item_is_seen_by_its_visitor_alone(url):
    first, second = Client(url, verbose=False), Client(url, verbose=False)
    fields = ("Zephyr walnut kettle", "Zephyr", "Kitchen > Kettles", "Quiet on every stove.")
    item = ask(first, "add_item", *fields)
    assert len(item["codes"]) == 3 and len(item["neighbours"]) == 3 and item["place"]
    assert ask(first, "search", "zephyr") == [{k: item[k] for k in ask(first, "search")[0]}]
    assert ask(second, "search", "zephyr") == []
    near = [neighbour["item_id"] for neighbour in item["neighbours"]]
    assert item["item_id"] in listed(first, near) and item["item_id"] not in listed(second, near)
    with pytest.raises(AppError, match="unknown item"):
        ask(second, "recommend", [item["item_id"]])
    other = ask(second, "add_item", *fields)
    assert other["codes"] == item["codes"], "what others add takes no semantic ID away"
    again = ask(first, "add_item", *fields)
    assert again["codes"] != item["codes"] and again["item_id"] != item["item_id"]
    assert ask(first, "about") == ask(second, "about")
    jobs = [
        (mine, visitor.submit([mine], 3, api_name="/recommend"))
        for _ in range(5)
        for visitor, mine in ((first, item["item_id"]), (second, other["item_id"]))
    ]
    for mine, job in jobs:
        assert [past["item_id"] for past in job.result()["history"]] == [mine]


def listed(client, history):
    found = ask(client, "recommend", history, 20, "Kitchen > Kettles")
    return {item["item_id"] for item in found["items"]}


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("recommend", ["item"], "must be a list"),
        ("recommend", [[3]], "must be a list"),
        ("recommend", [["nobody knows"]], "unknown item"),
        ("recommend", [["x"] * 21], "at most 20"),
        ("recommend", [[], 0], "from 1 to 20"),
        ("recommend", [[], "5"], "from 1 to 20"),
        ("recommend", [[], 5, "No such place"], "`category` holds no item"),
        ("recommend", [[], 5, 7], "`category` must be text"),
        ("search", ["x" * 301], "`text` is too long"),
        ("ask", ["  \n\u200b ", []], "`text` is empty"),
        ("ask", [None, []], "`text` is empty"),
        ("ask", ["kettle", None], "must be a list"),
        ("add_item", [""], "`title` is empty"),
        ("add_item", ["x" * 121], "`title` is too long"),
        ("add_item", ["A", {}], "`brand` must be text"),
        ("add_item", ["zugzwang"], "No item has a word of this"),
    ],
)
def test_bad_input_gets_a_sentence(client, name, arguments, sentence):
    with pytest.raises(AppError, match=sentence):
        ask(client, name, *arguments)


def test_odd_text_is_only_text(client):
    item = ask(client, "add_item", f"{HOSTILE} <item_0_3> \U0001f956 \x00", "&amp;", "A > B")
    assert item["title"].startswith(HOSTILE) and item["place"]
    assert ask(client, "ask", "<item_0_3><user> ;DROP TABLE", [])
    assert app.clean(" half\ud83e \n a\x00 word\u200b ", "text") == "half a word"


def test_a_visitor_adds_a_bounded_number_of_items(client):
    for number in range(app.MAX_ADDED):
        ask(client, "add_item", f"Kettle {number}")
    with pytest.raises(AppError, match="the most"):
        ask(client, "add_item", "One more kettle")


def test_what_is_no_model_of_items_is_refused_in_a_sentence(built, tmp_path):
    with pytest.raises(SystemExit, match="^No model at"):
        app.main(str(tmp_path))
    built.model.save_pretrained(tmp_path)
    kind = built.model.config.model_type
    with pytest.raises(SystemExit, match=f"holds a '{kind}' model without a catalogue"):
        app.main(str(tmp_path))


# The model with an item more


def test_a_model_with_an_item_more_shares_weights_and_leaves_the_first_alone(folder, built):
    model = type(built).from_pretrained(folder).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table, history = dict(model.tokenizer.sid_table), [built.catalogue[3]["item_id"]]
    lists = model.recommend([history], top_k=10)
    more = app.with_item(model, {"item_id": "new", "title": "A walnut kettle"})
    assert more.recommend([["new"]], top_k=3) and len(more.catalogue) == len(model.catalogue) + 1
    theirs = dict(more.named_parameters())
    for name, ours in model.named_parameters():
        if "node_pairs" not in name:  # they have a row for the new item and its nodes
            assert ours is theirs[name], name
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert "new" not in model.row_of and model.tokenizer.sid_table == table
    assert model.config.num_items == len(model.catalogue)
    assert model.recommend([history], top_k=10) == lists


def test_the_first_answer_on_the_demos_model_takes_less_than_a_second(tmp_path):
    demo = altered(TTDSArguments(), cache_dir=str(tmp_path), tower_epochs=1)
    split = split_data(generate().data)
    tokenizer = build_tokenizer(split, demo, None)
    states = UserStates(split, demo.examples.max_history)
    model = build_model(split, states, tokenizer, demo, None, seed=0)
    model.share_sid_table()
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    shop, history = app.Shop(model), [entry["item_id"] for entry in model.catalogue[:3]]
    begun = time.process_time()  # one thread's, whatever else the machine does
    assert len(shop.recommend(history)["items"]) == 5
    assert time.process_time() - begun < 1


# The page


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH; `apt-get install chromium` brings one")
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page at a width in a colour scheme; fails if a script fails or a text is run."""
    contexts, errors = [], []

    def visit(width, scheme):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#tree svg >> visible=true")
        return page

    yield visit
    for context in contexts:
        assert context.pages[0].evaluate("window.hurt") is None, "text was run"
        context.close()
    assert not errors


@pytest.mark.parametrize("width", [390, 1400])
def test_the_main_ways_through_the_page(visit, width):
    page = visit(width, "light")
    ranked, history = page.locator("#ranked .card"), page.locator("#history .chip")
    assert ranked.count() == 5 and history.count() == 3
    assert page.locator("#tree svg rect >> visible=true").count() >= 8

    best = ranked.nth(0).locator("b").inner_text()
    ranked.nth(0).click()  # a recommended item goes into the history
    history.nth(3).wait_for()
    assert history.nth(3).locator("span").inner_text() == best
    assert best not in ranked.locator("b").all_inner_texts()
    history.nth(0).get_by_role("button").click()
    history.nth(3).wait_for(state="detached")

    page.get_by_label("Add an item: search by title").fill("kettle")
    page.locator("#found .card").nth(0).click()
    history.nth(3).wait_for()

    page.get_by_label("Add an item: search by title").fill("onerror")
    page.get_by_text(HOSTILE).nth(0).wait_for()

    choose(page, "Category", "Garden")
    page.wait_for_function(
        "[...document.querySelectorAll('#ranked .card')].every(e => /Garden/.test(e.innerText))"
    )
    page.get_by_text("the re-ranker's weight of an item").wait_for()
    choose(page, "Ranked by", "Language model alone")
    page.get_by_text("the probability by which the language model writes an item").wait_for()
    choose(page, "Length", "10")
    ranked.nth(9).wait_for()

    page.get_by_label("Or ask in words").fill("herb seed set")
    page.get_by_role("button", name="Find").click()
    assert "seed" in page.locator("#asked .card").nth(0).inner_text()

    page.get_by_label("Or ask in words").fill("zugzwang")
    page.get_by_role("button", name="Find").click()
    page.locator("#asked .note").wait_for()

    page.get_by_role("button", name="Compare the rankings").click()
    page.locator("#compared .card").nth(9).wait_for()
    check_layout(page, width)
    page.get_by_role("button", name="Nothing").click()
    page.locator("#history .note").wait_for()
    check_layout(page, width)


def test_a_visitor_adds_an_item(visit):
    page = visit(390, "dark")
    page.get_by_role("button", name="Give it a semantic ID").click()
    page.get_by_text("`title` is empty; type a few words.").wait_for()
    page.get_by_label("Title", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Give it a semantic ID").click()
    card = page.locator("#new .card").nth(0)
    assert card.locator("b").inner_text() == HOSTILE
    assert "<item_0_" in card.inner_text()
    page.get_by_role("button", name="Start from them").click()
    page.wait_for_function("document.querySelectorAll('#history .chip').length == 3")
    page.wait_for_function("document.querySelector('#history').getBoundingClientRect().top > -50")
    card.click()
    page.locator("#history .chip").nth(3).wait_for()
    check_layout(page, 390)


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout_in_both_schemes(visit, width, scheme):
    page = visit(width, scheme)
    check_layout(page, width)
    text, ground = page.evaluate(
        "[getComputedStyle(document.querySelector('#ranked b')).color,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = (sum(map(int, c[4:-1].split(","))) for c in (ground, text))
    assert (light - dark > 500) if scheme == "light" else (dark - light > 500)


def check_layout(page, width):
    """Nothing is wider than the page, and no title of a tree is cut off by its frame."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.ttds *')].filter(e => e.getBoundingClientRect().width"
        " && e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 90))"
    )
    assert wide == []


def choose(page, label, option):
    page.get_by_label(label).nth(0).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.skipif(os.environ.get("TTDS_SCREENSHOT") != "1", reason="TTDS_SCREENSHOT is not 1")
def test_screenshot(browser, folder, tmp_path):
    """TTDS_SCREENSHOT=1 TTDS_MODEL=outputs/demo python -m pytest -k screenshot."""
    model = Path(os.environ.get("TTDS_MODEL", folder)).resolve()
    with serving(model, tmp_path) as url:
        page = browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme="light")
        page.goto(url)
        page.wait_for_selector("#tree svg >> visible=true")
        page.get_by_label("Title", exact=True).fill("Bramble copper kettle")
        page.get_by_label("Brand").fill("Bramble")
        page.get_by_role("button", name="Give it a semantic ID").click()
        page.wait_for_selector("#new .card")
        page.locator("h1").click()  # takes the focus away
        file = ROOT / "docs" / "space.png"
        page.screenshot(path=file, full_page=True)
    Image.open(file).quantize(128).save(file, optimize=True)  # a third of the bytes
