"""Write the tables of README.md and docs from benchmarks/results; nothing is typed by hand.

python -m benchmarks.tables
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.parse_args()

import inspect
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.published import published_table
from benchmarks.result import best_baseline, order, ranking_runs, results, speeds
from benchmarks.values import is_old, with_values
from recipes.evaluation.report import LM_ONLY, RERANKER_ONLY, TTDS
from recipes.tuning.tasks import ITEM_TASKS, USER_TASKS

ROOT = Path(__file__).resolve().parents[1]

METRICS = (
    "HR@5", "HR@10", "NDCG@5", "NDCG@10", "coverage@10", "cold_HR@10", "cold_NDCG@10",
    "later_HR@10", "later_NDCG@10",
)  # fmt: skip
SLICES = ("all", "later", "cold", "head", "tail")
ORDER = (
    "TTDS", "TTDS (static, GPU)", "TTDS (full, GPU)", "TTDS, generated",
    "TTDS, language model only",
    "TTDS, language model only (static, GPU)", "TTDS, language model only (full, GPU)",
    RERANKER_ONLY, "Markov chain + text", "Markov chain", "item-kNN", "EASE", "bilinear similarity",
    "SASRec, full cross-entropy", "dense text", "TIGER, static text SIDs", "TIGER (cornac)",
    "RPG (cornac)", "SASRec (RecTools)", "eSASRec (RecTools)", "popularity", "oracle",
)  # fmt: skip
DATASETS = ("scientific", "beauty", "toys", "sports")
OLD = "¹"  # marks rows of version 0.1
EMPTY = "No result yet."
WAYS = ("default", "without re-ranker", "language model only")  # of `benchmarks.decoding`


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table, or a line that says there is nothing for it.

    Args:
        heads: Names of the columns.
        lines: Cells, line by line.
    """
    if not lines:
        return EMPTY
    rule = "|" + "---|" * len(heads)
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (heads, *lines))
    return "\n".join([first, rule, *rest])


def over_seeds(values: Sequence[float], form: str = ".4f") -> str:
    """Return mean and, where the values differ, deviation; nothing where there is no value.

    Args:
        values: One per seed.
        form: Format of a number.
    """
    if not values:
        return ""
    cell = format(statistics.mean(values), form)
    return cell if len(set(values)) < 2 else f"{cell} ± {statistics.stdev(values):{form}}"


def by_method(methods: dict[str, list[dict]]) -> list[tuple[str, list[dict]]]:
    """Return methods and their runs in the order of tables, unknown ones last.

    Args:
        methods: Per method, its runs.
    """
    known = {name: place for place, name in enumerate(ORDER)}
    return sorted(methods.items(), key=lambda pair: (known.get(pair[0], len(ORDER)), pair[0]))


def shown_name(name: str) -> str:
    """Return a slice or its metric as tables show it; the JSON keeps the referee's names.

    Args:
        name: E.g. `later_HR@10`.
    """
    return re.sub("^later_?", "later-day ", name).strip()


def measured(runs: list[dict], metric: str) -> list[float]:
    """Return a test metric of those runs that have it.

    Args:
        runs: Results of one method.
        metric: Its name.
    """
    return [run["test"][metric] for run in runs if metric in run["test"]]


def ranking_lines(methods: dict[str, list[dict]], metrics: Sequence[str]) -> str:
    """Return a table of test metrics, mean and deviation over seeds.

    Args:
        methods: Per method, its runs.
        metrics: Columns; those that no run has are left out.
    """
    pairs = by_method(methods)
    shown = [name for name in metrics if any(measured(runs, name) for _, runs in pairs)]
    lines = [
        [method, str(len(runs)), *(over_seeds(measured(runs, name)) for name in shown)]
        for method, runs in pairs
    ]
    return markdown(["", "seeds", *map(shown_name, shown)], lines)


def ranking_table(dataset: str, rows: list[dict]) -> str:
    """Return the test metrics of one data set in its published order."""
    methods = ranking_runs(rows, dataset)
    table = ranking_lines(methods, METRICS)
    if TTDS not in methods:
        return table
    first = methods[TTDS][0]
    seconds = statistics.mean(run["seconds"] for run in methods[TTDS])
    return (
        f"{table}\n\n{seconds / 60:.1f} minutes a run, {first['peak_memory_mb'] / 1000:.1f} GB, on "
        f"{first['hardware']}; commit {first['commit']}; `{first['command']}`."
    )


def slices_table(dataset: str, rows: list[dict]) -> str:
    """Return HR@10 and NDCG@10 of all users and of every slice."""
    names = [
        f"{'' if name == 'all' else f'{name}_'}{metric}"
        for name in SLICES
        for metric in ("HR@10", "NDCG@10")
    ]
    return ranking_lines(ranking_runs(rows, dataset), names)


def ties_table(rows: list[dict]) -> str:
    """Return both orders of ties side by side, for every method measured in both."""
    lines = []
    for dataset in sorted({row["dataset"] for row in rows if "dataset" in row}):
        published, shuffled = (
            ranking_runs(rows, dataset, tie_break) for tie_break in ("published", "shuffled")
        )
        for method, runs in by_method(published):
            if method in shuffled:
                cells = [
                    over_seeds(measured(part, metric))
                    for metric in ("HR@10", "NDCG@10")
                    for part in (runs, shuffled[method])
                ]
                lines.append([dataset, method, *cells])
    heads = ["data set", "", "HR@10 published", "shuffled", "NDCG@10 published", "shuffled"]
    return markdown(heads, lines)


def timeline_table(rows: list[dict]) -> str:
    """Return what all methods reach on a global timeline, new items apart."""
    lines, users = [], []
    for dataset in sorted({row["dataset"] for row in rows if "dataset" in row}):
        methods = by_method(ranking_runs(rows, dataset, "timeline"))
        for method, runs in methods:
            names = ("HR@10", "NDCG@10", "new_HR@10")
            lines.append([dataset, method, *(over_seeds(measured(runs, name)) for name in names)])
        if methods:
            test = methods[0][1][0]["test"]
            users.append(
                f"{dataset}: {test['users']:,} users, {test['new_users']:,} chose a new item"
            )
    if not lines:
        return EMPTY
    heads = ["data set", "", "HR@10", "NDCG@10", "HR@10, target is new"]
    return f"{markdown(heads, lines)}\n\n{'; '.join(users)}."


def drift_table(rows: list[dict]) -> str:
    """Return what a language model reaches with an index of the first half of the log."""
    forms = defaultdict(list)
    for row in rows:
        if "drift" in row:
            forms[row["drift"], row["form"]].append(row)
    lines, notes = [], {}
    for (dataset, form), runs in forms.items():
        names = ("HR@10", "NDCG@10", "joined_HR@10", "joined_NDCG@10")
        cells = (over_seeds(measured(runs, name)) for name in names)
        changed = statistics.mean(run["share_of_other_sids"] for run in runs)
        lines.append([dataset, form, str(len(runs)), *cells, f"{changed:.2f}" * (changed > 0)])
        users = runs[0]["users"]
        notes[dataset] = (
            f"{dataset}: {users['all']:,} users; {users['joined']:,} chose an item that joined in "
            "the second half"
        )
    heads = ["data set", "", "seeds", "HR@10", "NDCG@10", "HR@10, joined", "NDCG@10, joined"]
    table = markdown([*heads, "semantic IDs that differ from a new index's"], lines)
    return f"{table}\n\n{'; '.join(notes.values())}." if lines else table


def compare_table(rows: list[dict]) -> str:
    """Return how far TTDS is above its re-ranker alone and the best baseline, by slice."""
    lines = []
    for row in rows:
        for method, found in row.get("against", {}).items():
            for name, group in found["slices"].items():
                if name not in SLICES:
                    continue
                cells = []
                for metric in ("HR@10", "NDCG@10"):
                    part = group[metric]
                    low, high = part["interval"]
                    relative = part["relative"]
                    cells += [
                        f"{part['difference']:+.4f} [{low:+.4f}, {high:+.4f}]",
                        "" if relative is None else f"{relative:+.1%}",
                        f"{part['share_at_most_0']:.4f}",
                    ]
                dataset = row["compare"]
                if order(row) != "published":
                    dataset += f", {order(row)}"
                lines.append([dataset, method, shown_name(name), str(group["users"]), *cells])
    heads = ["data set", "against", "users", "number", "HR@10", "relative", "≤ 0"]
    return markdown([*heads, "NDCG@10", "relative", "≤ 0"], lines)


def summary_table(rows: list[dict]) -> str:
    """Return four rows a data set: ours, what it is made of, and the best that is no part of it."""
    lines, old = [], False
    for dataset in DATASETS:
        methods = ranking_runs(rows, dataset)
        best = best_baseline(methods)
        for method in (TTDS, LM_ONLY, RERANKER_ONLY, best or "best baseline"):
            runs = methods.get(method, [])
            old |= is_old(runs)
            cells = [over_seeds(measured(runs, m), ".3f") or EMPTY for m in ("HR@10", "NDCG@10")]
            name = method + OLD * is_old(runs) + " (best baseline)" * (method == best)
            lines.append([dataset, name, *cells])
    table = markdown(["data set", "", "HR@10", "NDCG@10"], lines)
    return f"{table}\n\n{OLD} Version 0.1, not measured anew yet." if old else table


def cost_table(rows: list[dict]) -> str:
    """Return what a run of TTDS takes: users, items, minutes and memory, on which machine."""
    lines, old = [], False
    for size in sorted((row for row in rows if "data" in row), key=lambda row: row["users"]):
        runs = ranking_runs(rows, size["data"]).get(TTDS)
        if runs:
            old |= is_old(runs)
            minutes = statistics.mean(run["seconds"] for run in runs) / 60
            gigabytes = max(run["peak_memory_mb"] for run in runs) / 1000
            counts = [f"{size[name]:,}" for name in ("users", "items", "interactions")]
            name = size["data"] + OLD * is_old(runs)
            cost = [f"{minutes:.0f}", f"{gigabytes:.1f}", runs[0]["hardware"]]
            lines.append([name, *counts, *cost])
    heads = ["data set", "users", "items", "interactions", "minutes", "GB", "on"]
    table = markdown(heads, lines)
    return f"{table}\n\n{OLD} Version 0.1, not measured anew yet." if old else table


def first_minute_output(rows: list[dict]) -> str:
    """Return what the README's Python prints on the model of `make demo`."""
    row = next((row for row in rows if "first_minute" in row), None)
    return f"```text\n{row['first_minute']['output'] if row else EMPTY}\n```"


def sids_table(dataset: str, rows: list[dict]) -> str:
    """Return what the towers report of their semantic IDs."""
    runs = ranking_runs(rows, dataset).get(TTDS)
    if not runs:
        return EMPTY
    row = runs[0]
    names = list(row["towers"]["item"])
    lines = ["| | items | users |", "|---|---|---|"]
    for name in names:
        values = (row["towers"][kind][name] for kind in ("item", "user"))
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def decoding_table(rows: list[dict]) -> str:
    """Return milliseconds per request of the ways to decode."""
    row = next((r for r in rows if "milliseconds_per_request" in r), None)
    if row is None:
        return EMPTY
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
    return f"{sizes_table(row)}\n\n" + "\n".join(lines)


def sizes_table(row: dict) -> str:
    """Return milliseconds a user of `recommend`, memory, growth and load by size of catalogue."""
    memory, growth = "peak memory, of it the file's", "`add_items` of 1 / 10,000"
    heads = ["items", "batch", *WAYS, memory, growth, "load"]
    lines = []
    for size in row.get("sizes", []):
        for batch in (1, 64):
            cells = [f"{size['num_items']:,}", str(batch)]
            for way in WAYS:
                found = size[f"{way}, batch {batch}"]
                cells.append(f"{found['milliseconds']:.0f} ({found['processor_milliseconds']:.0f})")
            cells += [
                f"{size['load_peak_memory_mb'] / 1000:.1f}, "
                f"{size['load_mapped_memory_mb'] / 1000:.1f} GB",
                f"{size['add_item_seconds']:.2f} s / {size['add_10000_items_seconds']:.1f} s",
                f"{size['load_seconds']:.1f} s",
            ]
            lines.append(cells)
    if not lines:
        return EMPTY
    load = max(size["load_average"] for size in row["sizes"])
    return (
        f"{markdown(heads, lines)}\n\nMedian milliseconds a user by the clock and, in brackets, of "
        f"the processor; one thread on {row['hardware']}, load average up to {load}. Growth and "
        "load in seconds of the processor. Memory of a process that loads the folder and serves 64 "
        "users: the weights are mapped from their file, and the system takes those pages back when "
        "it needs them."
    )


def preparation_table(rows: list[dict]) -> str:
    """Return minutes of one core and memory of all that precedes tuning, by size of the log."""
    row = next((r for r in rows if "stages" in r.get("sizes", [{}])[0]), {"sizes": []})
    lines = []
    for size in row["sizes"]:
        minutes = {n: one["processor_seconds"] / 60 for n, one in size["stages"].items()}
        slowest = sorted(minutes, key=minutes.get, reverse=True)[:3]
        cells = [f"{size[name]:,}" for name in ("users", "items", "interactions")]
        cells += [f"{size['processor_seconds'] / 60:.0f}", f"{size['peak_memory_mb'] / 1000:.1f}"]
        lines.append([*cells, ", ".join(f"{name} {minutes[name]:.1f}" for name in slowest)])
    return markdown(["users", "items", "interactions", "minutes", "GB", "of these"], lines)


def speed_table(rows: list[dict]) -> str:
    """Return users a second and hit rate of every way to make lists for a data set."""
    lines = [
        [dataset, method, f"{one['users_a_second']:,.0f}", f"{one['HR@10']:.4f}"]
        for dataset, found in speeds(rows).items()
        for method, one in found.items()
    ]
    return markdown(["data set", "lists of", "users a second", "HR@10"], lines)


def ablation_table(rows: list[dict]) -> str:
    """Return the rows of the ablation by data set, mean and deviation over seeds."""
    methods = defaultdict(list)
    for row in rows:
        if "ablation" in row:
            methods[row["dataset"], row["ablation"]].append(row)
    if not methods:
        return EMPTY
    columns = {
        "validation NDCG@10": (lambda run: run["validation"]["NDCG@10"], ".4f"),
        "validation HR@10": (lambda run: run["validation"]["HR@10"], ".4f"),
        "test NDCG@10": (lambda run: run["test"]["NDCG@10"], ".4f"),
        "test HR@10": (lambda run: run["test"]["HR@10"], ".4f"),
        "churn": (lambda run: _refreshes(run, "churn"), ".3f"),
        "collisions": (lambda run: _refreshes(run, "collision_rate"), ".3f"),
        "million tokens": (lambda run: run["tuning"]["validation"][-1]["tokens"] / 1e6, ".1f"),
    }
    lines, notes = [], {}
    for (dataset, method), runs in sorted(methods.items()):
        cells = [over_seeds([value(run) for run in runs], form) for value, form in columns.values()]
        lines.append([dataset, method, str(len(runs)), *cells])
        some = runs[0]
        notes[dataset] = (
            f"\n\n{dataset}: {some['threads']} thread(s) a run on {some['hardware']}; commit "
            f"{some['commit']}; `{some['command']}`."
        )
    table = markdown(["data set", "", "seeds", *columns], lines)
    said = "\n\nChurn and collisions: mean over the refreshes before the freeze."
    return table + said + "".join(notes.values())


def _refreshes(run: dict, name: str) -> float:
    moving = run["tuning"]["refreshes"][:-1]
    return statistics.mean(refresh[name] for refresh in moving) if moving else 0.0


def cold_table(rows: list[dict]) -> str:
    """Return how well items are recommended that training had never seen, mean over seeds."""
    found = defaultdict(list)
    for row in rows:
        if "cold_start" in row:
            found[row["cold_start"]].append(row)
    metrics = ("HR@10", "NDCG@10")
    heads = ["", *(f"{name} {metric}" for name in found for metric in metrics)]
    methods = next(iter(found.values()))[0]["rows"] if found else ()
    columns = [(runs, metric) for runs in found.values() for metric in metrics]
    lines = [
        [name, *(over_seeds([one["rows"][name][key] for one in runs]) for runs, key in columns)]
        for name in methods
    ]
    notes = [
        f"\n\n{name}: {len(runs)} seeds, each with {runs[0]['new_items']} new items; "
        f"{sum(one['users'] for one in runs):,} users in all; commit {runs[0]['commit']}; "
        f"`{runs[0]['command']}`."
        for name, runs in found.items()
    ]
    return markdown(heads, lines) + "".join(notes)


def tasks_table() -> str:
    """Return what every tuning task asks, as its docstring says it."""
    lines = []
    for name, task in (USER_TASKS | ITEM_TASKS).items():
        said, _, example = inspect.getdoc(task).partition("\n\n")
        lines.append([f"`{name}`", " ".join(said.split()), f"`{' '.join(example.split())}`"])
    return markdown(["task", "", "for example"], lines)


def serving_table(rows: list[dict]) -> str:
    """Return what the HTTP server takes, from one client and from many."""
    row = next((r for r in rows if "times_one_at_a_time" in r), None)
    if row is None:
        return EMPTY
    columns = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms", "requests", "errors")
    lines = ["| clients | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for entry in row["rows"]:
        cells = " | ".join(f"{entry[column]:,}" for column in columns)
        lines.append(f"| {entry['clients']} | {cells} |")
    lines.append(
        f"\n{row['times_one_at_a_time']} times the requests of one client that waits for each. "
        f"{row['items']:,} items; {row['cores']} cores, which the clients use too, a load of "
        f"{row['load_before']} before; {row['hardware']}; commit {row['commit']}; "
        f"`{row['command']}`."
    )
    return "\n".join(lines)


def update_table(rows: list[dict]) -> str:
    """Return how models rank the weeks after an update: before it, after it, trained anew."""
    found = [row for row in rows if "update" in row]
    if not found:
        return EMPTY
    columns = [name for name in found[0]["rows"]["updated"] if name != "minutes"]
    lines = [
        "| | " + " | ".join(columns) + " | minutes |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for row in found:
        for method, scores in row["rows"].items():
            cells = " | ".join(f"{scores[column]:.4f}" for column in columns)
            lines.append(f"| {row['update']}, {method} | {cells} | {scores['minutes']:.1f} |")
        old, new = row["interactions"]
        lines.append(
            f"\n{row['update']}: {old:,} interactions before {row['days'][0]}, {new:,} before "
            f"{row['days'][1]}; {row['users']:,} users chose something after that, "
            f"{row['targets_of_new_items']:,} of them an item that had come in between, "
            f"{row['targets_nobody_knew']:,} one that nobody knew; {row['hardware']}; commit "
            f"{row['commit']}; `{row['command']}`."
        )
    return "\n".join(lines)


def filled(text: str, rows: list[dict]) -> str:
    """Return a document with the tables between its markers and the figures in it made anew.

    Args:
        text: The document.
        rows: The results.
    """
    makers = {
        "sids": sids_table, "ranking": ranking_table, "ablation": ablation_table,
        "cold": cold_table, "decoding": decoding_table, "preparation": preparation_table,
        "slices": slices_table, "ties": ties_table, "compare": compare_table,
        "timeline": timeline_table, "drift": drift_table,
        "summary": summary_table, "cost": cost_table, "first minute": first_minute_output,
        "tasks": lambda rows: tasks_table(),
        "speed": speed_table, "serving": serving_table, "update": update_table,
        "published": published_table,
    }  # fmt: skip
    for name in re.findall(r"<!-- table: (.+?) -->", text):
        kind, dataset = (name, "") if name in makers else name.split(" ")
        table = makers[kind](*[dataset] * bool(dataset), rows)
        text = re.sub(
            rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return with_values(text, rows)


def main() -> None:
    """Fill README.md and docs."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        file.write_text(filled(file.read_text("utf-8"), results()), "utf-8")


if __name__ == "__main__":
    main()
