"""Oracle: ranks the generated data set by the probabilities it was drawn from."""

import numpy as np

from recipes.data.split import Split
from recipes.data.toyshop import Toyshop
from recipes.evaluation.baselines.rank import rank


def oracle(shop: Toyshop, split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank items by their true probability: what no recommender can beat on average.

    Args:
        shop: The generated data set.
        split: The split of its data.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.
    """

    def scores(users: np.ndarray) -> np.ndarray:
        return np.stack([shop.probabilities(u, split.history(u, which)) for u in users])

    return rank(split, which, top_k, scores)
