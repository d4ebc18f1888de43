"""Item-kNN: items of like users."""

import numpy as np
import scipy.sparse as sp

from recipes.data.split import Split
from recipes.evaluation.baselines.rank import rank, recency, touched


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
    matrix = touched(split)
    norms = np.maximum(np.asarray(matrix.sum(0)).ravel(), 1) ** power
    matrix = matrix @ sp.diags(1 / norms)
    similarity = (matrix.T @ matrix).tocsr()
    similarity -= sp.diags(similarity.diagonal(), format="csr")
    return rank(
        split,
        which,
        top_k,
        lambda users: (recency(split, which, users, decay) @ similarity).toarray(),
    )
