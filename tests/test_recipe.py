"""The recipe as a person runs it: a small run end to end, resumed, refused, compared."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.data.tables import write_data
from recipes.evaluation.report import lists_folder
from tests.conftest import ROOT, SMALL


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shop):
    """Return a function that runs the recipe on a small data set of three tables."""
    folder = tmp_path_factory.mktemp("recipe")
    write_data(shop.data, folder / "data")
    (folder / "small.yaml").write_text(SMALL)

    def run(output, *arguments, check=True, launch=False):
        start = [sys.executable]
        if launch:
            start = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu"]
        command = [
            *start, "recipes/sft.py", "--config", str(folder / "small.yaml"),
            "--dataset_name", str(folder / "data"), "--cache_dir", str(folder / "cache"),
            "--output_dir", str(folder / output), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return folder / output, done

    return run


def lists(folder):
    """Return the lists by user id of a run, which lie beside its folder."""
    return (lists_folder(folder) / "run.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(recipe):
    """A run that nothing interrupts."""
    return recipe("whole", launch=True)


def test_run_ends_with_table_examples_and_a_folder(whole):
    folder, done = whole
    for row in (
        "TTDS ",
        "TTDS, language model only",
        "re-ranker only",
        "popularity",
        "Markov chain",
        "item-kNN",
    ):
        assert f"| {row}" in done.stdout
    assert done.stdout.count("A user chose") == 3
    assert "AutoModel.from_pretrained" in done.stdout
    metrics = json.loads((folder / "metrics.json").read_text())["test"]["TTDS, language model only"]
    assert metrics["unique_sids"] == 1
    assert len((lists_folder(folder) / "run.jsonl").read_text().splitlines()) == metrics["users"]
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.tmp"))
    assert not (folder / "rerankers").exists()


def test_every_part_of_the_decoder_trains(whole, recipe):
    folder, _ = whole
    untrained, _ = recipe("untrained", "--learning_rate", "0")
    before = load_file(untrained / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    for name, value in after.items():
        if name.startswith(("model.", "codebook_projections.", "item_reader.", "node_head.state")):
            assert not torch.equal(before[name], value), f"{name} did not train"
        elif not name.startswith(("reranker.", "prior_head.")):
            assert torch.equal(before[name], value), f"{name} should be fixed"


def test_resumed_run_equals_the_whole_one_bit_for_bit(whole, recipe):
    folder, _ = whole
    first = min(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(first, folder.parent / "resumed" / first.name)
    resumed, _ = recipe("resumed", "--resume_from_checkpoint", "true")
    ours, theirs = (load_file(path / "model.safetensors") for path in (resumed, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lists(resumed) == lists(folder)


def test_an_existing_folder_is_not_overwritten(whole, recipe):
    folder, _ = whole
    before = (folder / "model.safetensors").read_bytes()
    _, done = recipe("whole", check=False)
    assert done.returncode != 0 and "is not empty" in done.stderr
    assert (folder / "model.safetensors").read_bytes() == before


def test_unknown_keys_stop_the_run(recipe):
    _, done = recipe("never", "--learnin_rate", "1", check=False)
    assert done.returncode != 0 and "learnin_rate" in done.stderr
    _, done = recipe("never", "--tie_break", "random", check=False)
    assert done.returncode != 0 and "`tie_break` is 'random'" in done.stderr


def test_evaluate_gives_the_same_numbers(whole, tmp_path):
    folder, _ = whole
    data = folder.parent / "data"
    command = [sys.executable, "recipes/evaluate.py", "--model", str(folder), "--dataset_name",
               str(data), "--output", str(tmp_path), "--num_beams", "20"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads((tmp_path / "metrics.json").read_text())["test"]
    ours = json.loads((folder / "metrics.json").read_text())["test"]
    assert theirs["popularity"] == ours["popularity"]
    assert theirs["TTDS"] == ours["TTDS"], "recommend ranks as the fit did"
    assert theirs["TTDS, language model only"] == ours["TTDS, language model only"]
    assert lists(tmp_path) == lists(folder)
