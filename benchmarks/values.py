"""Figures within a sentence of README.md and docs: `<!-- value: NAME -->0.125<!-- / -->`.

A NAME is one of

    NDCG@10 of TTDS on scientific                       a test metric, mean over seeds; of another
                                                        split or order on beauty-timeline
    gain in NDCG@10 of TTDS over re-ranker only on toys in per cent
    minutes of TTDS on toyshop                          also seconds, GB, hardware
    users of the data scientific                        also items, interactions
    milliseconds of recommend in batches of 32          language model, 12,000 items
    milliseconds of default, compiled in batches of 1   of the demo's model; also eager
    new HR@10 of TTDS (all items) on scientific         of items that training never saw
"""

import re
import statistics
from collections.abc import Sequence

from benchmarks.result import best_baseline, ranking_runs

MISSING = "(no result yet)"


def made_by(run: dict) -> str:
    """Return the version of TTDS that made a result.

    Args:
        run: The result. Its options tell: version 0.1 had no item vectors.
    """
    return "0.2" if "item_vector_dim" in run.get("config", {}) else "0.1"


def is_old(runs: Sequence[dict]) -> bool:
    """Return whether the runs of a row of ours are of version 0.1, which had no node logits.

    Args:
        runs: Results of one method.
    """
    ours = ("TTDS", "re-ranker only")
    return any(run["method"].startswith(ours) and made_by(run) == "0.1" for run in runs)


def value(name: str, rows: list[dict]) -> str:
    """Return a figure as a sentence shows it.

    Args:
        name: As of this module.
        rows: The results.

    Raises:
        ValueError: No such figure is known.
    """
    for pattern, found_by in PATTERNS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return found_by(rows, *match.groups()) or MISSING
    raise ValueError(f"There is no figure called {name!r}; benchmarks/values.py lists them.")


def with_values(text: str, rows: list[dict]) -> str:
    """Return a document with the figures within its sentences made anew.

    Args:
        text: The document.
        rows: The results.
    """
    return re.sub(
        r"<!-- value: (.+?) -->.*?<!-- / -->",
        lambda found: f"<!-- value: {found[1]} -->{value(found[1], rows)}<!-- / -->",
        text,
    )


def _runs(rows: list[dict], method: str, dataset: str) -> list[dict]:
    dataset, _, order = dataset.partition("-")
    methods = ranking_runs(rows, dataset, order or "published")
    return methods.get(best_baseline(methods) if method == "best baseline" else method, [])


def _mean(rows: list[dict], metric: str, method: str, dataset: str) -> float | None:
    measured = [run["test"][metric] for run in _runs(rows, method, dataset)]
    return statistics.mean(measured) if measured else None


def _metric(rows: list[dict], metric: str, method: str, dataset: str) -> str | None:
    mean = _mean(rows, metric, method, dataset)
    return None if mean is None else f"{mean:.3f}"


def _gain(rows: list[dict], metric: str, method: str, other: str, dataset: str) -> str | None:
    ours, theirs = (_mean(rows, metric, name, dataset) for name in (method, other))
    return None if ours is None or theirs is None else f"{ours / theirs - 1:+.1%}"


def _cost(rows: list[dict], what: str, method: str, dataset: str) -> str | None:
    runs = _runs(rows, method, dataset)
    if not runs:
        return None
    if what == "hardware":
        return runs[0]["hardware"]
    # The first seed of a baseline also pays for its tuning; the median is a fit alone.
    seconds = statistics.median(run["seconds"] for run in runs)
    gigabytes = max(run["peak_memory_mb"] for run in runs) / 1000
    return {
        "seconds": f"{seconds:.0f}",
        "minutes": f"{seconds / 60:.0f}",
        "GB": f"{gigabytes:.1f}",
    }[what]


def _size(rows: list[dict], what: str, dataset: str) -> str | None:
    row = next((row for row in rows if row.get("data") == dataset), None)
    return row and f"{row[what]:,}"


def _milliseconds(rows: list[dict], way: str, batch: str) -> str | None:
    keys = ("milliseconds_per_request", "milliseconds_of_demo")
    entries = [entry for key in keys for row in rows for entry in row.get(key, ())]
    found = [entry for entry in entries if str(entry["batch"]) == batch and way in entry]
    return f"{found[0][way]:.0f}" if found else None


def _new(rows: list[dict], metric: str, method: str, dataset: str) -> str | None:
    found = [row["rows"][method][metric] for row in rows if row.get("cold_start") == dataset]
    return f"{statistics.mean(found):.3f}" if found else None


def _ablated(rows: list[dict], metric: str, name: str, dataset: str) -> str | None:
    of_row = [row for row in rows if (row.get("ablation"), row.get("dataset")) == (name, dataset)]
    found = [row["validation"][metric] for row in of_row]
    return f"{statistics.mean(found):.4f}" if found else None


PATTERNS = {
    r"validation (\S+@\d+) of row (\S+) on (\S+)": _ablated,
    r"new (\S+@\d+) of (.+) on (\S+)": _new,
    r"gain in (\S+@\d+) of (.+) over (.+) on (\S+)": _gain,
    r"(seconds|minutes|GB|hardware) of (.+) on (\S+)": _cost,
    r"(users|items|interactions) of the data (\S+)": _size,
    r"milliseconds of (.+) in batches of (\d+)": _milliseconds,
    r"(\S+@\d+) of (.+) on (\S+)": _metric,
}
