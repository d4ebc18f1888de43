"""A saved folder works in a process that has only torch, transformers and safetensors."""

import json
import re
import subprocess
import sys
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    packages_distributions,
    requires,
)

import torch

SCRIPT = """
import json, sys
for name in json.loads(sys.argv[3]):
    sys.modules[name] = None  # importing it raises, even where it is installed
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
folder, history = sys.argv[1], json.loads(sys.argv[2])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
other = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = torch.tensor([tokenizer.encode_items(history)])
lists = model.recommend([history], top_k=5)[0]
assert lists == other.recommend([history], top_k=5)[0]
logits = model(input_ids=ids).logits[0, -1].tolist()
model.add_items([{"item_id": "new", "title": "A walnut kettle"}])
model.save_pretrained(folder + "-again"); tokenizer.save_pretrained(folder + "-again")
again = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True).eval()
assert again.item_sids.equal(model.item_sids) and again.catalogue == model.catalogue
try:
    AutoModel.from_pretrained(folder, device_map="cpu", trust_remote_code=True)
    raise AssertionError("accelerate is there")
except ValueError as error:
    assert "pip install accelerate" in str(error)
print(json.dumps({
    "codes": model.item_sids[:-1].tolist(),
    "logits": logits,
    "items": [r.item_id for r in lists],
    "scores": [r.score for r in lists],
    "prompt": config.prompt_ids,
    "text": tokenizer("Hello world, it's 12\\n").input_ids,
}))
"""


def absent() -> list[str]:
    """Return what a process would lack that has torch, transformers and safetensors alone."""
    needed, further = set(), {"torch", "transformers", "safetensors"}
    while further:
        needed |= further
        lines = [line for name in further for line in requires(name) or () if "extra" not in line]
        names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}
        further = {name for name in names - needed if is_installed(name)}
    modules = packages_distributions().items()
    kept = {m for m, owners in modules if needed & {o.lower().replace("_", "-") for o in owners}}
    return ["modeling_ttds", "recipes", *({m for m, _ in modules} - kept)]


def is_installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def test_what_a_bare_process_lacks():
    assert {"accelerate", "datasets", "gradio", "pandas", "peft", "scipy", "trl"} <= {*absent()}
    assert not {"torch", "transformers", "numpy", "tokenizers", "yaml", "tqdm"} & {*absent()}


def test_folder_gives_the_same_codes_logits_and_lists_without_this_repo(built, tmp_path):
    folder = tmp_path / "model"
    built.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    history = [entry["item_id"] for entry in built.catalogue[3:7]]
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(history)]
    command.append(json.dumps(absent()))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = built.recommend([history], top_k=5)[0]
    assert found["codes"] == built.item_sids.tolist()
    assert found["items"] == [r.item_id for r in expected]
    torch.testing.assert_close(found["scores"], [r.score for r in expected])
    ids = torch.tensor([built.tokenizer.encode_items(history)])
    logits = built(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits.detach())
    assert found["prompt"] == built.config.prompt_ids
    assert found["text"] == built.tokenizer("Hello world, it's 12\n").input_ids


def test_folder_holds_no_pickle_and_no_user(built, shop, tmp_path):
    built.save_pretrained(tmp_path)
    built.tokenizer.save_pretrained(tmp_path)
    names = {file.suffix for file in tmp_path.iterdir()}
    assert names <= {".safetensors", ".json", ".jsonl", ".py"}
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not [user for user in shop.data.user_ids if user.encode() in everything]
