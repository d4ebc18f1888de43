"""Popularity: how often an item was chosen in training."""

import numpy as np

from recipes.data.split import Split
from recipes.evaluation.baselines.rank import rank


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
