"""Baselines: functions from a split to the ranked lists of its users."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack

from recipes.data import Split

CHUNK = 1024


def popularity(split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank items by how often they occur in training.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.

    Returns:
        Item rows, (num_users_with_target, top_k); items of the history are left out.
    """
    counts = split.training_counts.astype(float)
    return rank(split, which, top_k, lambda users: np.tile(counts, (len(users), 1)))


def transition_matrix(
    histories: list[np.ndarray], num_items: int, reverse: float = 0.5
) -> sp.csr_matrix:
    """Count what follows what at lags 1 to 5 and what precedes it; rows by root of sum.

    Args:
        histories: Item rows in order, per user.
        num_items: Size of the catalogue.
        reverse: Weight of the reverse direction.
    """
    forward = sp.csr_matrix((num_items, num_items))
    for lag in range(1, 6):
        pairs = [(h[:-lag], h[lag:]) for h in histories if len(h) > lag]
        if pairs:
            before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
            weights = np.full(len(before), 0.6 ** (lag - 1))
            forward += sp.coo_matrix((weights, (before, after)), shape=forward.shape).tocsr()
    matrix = forward + reverse * forward.T
    total = np.asarray(matrix.sum(1)).ravel()
    return sp.csr_matrix(sp.diags(1 / np.sqrt(np.maximum(total, 1e-12))) @ matrix)


def transitions(
    split: Split, which: str, top_k: int, decay: float = 0.5, reverse: float = 0.5
) -> np.ndarray:
    """Rank items by the summed `transition_matrix` rows of the history; popularity breaks ties.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.
        decay: Weight of a history's item per step into the past.
        reverse: Weight of the reverse direction.

    Returns:
        Item rows, (num_users_with_target, top_k).
    """
    return rank(split, which, top_k, _transition_scores(split, which, decay, reverse))


def item_knn(
    split: Split, which: str, top_k: int, decay: float = 1.0, power: float = 0.5
) -> np.ndarray:
    """Rank items by summed similarity of their training users to those of the history.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.
        decay: Weight of a history's item per step into the past.
        power: Common users are divided by both items' numbers of users to this power; 0.5 is the
            cosine.

    Returns:
        Item rows, (num_users_with_target, top_k).
    """
    matrix = _touched(split)
    norms = np.maximum(np.asarray(matrix.sum(0)).ravel(), 1) ** power
    matrix = matrix @ sp.diags(1 / norms)
    similarity = (matrix.T @ matrix).tocsr()
    similarity.setdiag(0)
    return rank(
        split,
        which,
        top_k,
        lambda users: (_recency(split, which, users, decay) @ similarity).toarray(),
    )


def ease(split: Split, which: str, top_k: int, l2: float = 100.0, decay: float = 1.0) -> np.ndarray:
    """Rank items by the summed `ease_weights` rows of the history.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.
        l2: Penalty of the weights.
        decay: Weight of a history's item per step into the past.

    Returns:
        Item rows, (num_users_with_target, top_k).
    """
    weights = ease_weights(split, l2)
    return rank(
        split,
        which,
        top_k,
        lambda users: _recency(split, which, users, decay).astype(np.float32) @ weights,
    )


@lru_cache(maxsize=1)  # the inverse takes minutes and serves every `decay` and both targets
def ease_weights(split: Split, l2: float) -> np.ndarray:
    """Regress every item on all others (Steck 2019, arXiv:1905.03375), (num_items, num_items).

    With X who touched what in training, G = X'X + l2 and P the inverse of G, the weight of item i
    for item j is -P[i, j] / P[j, j]; no item speaks for itself. In float32 and in one matrix, for
    catalogues of some ten thousand items.

    Args:
        split: The split.
        l2: Penalty of the weights.
    """
    matrix = _touched(split).astype(np.float32)
    inverse = (matrix.T @ matrix).toarray(order="F")
    diagonal = np.diag_indices_from(inverse)
    inverse[diagonal] += l2
    inverse, failed = lapack.spotrf(inverse, lower=True, overwrite_a=True)
    if failed:
        raise ValueError(f"`l2` is {l2}: too small for float32; raise it.")
    inverse, _ = lapack.spotri(inverse, lower=True, overwrite_c=True)
    for first in range(0, split.num_items, CHUNK):  # LAPACK leaves the upper half as it was
        last = first + CHUNK
        inverse[first:last, last:] = inverse[last:, first:last].T
        block = inverse[first:last, first:last]
        block[:] = np.tril(block) + np.tril(block, -1).T
    inverse /= -inverse.diagonal()
    inverse[diagonal] = 0
    return inverse


def counts_and_text(
    split: Split,
    which: str,
    top_k: int,
    text: np.ndarray,
    weight: float = 0.3,
    temperature: float = 0.07,
    decay: float = 0.5,
    reverse: float = 0.5,
) -> np.ndarray:
    """Rank by transition scores normalised per user plus weighted text similarity.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.
        text: Text embeddings of the items, (num_items, text_dim), unit rows.
        weight: Weight of a softmax over similarity to the history's text.
        temperature: Temperature of that softmax.
        decay: As of `transitions`.
        reverse: As of `transitions`.

    Returns:
        Item rows, (num_users_with_target, top_k).
    """
    counts = _transition_scores(split, which, decay, reverse)

    def scores(users: np.ndarray) -> np.ndarray:
        first = counts(users)
        first /= first.sum(1, keepdims=True)
        profile = _recency(split, which, users, 0.6).astype(text.dtype) @ text
        profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
        logits = profile @ text.T / temperature
        logits -= logits.max(1, keepdims=True)
        second = np.exp(logits)
        return first + weight * second / second.sum(1, keepdims=True)

    return rank(split, which, top_k, scores)


def rank(
    split: Split, which: str, top_k: int, scores: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Turn scores into lists without the history's items.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists, cut to the catalogue.
        scores: Function from users to scores (num_users, num_items).
    """
    lists = []
    for users in _chunks(split.users(which)):
        values = scores(users)
        for i, user in enumerate(users):
            values[i, split.history(user, which)] = -np.inf
        lists += [_best(row, top_k) for row in values]
    return np.stack(lists)


def _best(values: np.ndarray, top_k: int) -> np.ndarray:
    """Return where the highest values are, best first, of equal ones the first."""
    top_k = min(top_k, len(values))
    least = np.partition(values, -top_k)[-top_k]
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")[:top_k]]


def _transition_scores(
    split: Split, which: str, decay: float, reverse: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from users to the scores that `transitions` ranks by."""
    matrix = transition_matrix(split.training, split.num_items, reverse)
    tie_break = split.training_counts / split.training_counts.max() * 1e-6

    def scores(users: np.ndarray) -> np.ndarray:
        return (_recency(split, which, users, decay) @ matrix).toarray() + tie_break

    return scores


def _touched(split: Split) -> sp.csr_matrix:
    """Return ones where a user touched an item in training, (num_users, num_items)."""
    users = np.repeat(np.arange(len(split.training)), [len(h) for h in split.training])
    matrix = sp.coo_matrix(
        (np.ones(len(users)), (users, np.concatenate(split.training))),
        shape=(len(split.training), split.num_items),
    ).tocsr()
    matrix.data[:] = 1
    return matrix


def _chunks(users: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(users), CHUNK):
        yield users[first : first + CHUNK]


def _recency(split: Split, which: str, users: np.ndarray, decay: float) -> sp.csr_matrix:
    """Return a matrix (num_users, num_items) with `decay` per step back at the history's items."""
    histories = [split.history(user, which) for user in users]
    rows = np.repeat(np.arange(len(users)), [len(h) for h in histories])
    weights = np.concatenate([float(decay) ** np.arange(len(h))[::-1] for h in histories])
    return sp.coo_matrix(
        (weights, (rows, np.concatenate(histories))), shape=(len(users), split.num_items)
    ).tocsr()
