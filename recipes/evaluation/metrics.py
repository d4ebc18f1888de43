"""Ranking metrics with one relevant item, and the slices of a data set's split.

Hit rate, NDCG and MRR as of Järvelin & Kekäläinen 2002. `ranking_metrics.py` beside this file is
the same as a module of the library `evaluate`.
"""

import math
from collections.abc import Sequence

import numpy as np

from recipes.data.split import Split
from recipes.evaluation.transitions import transitions

CUTOFFS = (1, 5, 10, 20)
COLD_AT_MOST = 5
HEAD_SHARE = 0.2


def rank_metrics(
    predictions: Sequence[Sequence[int]], references: Sequence[int]
) -> dict[str, float]:
    """Average HR, NDCG and MRR at every cut-off over users.

    With rank r of the one relevant item, counted from 1: HR@K = 1[r <= K], NDCG@K =
    1[r <= K] / log2(r + 1), MRR@K = 1[r <= K] / r. A list without the item scores 0.

    Args:
        predictions: Per user, item rows from best to worst.
        references: Per user, the relevant item row.
    """
    totals = {f"{name}@{k}": 0.0 for name in ("HR", "NDCG", "MRR") for k in CUTOFFS}
    for items, target in zip(predictions, references, strict=True):
        items = list(items)
        if target not in items:
            continue
        rank = items.index(target) + 1
        for k in CUTOFFS:
            if rank <= k:
                totals[f"HR@{k}"] += 1
                totals[f"NDCG@{k}"] += 1 / math.log2(rank + 1)
                totals[f"MRR@{k}"] += 1 / rank
    return {name: total / max(len(references), 1) for name, total in totals.items()}


def evaluate_run(split: Split, which: str, lists: Sequence[Sequence[int]]) -> dict[str, float]:
    """Score ranked lists of all users that have a target, with slices and coverage.

    Args:
        split: The split the targets come from.
        which: `"validation"` or `"test"`.
        lists: Per user of `split.users(which)`, item rows from best to worst, padded with -1.

    Returns:
        `rank_metrics`, coverage at every cut-off, and HR@10 and NDCG@10 of the `slices`.
    """
    users = split.users(which)
    targets = split.targets(which)[users]
    # Summed in the order of user ids, as strings sort, so that every digit can be compared.
    order = sorted(range(len(users)), key=lambda i: split.data.user_ids[users[i]])
    result = rank_metrics([lists[i] for i in order], [targets[i] for i in order])
    groups = {
        name: [i for i in order if members[i]] for name, members in slices(split, which).items()
    }
    for name, group in groups.items():
        part = rank_metrics([lists[i] for i in group], [targets[i] for i in group])
        if group:
            result |= {f"{name}_{metric}": part[metric] for metric in ("HR@10", "NDCG@10")}
    for k in CUTOFFS:
        shown = {item for items in lists for item in items[:k] if item >= 0}
        result[f"coverage@{k}"] = len(shown) / split.num_items
    return result | {"users": len(users)} | {f"{n}_users": len(g) for n, g in groups.items()}


def slices(split: Split, which: str) -> dict[str, np.ndarray]:
    """Return which users belong to a slice, a boolean per user of `split.users(which)`.

    Args:
        split: The split the targets come from.
        which: `"validation"` or `"test"`.

    Returns:
        `cold` (target seen at most 5 times in training, on a timeline before the cut), `new`
        (never; on a timeline it was added from its text), `later` (later-day users: target of a
        later timestamp than the item before), `head` and `tail` (target among the fifth of the
        items seen most, or not), and those of `transitions`.
    """
    users, counts = split.users(which), split.training_counts
    targets = split.targets(which)[users]
    most = counts.argsort(kind="stable")[::-1][: math.ceil(len(counts) * HEAD_SHARE)]
    head = np.isin(targets, most)
    return {
        "cold": counts[targets] <= COLD_AT_MOST,
        "new": counts[targets] == 0,
        "later": np.isin(users, split.later_day_users(which)),
        "head": head,
        "tail": ~head,
    } | transitions(split, which)
