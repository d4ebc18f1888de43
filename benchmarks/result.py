"""One JSON per measured result: all that is needed to make it again, and its lists' hash."""

import hashlib
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

from recipes.evaluation.report import RERANKER_ONLY, TTDS, hardware, slug, write_json, write_text

TEXT_FILE = "text_embeddings.safetensors"  # of a data set, in its folder
RESULTS = Path(os.environ.get("TTDS_RESULTS", Path(__file__).parent / "results"))
# The lists themselves stay out of the repository: a result records their hash.
LISTS = Path(os.environ.get("TTDS_LISTS", Path(__file__).parents[1] / "outputs" / "lists"))
SUFFIX = ".run.jsonl"
# As of the start: a commit may be made while something runs. Where no repository is, it is told.
COMMIT = (
    os.environ.get("TTDS_COMMIT")
    or subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
)


def write_result(
    name: str,
    seed: int,
    seconds: float,
    content: dict,
    lists: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write `benchmarks/results/NAME.json`, and the ranked lists into `outputs/lists`.

    Of the lists the result records the SHA-256.

    Args:
        name: Name of the result.
        seed: Its seed.
        seconds: Wall time it took.
        content: What was measured.
        lists: As of `lists_text`, where it is lists that were measured.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": COMMIT,
        "seed": seed,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    if lists is not None:
        text = lists_text(lists)
        result["lists_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        LISTS.mkdir(parents=True, exist_ok=True)
        write_text(LISTS / f"{name}{SUFFIX}", text)
    write_json(RESULTS / f"{name}.json", result | content)


def results() -> list[dict]:
    """Return every result, by name of its file."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def protocol(row: dict) -> dict[str, str]:
    """Return the `tie_break`, `split` and `timeline_target` a result was measured with.

    Args:
        row: The result.
    """
    defaults = {"tie_break": "published", "split": "leave_one_out", "timeline_target": "first"}
    config = row.get("config", {})
    return {name: row.get(name) or config.get(name, value) for name, value in defaults.items()}


def order(row: dict) -> str:
    """Return the `order_name` a result was measured in.

    Args:
        row: The result.
    """
    return order_name(**protocol(row))


def order_name(tie_break: str, split: str = "leave_one_out", timeline_target: str = "first") -> str:
    """Return how split and order of ties are named, as one word in files and tables.

    Args:
        tie_break: `"published"` or `"shuffled"`.
        split: `"leave_one_out"` or `"timeline"`.
        timeline_target: Of a timeline `"first"`, `"last"` or `"random"`.

    Returns:
        E.g. `"published"`, `"shuffled"`, `"timeline"`, `"timeline-last-shuffled"`.
    """
    parts = []
    if split == "timeline":
        parts += ["timeline", *[timeline_target] * (timeline_target != "first")]
    parts += [tie_break] * (tie_break != "published")
    return "-".join(parts) or "published"


def ranking_runs(
    rows: Sequence[dict], dataset: str, tie_break: str = "published"
) -> dict[str, list[dict]]:
    """Return the results on one data set in one order of ties: per method, its runs.

    Args:
        rows: Results.
        dataset: Name of the data set in the results.
        tie_break: As of `order_name`.
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


def speeds(rows: Sequence[dict]) -> dict[str, dict[str, dict]]:
    """Return `users_a_second` and `HR@10` by data set and method, the fastest first.

    Args:
        rows: Results; of `benchmarks.users_a_second`, and of external baselines.
    """
    found = {row["speed"]: dict(row["rows"]) for row in rows if "speed" in row}
    for row in rows:
        if "users_a_second" in row:
            one = {"users_a_second": row["users_a_second"], "HR@10": row["test"]["HR@10"]}
            found.setdefault(row["dataset"], {})[row["method"]] = one
    return {
        dataset: dict(sorted(part.items(), key=lambda pair: -pair[1]["users_a_second"]))
        for dataset, part in found.items()
    }


def result_name(dataset: str, tie_break: str, method: str, seed: int) -> str:
    """Return what the files of a row are called.

    Args:
        dataset: Name of the data set in the results.
        tie_break: As of `order_name`.
        method: Name of the row.
        seed: Its seed.
    """
    return f"{dataset_name(dataset, tie_break)}-{slug(method)}-seed{seed}"


def dataset_name(dataset: str, tie_break: str) -> str:
    """Return how a data set in one order of ties is named in files.

    Args:
        dataset: Name of the data set in the results.
        tie_break: As of `order_name`.
    """
    return dataset if tie_break == "published" else f"{dataset}-{tie_break}"


def lists_text(lists: Sequence[Sequence[int]]) -> str:
    """Return ranked lists as their file holds them, one JSON list per line.

    Item rows only, no id of a user or an item: the data is not ours to pass on.

    Args:
        lists: Per user of `split.users("test")`, item rows from best to worst; 20 are kept.
    """
    return "".join(f"{json.dumps([int(row) for row in rows[:20]])}\n" for rows in lists)


def read_run(name: str, place: Path = LISTS) -> list[list[int]]:
    """Return the ranked test lists of a result, if they are the recorded ones.

    Args:
        name: Name of the result.
        place: Folder of `NAME.run.jsonl`, or the file itself.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The result records no lists, or others.
    """
    row = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    file = place / f"{name}{SUFFIX}" if place.is_dir() else place
    if not file.is_file():
        raise FileNotFoundError(
            f"The lists of {name!r} are not at {file}; name their folder by --lists, or make them "
            f"again: {row.get('command')}"
        )
    if "lists_sha256" not in row:
        raise ValueError(f"{name!r} records no `lists_sha256`, so no lists can be told to be its.")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != row["lists_sha256"]:
        raise ValueError(
            f"{file} is not what {name!r} was measured on: its SHA-256 is {found}, `lists_sha256` "
            f"is {row['lists_sha256']}; name the folder of the recorded lists by --lists."
        )
    return [json.loads(line) for line in content.splitlines()]
