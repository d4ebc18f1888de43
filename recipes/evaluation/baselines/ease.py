"""EASE: a linear model of every item from all others (Steck 2019)."""

from functools import lru_cache

import numpy as np
from scipy.linalg import lapack

from recipes.data.split import Split
from recipes.evaluation.baselines.rank import CHUNK, rank, recency, touched


def ease(split: Split, which: str, top_k: int, l2: float = 100.0, decay: float = 1.0) -> np.ndarray:
    """Rank items by the summed `ease_weights` rows of the history; new items have zeros.

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

    def scores(users: np.ndarray) -> np.ndarray:
        return recency(split, which, users, decay).astype(np.float32) @ weights

    return rank(split, which, top_k, scores)


@lru_cache(maxsize=1)  # the inverse takes minutes and serves every `decay`
def ease_weights(split: Split, l2: float) -> np.ndarray:
    """Regress every item on all others (Steck 2019, arXiv:1905.03375), (num_items, num_items).

    With X who touched what in training, G = X'X + l2 and P the inverse of G, the weight of item i
    for item j is -P[i, j] / P[j, j]; no item speaks for itself. In float32 and in one matrix, for
    catalogues of some ten thousand items.

    Args:
        split: The split.
        l2: Penalty of the weights.
    """
    matrix = touched(split).astype(np.float32)
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
