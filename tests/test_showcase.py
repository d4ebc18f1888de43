"""What README and page show holds on the model of `make demo`, or of the folder TTDS_MODEL."""

import os
import random
from pathlib import Path

import pytest

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.data.toyshop import DEPARTMENTS
from recipes.hub.files import ROOT

LEAVES = [(leaf, f"{name} > {leaf}") for name, parts in DEPARTMENTS.items() for leaf in parts]
NOUNS = [
    (noun, f"{name} > {leaf}")
    for name, parts in DEPARTMENTS.items()
    for leaf, nouns in parts.items()
    for noun in nouns
]
QUERIES = LEAVES + [(path.replace(" > ", " "), path) for _, path in LEAVES] + NOUNS
NEW = (
    ("Bramble walnut kettle", "Bramble", "Kitchen > Kettles"),
    ("Corvid copper electric kettle", "Corvid", "Kitchen > Kettles"),
    ("Quillon oak puzzle", "Quillon", "Play > Puzzles"),
    ("Norrland blue wildflower mix", "", "Garden > Seeds"),
    ("Elmstead dry fountain pen", "Elmstead", "Desk > Pens"),
    ("Yarrow soft felt picks", "Yarrow", "Music > Picks"),
    ("Pell silk bivy sack", "Pell", "Outdoors > Tents"),
    ("Saltmarsh tiny dungeon crawler", "Saltmarsh", "Play > Board games"),
)


@pytest.fixture
def demo():
    folder = Path(os.environ.get("TTDS_MODEL", ROOT / "outputs" / "demo"))
    if not (folder / "model.safetensors").is_file():
        pytest.skip("no outputs/demo; `make demo` trains it")
    model = TTDSForCausalLM.from_pretrained(folder).eval()
    if {item["categories"] for item in model.catalogue} != {path for _, path in LEAVES}:
        pytest.skip("the model was not trained on the generated shop")
    return model


def paths(model, found):
    return [model.catalogue[model.row_of[best.item_id]]["categories"] for best in found]


def kettles(model):
    return [i["item_id"] for i in model.catalogue if "electric kettle" in i["title"]]


def somebody(model, number):
    draw, ids = random.Random(0), list(model.row_of)
    return [draw.sample(ids, 3) for _ in range(number)]


@pytest.mark.parametrize("query", ["kettle", "Kettles", "electric kettle"])
def test_a_query_for_kettles_gets_ten_kettles(demo, query):
    nobody, known = demo.recommend([[], somebody(demo, 1)[0]], queries=[query] * 2)
    assert paths(demo, nobody) == ["Kitchen > Kettles"] * 10
    assert paths(demo, known) == ["Kitchen > Kettles"] * 10


@pytest.mark.parametrize("known", [False, True])
def test_nine_of_ten_answers_are_of_the_category_that_was_asked_for(demo, known):
    assert len(QUERIES) >= 100
    histories = somebody(demo, len(QUERIES)) if known else [[]] * len(QUERIES)
    lists = demo.recommend(histories, queries=[query for query, _ in QUERIES])
    right = [
        sum(path == wanted for path in paths(demo, found)) / 10
        for found, (_, wanted) in zip(lists, QUERIES, strict=True)
    ]
    assert sum(right) / len(right) >= 0.9


def test_words_the_shop_does_not_know_get_no_list(demo):
    words = ["chess", "zugzwang", "a gift", "iphone", "Schraubenzieher"]
    assert demo.recommend([[]] * len(words), queries=words) == [[]] * len(words)
    with pytest.raises(ValueError, match="holds no word"):
        demo.recommend([[]], queries=[" "])


def test_who_chose_a_new_kettle_is_shown_the_kitchen(demo):
    title, brand, category = NEW[0]
    demo.add_items([{"item_id": "new", "title": title, "brand": brand, "categories": category}])
    for how in ({}, {"rerank": False, "memory": False}):
        found = paths(demo, demo.recommend([["new"]], **how)[0])
        assert sum(path.startswith("Kitchen") for path in found) >= 7, how


def test_the_language_model_writes_new_items_for_the_owners_of_their_like(demo):
    items = [
        {"item_id": f"new-{n}", "title": title, "brand": brand, "categories": category}
        for n, (title, brand, category) in enumerate(NEW)
    ]
    demo.add_items(items)
    known = len(demo.catalogue) - len(items)
    likeness = demo.item_text[known:] @ demo.item_text[:known].T
    owners = [
        [demo.catalogue[row]["item_id"] for row in rows]
        for rows in likeness.topk(5, dim=1).indices.tolist()
    ]
    lists = demo.recommend(owners, top_k=10, rerank=False, memory=False)
    found = [
        item["item_id"] in [best.item_id for best in answer]
        for item, answer in zip(items, lists, strict=True)
    ]
    assert sum(found) >= len(items) / 2


def test_what_is_chosen_with_an_electric_kettle_is_of_the_kitchen(demo):
    lists = [paths(demo, found) for found in demo.similar_items(kettles(demo))]
    kitchen = [sum(path.startswith("Kitchen") for path in found) for found in lists]
    # Most of ten, by chance one or two: trainings that differ by rounding have 6.8 and 8.8. Of
    # kettles, by chance less than one, they have 2.7 and 3.7.
    assert sum(kitchen) / len(kitchen) > 5
    assert sum(found.count("Kitchen > Kettles") for found in lists) / len(lists) >= 2
