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
# As of the start: a commit may be made while something runs.
COMMIT = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
).stdout.strip()


def slug(method: str) -> str:
    """Return a method's name as file names carry it."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


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


def write_run(name: str, lists: Sequence[Sequence[int]]) -> None:
    """Write the test lists of a result beside it, as `benchmarks/results/NAME.run.json.gz`.

    Args:
        name: Name of the result.
        lists: Item rows per user with a target.
    """
    file = RESULTS / f"{name}.run.json.gz"
    scratch = file.with_suffix(".tmp")
    content = json.dumps([[int(row) for row in rows] for rows in lists], separators=(",", ":"))
    scratch.write_bytes(gzip.compress(content.encode(), mtime=0))
    scratch.replace(file)
