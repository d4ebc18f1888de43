"""The harness: what a result keeps, and what is made of results."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from benchmarks import baseline, compare, result, tables
from recipes.data.tables import write_data
from recipes.data.toyshop import generate
from recipes.evaluation.baselines.popularity import popularity
from recipes.evaluation.metrics import evaluate_run
from tests.conftest import ROOT, SHARED

KEPT = "shop-popularity-seed0"
REFEREE = SHARED / "scoring" / "score.py"
HIT_RATE = """
import json, sys
from pathlib import Path
import pandas as pd
table = pd.read_parquet(Path(sys.argv[1]) / "interactions.parquet")
last = table.sort_values("position").groupby("user_id").item_id.last()
lists = [json.loads(line) for line in open(sys.argv[2])]
print("HR@10", sum(last[row["user_id"]] in row["items"][:10] for row in lists) / len(lists))
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder and a folder of lists of the test's own."""
    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(result, "LISTS", tmp_path / "lists")
    return tmp_path / "results"


def python(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {name: str(value) for name, value in variables.items()},
    )  # fmt: skip


def test_lists_come_back_as_item_rows_cut_to_twenty(results, tmp_path):
    lists = np.arange(75).reshape(3, 25)
    result.write_result("some", 0, 1.0, {}, lists)
    file = tmp_path / "lists" / "some.run.jsonl"
    for place in (tmp_path / "lists", file):
        assert result.read_run("some", place) == lists[:, :20].tolist()
    assert [file.name for file in results.iterdir()] == ["some.json"], "no lists beside results"
    first = file.read_bytes()
    result.write_result("some", 0, 1.0, {}, lists)
    assert file.read_bytes() == first


def test_other_lists_than_the_recorded_ones_are_refused(results, tmp_path):
    folder = tmp_path / "lists"
    result.write_result("some", 0, 1.0, {}, [[1, 2], [3, 4]])
    result.write_result("other", 0, 1.0, {}, [[1, 2], [4, 3]])
    result.write_result("none", 0, 1.0, {})
    with pytest.raises(ValueError, match="is not what 'some' was measured on: its SHA-256 is "):
        result.read_run("some", folder / "other.run.jsonl")
    with pytest.raises(ValueError, match="'none' records no `lists_sha256`"):
        result.read_run("none", folder / "other.run.jsonl")
    (folder / "some.run.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="'some' are not at .* --lists, or make them again"):
        result.read_run("some", folder)


@pytest.fixture
def kept(shop, split, results, tmp_path):
    """The result of a method on a data set of files: arguments and variables of `rescore`."""
    write_data(shop.data, tmp_path / "data")
    keep(split, "popularity", 0, popularity(split, "test", 20).tolist(), 0.1)
    arguments = [
        "-m", "benchmarks.rescore", KEPT, "--dataset_name", tmp_path / "data",
        "--output", tmp_path / "output",
    ]  # fmt: skip
    return arguments, {"TTDS_RESULTS": results, "TTDS_LISTS": tmp_path / "lists"}


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_referee_scores_kept_lists_the_same(whose, kept, tmp_path):
    referee = REFEREE
    if whose == "ours":
        referee = tmp_path / "referee.py"
        referee.write_text(HIT_RATE)
    elif not REFEREE.exists():
        pytest.skip("../shared/scoring/score.py is not here")
    arguments, variables = kept
    done = python(*arguments, "--referee", referee, **variables)
    assert done.returncode == 0, done.stderr
    assert f"These are the recorded lists of {KEPT}." in done.stdout
    said = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    expected = json.loads((result.RESULTS / f"{KEPT}.json").read_text())["test"]["HR@10"]
    assert float(said["HR@10"]) == pytest.approx(expected, abs=5e-5)


def test_another_data_set_is_refused(kept, tmp_path):
    arguments, variables = kept
    write_data(generate(seed=2, num_users=150, num_items=72).data, tmp_path / "data")
    done = python(*arguments, **variables)
    assert done.returncode != 0 and f"`data_sha256` of {KEPT}" in done.stderr
    assert not (tmp_path / "output").exists()


def test_lists_of_any_folder_are_rescored_if_they_are_the_recorded_ones(kept, tmp_path):
    arguments, variables = kept
    elsewhere = tmp_path / "elsewhere.jsonl"
    (tmp_path / "lists" / f"{KEPT}.run.jsonl").rename(elsewhere)
    done = python(*arguments, **variables)
    assert done.returncode != 0 and "or make them again" in done.stderr
    done = python(*arguments, "--lists", elsewhere, **variables)
    assert done.returncode == 0, done.stderr
    first, *rest = elsewhere.read_text().splitlines(keepends=True)
    elsewhere.write_text("".join([*rest, first]))
    done = python(*arguments, "--lists", elsewhere, **variables)
    assert done.returncode != 0 and f"is not what {KEPT!r} was measured on" in done.stderr
    assert "Traceback" not in done.stderr


def test_bootstrap_of_known_answer():
    theirs = np.random.default_rng(0).random((500, 2))
    for report in compare.bootstrap(theirs, theirs).values():
        assert report["difference"] == 0 and report["interval"] == [0, 0]
        assert report["share_at_most_0"] == 1
    better = compare.bootstrap(theirs + np.random.default_rng(1).random((500, 2)) + 0.01, theirs)
    assert all(report["share_at_most_0"] == 0 for report in better.values())
    # The deviation of a resampled mean is that of the users over the root of their number.
    noise = np.random.default_rng(2).normal(0, 1, (500, 2))
    for column, report in enumerate(compare.bootstrap(theirs + noise, theirs).values()):
        low, high = report["interval"]
        deviation = noise[:, column].std() / 500**0.5
        assert (high - low) / (2 * 1.96) == pytest.approx(deviation, rel=0.05)


def test_the_bootstrap_is_that_of_scipy():
    draw = np.random.default_rng(3)
    theirs = draw.integers(0, 2, (400, 2)).astype(float)
    ours = np.clip(theirs + draw.integers(-1, 2, (400, 2)), 0, 1)
    for column, report in enumerate(compare.bootstrap(ours, theirs).values()):
        expected = stats.bootstrap(
            (ours[:, column], theirs[:, column]), lambda a, b, axis: (a - b).mean(axis=axis),
            paired=True, method="percentile", n_resamples=compare.RESAMPLES, random_state=draw,
        )  # fmt: skip
        wide = expected.confidence_interval.high - expected.confidence_interval.low
        assert report["interval"] == pytest.approx(expected.confidence_interval, abs=wide / 20)


def keep(split, method, seed, lists, validation):
    name = result.result_name("shop", "published", method, seed)
    content = {
        "dataset": "shop", "tie_break": "published", "method": method,
        "data_sha256": split.data.sha256, "validation": {"NDCG@10": validation},
        "test": evaluate_run(split, "test", lists),
    }  # fmt: skip
    result.write_result(name, seed, 1.0, content, lists)


def test_ours_is_compared_with_the_baseline_best_on_validation(split, results):
    target = split.test_targets[split.users("test")]
    first = [[int(row)] for row in target]
    popular = popularity(split, "test", 20).tolist()
    keep(split, "TTDS", 0, first, 0.9)
    keep(split, "TTDS", 1, popular, 0.1)
    keep(split, "popularity", 0, popular, 0.3)
    keep(split, "item-kNN", 0, first, 0.2)  # better on test, which must not count
    keep(split, "oracle", 0, first, 1.0)
    keep(split, "re-ranker only", 0, [[]] * len(target), 0.8)  # ours in part
    found = compare.compare(split, "shop", "published", result.LISTS)
    assert found["best_baseline"] == "popularity" and found["of"]["seeds"] == [0, 1]
    assert list(found["against"]) == ["re-ranker only", "popularity"]
    groups = found["against"]["popularity"]["slices"]
    hits = evaluate_run(split, "test", popular)
    for name in ("all", "cold", "head", "tail"):
        theirs = hits["HR@10" if name == "all" else f"{name}_HR@10"]
        assert groups[name]["HR@10"]["difference"] == pytest.approx((1 - theirs) / 2)
        assert groups[name]["HR@10"]["share_at_most_0"] < 0.01
    assert found["against"]["re-ranker only"]["slices"]["all"]["HR@10"]["relative"] is None
    table = tables.compare_table([found])
    assert "| shop | popularity | all |" in table


def test_tables_give_mean_and_deviation_over_seeds():
    def row(method, seed, hits, tie_break="published", **more):
        return {
            "dataset": "shop", "method": method, "seed": seed, "tie_break": tie_break,
            "validation": {"NDCG@10": hits}, "test": {"HR@10": hits, "NDCG@10": hits / 2} | more,
        }  # fmt: skip

    hits = (0.1, 0.2, 0.4)
    rows = [row("item-kNN", seed, value) for seed, value in enumerate(hits)]
    rows += [row("something new", 0, 0.3, coverage=1), row("popularity", 0, 0.2)]
    rows.append(row("popularity", 0, 0.5, "shuffled"))
    lines = tables.ranking_table("shop", rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| item-kNN", "| popularity", "| something new",
    ]  # fmt: skip
    cell = f"{statistics.mean(hits):.4f} ± {statistics.stdev(hits):.4f}"
    assert lines[2].startswith(f"| item-kNN | 3 | {cell} |")
    assert lines[3] == "| popularity | 1 | 0.2000 | 0.1000 |", "shuffled rows stay out"
    assert "| shop | popularity | 0.2000 | 0.5000 | 0.1000 | 0.2500 |" in tables.ties_table(rows)


def test_tables_without_results_say_so():
    names = ("ranking x", "slices x", "sids x", "ablation", "cold", "decoding", "ties",
             "compare", "timeline", "drift", "cost", "serving", "update", "first minute",
             "summary", "preparation")  # fmt: skip
    text = "\n".join(f"<!-- table: {name} -->\n<!-- end -->" for name in names)
    assert tables.filled(text, []).count("No result yet.") == len(names) - 1 + 2 * 16


def test_gpu_jobs_at_toy_size_stop_resume_and_are_passed_over(tmp_path):
    work, copied = tmp_path / "work", tmp_path / "copied"
    (work / "results").mkdir(parents=True)
    done = "toyshop-sasrec-full-cross-entropy-seed0", "toyshop-ttds-static-gpu-seed0"
    for name in (*done, "throughput-32x1"):
        (work / "results" / f"{name}.json").write_text("{}")
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--toy", "--work", str(work), "--results",
        str(copied),
    ]  # fmt: skip
    output = work / "toyshop-smollm2-135m-lora"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(output.glob("checkpoint-*/complete.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not (output / "metrics.json").exists(), "stopped too late to mean anything"
    spent = json.loads(output.with_name(f"{output.name}.json").read_text())["seconds"]
    assert spent > 1
    (output / "mark").touch()

    done = python(*command[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (output / "mark").exists(), "it began anew"
    assert "Nothing is left." in done.stdout
    for kind, least in (("SmolLM2-135M, LoRA", spent), ("full", 1)):
        for name in (f"TTDS ({kind}, GPU)", f"TTDS, language model only ({kind}, GPU)"):
            file = copied / f"{result.result_name('toyshop', 'published', name, 0)}.json"
            row = json.loads(file.read_text())
            assert row["method"] == name and row["seconds"] > least and row["test"]["users"] > 100
    assert (copied / "toyshop-ttds-static-gpu-seed0.json").read_text() == "{}"
    again = python(*command[1:])
    assert again.stdout.count(": done") == 5 and "Nothing is left." in again.stdout


def test_options_of_the_jobs_for_a_gpu_are_options_of_the_recipe(monkeypatch):
    from benchmarks import gpu
    from recipes.tuning.arguments import parse_arguments

    monkeypatch.chdir(ROOT)
    trunk, adapters = Path("outputs", "smollm2"), []
    for command in gpu.jobs(gpu.DATASETS, Path("data"), Path("outputs"), trunk, False).values():
        assert not any(part.startswith("/") for part in command), "commands are recorded"
        if "--config" in command:
            named = dict(zip(command[2::2], command[3::2], strict=True))
            kept = {
                key: value for key, value in named.items() if key not in ("--name", "--variant")
            }
            pairs = [part for pair in kept.items() for part in pair]
            monkeypatch.setattr(sys, "argv", ["sft.py", *pairs, "--use_cpu", "true"])
            options, training, backbone = parse_arguments()  # refuses what is unknown
            assert training.bf16 and options.data.dataset_name.startswith("data")
            adapters += [backbone.model_name_or_path] * backbone.use_peft
    assert adapters == [str(trunk)] * len(gpu.DATASETS)


def test_markov_chain_and_text_starts_from_the_tuned_markov_chain(
    split, results, tmp_path, monkeypatch
):
    monkeypatch.setattr(baseline, "RESULTS", results)
    save_file({"text": torch.eye(split.num_items)}, tmp_path / "text_embeddings.safetensors")
    arguments = argparse.Namespace(
        name="shop",
        dataset_name=str(tmp_path),
        tie_break="published",
        seed=0,
        max_configurations=2,
        split="leave_one_out",
        timeline_target="first",
        encoder=None,
    )
    with pytest.raises(FileNotFoundError, match="shop-markov-chain-seed0.json; make that"):
        baseline.measure(arguments, split, baseline.TEXT)
    assert not results.exists()
    for method in (baseline.COUNTS, baseline.TEXT):
        baseline.measure(arguments, split, method)
    counts, both = (
        json.loads((results / f"shop-{name}-seed0.json").read_text())
        for name in ("markov-chain", "markov-chain-text")
    )
    assert both["config"].items() >= counts["config"].items()
    scores = [tried["NDCG@10"] for tried in both["tuning"]["validation NDCG@10"]]
    assert len(scores) == 2 and both["validation"]["NDCG@10"] == max(scores)


@pytest.mark.parametrize("method", ["bilinear-similarity", "all"])
def test_what_needs_text_embeddings_says_so_before_it_reads(method, tmp_path):
    arguments = argparse.Namespace(method=method, dataset_name=str(tmp_path), encoder=None)
    with pytest.raises(SystemExit, match="needs text embeddings, and .* does not exist"):
        baseline.main(arguments)
