"""A model that was published loads in every way, where our package is not."""

import re
import shutil
import subprocess
import sys

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from tests.hub.conftest import published
from tests.hub_server import TOKEN

LOAD = """
import json, sys
for name in ("modeling_ttds", "recipes"):
    sys.modules[name] = None  # importing it raises, even where it is installed
import torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
first, out = sys.argv[1:]
remote = {"trust_remote_code": True}

def same(ours, theirs):
    # A batch rounds otherwise than a single row.
    def names(lists): return [[entry["item_id"] for entry in entries] for entries in lists]
    def scores(lists): return torch.tensor([e["score"] for entries in lists for e in entries])
    torch.testing.assert_close(scores(ours), scores(theirs), rtol=1e-4, atol=1e-4)
    return names(ours) == names(theirs)

config = AutoConfig.from_pretrained("org/name", **remote)
model = AutoModel.from_pretrained("org/name", **remote).eval()
history = [entry["item_id"] for entry in model.catalogue[3:6]]
expected = model.recommend([history, []], top_k=5)
causal = AutoModelForCausalLM.from_pretrained("org/name", device_map="cpu", **remote).eval()
assert causal.recommend([history, []], top_k=5) == expected
tokenizer = AutoTokenizer.from_pretrained("org/name", **remote)
assert tokenizer.decode_items(tokenizer.encode_items(history)) == history
assert config.num_items == len(model.catalogue) == len(expected[0]) + 66

# Revisions: the first commit has one item more.
old = AutoModel.from_pretrained("org/name", revision=first, **remote).eval()
assert len(old.catalogue) == len(model.catalogue) + 1
gone = old.catalogue[-1]["item_id"]
assert gone in old.row_of and gone not in model.row_of
assert old.tokenizer.decode_items(old.tokenizer.encode_items([gone])) == [gone]
old_pipeline = pipeline(model="org/name", revision=first, **remote)
assert len(old_pipeline({"history": [gone]})) == 10

# Half precision halves the language model; codes, and so users, stay the same.
half = AutoModel.from_pretrained("org/name", dtype=torch.bfloat16, **remote).eval()
assert half.dtype == torch.bfloat16
assert all(p.dtype == torch.bfloat16 for p in (*half.model.parameters(), half.lm_head.weight))
rows = torch.tensor([[3, 4, 5], [-1, 7, 2]])
assert half.sids_of_users(rows).equal(model.sids_of_users(rows))
for rerank in (True, False):
    ours, theirs = (m.recommend([history], 5, rerank=rerank)[0] for m in (half, model))
    assert all(abs(a.score - b.score) < 0.1 for a, b in zip(ours, theirs))
new = {"item_id": "new", "title": "A walnut kettle"}
half.add_items([new])

# The pipeline.
recommend = pipeline(model="org/name", **remote)
one = recommend({"history": history, "top_k": 5})
assert one[0].keys() == {"item_id", "title", "score"} and one[0]["title"]
plain = [[vars(entry) for entry in entries] for entries in expected]
assert same([one], plain[:1])
assert recommend([{"history": history, "top_k": 5}, {"history": [], "top_k": 5}]) == plain
requests = [{"history": history[:n], "top_k": 3 + n} for n in (0, 1, 2, 3) * 5]
whole = recommend(requests)
assert same(whole, recommend(requests, batch_size=3))
assert same(whole, [recommend(request) for request in requests])
assert [len(entries) for entries in whole] == [3, 4, 5, 6] * 5
assert same(whole, list(recommend((r for r in requests), batch_size=7)))
assert recommend([]) == []
assert len(recommend({"history": ["?"] + history}, unknown="skip", rerank=False, top_k=2)) == 2
for request, message in [("x", "must be {"), ({"history": "x"}, "must be {"),
                         ({"history": ["?"]}, "unknown item '?'"),
                         ({"history": [], "topk": 1}, "'topk'"),
                         ({"history": [], "top_k": 0}, "`top_k` is 0")]:
    try:
        recommend(request)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(request)

# Save and load again, from every way of loading; a chain changes nothing.
recommend.save_pretrained(out + "/a")
again = AutoModel.from_pretrained(out + "/a", **remote).eval()
again.save_pretrained(out + "/b")
tokenizer.save_pretrained(out + "/b")
assert pipeline(model=out + "/b", **remote)({"history": history, "top_k": 5}) == one
half.save_pretrained(out + "/half")
assert AutoModel.from_pretrained(out + "/half", **remote).lm_head.weight.dtype == torch.bfloat16

# A commit after loading does not reach a model that is loaded.
held = AutoModel.from_pretrained("org/name", **remote), type(model).from_pretrained("org/name")
HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="sid_table.json", repo_id="org/name")
for loaded in held:
    assert loaded.tokenizer.decode_items(loaded.tokenizer.encode_items(history)) == history

# What the card tells a reader to run.
card = open(hf_hub_download("org/name", "README.md")).read()
snippet = card.split("```python\\n")[1].split("```")[0]
exec(snippet, {})
print("all of it")
"""


def test_published_model_loads_in_every_way(folder, server, publish, environment, tmp_path):
    publish(folder)
    first = server.repos["model", "org/name"].commits[-1][0]
    model = TTDSForCausalLM.from_pretrained(folder)
    model.remove_items([model.catalogue[-1]["item_id"]])
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    model.save_pretrained(second)
    model.tokenizer.save_pretrained(second)
    publish(second)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, first, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all of it\n")
    printed = re.findall(r"^ *-\d+\.\d\d  \S", done.stdout, re.M)
    assert len(printed) == 5, "the card's code prints a list"
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {file.name for file in (tmp_path / "b").iterdir()}
    beside = {"README.md", "metrics.json", "handler.py", "requirements.txt"}
    assert files == set(published(server)) - beside
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


PRIVATE = """
import os, sys
from transformers import AutoModel
where = {"token": os.environ.pop("TOKEN_IN_HAND"), "cache_dir": sys.argv[1] + "/elsewhere"}
model = AutoModel.from_pretrained("org/name", trust_remote_code=True, **where)
model.add_items([{"item_id": "new", "title": "A walnut kettle"}])  # needs the tokenizer
assert len(model.recommend([["new"]], top_k=5)[0]) == 5
model.save_pretrained(sys.argv[1] + "/saved")
"""


def test_token_in_hand_opens_a_private_repository(folder, server, publish, environment, tmp_path):
    publish(folder, "--private")
    del environment["HF_TOKEN"]
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, str(tmp_path)], cwd=tmp_path, capture_output=True,
        env=environment | {"TOKEN_IN_HAND": TOKEN}, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    assert not [f for f in (tmp_path / "saved").iterdir() if TOKEN.encode() in f.read_bytes()]
