"""A run with a moving SID table: killed, cut short, on two processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.data.tables import write_data
from recipes.evaluation.report import lists_folder
from recipes.tuning.trainer import last_whole_checkpoint
from tests.conftest import ROOT, SMALL

DYNAMIC = """
num_codes: 16
refresh_steps: 3
freeze_at: 0.7
tower_grad_scale: 0.1
tower_weight: 1.0
tower_learning_rate: 1.0e-3
soft_target_weight: 0.1
infonce_weight: 0.1
cosine_weight: 0.1
tasks: {next_user: 0.5, query: 0.5, profile_of_user: 0.5}
reranker: false
eval_strategy: "no"
load_best_model_at_end: false
save_strategy: steps
save_steps: 4
logging_steps: 1
num_train_epochs: 3
"""


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory, shop):
    """Return the command of a small run with a moving SID table, for an output folder."""
    folder = tmp_path_factory.mktemp("dynamic")
    write_data(shop.data, folder / "data")
    (folder / "dynamic.yaml").write_text(SMALL.replace("num_codes: 8\n", "").replace(
        "num_train_epochs: 2\n", "").replace("tasks: {}\n", "") + DYNAMIC)  # fmt: skip

    def command(output, *arguments):
        return [
            sys.executable, "recipes/sft.py", "--config", str(folder / "dynamic.yaml"),
            "--dataset_name", str(folder / "data"), "--cache_dir", str(folder / "cache"),
            "--output_dir", str(folder / output), *arguments,
        ]  # fmt: skip

    return folder, command


@pytest.fixture(scope="module")
def whole(dynamic):
    folder, command = dynamic
    done = subprocess.run(command("whole"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "whole"


def losses(folder):
    """Return step -> loss from the newest checkpoint's log."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def same(ours: Path, theirs: Path) -> None:
    weights = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    ours, theirs = (lists_folder(folder) / "run.jsonl" for folder in (ours, theirs))
    assert ours.read_text() == theirs.read_text()


def test_the_index_moves_and_freezes(whole):
    refreshes = json.loads((whole / "metrics.json").read_text())["tuning"]["refreshes"]
    assert any(refresh["churn"] > 0 for refresh in refreshes)
    codes = load_file(whole / "model.safetensors")["item_sids"]
    assert len(codes.unique(dim=0)) == len(codes)
    assert "churn_0" in refreshes[0] and "collision_rate" in refreshes[0]


def test_killed_and_resumed_equals_uninterrupted(dynamic, whole):
    folder, command = dynamic
    step, delay = random.choice((4, 8, 12, 16)), random.uniform(0, 0.2)
    process = subprocess.Popen(
        command("killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / "killed" / f"checkpoint-{step}" / "complete.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "killed" / "metrics.json").exists(), "killed too late to mean anything"
    resumed = subprocess.run(
        command("killed", "--resume_from_checkpoint", "true"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert resumed.returncode == 0, f"step {step}, delay {delay}: {resumed.stderr[-3000:]}"
    same(folder / "killed", whole)
    assert losses(folder / "killed") == losses(whole)


def test_a_moved_run_ends_with_its_best_weights(dynamic):
    folder, command = dynamic
    best = ("--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", "4",
            "--save_total_limit", "99", "--num_train_epochs", "1")  # fmt: skip
    done = subprocess.run(command("first", *best), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    newest = max((folder / "first").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    (folder / "moved").mkdir()
    for checkpoint in (folder / "first").glob("checkpoint-*"):
        checkpoint.rename(folder / "moved" / checkpoint.name)
    # The first checkpoint is said to be the best one, in as many bytes.
    state = folder / "moved" / newest.name / "trainer_state.json"
    text, size = state.read_text(), state.stat().st_size
    found = json.loads(text)
    found |= {"best_global_step": 4, "best_metric": 1e9}
    text = json.dumps(found, separators=(",", ":"))
    state.write_text(text + " " * (size - len(text.encode())))
    done = subprocess.run(
        command("moved", *best, "--resume_from_checkpoint", "true"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (
        load_file(path / "model.safetensors")
        for path in (folder / "moved", folder / "moved" / "checkpoint-4")
    )
    for name in ("node_head.state_0", "item_reader.weight"):
        assert torch.equal(ours[name], theirs[name]), name


def test_a_checkpoint_whose_seal_is_damaged_is_passed_over(tmp_path, capsys):
    for step, seal in ((2, '{"weights": 3}'), (10, '{"wei')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text("abc")
        (folder / "complete.json").write_text(seal)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert "checkpoint-10 was cut short and is passed over" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["shortened", "unsealed"])
def test_a_checkpoint_cut_short_is_passed_over(dynamic, whole, damage):
    folder, command = dynamic
    newest, before = sorted(
        whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True
    )[:2]
    for checkpoint in (newest, before):
        shutil.copytree(checkpoint, folder / damage / checkpoint.name)
    victim = folder / damage / newest.name
    if damage == "unsealed":
        (victim / "complete.json").unlink()
    else:
        content = (victim / "model.safetensors").read_bytes()
        (victim / "model.safetensors").write_bytes(content[: len(content) // 2])
    done = subprocess.run(
        command(damage, "--resume_from_checkpoint", "true"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{newest.name} was cut short" in done.stdout
    same(folder / damage, whole)


SPY = """
import hashlib, json, os, sys
sys.path.insert(0, os.getcwd())
from recipes import sft
from recipes.tuning import trainer

class Spy(trainer.TTDSTrainer):
    def train(self, **settings):
        super().train(**settings)
        codes = self.ttds.item_sids.numpy().tobytes() + self.ttds.user_sids.numpy().tobytes()
        log = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        churn = [e["sids/churn"] for e in self.state.log_history if "sids/churn" in e]
        with open(f"{self.args.output_dir}-rank{self.args.process_index}.json", "w") as file:
            json.dump({"rank": self.args.process_index, "world": self.args.world_size,
                "codes": hashlib.sha256(codes).hexdigest(), "losses": log, "churn": churn}, file)
        self.accelerator.wait_for_everyone()
        os._exit(0)

sft.TTDSTrainer = Spy
sft.main(*sft.parse_arguments())
"""


def test_two_processes_do_as_one_with_twice_the_batch(dynamic):
    folder, command = dynamic
    (folder / "spy.py").write_text(SPY)
    settings = ["--dropout", "0", "--item_vector_dropout", "0",
                "--tower_weight", "0", "--infonce_weight", "0",
                "--cosine_weight", "0", "--save_strategy", "no",
                "--dataloader_drop_last", "true"]  # fmt: skip

    def run(output, start, batch):
        arguments = command(output, *settings, "--per_device_train_batch_size", str(batch))[2:]
        done = subprocess.run(
            [*start, str(folder / "spy.py"), *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [
            json.loads(file.read_text()) for file in sorted(folder.glob(f"{output}-rank*.json"))
        ]

    accelerate = str(Path(sys.executable).with_name("accelerate"))
    config = str(ROOT / "recipes" / "accelerate" / "cpu.yaml")
    two = run("two", [accelerate, "launch", "--config_file", config], 16)
    (one,) = run("one", [sys.executable], 32)
    assert [result["world"] for result in two] == [2, 2]
    assert {result["rank"] for result in two} == {0, 1}
    assert two[0]["codes"] == two[1]["codes"]
    assert any(two[0]["churn"])
    assert two[0]["losses"] == pytest.approx(one["losses"], abs=1e-4)
