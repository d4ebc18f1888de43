"""One JSON per measured result, with all that is needed to make it again, and its ranked lists."""

import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from recipes.evaluation.report import RERANKER_ONLY, TTDS, hardware, slug, write_json

RESULTS = Path(os.environ.get("TTDS_RESULTS", Path(__file__).parent / "results"))
LARGEST_RUN_FILE = 3_000_000
# As of the start: a commit may be made while something runs. Where no repository is, it is told.
COMMIT = (
    os.environ.get("TTDS_COMMIT")
    or subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
)


def write_result(name: str, seed: int, seconds: float, content: dict) -> None:
    """Write `benchmarks/results/NAME.json`.

    Args:
        name: Name of the result.
        seed: Its seed.
        seconds: Wall time it took.
        content: What was measured.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "command": " ".join(["python", *sys.argv]),
        "commit": COMMIT,
        "seed": seed,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{name}.json", result | content)


def results() -> list[dict]:
    """Return every result, by name of its file."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def order(row: dict) -> str:
    """Return the order of ties a result was measured in, `"published"` or `"shuffled"`.

    Args:
        row: The result.
    """
    return row.get("tie_break") or row.get("config", {}).get("tie_break", "published")


def ranking_runs(
    rows: Sequence[dict], dataset: str, tie_break: str = "published"
) -> dict[str, list[dict]]:
    """Return the results on one data set in one order of ties: per method, its runs.

    Args:
        rows: Results.
        dataset: Name of the data set in the results.
        tie_break: `"published"` or `"shuffled"`.
    """
    methods = defaultdict(list)
    for row in rows:
        if row.get("dataset") == dataset and order(row) == tie_break and "ablation" not in row:
            methods[row["method"]].append(row)
    return {method: sorted(runs, key=lambda run: run["seed"]) for method, runs in methods.items()}


def best_baseline(methods: dict[str, list[dict]]) -> str | None:
    """Return the method that is best by NDCG@10 on validation targets, no part of ours among them.

    Args:
        methods: As of `ranking_runs`.
    """
    scores = {
        method: statistics.mean(run["validation"]["NDCG@10"] for run in runs)
        for method, runs in methods.items()
        if not method.startswith(TTDS)
        and method not in (RERANKER_ONLY, "oracle")
        and all(run["validation"] for run in runs)
    }
    return max(scores, key=scores.get, default=None)


def result_name(dataset: str, tie_break: str, method: str, seed: int) -> str:
    """Return what the files of a row are called.

    Args:
        dataset: Name of the data set in the results.
        tie_break: `"published"` or `"shuffled"`.
        method: Name of the row.
        seed: Its seed.
    """
    return f"{dataset_name(dataset, tie_break)}-{slug(method)}-seed{seed}"


def dataset_name(dataset: str, tie_break: str) -> str:
    """Return how a data set in one order of ties is named in files.

    Args:
        dataset: Name of the data set in the results.
        tie_break: `"published"` or `"shuffled"`.
    """
    return dataset if tie_break == "published" else f"{dataset}-{tie_break}"


def write_run(name: str, lists: Sequence[Sequence[int]]) -> None:
    """Keep the ranked test lists of a result as `benchmarks/results/NAME.run.jsonl.gz`.

    Item rows only, no id of a user or an item: the data is not ours to pass on. A file that would
    be too large is not kept, nor is an older one of that name, which would tell of another run.

    Args:
        name: Name of the result.
        lists: Per user of `split.users("test")`, item rows from best to worst; 20 are kept.
    """
    text = "".join(f"{json.dumps([int(row) for row in rows[:20]])}\n" for rows in lists)
    packed = gzip.compress(text.encode(), mtime=0)
    file = RESULTS / f"{name}.run.jsonl.gz"
    if len(packed) >= LARGEST_RUN_FILE:
        file.unlink(missing_ok=True)
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    scratch.write_bytes(packed)
    scratch.replace(file)


def read_run(name: str) -> list[list[int]]:
    """Return the ranked test lists that `write_run` kept.

    Args:
        name: Name of the result.

    Raises:
        FileNotFoundError: None were kept.
    """
    file = RESULTS / f"{name}.run.jsonl.gz"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is not there: the lists of {name!r} were too large to keep; run its command."
        )
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
