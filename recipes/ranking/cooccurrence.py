"""Build the co-occurrence memory from training histories."""

import numpy as np
import scipy.sparse as sp
import torch

from modeling_ttds.cooccurrence_ttds import TTDSCooccurrence
from recipes.evaluation.baselines.markov import transition_matrix

LONGEST = 50
LATE = 6  # how many of a history's newest items count as late ones, each half as much as the next
HALF_LIFE, YEAR = 120 * 86400, 365 * 86400  # seconds
MAX_PAIRS = 512  # of an item; its strongest are kept
PRIOR = 3  # interactions of average age that an item's mean age starts from


def build_cooccurrence(
    histories: list[np.ndarray],
    num_items: int,
    min_pair_users: int = 1,
    timestamps: list[np.ndarray] | None = None,
) -> TTDSCooccurrence:
    """Count what follows what, and who buys what together, in one go over the histories.

    Args:
        histories: Item rows in order, per user; the newest 50 of each count.
        num_items: Size of the catalogue.
        min_pair_users: Least number of users behind a pair; rarer pairs are dropped.
        timestamps: When each of the histories' interactions was, in seconds, NaN where unknown;
            without any, what the co-occurrence memory knows of time is zero.
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
    together = (bought.T @ bought).tocsr()
    roots = sp.diags(1 / np.sqrt(np.maximum(together.diagonal(), 1)))
    cosine = (roots @ together @ roots).tocsr()
    for matrix in (together, cosine):
        matrix.setdiag(0)
        matrix.eliminate_zeros()
    kept = (together >= min_pair_users).astype(float)
    kept = ((transition != 0) + (follow != 0) + (cosine != 0)).astype(float).multiply(kept).tocsr()
    kept = _strongest(kept.multiply(transition + cosine).tocsr() + 1e-9 * kept)
    cooccurrence = TTDSCooccurrence(num_items, kept.nnz)
    cooccurrence.starts.copy_(torch.from_numpy(kept.indptr))
    cooccurrence.others.copy_(torch.from_numpy(kept.indices))
    rows = np.repeat(np.arange(num_items), np.diff(kept.indptr))
    matrices = (transition, follow, cosine) if kept.nnz else ()
    for column, matrix in enumerate(matrices):
        values = np.asarray(sp.csr_matrix(matrix)[rows, kept.indices]).ravel()
        cooccurrence.values[:, column] = torch.from_numpy(values)
    columns = (popularity, _late(histories, num_items), *_times(everything, num_items, timestamps))
    cooccurrence.items.copy_(torch.from_numpy(np.stack(columns, axis=1)))
    return cooccurrence


def _strongest(pairs: sp.csr_matrix) -> sp.csr_matrix:
    """Return which pairs are among the strongest of their first item, in order of the second."""
    counts = np.diff(pairs.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-pairs.data, rows))
    place = np.arange(len(rows)) - np.repeat(pairs.indptr[:-1], counts)
    kept = order[place < MAX_PAIRS]
    marks = (np.ones(len(kept)), (rows[kept], pairs.indices[kept]))
    pairs = sp.csr_matrix(marks, shape=pairs.shape)
    pairs.sort_indices()
    return pairs


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
    era = -(np.bincount(items, age, num_items) + PRIOR * age.mean()) / (count + PRIOR) / YEAR
    return recent, era
