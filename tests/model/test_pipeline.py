"""The pipeline: any iterable of requests, options per request, a model that is loaded already."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import modeling_ttds  # noqa: F401, registers the classes

TASK = "sequential-recommendation"


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def asked(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.config.prompts = {"query": 'Looking for "{query}":', "search": "<user> <item> {query}:"}
    return model


@pytest.fixture
def recommend(asked):
    return pipeline(TASK, model=asked, tokenizer=asked.tokenizer)


@pytest.fixture(scope="module")
def requests(asked):
    ids = [entry["item_id"] for entry in asked.catalogue]
    return [{"history": ids[n : n + n % 4], "top_k": 2 + n % 3} for n in range(13)]


def items(lists):
    return [[entry["item_id"] for entry in entries] for entries in lists]


def test_a_loaded_model_is_all_it_needs(asked, requests, folder):
    expected = asked.recommend([requests[3]["history"]], top_k=4)[0]
    for made in (
        pipeline(TASK, model=asked),
        pipeline(TASK, model=asked, tokenizer=asked.tokenizer),
        pipeline(TASK, model=asked, tokenizer=AutoTokenizer.from_pretrained(folder)),
        pipeline(model=str(folder), trust_remote_code=True),
    ):
        found = made({"history": requests[3]["history"], "top_k": 4})
        assert found == [vars(best) for best in expected]


def test_tokenizer_and_pipeline_are_known_once_the_package_is_imported(folder):
    script = (
        "import sys, modeling_ttds; from transformers import AutoTokenizer, AutoModel, pipeline\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "m = AutoModel.from_pretrained(sys.argv[1])\n"
        "assert (type(t), type(m)) == (modeling_ttds.TTDSTokenizer, modeling_ttds.TTDSForCausalLM)"
        "\n"
        f"assert len(pipeline({TASK!r}, model=m, tokenizer=t)({{'history': []}})) == 10\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]


def rows(requests):
    return Dataset.from_list(requests)


ITERABLES = {
    "list": list, "tuple": tuple, "iterator": iter, "generator": lambda rs: (r for r in rs),
    "map": lambda rs: map(dict, rs), "dataset": rows,
    "key of a dataset": lambda rs: KeyDataset([{"request": r} for r in rs], "request"),
    "stream": lambda rs: IterableDataset.from_generator(lambda: iter(rs)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ITERABLES)
@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_any_iterable_of_requests(recommend, asked, requests, kind, batch_size):
    found = list(recommend(ITERABLES[kind](requests), batch_size=batch_size))
    for request, entries in zip(requests, found, strict=True):
        (expected,) = asked.recommend([request["history"]], top_k=request["top_k"])
        assert [entry["item_id"] for entry in entries] == [best.item_id for best in expected]


def test_histories_alone_are_requests(recommend, requests):
    expected = recommend([{"history": request["history"]} for request in requests])
    histories = [request["history"] for request in requests]
    arrays = [np.array(history, dtype=object) for history in histories]
    series, streams = [pd.Series(history, dtype=object) for history in histories], map(iter, arrays)
    named = [{"history": iter(history)} for history in histories]
    for given in (
        histories, KeyDataset(rows(requests), "history"), rows(requests)["history"],
        arrays, series, list(streams), named,
    ):  # fmt: skip
        assert items(recommend(given)) == items(expected)


def test_what_has_a_length_gives_a_list_and_a_stream_a_stream(recommend, requests):
    for given in (list, tuple, rows):
        assert isinstance(recommend(given(requests)), list)
    taken = []
    stream = recommend((taken.append(r) or r for r in requests), batch_size=2)
    next(stream)
    assert len(taken) == 2
    assert recommend([]) == [] == list(recommend(iter([])))


@pytest.mark.parametrize("count", [1, 7, 65])
def test_lists_of_options_are_split_by_batch(recommend, asked, requests, count):
    chosen = [requests[n % 13] for n in range(count)]
    queries = [("walnut", "kettle", "board")[n % 3] for n in range(count)]
    behind = [requests[(n + 5) % 13]["history"] for n in range(count)]
    found = recommend(chosen, queries=queries, user_histories=behind, batch_size=4)
    assert len(found) == count
    for n in range(0, count, 6):
        (expected,) = asked.recommend(
            [chosen[n]["history"]], chosen[n]["top_k"], [behind[n]], queries=[queries[n]]
        )
        assert items([found[n]]) == [[best.item_id for best in expected]]
    one = recommend(chosen[0], queries=queries[:1], user_histories=behind[:1])
    assert items([one]) == items(found[:1])


def test_streams_of_options_are_whole_for_every_batch_and_call(asked, requests):
    names = [entry["item_id"] for entry in asked.catalogue]
    allowed, count = names[30:50], len(requests)
    behind, words = [names[n : n + 2] for n in range(count)], ["kettle", "board"] * 7
    for whole in ({"allowed": allowed, "user_histories": behind}, {"queries": words[:count]}):
        expected = items(pipeline(TASK, model=asked)(requests, batch_size=count, **whole))
        assert all(expected)
        streams = {name: iter(values) for name, values in whole.items()}
        if "allowed" in whole:
            streams["user_histories"] = (iter(history) for history in behind)
        found = pipeline(TASK, model=asked)(requests, batch_size=2, **streams)
        assert items(found) == expected
        streams = {name: iter(values) for name, values in whole.items()}
        made = pipeline(TASK, model=asked, batch_size=2, **streams)
        assert items(made(requests)) == items(made(requests)) == expected
    made = pipeline(TASK, model=asked, allowed=set(allowed))
    assert made(requests[:1], allowed=None) == pipeline(TASK, model=asked)(requests[:1])


@pytest.mark.parametrize(
    ("option", "message"),
    [({"allowed": "x"}, "^`allowed` is the string 'x'; give a list"),
     ({"allowed": iter([7])}, "^`allowed` holds 7 of type int"),
     ({"user_histories": iter(["x"])}, "^`user_histories` holds the string 'x'; give a list"),
     ({"queries": iter([{}])}, "^Query 0: `queries` is {}"),
     ({"queries": iter(["?"])}, r"^Query 0 is '\?', which holds no word")],
)  # fmt: skip
def test_options_are_checked_as_those_of_recommend(asked, recommend, option, message):
    with pytest.raises(ValueError, match=message):
        recommend([{"history": []}], **option)
    (name, given), *_ = option.items()
    with pytest.raises(ValueError, match=f"^`{name}` is 7; give a list"):
        pipeline(TASK, model=asked, **{name: 7})


@pytest.mark.parametrize("given", [list, iter])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_what_is_wrong_is_numbered_by_its_request(recommend, requests, given, batch_size):
    many = [dict(request, top_k=2 + n % 2) for n, request in enumerate(requests)]
    for number in (0, 2, 7):
        asked = [dict(request) for request in many]
        asked[number]["history"] = ["?"]
        with pytest.raises(ValueError, match=f"^History {number} holds the unknown item '\\?'"):
            list(recommend(given(asked), batch_size=batch_size))
        assert list(recommend(given(asked), batch_size=batch_size, unknown="skip"))
        behind = [[]] * number + [["?"]] + [[]] * (12 - number)
        with pytest.raises(ValueError, match=f"^`user_histories`: history {number} holds the unk"):
            list(recommend(given(many), batch_size=batch_size, user_histories=behind))
        words = ["kettle"] * number + ["?"] + ["kettle"] * (12 - number)
        with pytest.raises(ValueError, match=f"^Query {number} is '\\?', which holds no word"):
            list(recommend(given(many), batch_size=batch_size, queries=words))


@pytest.mark.parametrize("given", [list, iter])
@pytest.mark.parametrize("name", ["queries", "user_histories"])
def test_there_is_one_entry_of_an_option_per_request(recommend, requests, name, given):
    entries = ["kettle"] if name == "queries" else [[]]
    for count in (12, 14):
        with pytest.raises(ValueError, match=f"^`{name}` has {count} entries for 13 "):
            list(recommend(given(requests), batch_size=13, **{name: entries * count}))
    with pytest.raises(ValueError, match=f"^`{name}` is the string 'kettle'; give a list"):
        recommend(requests, **{name: "kettle"})


@pytest.mark.parametrize(
    ("request_", "message"),
    [("x", "A request is 'x'; it must be {"), (7, "A request is 7; it must be {"),
     (["x"], "A request is 'x'; it must be {"), ([7], "A request is 7"),
     ({"history": "x"}, "it must be {"), ({"history": None}, "it must be {"), ({}, "it must be {"),
     ({"history": [7]}, "`history` holds 7 of type int; item ids are strings"),
     ({"history": ["?"]}, "unknown item '?'"), ({"history": [], "topk": 1}, "the key 'topk'"),
     ({"history": [], 7: 1, "b": 1}, "the key 7"), (np.array(["x", "y"]), "A request is 'x'"),
     ({"history": np.array("x")}, "it must be {"), ([{"x"}], "`history` is a set, which has no"),
     ({"history": [], "top_k": 0}, "`top_k` is 0"),
     ({"history": [], "top_k": 3.0}, "`top_k` is 3.0"),
     ({"history": [], "top_k": 73}, "`top_k` is 73; it must be from 1 to the 72 items")],
)  # fmt: skip
def test_a_bad_request_is_refused_in_a_sentence(recommend, request_, message):
    with pytest.raises(ValueError) as error:
        recommend(request_)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [0, -1, 3.0, "3"], ids=repr)
def test_a_batch_size_is_a_count(asked, recommend, value):
    with pytest.raises(ValueError, match="^`batch_size` is "):
        pipeline(TASK, model=asked, batch_size=value)
    with pytest.raises(ValueError, match="^`batch_size` is "):
        recommend([{"history": []}], batch_size=value)
    with pytest.raises(ValueError, match="^`top_k` is " if value != "3" else "`top_k` is '3'"):
        recommend([{"history": []}], top_k=value)


def test_options_of_the_pipeline_hold_for_every_call(asked):
    few = pipeline(TASK, model=asked, top_k=3)
    assert len(few({"history": []})) == 3
    assert len(few({"history": []}, top_k=4)) == 4 == len(few({"history": [], "top_k": 4}))


def test_a_saved_pipeline_is_whole(recommend, requests, tmp_path):
    recommend.save_pretrained(tmp_path / "saved")
    again = pipeline(model=str(tmp_path / "saved"), trust_remote_code=True)
    assert again(requests) == recommend(requests)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = requests[3]["history"]
    assert tokenizer.decode_items(tokenizer.encode_items(ids)) == ids
