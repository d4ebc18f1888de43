"""Write the full tables as CSV: every test metric of every row, and every paired difference.

python -m benchmarks.full_tables
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.parse_args()

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result import order, ranking_runs, results
from benchmarks.tables import by_method
from benchmarks.values import made_by
from recipes.evaluation.report import RERANKER_ONLY, TTDS, write_text

TABLES = Path(__file__).resolve().parents[1] / "docs" / "tables"


def ranking(rows: list[dict]) -> str:
    """Return every test metric: one line per data set, order of ties, row and metric.

    Args:
        rows: The results.
    """
    lines = []
    for dataset in sorted({row["dataset"] for row in rows if "dataset" in row}):
        for which in ("published", "shuffled"):
            for method, runs in by_method(ranking_runs(rows, dataset, which)):
                ours = method.startswith((TTDS, RERANKER_ONLY))
                about = [dataset, which, method, made_by(runs[0]) if ours else "", len(runs)]
                for metric in runs[0]["test"]:
                    values = [run["test"][metric] for run in runs]
                    deviation = f"{statistics.stdev(values):.5f}" if len(values) > 1 else ""
                    lines.append([*about, metric, f"{statistics.mean(values):.5f}", deviation])
    heads = ("data set", "order of ties", "row", "version", "seeds", "metric", "mean", "deviation")
    return _csv(heads, lines)


def differences(rows: list[dict]) -> str:
    """Return TTDS minus others: one line per data set, order of ties, other row, users and metric.

    Args:
        rows: The results.
    """
    lines = []
    for row in rows:
        for method, against in row.get("against", {}).items():
            for name, group in against["slices"].items():
                for metric in ("HR@10", "NDCG@10"):
                    part = group[metric]
                    ends = (part["difference"], *part["interval"], part["share_at_most_0"])
                    about = [row["compare"], order(row), method, name, group["users"], metric]
                    lines.append([*about, *(f"{number:.5f}" for number in ends)])
    heads = ("data set", "order of ties", "against", "slice", "users", "metric", "difference")
    return _csv((*heads, "low", "high", "share at most 0"), lines)


def _csv(heads: Sequence[str], lines: Sequence[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *lines])
    return text.getvalue()


FILES = {"ranking.csv": ranking, "differences.csv": differences}


def main() -> None:
    """Write both files."""
    for name, table in FILES.items():
        write_text(TABLES / name, table(results()))


if __name__ == "__main__":
    main()
