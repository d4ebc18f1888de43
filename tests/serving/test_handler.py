"""`handler.py` as an Inference Endpoint runs it: downloaded with the model, our package absent."""

import copy
import subprocess
import sys

import pytest

from recipes.hub.files import model_files
from recipes.serving.handler import answers, checked
from tests.hub.conftest import (  # noqa: F401, fixtures
    environment,
    folder,  # noqa: F401, a fixture
    server,
)
from tests.hub_server import Repo

# What the service does: download the repository, load the one file by its path, call it.
SERVICE = """
import importlib.util, json, shutil, sys
from pathlib import Path
for name in ("modeling_ttds", "recipes"):
    sys.modules[name] = None  # importing it raises, even where it is installed
from huggingface_hub import snapshot_download
repository, alone = Path(sys.argv[1], "repository"), Path(sys.argv[1], "alone")
snapshot_download("org/name", local_dir=repository)
alone.mkdir()
shutil.copy(repository / "handler.py", alone)
spec = importlib.util.spec_from_file_location("handler", alone / "handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(str(repository))

catalogue = [entry["item_id"] for entry in handler.model.catalogue]
history = catalogue[3:6]
def post(data):  # what arrives and what leaves is JSON
    return json.loads(json.dumps(handler(json.loads(json.dumps(data)))))
def listed(history, **options):
    (entries,) = handler.model.recommend([history], **options)
    return [{"item_id": e.item_id, "title": e.title, "score": e.score} for e in entries]
def same(ours, theirs):  # a batch rounds otherwise than a single row
    assert [e["item_id"] for e in ours] == [e["item_id"] for e in theirs]
    assert all(abs(a["score"] - b["score"]) < 1e-4 for a, b in zip(ours, theirs))

one = post({"inputs": {"history": history, "top_k": 5}})
assert len(one) == 5 and one[0].keys() == {"item_id", "title", "score"}
same(one, listed(history, top_k=5))
several = [
    {"history": history, "top_k": 5},
    {"history": [], "top_k": 2},
    {"history": history[:1], "top_k": 5, "allowed": catalogue[20:23]},
    {"history": history, "user_history": catalogue[40:43], "top_k": 5},
    {"history": ["?", *history], "unknown": "skip", "top_k": 5},
    {"history": history, "allowed": None, "query": None},
]
found = post({"inputs": several})
assert [len(entries) for entries in found] == [5, 2, 3, 5, 5, 10]
same(found[0], one)
same(found[1], listed([], top_k=2))
same(found[2], listed(history[:1], top_k=5, allowed=catalogue[20:23]))
(shifted,) = handler.model.recommend([history], top_k=5, user_histories=[catalogue[40:43]])
assert [e["item_id"] for e in found[3]] == [e.item_id for e in shifted]
same(found[4], one)
assert post({"inputs": []}) == []
shared = post({"inputs": [{"history": history}, {"history": [], "top_k": 1}],
               "parameters": {"top_k": 3}})
assert [len(entries) for entries in shared] == [3, 1]
unsaid = {"inputs": {"history": ["?"], "top_k": None, "unknown": None},
          "parameters": {"top_k": 3, "unknown": "skip"}}
assert len(post(unsaid)) == 3, "what is null says nothing"

wrong = [
    ({}, "`inputs` is None"), ({"inputs": "x"}, "`inputs` is 'x'"), ([], "`inputs` is None"),
    ({"inputs": ["a"]}, "`inputs` 0 is 'a'"),
    ({"history": []}, "`inputs` is None"),
    ({"inputs": {"history": []}, "top_k": 3}, "'top_k' stands beside `inputs`"),
    ({"inputs": {"history": []}, "parameter": {"top_k": 3}}, "'parameter' stands beside `inputs`"),
    ({"inputs": {}}, "`history` is missing"),
    ({"inputs": {"history": "x"}}, "`history` is 'x'"),
    ({"inputs": {"history": [1]}}, "`history` is [1]; it must be a list of item ids, strings."),
    ({"inputs": {"history": ["?"]}}, "unknown item '?'"),
    ({"inputs": [{"history": []}, {"history": ["?"]}]}, "`inputs` 1: `history` holds the unknown"),
    ({"inputs": {"history": [], "user_history": ["?"]}}, "`user_history` holds the unknown item"),
    ({"inputs": {"history": ["x" * 10000]}}, "`history` holds the unknown item 'xxx"),
    ({"inputs": {"history": [], "query": "..."}}, "`query` is '...', which holds no word"),
    ({"inputs": {"history": []}, "parameters": []}, "`parameters` is []"),
    ({"inputs": {"history": [], "topk": 1}}, "`topk` is no field"),
    ({"inputs": {"history": [], "top_k": 0}}, "`top_k` is 0"),
    ({"inputs": {"history": [], "top_k": True}}, "`top_k` is True"),
    ({"inputs": {"history": [], "top_k": 1e9}}, "`top_k` is 1000000000.0"),
    ({"inputs": {"history": [], "top_k": 90}}, "`top_k` is 90; it must be from 1 to the"),
    ({"inputs": {"history": [], "allowed": ["?"]}}, "`allowed` holds the unknown item '?'"),
    ({"inputs": {"history": [], "unknown": "drop"}}, "`unknown` is 'drop'"),
    ({"inputs": {"history": [], "query": "kettle"}}, "was not tuned for the question 'query'"),
    ({"inputs": {"history": [], "query": "x" * 501}}, "500 characters at most"),
    ({"inputs": {"history": ["a"] * 1001}}, "holds 1,001 items; send 1,000 at most"),
    ({"inputs": [{"history": []}] * 65}, "`inputs` holds 65 requests; send 64 at most"),
    ({"inputs": {"history": []}, "parameters": [1]}, "`parameters` is [1]"),
    ({"inputs": {"history": []}, "parameters": {"temperature": 1}}, "`temperature` is no field"),
]
for data, message in wrong:
    try:
        post(data)
    except ValueError as error:
        assert message in str(error) and str(error).endswith("."), (data, error)
        assert "\\n" not in str(error) and len(str(error)) < 400, error
    else:
        raise AssertionError(data)
same(module.EndpointHandler("org/name")({"inputs": {"history": history, "top_k": 5}}), one)
print("all of it")
"""


def test_the_file_alone_answers_as_the_service_asks(
    folder, server, environment, tmp_path  # noqa: F811
):  # fmt: skip
    files = model_files(folder, "org/name")
    sent = {name: f if isinstance(f, bytes) else f.read_bytes() for name, f in files.items()}
    server.repos["model", "org/name"] = Repo()
    server.repos["model", "org/name"].commit(sent)
    assert sent["requirements.txt"].decode().splitlines()[0] == "transformers>=5.17,<6"
    assert b'{"inputs": {"history": ["ID"], "top_k": 5}}' in sent["README.md"]
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all of it\n")


def test_one_refused_request_leaves_the_others_their_lists(built):
    history = [entry["item_id"] for entry in built.catalogue[:2]]
    good, bad = checked({"history": history}), checked({"history": ["?"]})
    expected = [entry.item_id for entry in built.recommend([history])[0]]
    found = answers(built, [good, bad, good])
    assert [[entry["item_id"] for entry in found[n]] for n in (0, 2)] == [expected] * 2
    assert isinstance(found[1], ValueError) and "unknown item '?'" in str(found[1])


def test_a_text_encoder_that_is_gone_is_said_to_who_asks_in_words(built):
    model = copy.copy(built)
    model.config = copy.copy(built.config)
    model.config.text_encoder = "/no/such/encoder"
    model.config.prompts = {"query": "Query: {query}:"}
    found = answers(model, [checked({"history": []}), checked({"history": [], "query": "kettle"})])
    assert len(found[0]) == 10
    assert isinstance(found[1], ValueError) and "cannot be loaded" in str(found[1])


def test_requests_of_the_same_options_share_a_batch(built):
    class Counting:
        sizes = []

        def recommend(self, histories, **options):
            self.sizes.append(len(histories))
            return built.recommend(histories, **options)

    items = [entry["item_id"] for entry in built.catalogue]
    requests = [{"history": items[n : n + 2], "top_k": 3} for n in range(5)]
    requests += [{"history": items[:1], "top_k": 3, "allowed": items[n : n + 9]} for n in (0, 0, 1)]
    found = answers(Counting(), [checked(request) for request in requests])
    assert Counting.sizes == [5, 2, 1]
    assert all(len(entries) == 3 for entries in found)


def test_null_says_nothing():
    nothing = dict.fromkeys(("user_history", "allowed", "top_k", "query", "unknown"))
    assert checked({"history": ["a"]} | nothing) == {"history": ["a"]}
    with pytest.raises(ValueError, match="`history` is missing"):
        checked({"history": None})
