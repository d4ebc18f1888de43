"""What a run shows while and after it runs: trackers, lines per stage, a picture, no noise."""

import json
import os
import re
import sqlite3
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.data.tables import write_data
from recipes.evaluation.report import lists_folder
from recipes.hub.run import draw_curve
from tests.conftest import ROOT, SMALL
from tests.tuning.test_resume import DYNAMIC

TRACKED = {"loss", "eval_NDCG@10", "eval_HR@10", "sids/churn"}


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    """A small run with a moving SID table, reported to two trackers on this machine."""
    folder = tmp_path_factory.mktemp("tracked")
    write_data(shop.data, folder / "data")
    settings = f"{SMALL}{DYNAMIC}report_to: [trackio, tensorboard]\nproject: shop\n"
    # As a newcomer runs it: with a bar, on what there is, and the best checkpoint in the end.
    settings = re.sub(r"(eval_strategy|disable_tqdm|use_cpu|load_best\w*): .*\n", "", settings)
    settings += "eval_strategy: steps\neval_steps: 5\nsave_steps: 5\n"
    unique = {line.split(":")[0]: line for line in settings.splitlines() if line}
    (folder / "run.yaml").write_text("\n".join(unique.values()))
    command = [
        sys.executable, "recipes/sft.py", "--config", str(folder / "run.yaml"),
        "--dataset_name", str(folder / "data"), "--cache_dir", str(folder / "cache"),
        "--output_dir", str(folder / "out"),
    ]  # fmt: skip
    places = {"TRACKIO_DIR": str(folder / "trackio"), "TENSORBOARD_LOGGING_DIR": str(folder)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | places
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def plain(names):
    """Return names of metrics without what a tracker puts before them."""
    return {name.removeprefix("train/").replace("eval/", "eval_") for name in names}


def test_losses_metrics_and_refreshes_reach_trackio(run):
    folder, _ = run
    (file,) = (folder / "trackio").glob("shop*.db")
    with sqlite3.connect(file) as tables:
        logged = [json.loads(row[0]) for row in tables.execute("SELECT metrics FROM metrics")]
    named = {
        name.removeprefix("train/").replace("eval/", "eval_") for row in logged for name in row
    }
    assert named >= TRACKED, named


def test_losses_metrics_and_refreshes_reach_tensorboard(run):
    folder, _ = run
    named = set()
    for file in folder.rglob("events.out.tfevents.*"):
        named |= set(EventAccumulator(str(file)).Reload().Tags()["scalars"])
    assert plain(named) >= TRACKED, named


def test_a_run_says_what_it_does_and_makes_no_noise(run):
    folder, done = run
    lines = done.stdout.splitlines()
    assert re.match(r"150 users, 72 items, [\d,]+ interactions, on ", lines[1])
    stages = [line for line in lines if re.search(r" \d+\.\d s$", line)]
    assert [line.split()[0] for line in stages] == [
        "Read", "Build", "Embed", "Fit", "Fit", "Tune", "Fit", "Save",
    ]  # fmt: skip
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 4 and max(map(len, rows)) <= 100
    for noise in ("Warning", "were not passed", "missing keys"):
        assert noise not in done.stderr
    # A bar that is drawn again begins at the left; two at a time would move the cursor up.
    assert "\x1b[A" not in done.stderr
    assert re.search(r"^step \d+: validation HR@10 0\.\d+", done.stdout + done.stderr, re.M)


def test_the_training_curve_is_drawn_and_shown(run):
    folder, _ = run
    picture = (folder / "out" / "training.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < 200_000
    assert "](training.png)" in (folder / "out" / "README.md").read_text()
    log = json.loads((folder / "out" / "metrics.json").read_text())["tuning"]["log"]
    assert sum("loss" in entry for entry in log) > 5
    assert sum("NDCG@10" in entry for entry in log) > 2


def test_another_curve_is_another_picture(tmp_path):
    def drawn(*losses):
        log = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
        draw_curve(tmp_path / "curve.png", {"log": log, "refreshes": []})
        return (tmp_path / "curve.png").read_bytes()

    assert drawn(3, 2, 1) == drawn(3, 2, 1) != drawn(1, 2, 3)


def test_no_file_of_the_folder_names_a_user(run, shop):
    folder, _ = run
    for file in (folder / "out").rglob("*"):
        if file.is_file() and "checkpoint" not in str(file):
            content = file.read_bytes()
            assert not [user for user in shop.data.user_ids if user.encode() in content], file
    assert shop.data.user_ids[0] in (lists_folder(folder / "out") / "run.jsonl").read_text()
