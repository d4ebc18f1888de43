"""Build the co-occurrence memory from training histories."""

import numpy as np
import scipy.sparse as sp

from modeling_ttds.cooccurrence_ttds import TTDSCooccurrence
from recipes.evaluation.baselines.markov import transition_matrix

LONGEST = 50
MAX_PAIRS = 512  # of an item: what a history recalls is bounded, and the memory's size
BLOCK = 16_384  # items whose pairs are counted at once
LATE = 6  # how many of a history's newest items count as late ones, each half as much as the next
HALF_LIFE, YEAR = 120 * 86400, 365 * 86400  # seconds
UNIT = 1250  # steps at lags 1 to 5 weigh so many parts of it, in either direction
PRIOR = 3  # interactions of average age that an item's mean age starts from


def build_cooccurrence(
    histories: list[np.ndarray],
    num_items: int,
    min_pair_users: int = 1,
    timestamps: list[np.ndarray] | None = None,
    max_pairs: int | None = MAX_PAIRS,
) -> TTDSCooccurrence:
    """Count what follows what, and who buys what together, in one go over the histories.

    `recipes.ranking.counting` counts the same where a log lives in a database or on a cluster.

    Args:
        histories: Item rows in order, per user; the newest 50 of each count.
        num_items: Size of the catalogue.
        min_pair_users: Least number of users behind a pair; rarer pairs are dropped.
        timestamps: When each of the histories' interactions was, in seconds, NaN where unknown;
            without any, what the co-occurrence memory knows of time is zero.
        max_pairs: Most pairs of an item: those with most transitions stay, then those of most
            users; None keeps all.
    """
    everything = histories
    histories = [history[-LONGEST:] for history in histories]
    transition = transition_matrix(histories, num_items)
    before = np.concatenate([history[:-1] for history in histories])
    after = np.concatenate([history[1:] for history in histories])
    follow = sp.coo_matrix((np.ones(len(before)), (before, after)), shape=transition.shape).tocsr()
    follow = sp.diags(1 / np.sqrt(np.maximum(np.asarray(follow.sum(1)).ravel(), 1))) @ follow
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    bought = sp.csr_matrix(
        (np.ones(len(users)), (users, np.concatenate(histories))),
        shape=(len(histories), num_items),
    )
    popularity = np.asarray(bought.sum(0)).ravel()
    bought.data[:] = 1
    buyers = bought.T.tocsr()  # (num_items, num_users)
    roots = 1 / np.sqrt(np.maximum(np.diff(buyers.indptr), 1))
    # A column of the matrix is the count over the root of its row's sum.
    sums = np.asarray(transition.sum(1)).ravel()
    parts = []
    for begin in range(0, num_items, BLOCK):
        # Whatever follows another has a user in common with it: these are all pairs there are.
        together = (buyers[begin : begin + BLOCK] @ bought).tocsr()
        together.sort_indices()
        first = begin + np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        kept = (together.indices != first) & (together.data >= min_pair_users)
        first, other, users = first[kept], together.indices[kept], together.data[kept]
        if max_pairs is not None:  # equal counts tie
            strength = np.rint(_at(transition, first, other) * sums[first] * UNIT)
            order = np.lexsort((other, -users, -strength, first))
            rank = np.arange(len(order)) - np.searchsorted(first, first)
            kept = np.sort(order[rank < max_pairs])
            first, other, users = first[kept], other[kept], users[kept]
        values = [_at(transition, first, other), _at(follow, first, other)]
        values.append(roots[first] * users * roots[other])
        parts.append((first.astype(np.int32), other, np.stack(values, axis=1).astype(np.float32)))
    pairs = (np.concatenate(column) for column in zip(*parts, strict=True))
    items = (popularity, _late(histories, num_items), *_times(everything, num_items, timestamps))
    return memory_of(*pairs, np.stack(items, axis=1))


def memory_of(
    first: np.ndarray, other: np.ndarray, values: np.ndarray, items: np.ndarray
) -> TTDSCooccurrence:
    """Return the co-occurrence memory that holds these statistics.

    Args:
        first: Item rows, sorted, (num_pairs,).
        other: The items they are paired with, sorted among those of one item, (num_pairs,).
        values: The pairs' statistics, (num_pairs, num_statistics).
        items: The items' statistics, (num_items, num_item_statistics).
    """
    memory = TTDSCooccurrence(len(items), len(other))
    counts = np.bincount(first, minlength=len(items))
    for buffer, content in (
        (memory.starts[1:], counts.cumsum()), (memory.others, other), (memory.values, values),
        (memory.items, items),
    ):  # fmt: skip
        buffer.numpy()[:] = content
    return memory


def _at(matrix: sp.csr_matrix, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.asarray(sp.csr_matrix(matrix)[rows, columns]).ravel() if len(rows) else np.zeros(0)


def _late(histories: list[np.ndarray], num_items: int) -> np.ndarray:
    newest = [history[::-1][:LATE] for history in histories]
    weights = np.concatenate([0.5 ** np.arange(len(items)) for items in newest])
    return np.bincount(np.concatenate(newest), weights, num_items)


def _times(
    histories: list[np.ndarray], num_items: int, timestamps: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each item was chosen of late, and the mean age of its interactions."""
    items = np.concatenate(histories)
    when = (
        np.full(len(items), np.nan)
        if timestamps is None
        else np.concatenate(timestamps).astype(float)
    )
    known = ~np.isnan(when)
    if not known.any():
        return np.zeros(num_items), np.zeros(num_items)
    items, age = items[known], when[known].max() - when[known]
    recent = np.bincount(items, 0.5 ** (age / HALF_LIFE), num_items)
    count = np.bincount(items, minlength=num_items)
    return recent, mean_ages(np.bincount(items, age, num_items), count)


def mean_ages(age: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the mean age of each item's interactions in years, negative.

    Args:
        age: Sum of the ages in seconds, (num_items,).
        known: Number of them, (num_items,).
    """
    mean = age.sum() / max(known.sum(), 1)
    return -(age + PRIOR * mean) / (known + PRIOR) / YEAR
