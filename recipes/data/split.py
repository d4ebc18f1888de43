"""The leave-one-out split: what may be learnt from, what is predicted."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recipes.data.tables import Data


@dataclass(frozen=True, eq=False)  # a split equals itself, so that results can be cached by it
class Split:
    """Leave-one-out: a user's last item is the test target, the one before the validation target.

    Users with fewer than three interactions are kept whole for training and have no targets.

    Args:
        data: The data set that was split.
        training: Per user, the item rows a model may be fitted on.
        validation_targets: Per user, an item row, or -1.
        test_targets: Per user, an item row, or -1.
    """

    data: Data
    training: list[np.ndarray]
    validation_targets: np.ndarray
    test_targets: np.ndarray

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return len(self.data.catalogue)

    def targets(self, which: str) -> np.ndarray:
        """Return the targets of `"validation"` or `"test"`, -1 for users without one."""
        return {"validation": self.validation_targets, "test": self.test_targets}[which]

    def users(self, which: str) -> np.ndarray:
        """Return the positions of the users that have a target."""
        return np.flatnonzero(self.targets(which) >= 0)

    def history(self, user: int, which: str) -> np.ndarray:
        """Return all that precedes the user's target: what a model may see at evaluation."""
        history = self.training[user]
        if which == "test" and self.validation_targets[user] >= 0:
            history = np.append(history, self.validation_targets[user])
        return history

    def later_day_users(self, which: str) -> np.ndarray:
        """Return the users whose target is of a later timestamp than the interaction before it."""
        if self.data.timestamps is None:
            return np.zeros(0, dtype=int)
        end = {"validation": -2, "test": -1}[which]
        timestamps = self.data.timestamps
        users = [u for u in self.users(which) if timestamps[u][end] > timestamps[u][end - 1]]
        return np.asarray(users, dtype=int)

    @property
    def training_timestamps(self) -> list[np.ndarray] | None:
        """Per user, the timestamps of the training history, or None."""
        if self.data.timestamps is None:
            return None
        pairs = zip(self.data.timestamps, self.training, strict=True)
        return [timestamps[: len(history)] for timestamps, history in pairs]

    @cached_property
    def training_counts(self) -> np.ndarray:
        """How often each item occurs in training, (num_items,)."""
        return np.bincount(np.concatenate(self.training), minlength=self.num_items)


def split_data(data: Data) -> Split:
    """Split by leave-one-out and say how many users are too short for it."""
    long = np.array([len(history) >= 3 for history in data.histories])
    if not long.all():
        print(
            f"{(~long).sum():,} of {len(long):,} users have fewer than three interactions: "
            "they are kept for training and left out of validation and test."
        )
    pairs = list(zip(data.histories, long, strict=True))
    training = [history[:-2] if split else history for history, split in pairs]
    validation = np.array([history[-2] if split else -1 for history, split in pairs])
    test = np.array([history[-1] if split else -1 for history, split in pairs])
    return Split(data, training, validation, test)
