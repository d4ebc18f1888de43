"""Write the tables of README.md and docs from benchmarks/results; nothing is typed by hand.

python benchmarks/tables.py
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10", "coverage@10", "cold_HR@10")
ORDER = (
    "TTDS", "TTDS, generated only", "gate without a language model", "transition counts",
    "item-kNN", "popularity", "perfect ranker",
)  # fmt: skip


def results() -> list[dict]:
    """Return every result file, by name."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


def ranking_table(dataset: str, rows: list[dict]) -> str:
    """Return the test metrics of one data set, mean and deviation over seeds."""
    methods = defaultdict(list)
    for row in rows:
        if row.get("dataset") == dataset and "ablation" not in row:
            methods[row["method"]].append(row)
    lines = ["| | seeds | " + " | ".join(METRICS) + " |", "|---|---|" + "---|" * len(METRICS)]
    for method in sorted(methods, key=lambda name: ORDER.index(name)):
        runs = methods[method]
        cells = []
        for metric in METRICS:
            values = [run["test"][metric] for run in runs if metric in run["test"]]
            cell = f"{statistics.mean(values):.4f}" if values else ""
            if len(set(values)) > 1:
                cell += f" ± {statistics.stdev(values):.4f}"
            cells.append(cell)
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + " |")
    first = next(run for run in methods["TTDS"])
    seconds = statistics.mean(run["seconds"] for run in methods["TTDS"])
    lines.append(
        f"\n{seconds / 60:.1f} minutes a run, {first['peak_memory_mb'] / 1000:.1f} GB, on "
        f"{first['hardware']}; commit {first['commit']}; `{first['command']}`."
    )
    return "\n".join(lines)


def codes_table(dataset: str, rows: list[dict]) -> str:
    """Return what the towers report of their codes."""
    row = next(r for r in rows if r.get("dataset") == dataset and r["method"] == "TTDS")
    names = list(row["towers"]["item"])
    lines = ["| | items | users |", "|---|---|---|"]
    for name in names:
        values = (row["towers"][kind][name] for kind in ("item", "user"))
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def decoding_table(rows: list[dict]) -> str:
    """Return milliseconds per request of the ways to decode."""
    row = next(r for r in rows if "milliseconds_per_request" in r)
    ways = ["recommend", "generate + prefix_allowed_tokens_fn", "generate + logits processor"]
    ways.append("speedup")
    lines = ["| prompt | batch | " + " | ".join(ways) + " |", "|---|---|" + "---|" * len(ways)]
    for entry in row["milliseconds_per_request"]:
        cells = " | ".join(str(entry[way]) for way in ways)
        lines.append(f"| {entry['prompt']} | {entry['batch']} | {cells} |")
    big = row["million_items"]
    lines.append(
        f"\nMilliseconds per request, {row['num_items']:,} items, {row['num_beams']} beams, on "
        f"{row['hardware']}. With 1,000,000 items: a trie of {big['trie_mb']} MB built in "
        f"{big['build_seconds']} s, {big['ratio']} times the time of 12,000 items."
    )
    return "\n".join(lines)


def _over_seeds(runs: list[dict], value: Callable[[dict], float], form: str) -> str:
    values = [value(run) for run in runs]
    cell = format(statistics.mean(values), form)
    return cell if len(values) < 2 else f"{cell} ± {statistics.stdev(values):{form}}"


def ablation_table(rows: list[dict]) -> str:
    """Return the rows of the ablation, mean and deviation over seeds."""
    methods = defaultdict(list)
    for row in rows:
        if "ablation" in row:
            methods[row["ablation"]].append(row)
    columns = {
        "validation NDCG@10": (lambda run: run["validation"]["NDCG@10"], ".4f"),
        "validation HR@10": (lambda run: run["validation"]["HR@10"], ".4f"),
        "test NDCG@10": (lambda run: run["test"]["NDCG@10"], ".4f"),
        "test HR@10": (lambda run: run["test"]["HR@10"], ".4f"),
        "churn": (lambda run: _refreshes(run, "churn"), ".3f"),
        "collisions": (lambda run: _refreshes(run, "collision_rate"), ".3f"),
        "minutes": (lambda run: run["tuning"]["seconds"] / 60, ".1f"),
        "tokens/s": (lambda run: run["tuning"]["tokens_per_second"], ".0f"),
    }
    lines = ["| | seeds | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for method, runs in sorted(methods.items()):
        cells = [_over_seeds(runs, value, form) for value, form in columns.values()]
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + " |")
    some = next(iter(methods.values()))[0]
    lines.append(
        f"\nChurn and collisions: mean over the refreshes before the freeze. {some['threads']} "
        f"thread(s) a run on {some['hardware']}; commit {some['commit']}; `{some['command']}`."
    )
    return "\n".join(lines)


def _refreshes(run: dict, name: str) -> float:
    moving = run["tuning"]["refreshes"][:-1]
    return statistics.mean(refresh[name] for refresh in moving) if moving else 0.0


def form_table(rows: list[dict]) -> str:
    """Return when the two forms of the next-item task reach the same validation NDCG@10."""
    forms = {row["ablation"]: row for row in rows if row.get("seed") == 0 and "ablation" in row}
    pair = {"sequence": forms["3-user-codes"], "per position": forms["form-per-position"]}
    curves = {name: row["tuning"]["validation"] for name, row in pair.items()}
    mark = min(max(point["NDCG@10"] for point in curve) for curve in curves.values())
    lines = [
        "| form | best NDCG@10 | tokens to the mark | seconds to the mark |",
        "|---|---|---|---|",
    ]
    for name, curve in curves.items():
        first = next(point for point in curve if point["NDCG@10"] >= mark)
        best = max(point["NDCG@10"] for point in curve)
        cells = f"{best:.4f} | {first['tokens']:,} | {first['seconds']:.0f}"
        lines.append(f"| {name} | {cells} |")
    lines.append(f"\nThe mark is a validation NDCG@10 of {mark:.4f}, which both forms reach.")
    return "\n".join(lines)


def cold_table(rows: list[dict]) -> str:
    """Return how well items are recommended that training had never seen."""
    found = [row for row in rows if "cold_start" in row]
    names = list(found[0]["rows"])
    heads = [f"{row['cold_start']} HR@10 | NDCG@10" for row in found]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|---|" * len(found)]
    for name in names:
        cells = (
            f"{row['rows'][name]['HR@10']:.4f} | {row['rows'][name]['NDCG@10']:.4f}"
            for row in found
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for row in found:
        lines.append(
            f"\n{row['cold_start']}: {row['new_items']} new items, {row['users']} users, added in "
            f"{row['seconds_to_add']} s; commit {row['commit']}; `{row['command']}`."
        )
    return "\n".join(lines)


def filled(text: str, rows: list[dict]) -> str:
    """Return a document with the tables between its markers made anew.

    Args:
        text: The document.
        rows: The results.
    """
    makers = {
        "codes": codes_table, "ranking": ranking_table, "ablation": ablation_table,
        "forms": form_table, "cold": cold_table, "decoding": decoding_table,
    }  # fmt: skip
    for name in re.findall(r"<!-- table: (.+?) -->", text):
        kind, _, dataset = name.partition(" ")
        table = makers[kind](*[dataset] * bool(dataset), rows)
        text = re.sub(
            rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


def main() -> None:
    """Fill README.md and docs."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        file.write_text(filled(file.read_text("utf-8"), results()), "utf-8")


if __name__ == "__main__":
    main()
