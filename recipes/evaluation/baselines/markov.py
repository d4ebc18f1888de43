"""Markov chain: what followed what in training; and the same with text similarity."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from recipes.data.split import Split
from recipes.evaluation.baselines.rank import rank, recency


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


def markov_chain(
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
    return rank(split, which, top_k, _markov_scores(split, which, decay, reverse))


def markov_chain_and_text(
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
        decay: As of `markov_chain`.
        reverse: As of `markov_chain`.

    Returns:
        Item rows, (num_users_with_target, top_k).
    """
    counts = _markov_scores(split, which, decay, reverse)

    def scores(users: np.ndarray) -> np.ndarray:
        first = counts(users)
        first /= first.sum(1, keepdims=True)
        profile = recency(split, which, users, 0.6).astype(text.dtype) @ text
        profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
        logits = profile @ text.T / temperature
        logits -= logits.max(1, keepdims=True)
        second = np.exp(logits)
        return first + weight * second / second.sum(1, keepdims=True)

    return rank(split, which, top_k, scores)


def _markov_scores(
    split: Split, which: str, decay: float, reverse: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from users to the scores that `markov_chain` ranks by."""
    matrix = transition_matrix(split.training, split.num_items, reverse)
    tie_break = split.training_counts / split.training_counts.max() * 1e-6

    def scores(users: np.ndarray) -> np.ndarray:
        return (recency(split, which, users, decay) @ matrix).toarray() + tie_break

    return scores
