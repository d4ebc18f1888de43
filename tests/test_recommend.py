"""Lists for everyone: the same by one process and by two, made once."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recipes.data.tables import write_data
from recipes.hub.files import ROOT


@pytest.fixture(scope="module")
def asked(built, shop, tmp_path_factory):
    """Return a function that runs the verb, and the folder it works in."""
    folder = tmp_path_factory.mktemp("lists")
    write_data(shop.data, folder / "data")
    built.save_pretrained(folder / "model")
    built.tokenizer.save_pretrained(folder / "model")
    accelerate = str(Path(sys.executable).with_name("accelerate"))

    def run(output, *arguments, processes=1):
        start = [sys.executable]
        if processes > 1:
            start = [accelerate, "launch", "--multi_gpu", "--num_processes", str(processes)]
        command = [
            *start, "recipes/recommend.py", "--model", str(folder / "model"), "--dataset_name",
            str(folder / "data"), "--output", str(folder / output), "--shard_size", "40",
            "--use_cpu", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    return folder, run


def table(folder):
    parts = sorted(folder.glob("part-*.parquet"))
    return pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)


@pytest.fixture(scope="module")
def one(asked):
    folder, run = asked
    done = run("one")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "users, " in done.stdout and "a second" in done.stdout
    assert "shards: 100%" in done.stderr and "Creating" not in done.stderr
    return folder / "one"


def test_every_user_has_the_list_recommend_gives(one, built, shop):
    lists = table(one)
    assert lists.user_id.tolist() == shop.data.user_ids
    ids = shop.data.catalogue.item_ids
    history = [ids[row] for row in shop.data.histories[5]]
    expected = built.recommend([history])[0]
    assert lists.item_ids[5].tolist() == [r.item_id for r in expected]
    assert lists.scores[5].tolist() == pytest.approx([r.score for r in expected], abs=1e-4)


def test_two_processes_give_the_lists_of_one(asked, one):
    folder, run = asked
    done = run("two", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Process 0: " in done.stdout and "Process 1: " in done.stdout
    ours, theirs = table(folder / "two"), table(one)
    assert ours.user_id.tolist() == theirs.user_id.tolist()
    assert [row.tolist() for row in ours.item_ids] == [row.tolist() for row in theirs.item_ids]


def test_only_missing_shards_are_made(asked, one):
    _, run = asked
    timestamps = {part: part.stat().st_mtime_ns for part in one.glob("part-*")}
    victim = max(timestamps)
    content = victim.read_bytes()
    victim.unlink()
    done = run("one")
    assert done.returncode == 0, done.stderr[-3000:]
    assert victim.read_bytes() == content
    del timestamps[victim]
    assert all(part.stat().st_mtime_ns == before for part, before in timestamps.items())
    assert "already" in run("one").stdout


def test_shards_of_another_request_are_not_mixed(asked, one):
    folder, run = asked
    done = run("one", "--top_k", "5")
    assert done.returncode != 0 and "made with `top_k` 10, not 5" in done.stderr
    done = run("data")
    assert done.returncode != 0 and "is not empty and holds no shards" in done.stderr
    done = run("other", "--top_k", "5000")
    assert done.returncode != 0 and "`--top_k` is 5000" in done.stderr
    assert not (folder / "other").exists()
