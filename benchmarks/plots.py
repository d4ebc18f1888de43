"""Draw the figures of README.md and docs from benchmarks/results, light and dark.

python -m benchmarks.plots

Each SVG records the SHA-256 of what it shows, so a test can tell that it is of today's results on
any version of matplotlib.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.parse_args()


import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.result import best_baseline, order, ranking_runs, results, speeds
from benchmarks.values import is_old
from recipes.evaluation.report import GENERATED, LM_ONLY, RERANKER_ONLY, TTDS

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
DATASETS = ("scientific", "beauty", "toys", "sports")
METHODS = (
    TTDS, GENERATED, LM_ONLY, RERANKER_ONLY, "bilinear similarity", "Markov chain + text",
    "SASRec, full cross-entropy", "EASE", "item-kNN", "TIGER, static text SIDs",
)  # fmt: skip
THEMES = {
    "light": {"text": "#1f2328", "grid": "#d1d9e0", "other": "#818b98", "paper": "#ffffff"},
    "dark": {"text": "#e6edf3", "grid": "#3d444d", "other": "#8b949e", "paper": "#0d1117"},
}
# Told apart with any colour vision, on light and on dark.
COLOURS = {TTDS: "#12a594", GENERATED: "#3b9eff", LM_ONLY: "#8e6bdb", RERANKER_ONLY: "#f08c2e"}
MARKS = "osD^vP"  # of others, which have one colour
OLD = "hollow: version 0.1, to be measured anew"


def shares(rows: list[dict], metric: str) -> dict[str, dict[str, dict]]:
    """Return a test metric by data set and method: mean, deviation, whether of an old version.

    Args:
        rows: The results.
        metric: Its name.
    """
    found = {}
    for dataset in DATASETS:
        methods = ranking_runs(rows, dataset)
        found[dataset] = {
            method: _spread(methods[method], metric) for method in METHODS if method in methods
        }
    return found


def _spread(runs: list[dict], metric: str) -> dict:
    values = [run["test"][metric] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "deviation": deviation, "old": is_old(runs)}


def differences(rows: list[dict]) -> list[dict]:
    """Return how far TTDS is above re-ranker only and best baseline, by data set and order.

    Args:
        rows: The results.
    """
    found = []
    for row in rows:
        for method, against in row.get("against", {}).items():
            part = against["slices"]["all"]["NDCG@10"]
            methods = ranking_runs(rows, row["compare"], order(row))
            found.append(
                {
                    "dataset": row["compare"], "order": order(row), "method": method,
                    "difference": part["difference"], "interval": part["interval"],
                    "old": is_old(methods.get(TTDS, [])),
                }
            )  # fmt: skip
    places = {name: place for place, name in enumerate(DATASETS)}
    return sorted(found, key=lambda one: (places.get(one["dataset"], 9), one["order"]))


def orders(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Return NDCG@10 in published and in shuffled order of ties, by data set and method.

    Args:
        rows: The results.
    """
    found = {}
    for dataset in DATASETS:
        both = [ranking_runs(rows, dataset, which) for which in ("published", "shuffled")]
        lines = {
            method: [_spread(part[method], "NDCG@10") for part in both]
            for method in METHODS
            if all(method in part for part in both)
        }
        if lines:
            found[dataset] = lines
    return found


def slices(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Return NDCG@10 where the target is well known, not well known, and rare.

    Args:
        rows: The results.
    """
    found = {}
    for dataset in DATASETS:
        methods = ranking_runs(rows, dataset)
        shown = [*COLOURS, best_baseline(methods)]
        found[dataset] = {
            method: {name: _spread(methods[method], f"{name}_NDCG@10") for name in SLICES}
            for method in shown
            if method in methods
        }
    return found


SLICES = {"head": "well known", "tail": "others", "cold": "rare (cold)"}


def curves(rows: list[dict]) -> dict[str, dict[str, list]]:
    """Return validation NDCG@10 against millions of tokens, by data set and row of the ablation.

    Args:
        rows: The results.
    """
    found = defaultdict(dict)
    for row in rows:
        if "ablation" in row and row["seed"] == 0:
            points = [[at["tokens"] / 1e6, at["NDCG@10"]] for at in row["tuning"]["validation"]]
            found[row["dataset"]][row["ablation"]] = points
    return dict(sorted(found.items()))


def drifts(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Return NDCG@10 by data set and form of the index, the lowest first.

    Args:
        rows: The results.
    """
    tests = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "drift" in row:
            tests[row["drift"]][row["form"]].append(row["test"])
    found = {}
    for dataset, forms in tests.items():
        means = {
            form: {name: statistics.mean(test[name] for test in runs) for name in DRIFTS}
            for form, runs in forms.items()
        }
        found[dataset] = dict(sorted(means.items(), key=lambda one: one[1]["NDCG@10"]))
    return found


DRIFTS = {"NDCG@10": "all users", "joined_NDCG@10": "users who chose an item that joined"}


def _dot(axes: Axes, x: float, y: float, colour: str, old: bool, deviation: float = 0.0) -> None:
    if deviation:
        axes.plot([x - deviation, x + deviation], [y, y], color=colour, linewidth=2, zorder=2)
    face = axes.get_facecolor() if old else colour
    axes.plot(x, y, "o", color=colour, markerfacecolor=face, markersize=7, zorder=3)


def _shared_legend(figure: Figure) -> None:
    named = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=[*named.values()], loc="outside right center", frameon=False)


def _from_zero(axes: Axes, dataset: str) -> None:
    axes.margins(x=0.1)
    axes.set(title=dataset, xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(3))


def draw_shares(found: dict, theme: dict) -> Figure:
    """Draw NDCG@10 by data set and method: a dot a row, a bar where seeds deviate.

    Args:
        found: As of `shares`.
        theme: Colours.
    """
    figure, panels = plt.subplots(1, len(found), sharey=True, figsize=(10, 3.9))
    shown = [name for name in METHODS if any(name in part for part in found.values())]
    for axes, (dataset, part) in zip(panels, found.items(), strict=True):
        for place, method in enumerate(shown):
            if method in part:
                colour = COLOURS.get(method, theme["other"])
                one = part[method]
                _dot(axes, one["mean"], -place, colour, one["old"], one["deviation"])
        _from_zero(axes, dataset)
    panels[0].set_yticks([-place for place in range(len(shown))], shown)
    figure.supxlabel("NDCG@10, test" + _note(found))
    return figure


def _note(found: object) -> str:
    return f" ({OLD})" if '"old": true' in json.dumps(found) else ""


def draw_differences(found: list[dict], theme: dict) -> Figure:
    """Draw TTDS minus re-ranker only and minus best baseline, with 95 % intervals.

    Args:
        found: As of `differences`.
        theme: Colours.
    """
    sides = ([one for one in found if one["method"] == RERANKER_ONLY],)
    sides += ([one for one in found if one["method"] != RERANKER_ONLY],)
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.4))
    for axes, side in zip(panels, sides, strict=True):
        for place, one in enumerate(side):
            axes.plot(one["interval"], [-place, -place], color=COLOURS[TTDS], linewidth=2)
            _dot(axes, one["difference"], -place, COLOURS[TTDS], one["old"])
        axes.axvline(0, color=theme["text"], linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    named = [f"{one['dataset']}, {one['order']}" for one in sides[0]]
    panels[0].set_yticks([-place for place in range(len(named))], named)
    named = [f"{one['method']}\n{one['dataset']}, {one['order']}" for one in sides[1]]
    panels[1].set_yticks([-place for place in range(len(named))], named)
    panels[0].set_title("TTDS minus re-ranker only")
    panels[1].set_title("TTDS minus best other baseline")
    figure.supxlabel("difference in NDCG@10, 95 % interval of a paired bootstrap" + _note(found))
    return figure


def draw_orders(found: dict, theme: dict) -> Figure:
    """Draw NDCG@10 with ties as published (disc) and shuffled (bar).

    Args:
        found: As of `orders`.
        theme: Colours.
    """
    figure, panels = plt.subplots(1, len(found), sharey=True, figsize=(10, 3.6), squeeze=False)
    shown = [name for name in METHODS if any(name in part for part in found.values())]
    for axes, (dataset, part) in zip(panels[0], found.items(), strict=True):
        for place, method in enumerate(shown):
            if method in part:
                colour = COLOURS.get(method, theme["other"])
                published, shuffled = part[method]
                ends = [published["mean"], shuffled["mean"]]
                axes.plot(ends, [-place, -place], color=colour, linewidth=2, zorder=2)
                axes.plot(ends[1], -place, "|", color=colour, markersize=13, markeredgewidth=3)
                _dot(axes, ends[0], -place, colour, published["old"])
        _from_zero(axes, dataset)
    panels[0][0].set_yticks([-place for place in range(len(shown))], shown)
    figure.supxlabel("NDCG@10, test; disc: ties as published, bar: shuffled" + _note(found))
    return figure


def draw_slices(found: dict, theme: dict) -> Figure:
    """Draw NDCG@10 by how well known the target is.

    Args:
        found: As of `slices`.
        theme: Colours.
    """
    figure, panels = plt.subplots(1, len(found), sharey=True, figsize=(10, 3.8))
    labels = {}
    for axes, (dataset, part) in zip(panels, found.items(), strict=True):
        for number, (method, by_slice) in enumerate(part.items()):
            colour = COLOURS.get(method, theme["other"])
            for place, name in enumerate(SLICES):
                one = by_slice[name]
                _dot(axes, one["mean"], -place - 0.13 * (number - 2), colour, one["old"])
            labels[method if method in COLOURS else "best other baseline"] = colour
        _from_zero(axes, dataset)
    panels[0].set_yticks([-place for place in range(len(SLICES))], SLICES.values())
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=colour, label=name)
        for name, colour in labels.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel("NDCG@10, test, by how well known the target is" + _note(found))
    return figure


def draw_drifts(found: dict, theme: dict) -> Figure:
    """Draw NDCG@10 by form of the index, a row of panels a data set.

    Args:
        found: As of `drifts`.
        theme: Colours.
    """
    height = 1 + 0.35 * sum(map(len, found.values()))
    figure, panels = plt.subplots(max(1, len(found)), 2, figsize=(10, height), squeeze=False)
    for line, (dataset, forms) in zip(panels, found.items(), strict=False):
        for axes, (name, title) in zip(line, DRIFTS.items(), strict=True):
            for place, metrics in enumerate(forms.values()):
                _dot(axes, metrics[name], -place, COLOURS[LM_ONLY], False)
            _from_zero(axes, f"{dataset}, {title}")
            axes.set_yticks([-place for place in range(len(forms))], [""] * len(forms))
        line[0].set_yticks([-place for place in range(len(forms))], forms)
    figure.supxlabel("NDCG@10, test, language model only")
    return figure


def draw_curves(found: dict, theme: dict) -> Figure:
    """Draw validation NDCG@10 against millions of tokens.

    Args:
        found: As of `curves`.
        theme: Colours.
    """
    figure, panels = plt.subplots(1, max(1, len(found)), figsize=(10, 4), squeeze=False)
    colours = plt.get_cmap("tab10").colors
    for axes, (dataset, part) in zip(panels[0], found.items(), strict=False):
        for colour, (name, points) in zip(colours, sorted(part.items()), strict=False):
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name, ms=4)
        axes.set(title=dataset, ylim=(0, None))
        axes.grid(axis="y", color=theme["grid"])
    _shared_legend(figure)
    figure.supxlabel("million tokens, first seed")
    figure.supylabel("validation NDCG@10")
    return figure


def draw_speeds(found: dict, theme: dict) -> Figure:
    """Draw HR@10 against users a second.

    Args:
        found: As of `speeds`.
        theme: Colours.
    """
    figure, panels = plt.subplots(
        1, max(1, len(found)), figsize=(10, 3.6), sharex=True, squeeze=False
    )
    others = dict.fromkeys(m for part in found.values() for m in part if m not in COLOURS)
    marks = dict(zip(others, MARKS, strict=False))  # names beside near points would meet
    for axes, (dataset, part) in zip(panels[0], found.items(), strict=False):
        for method, one in part.items():
            place = one["users_a_second"], one["HR@10"]
            colour = COLOURS.get(method, theme["other"])
            axes.plot(*place, marks.get(method, "o"), color=colour, markersize=7, label=method)
        highest = max(one["HR@10"] for one in part.values())
        axes.set(title=dataset, xscale="log", ylim=(0, 1.2 * highest))
        axes.margins(x=0.2)
        axes.minorticks_off()
        axes.set_xticks(ticks := [50, 100, 200, 500, 1000], [f"{tick:,}" for tick in ticks])
    _shared_legend(figure)
    figure.supxlabel("users a second, one core")
    figure.supylabel("HR@10, test")
    return figure


DRAWINGS: dict[str, tuple[Callable, Callable]] = {
    "ndcg": (lambda rows: shares(rows, "NDCG@10"), draw_shares),
    "differences": (differences, draw_differences),
    "ties": (orders, draw_orders),
    "slices": (slices, draw_slices),
    "speed": (speeds, draw_speeds),
    "ablation": (curves, draw_curves),
    "drift": (drifts, draw_drifts),
}


def drawn(name: str, rows: list[dict], theme: str, file: Path) -> None:
    """Draw a figure into a file.

    Args:
        name: One of `DRAWINGS`.
        rows: The results.
        theme: One of `THEMES`.
        file: SVG or, to look at, PNG.
    """
    content, draw = DRAWINGS[name]
    colours = THEMES[theme]
    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif",
        "font.size": 10, "axes.titlesize": 11, "figure.labelsize": 10,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "ytick.left": False, "axes.grid": True, "axes.grid.axis": "x", "axes.axisbelow": True,
        "grid.color": colours["grid"], "axes.edgecolor": colours["grid"],
        "figure.facecolor": colours["paper"], "axes.facecolor": colours["paper"],
    }  # fmt: skip
    for part in ("text", "axes.label", "axes.title", "xtick", "ytick"):
        style[f"{part}color" if part.startswith("axes") else f"{part}.color"] = colours["text"]
    with plt.rc_context(style):
        figure = draw(content(rows), colours)
        about = {"Date": None, "Description": shown_hash(name, rows)}
        figure.savefig(file, metadata=about if file.suffix == ".svg" else None)
        plt.close(figure)


def shown_hash(name: str, rows: list[dict]) -> str:
    """Return what a figure's file says of its content.

    Args:
        name: One of `DRAWINGS`.
        rows: The results.
    """
    content = json.dumps(DRAWINGS[name][0](rows), sort_keys=True)
    return f"SHA-256 of the figures shown: {hashlib.sha256(content.encode()).hexdigest()}"


def main() -> None:
    """Draw every figure in both themes."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in DRAWINGS:
        for theme in THEMES:
            drawn(name, results(), theme, FIGURES / f"{name}-{theme}.svg")


if __name__ == "__main__":
    main()
