"""Write the tables of README.md and docs from benchmarks/results; nothing is typed by hand.

python benchmarks/tables.py
"""

import json
import re
import statistics
from collections import defaultdict
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
        if row.get("dataset") == dataset:
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


def main() -> None:
    """Replace what stands between the markers of a table by the table."""
    rows = results()
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text("utf-8")
        for name in re.findall(r"<!-- table: (.+?) -->", text):
            kind, _, dataset = name.partition(" ")
            if kind == "ranking":
                table = ranking_table(dataset, rows)
            elif kind == "codes":
                table = codes_table(dataset, rows)
            else:
                table = decoding_table(rows)
            text = re.sub(
                rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)",
                lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
                text,
                flags=re.DOTALL,
            )
        file.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
