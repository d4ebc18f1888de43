"""From scores to ranked lists, and the matrices that several baselines count with."""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp

from recipes.data.split import Split

CHUNK = 1024


def rank(
    split: Split, which: str, top_k: int, scores: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Turn scores into lists, without the history's items where the split leaves them out.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists, cut to the catalogue.
        scores: Function from users to scores (num_users, num_items).

    Returns:
        Item rows, (num_users_with_target, top_k), padded with -1 where fewer may appear.
    """
    lists = []
    for users in _chunks(split.users(which)):
        values = scores(users)
        if split.exclude_seen:
            for i, user in enumerate(users):
                values[i, split.history(user, which)] = -np.inf
        lists += [_best(row, top_k) for row in values]
    return np.stack(lists)


def touched(split: Split) -> sp.csr_matrix:
    """Return ones where a user touched an item in training, (num_users, num_items)."""
    users = np.repeat(np.arange(len(split.training)), [len(h) for h in split.training])
    matrix = sp.coo_matrix(
        (np.ones(len(users)), (users, np.concatenate(split.training))),
        shape=(len(split.training), split.num_items),
    ).tocsr()
    matrix.data[:] = 1
    return matrix


def recency(split: Split, which: str, users: np.ndarray, decay: float) -> sp.csr_matrix:
    """Return a matrix (num_users, num_items) with `decay` per step back at the history's items."""
    histories = [split.history(user, which) for user in users]
    rows = np.repeat(np.arange(len(users)), [len(h) for h in histories])
    weights = np.concatenate([float(decay) ** np.arange(len(h))[::-1] for h in histories])
    return sp.coo_matrix(
        (weights, (rows, np.concatenate(histories))), shape=(len(users), split.num_items)
    ).tocsr()


def _best(values: np.ndarray, top_k: int) -> np.ndarray:
    """Return where the highest values are, best first, of equal ones the first; -1 for none."""
    top_k = min(top_k, len(values))
    least = np.partition(values, -top_k)[-top_k]
    candidates = np.flatnonzero(values >= least)
    best = candidates[np.argsort(-values[candidates], kind="stable")[:top_k]]
    return np.where(values[best] > -np.inf, best, -1)


def _chunks(users: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(users), CHUNK):
        yield users[first : first + CHUNK]
