"""Compare TTDS with its own re-ranker alone and with the best other baseline: a paired bootstrap.

python -m benchmarks.compare --name scientific --dataset_name FOLDER

Reads the ranked lists of the results (--lists; each must be the recorded one) and resamples users.
Validation targets say which baseline is best. A method with several seeds counts by the mean over
them, per user.
"""

import argparse

from recipes.config import SPLITS
from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--dataset_name", help="Folder; the generated data by default.")
    parser.add_argument(
        "--tie_break",
        default="published",
        choices=("published", "shuffled"),
        help="Order of interactions with the same timestamp.",
    )
    parser.add_argument(
        "--split", default=SPLITS[0], choices=SPLITS, help="Which split's results are compared."
    )
    parser.add_argument("--lists", help="Folder of the ranked lists; outputs/lists by default.")
    ARGUMENTS = parser.parse_args()

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.result import (
    LISTS,
    best_baseline,
    dataset_name,
    order_name,
    ranking_runs,
    read_run,
    result_name,
    results,
    write_result,
)
from recipes.config import DataOptions
from recipes.data.load import load_data
from recipes.data.split import Split, split_data
from recipes.evaluation.metrics import slices
from recipes.evaluation.report import RERANKER_ONLY, TTDS

ROOT = Path(__file__).resolve().parents[1]

METRICS = ("HR@10", "NDCG@10")
RESAMPLES = 10_000


def user_metrics(lists: Sequence[Sequence[int]], targets: Sequence[int]) -> np.ndarray:
    """Return HR@10 and NDCG@10 of every user, (num_users, 2).

    Args:
        lists: Per user, item rows from best to worst.
        targets: Per user, the relevant item row.
    """
    values = np.zeros((len(targets), len(METRICS)))
    for user, (items, target) in enumerate(zip(lists, targets, strict=True)):
        if target in items[:10]:
            values[user] = 1, 1 / math.log2(items.index(target) + 2)
    return values


def bootstrap(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> dict[str, dict]:
    """Return how far one method is above another and how sure that is.

    Args:
        ours: Metrics per user, (num_users, 2).
        theirs: Of the other method, for the same users.
        seed: Seed of the resampling.

    Returns:
        Per metric: `difference` of the means, `relative` to the other method, the central 95 %
        `interval` over resamples, and `share_at_most_0`, the share of resamples in which the
        difference is not above 0.
    """
    # Drawing users with replacement is drawing how often each distinct difference is met.
    values, counts = np.unique(ours - theirs, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(
        len(ours), counts / len(ours), size=RESAMPLES
    )  # (num_resamples, num_distinct)
    means = draws @ values / len(ours)
    report = {}
    for column, metric in enumerate(METRICS):
        difference, base = (ours - theirs)[:, column].mean(), theirs[:, column].mean()
        report[metric] = {
            "difference": float(difference),
            "relative": float(difference / base) if base else None,
            "interval": np.quantile(means[:, column], (0.025, 0.975)).tolist(),
            "share_at_most_0": float((means[:, column] <= 0).mean()),
        }
    return report


def compare(split: Split, dataset: str, tie_break: str, lists: Path = LISTS) -> dict:
    """Return the comparisons on one data set, on all test users and on every slice.

    Args:
        split: The split of the data set.
        dataset: Its name in the results.
        tie_break: As of `order_name`.
        lists: Folder of the ranked lists.
    """
    # A run on another shuffle has other targets and can't be paired.
    rows = [row for row in results() if row.get("data_sha256") == split.data_sha256]
    methods = ranking_runs(rows, dataset, tie_break)
    if TTDS not in methods or (best := best_baseline(methods)) is None:
        raise SystemExit(
            f"benchmarks/results has no {TTDS} and a baseline on {dataset} ({tie_break}) with "
            f"`data_sha256` {split.data_sha256}: run benchmarks/recipe.py and "
            "benchmarks/baseline.py on this data set first."
        )
    targets = split.targets("test")[split.users("test")]
    groups = {"all": np.ones(len(targets), bool)} | slices(split, "test")

    def mean_over_seeds(method: str) -> np.ndarray:
        names = [result_name(dataset, tie_break, method, run["seed"]) for run in methods[method]]
        return np.mean([user_metrics(read_run(name, lists), targets) for name in names], axis=0)

    ours = mean_over_seeds(TTDS)
    against = {}
    for method in (RERANKER_ONLY, best):
        if method not in methods:
            continue
        theirs = mean_over_seeds(method)
        against[method] = {
            "seeds": [run["seed"] for run in methods[method]],
            "slices": {
                name: {"users": int(members.sum())} | bootstrap(ours[members], theirs[members])
                for name, members in groups.items()
                if members.any()
            },
        }
    return {
        "compare": dataset,
        "tie_break": tie_break,
        "data_sha256": split.data_sha256,
        "resamples": RESAMPLES,
        "of": {"method": TTDS, "seeds": [run["seed"] for run in methods[TTDS]]},
        "best_baseline": best,
        "against": against,
    }


def main(arguments: argparse.Namespace) -> None:
    """Compare and write one result.

    Args:
        arguments: The command line.
    """
    begun = time.perf_counter()
    options = DataOptions(dataset_name=arguments.dataset_name, tie_break=arguments.tie_break)
    split = split_data(load_data(options)[0], split=arguments.split)
    order = order_name(arguments.tie_break, arguments.split)
    try:
        content = compare(split, arguments.name, order, Path(arguments.lists or LISTS))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    name = dataset_name(arguments.name, order)
    write_result(f"{name}-compare", 0, time.perf_counter() - begun, content)
    for method, found in content["against"].items():
        print(method, found["slices"]["all"])


if __name__ == "__main__":
    main(ARGUMENTS)
