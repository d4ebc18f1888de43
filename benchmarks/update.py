"""Show what an update brings: rank the last weeks by models of before, updated, and trained anew.

python -m benchmarks.update --name toys --dataset_name FOLDER
    --config recipes/experiments/toys/sft.yaml

One model is trained on all interactions before a day, and updated with those of the weeks after it;
another is trained on both. Each ranks what users chose first in the weeks after those. What follows
is handed to the recipe.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--dataset_name", required=True, help="Folder, with timestamps.")
    parser.add_argument(
        "--train_share", type=float, default=0.8, help="Share of the interactions trained on."
    )
    parser.add_argument(
        "--update_share", type=float, default=0.1, help="Share of those of the weeks after."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn at random.")
    ARGUMENTS, RECIPE = parser.parse_known_args()

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

from benchmarks.result import TEXT_FILE, write_result
from recipes.data.split import in_time
from recipes.data.tables import Catalogue, Data, read_data, write_data
from recipes.evaluation.metrics import rank_metrics
from recipes.hub.saved import load_model

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("HR@10", "NDCG@10")


def before(data: Data, moment: float) -> Data:
    """Return the data set as it was at a moment: its interactions, and the items they had touched.

    Args:
        data: The data set, with timestamps.
        moment: In seconds.
    """
    counts = [int((when < moment).sum()) for when in data.timestamps]
    touched = np.zeros(len(data.catalogue), dtype=bool)
    for history, count in zip(data.histories, counts, strict=True):
        touched[history[:count]] = True
    kept, new_row = np.flatnonzero(touched), touched.cumsum() - 1
    fields = {n: [values[row] for row in kept] for n, values in data.catalogue.fields.items()}
    catalogue = Catalogue([data.catalogue.item_ids[row] for row in kept], fields)
    users = [user for user, count in enumerate(counts) if count]
    return Data(
        catalogue,
        [data.user_ids[user] for user in users],
        [new_row[data.histories[user][: counts[user]]] for user in users],
        [data.timestamps[user][: counts[user]] for user in users],
    )


def write_state(data: Data, whole: Data, source: Path, folder: Path) -> list[str]:
    """Write the data set of a moment, and its share of the text embeddings if there are any.

    Args:
        data: As of `before`.
        whole: What it is a part of.
        source: Folder of the whole.
        folder: Where to.

    Returns:
        Arguments that name the text embeddings.
    """
    write_data(data, folder)
    if not (source / TEXT_FILE).exists():
        return []
    rows = [whole.catalogue.row_of[item] for item in data.catalogue.item_ids]
    text = load_file(source / TEXT_FILE)["text"][rows].contiguous()
    save_file({"text": text}, folder / TEXT_FILE)
    return ["--text_embeddings", TEXT_FILE]


def ranked(name: Path, data: Data, users: list[int], moment: float) -> list[list[int]]:
    """Return the lists of users as of a moment, as rows of the whole catalogue.

    Args:
        name: Folder of a model; items that it does not know are no part of a history.
        data: The whole data set.
        users: The users.
        moment: In seconds.
    """
    model, ids = load_model(str(name)), data.catalogue.item_ids
    histories = [
        [ids[row] for row in data.histories[user][data.timestamps[user] < moment]] for user in users
    ]
    lists = model.recommend(histories, top_k=10, unknown="skip")
    return [[data.catalogue.row_of[entry.item_id] for entry in entries] for entries in lists]


def timed(run: Callable[[], object]) -> float:
    """Return how many minutes something takes.

    Args:
        run: What to do.
    """
    begun = time.perf_counter()
    run()
    return round((time.perf_counter() - begun) / 60, 2)


def main(arguments: argparse.Namespace, recipe: list[str]) -> None:
    """Cut, train, update, train anew, rank, and write one result.

    Args:
        arguments: The command line.
        recipe: What of it is handed to the recipe.
    """
    begun, source = time.perf_counter(), Path(arguments.dataset_name)
    data = read_data(arguments.dataset_name)
    if data.timestamps is None:
        raise ValueError(f"`--dataset_name` {source} has no timestamps; an update needs days.")
    data = in_time(data)
    shares = [arguments.train_share, arguments.train_share + arguments.update_share]
    first, second = np.quantile(np.concatenate(data.timestamps), shares)
    place = ROOT / "outputs" / f"update-{arguments.name}-{arguments.seed}"
    shutil.rmtree(place, ignore_errors=True)
    states, named = [before(data, moment) for moment in (first, second)], []
    for state, folder in zip(states, ("old", "new"), strict=True):
        named.append(write_state(state, data, source, place / folder))

    def script(name: str, *extra: str) -> None:
        subprocess.run([sys.executable, f"recipes/{name}.py", *extra], cwd=ROOT, check=True)

    def train(folder: str, output: str) -> None:
        where = ["--dataset_name", str(place / folder), "--output_dir", str(place / output)]
        script("sft", *recipe, *where, "--seed", str(arguments.seed))

    def update() -> None:
        where = ["--dataset_name", str(place / "new"), "--output_dir", str(place / "updated")]
        script("update", "--model", str(place / "before"), *where, *named[1])

    minutes = {
        "not updated": timed(lambda: train("old", "before")),
        "updated": timed(update),
        "trained anew": timed(lambda: train("new", "anew")),
    }
    users, targets = [], []
    for user, (history, when) in enumerate(zip(data.histories, data.timestamps, strict=True)):
        later = np.flatnonzero(when >= second)
        if 0 < len(later) < len(history) and history[later[0]] not in history[: later[0]]:
            users.append(user)
            targets.append(int(history[later[0]]))
    ids = data.catalogue.item_ids
    known = np.array([[ids[t] in state.catalogue.row_of for t in targets] for state in states])
    groups = {"": np.full(len(users), True), "new items ": known[1] & ~known[0]}
    rows = {}
    for method, folder in (
        ("not updated", "before"), ("updated", "updated"), ("trained anew", "anew"),
    ):  # fmt: skip
        lists = ranked(place / folder, data, users, second)
        rows[method] = {"minutes": minutes[method]}
        for group, members in groups.items():
            chosen = np.flatnonzero(members)
            scores = rank_metrics([lists[n] for n in chosen], [targets[n] for n in chosen])
            rows[method] |= {f"{group}{column}": scores[column] for column in COLUMNS}
    content = {
        "update": arguments.name,
        "days": [str(pd.Timestamp(moment, unit="s").date()) for moment in (first, second)],
        "interactions": [sum(map(len, state.histories)) for state in states],
        "items": [len(state.catalogue) for state in states],
        "users": len(users),
        "targets_of_new_items": int(groups["new items "].sum()),
        "targets_nobody_knew": int((~known[1]).sum()),
        "rows": rows,
    }
    print(content)
    name = f"update-{arguments.name}-seed{arguments.seed}"
    write_result(name, arguments.seed, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main(ARGUMENTS, RECIPE)
