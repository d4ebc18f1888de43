"""One JSON per measured result, with all that is needed to make it again."""

import gzip
import json
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from recipes.report import hardware, write_json

RESULTS = Path(__file__).parent / "results"
LARGEST_RUN_FILE = 3_000_000
# As of the start: a commit may be made while something runs.
COMMIT = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
).stdout.strip()


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


def slug(method: str) -> str:
    """Return the name of a method as it stands in file names.

    Args:
        method: E.g. `"TTDS, generated only"`.
    """
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


def result_name(dataset: str, tie_break: str, method: str, seed: int) -> str:
    """Return what the files of a row are called.

    Args:
        dataset: Name of the data set in the results.
        tie_break: `"published"` or `"shuffled"`.
        method: Name of the row.
        seed: Its seed.
    """
    order = "" if tie_break == "published" else f"-{tie_break}"
    return f"{dataset}{order}-{slug(method)}-seed{seed}"


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
