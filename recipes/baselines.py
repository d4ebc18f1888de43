"""Baselines: functions from a split to the ranked lists of its users."""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp

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


def transition_matrix(histories: list[np.ndarray], num_items: int) -> sp.csr_matrix:
    """Count what follows what at lags 1 to 5, the reverse direction half; rows by root of sum.

    Args:
        histories: Item rows in order, per user.
        num_items: Size of the catalogue.
    """
    forward = sp.csr_matrix((num_items, num_items))
    for lag in range(1, 6):
        pairs = [(h[:-lag], h[lag:]) for h in histories if len(h) > lag]
        if pairs:
            before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
            weights = np.full(len(before), 0.6 ** (lag - 1))
            forward += sp.coo_matrix((weights, (before, after)), shape=forward.shape).tocsr()
    matrix = forward + 0.5 * forward.T
    total = np.asarray(matrix.sum(1)).ravel()
    return sp.csr_matrix(sp.diags(1 / np.sqrt(np.maximum(total, 1e-12))) @ matrix)


def transitions(split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank items by `transition_matrix` rows of the history, halved per step into the past.

    Popularity breaks ties. Arguments and result as of `popularity`.
    """
    return rank(split, which, top_k, transition_scores(split, which))


def transition_scores(split: Split, which: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from users to the scores that `transitions` ranks by."""
    matrix = transition_matrix(split.training, split.num_items)
    tie_break = split.training_counts / split.training_counts.max() * 1e-6

    def scores(users: np.ndarray) -> np.ndarray:
        return (_recency(split, which, users, 0.5) @ matrix).toarray() + tie_break

    return scores


def item_knn(split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank items by summed cosine similarity of their training users to those of the history.

    Arguments and result as of `popularity`.
    """
    users = np.repeat(np.arange(len(split.training)), [len(h) for h in split.training])
    matrix = sp.coo_matrix(
        (np.ones(len(users)), (users, np.concatenate(split.training))),
        shape=(len(split.training), split.num_items),
    ).tocsr()
    matrix.data[:] = 1
    norms = np.sqrt(np.maximum(np.asarray(matrix.sum(0)).ravel(), 1))
    matrix = matrix @ sp.diags(1 / norms)
    similarity = (matrix.T @ matrix).tocsr()
    similarity.setdiag(0)
    return rank(
        split, which, top_k, lambda users: (_recency(split, which, users, 1) @ similarity).toarray()
    )


def counts_and_text(
    split: Split, which: str, top_k: int, text: np.ndarray, weight: float = 0.3
) -> np.ndarray:
    """Rank by transition scores normalised per user plus weighted text similarity.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.
        text: Text embeddings of the items, (num_items, text_dim), unit rows.
        weight: Weight of a softmax (temperature .07) over similarity to the history's text.

    Returns:
        Item rows, (num_users_with_target, top_k).
    """
    counts = transition_scores(split, which)

    def scores(users: np.ndarray) -> np.ndarray:
        first = counts(users)
        first /= first.sum(1, keepdims=True)
        profile = _recency(split, which, users, 0.6) @ text
        profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
        logits = profile @ text.T / 0.07
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
        lists.append(np.argsort(-values, axis=1, kind="stable")[:, :top_k])
    return np.concatenate(lists)


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
