"""A model that items joined or left, on its way to the Hub: whole, and with true words."""

import json
import subprocess
import sys

import pytest

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import RerankerOptions
from recipes.data.tables import write_data
from recipes.evaluation import report
from recipes.hub.card import data_facts
from recipes.hub.files import PublishError, model_files, model_sha256
from recipes.hub.run import save_run
from recipes.ranking import reranker
from tests.conftest import ROOT
from tests.hub.conftest import published

NEW = {"item_id": "new", "title": "Walnut kettle"}


@pytest.fixture(scope="module")
def measured(built, split, shop, tmp_path_factory):
    """What a run leaves, with a co-occurrence memory of pairs that two users have in common."""
    folder = tmp_path_factory.mktemp("measured") / "model"
    built.save_pretrained(folder)
    model = TTDSForCausalLM.from_pretrained(folder).eval()
    rows, lists = reranker.rank_users(
        model, model, split, None, RerankerOptions(min_pair_users=2), num_beams=20, seed=0
    )
    facts = {
        "dataset": "mine", "data": data_facts(None, shop.data), "data_sha256": shop.data.sha256,
        "backbone": None, "seed": 0, "towers": {}, "hardware": "a machine", "seconds": 1.0,
        "options": {"dataset_name": "mine", "min_pair_users": 2},
    }  # fmt: skip
    save_run(folder, None, model, split, lists, facts | rows)
    return folder


@pytest.fixture
def changed(measured, tmp_path):
    """The same folder after an item joined and another left."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in measured.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    model = TTDSForCausalLM.from_pretrained(folder).eval()
    model.add_items([NEW])
    model.save_pretrained(folder)
    return folder


def test_the_hash_of_a_model_follows_weights_and_items_alone(measured, tmp_path):
    expected = model_sha256(measured)
    assert json.loads((measured / "metrics.json").read_text())["model_sha256"] == expected
    model = TTDSForCausalLM.from_pretrained(measured)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert model_sha256(tmp_path / "shards") == expected
    model.catalogue[0]["title"] = "Another title"
    model.save_pretrained(tmp_path / "renamed")
    model = TTDSForCausalLM.from_pretrained(measured)
    model.item_tower.codebooks.data[0, 0, 0] += 1
    model.save_pretrained(tmp_path / "moved")
    hashes = {model_sha256(tmp_path / name) for name in ("renamed", "moved")}
    assert len(hashes | {expected}) == 3


def test_figures_of_an_earlier_state_are_called_so(measured, changed):
    before = model_files(measured, "org/name")["README.md"].decode()
    after = model_files(changed, "org/name")["README.md"].decode()
    assert "Measured before the model was changed" not in before and "metric_value" not in after
    assert "Measured before the model was changed" in after and "value: 0." in before
    assert "value: 0." not in after, "the metadata claim no result"
    assert "Catalogue: 73 items" in after


def test_the_card_and_the_refusal_know_what_the_memory_holds(measured, changed):
    behind = "pairs of items that at least 2 users had in common"
    for folder in (measured, changed):
        assert behind in model_files(folder, "org/name")["README.md"].decode()
    # Metrics that `recipes/evaluate.py` alone wrote know of no options: the model itself does.
    metrics = json.loads((changed / "metrics.json").read_text())
    (changed / "metrics.json").write_text(
        json.dumps({name: metrics[name] for name in ("dataset", "data_sha256", "test")})
    )
    assert behind in model_files(changed, "org/name")["README.md"].decode()
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"min_pair_users": 1}))
    with pytest.raises(PublishError, match="Train with --min_pair_users 5"):
        model_files(changed, "org/name")


def evaluate(folder, *arguments):
    command = [sys.executable, "recipes/evaluate.py", "--model", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_changed_model_is_measured_anew(changed, shop, tmp_path):
    write_data(shop.data, tmp_path / "data")
    done = evaluate(changed, "--dataset_name", str(tmp_path / "data"), "--num_beams", "20")
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((changed / "metrics.json").read_text())
    assert metrics["model_sha256"] == model_sha256(changed)
    lists = (report.lists_folder(changed) / "run.jsonl").read_text().splitlines()
    assert len(lists) == metrics["test"][report.TTDS]["users"]
    assert not any('"new"' in line for line in lists), "what is measured is the data's items"
    card = model_files(changed, "org/name")["README.md"].decode()
    assert "Measured before" not in card and "value: 0." in card


PUSH = """
import sys
from transformers import AutoModel
folder, saved = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.add_items([{"item_id": "new", "title": "Walnut kettle"}])
model.save_pretrained(saved, push_to_hub=True, repo_id="org/name")
model.push_to_hub("org/other")
for name in ("org/name", "org/other"):
    again = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    assert again.catalogue == model.catalogue and again.item_sids.equal(model.item_sids)
    assert again.tokenizer.decode_items(again.tokenizer.encode_items(["new"])) == ["new"]
    assert len(again.recommend([["new"]], top_k=5)[0]) == 5
"""


def test_what_is_pushed_is_what_is_saved(measured, server, environment, tmp_path):  # noqa: F811
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "catalogue.jsonl").write_text("an old one")
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(measured), str(saved)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    files = {f.name: f.read_bytes() for f in saved.iterdir() if f.name != "README.md"}
    assert {"catalogue.jsonl", "tokenizer.json", "sid_table.json"} <= files.keys()
    for name in ("org/name", "org/other"):
        sent = published(server, name=name)
        assert sent.keys() - {"README.md"} == files.keys()
        assert all(sent[file] == content for file, content in files.items())
