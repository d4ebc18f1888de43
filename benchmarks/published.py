"""Our rows beside published ones: what others state of the same data, with source and protocol.

`published.json` beside this file holds what was read in papers, logs and READMEs; nothing in it was
measured here. All are of Amazon 2014, five or more interactions of a user and an item, a user's
last item as the target, all items ranked. `seen_items` says whether lists left out the history's
items ("left out", "among them", null where the source does not say), `reviewed` whether a venue
took the paper (null: not known), `reproduced` what a rerun by others gave.

ConsRec's figures (arXiv:2505.22130) are not among them: its code selects the targets by a graph of
the whole data, test included.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.result import best_baseline, ranking_runs
from recipes.evaluation.report import GENERATED, LM_ONLY, RERANKER_ONLY, TTDS

FILE = Path(__file__).with_suffix(".json")
METRICS = ("HR@10", "NDCG@10")
OURS = (TTDS, GENERATED, LM_ONLY, RERANKER_ONLY)
HEADS = ("", *METRICS, "seen items", "source", "year", "reviewed", "reproduced")
REVIEWED = {True: "yes", False: "no, a draft", None: "not known"}


def published_table(dataset: str, rows: Sequence[dict]) -> str:
    """Return our rows (in bold) and the published ones on one data set, the best HR@10 first.

    Args:
        dataset: Name of the data set in the results.
        rows: Results.
    """
    lines = [*_ours(dataset, rows), *_theirs(dataset)]
    if not lines:
        return "No result yet."
    lines.sort(key=lambda line: -line[0])
    cells = [" | ".join(cells) for _, cells in lines]
    rule = "|---|" + "---:|" * len(METRICS) + "---|" * (len(HEADS) - 1 - len(METRICS))
    return "\n".join([f"| {' | '.join(HEADS)} |", rule, *(f"| {line} |" for line in cells)])


def _ours(dataset: str, rows: Sequence[dict]) -> Iterator[tuple[float, list[str]]]:
    methods = ranking_runs(rows, dataset)
    for method in (*OURS, best_baseline(methods)):
        runs = methods.get(method, [])
        if not runs:
            continue
        values = [statistics.mean(run["test"][metric] for run in runs) for metric in METRICS]
        left_out = {run.get("config", {}).get("exclude_seen", True) for run in runs}
        seen = "left out" if left_out == {True} else "among them"
        seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
        shown = [f"**{value:.4f}**" for value in values]
        yield values[0], [f"**{method}**", *shown, seen, "measured here", "", "", seeds]
    for run in rows:
        if run.get("history_filter") != dataset:
            continue
        for method, found in run["rows"].items():
            values = [found["among them"][metric] for metric in METRICS]
            shown = [f"**{value:.4f}**" for value in values]
            name = f"**{method}, seen items not left out**"
            yield values[0], [name, *shown, "among them", "measured here", "", "", "1 seed"]


def _theirs(dataset: str) -> Iterator[tuple[float, list[str]]]:
    for entry in json.loads(FILE.read_text("utf-8")):
        found = entry["results"].get(dataset)
        if found is None:
            continue
        shown = [f"{found[metric]:.4f}" if metric in found else "" for metric in METRICS]
        yield (
            found["HR@10"],
            [
                entry["method"],
                *shown,
                entry["seen_items"] or "not stated",
                entry["source"],
                str(entry["year"] or "not stated"),
                REVIEWED[entry["reviewed"]],
                entry["reproduced"] or "not known",
            ],
        )
