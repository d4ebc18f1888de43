"""Who chose an item, in three arrays: a million users' log takes megabytes, not gigabytes."""

import numpy as np

from recipes.data.split import Split


class Buyers:
    """Per item, who chose it in training and at which moment of their history, in order of time.

    Without timestamps, and among equal ones, the order is that of the users.

    Args:
        split: The split; held-out targets stay out of sight.
    """

    def __init__(self, split: Split):
        lengths = np.array([len(history) for history in split.training])
        items = np.concatenate(split.training)
        users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        moments = np.arange(len(items)) - np.repeat(lengths.cumsum() - lengths, lengths)
        order = np.argsort(items, kind="stable")
        if split.training_timestamps is not None:
            order = np.lexsort((np.concatenate(split.training_timestamps), items))
        self.users, self.moments = users[order], moments[order].astype(np.int32)
        counts = np.bincount(items, minlength=split.num_items)
        self.starts = np.concatenate([[0], counts.cumsum()])

    def __getitem__(self, item: int) -> list[tuple[int, int]]:
        part = slice(self.starts[item], self.starts[item + 1])
        return list(zip(self.users[part].tolist(), self.moments[part].tolist(), strict=True))
