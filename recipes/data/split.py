"""The split, leave-one-out or as given: what may be learnt from, what is predicted."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from recipes.data.tables import Data


@dataclass(frozen=True, eq=False)  # a split equals itself, so that results can be cached by it
class Split:
    """Leave-one-out: a user's last item is the test target, the one before the validation target.

    Users with fewer than three interactions are kept whole for training and have no targets. Where
    the data set gives splits, the targets are the first ones of a user in there.

    Args:
        data: The data set that was split.
        training: Per user, the item rows a model may be fitted on.
        validation_targets: Per user, an item row, or -1.
        test_targets: Per user, an item row, or -1.
        validation: Per user, all item rows of the given validation split, None where none is given.
        exclude_seen: Whether lists are ranked without the items of the history.
    """

    data: Data
    training: list[np.ndarray]
    validation_targets: np.ndarray
    test_targets: np.ndarray
    validation: list[np.ndarray] | None = None
    exclude_seen: bool = True

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
        if which == "test" and self.validation is not None:
            history = np.append(history, self.validation[user])
        elif which == "test" and self.validation_targets[user] >= 0:
            history = np.append(history, self.validation_targets[user])
        return history

    def repeated(self, which: str) -> int:
        """Return how many targets are in their user's history already."""
        targets = self.targets(which)
        return sum(int(targets[user] in self.history(user, which)) for user in self.users(which))

    def later_day_users(self, which: str) -> np.ndarray:
        """Return the users whose target is of a later timestamp than the interaction before it."""
        if self.data.timestamps is None:
            return np.zeros(0, dtype=int)
        timestamps, users = self.data.timestamps, []
        for user in self.users(which):
            end = {"validation": -2, "test": -1}[which]
            if self.validation is not None:
                end = len(self.history(user, which))
            if end != 0 and timestamps[user][end] > timestamps[user][end - 1]:
                users.append(user)
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


def split_data(data: Data, exclude_seen: bool = True) -> Split:
    """Split as given, or by leave-one-out; say what is left out and what cannot be found.

    Args:
        data: The data set.
        exclude_seen: Whether lists are ranked without the items of the history.
    """
    split = _leave_one_out(data) if data.given is None else _as_given(data)
    split = replace(split, exclude_seen=exclude_seen)
    for which in ("validation", "test"):
        repeated = split.repeated(which) if exclude_seen else 0
        if repeated:
            print(
                f"{repeated:,} of {len(split.users(which)):,} {which} targets are in their user's "
                "history: no list shows what was chosen before, so they count as missed. "
                "--merge_repeats true makes one of an item's runs, --exclude_seen false lets lists "
                "show it again."
            )
    return split


def check_split(split: Split) -> None:
    """Refuse data that nothing can be learnt from or measured on.

    Args:
        split: The split.

    Raises:
        ValueError: There are too few items, users or interactions; the message says which.
    """
    if split.num_items < 2:
        raise ValueError("The data set has one item; a recommender needs two or more to choose of.")
    for which in ("validation", "test"):
        users = len(split.users(which))
        if users == 0:
            raise ValueError(
                f"No user has a {which} target: each needs three interactions or more, and nobody "
                "has them. Lower `min_interactions`, or give longer histories."
            )
        if split.exclude_seen and split.repeated(which) == users:
            raise ValueError(
                f"Every {which} target is in its user's history, so no list could be right. Pass "
                "--merge_repeats true to make one of an item's runs, or --exclude_seen false to "
                "let lists show what was chosen before."
            )


def _leave_one_out(data: Data) -> Split:
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


def _as_given(data: Data) -> Split:
    counts = np.stack(data.given)
    if not counts[:, 1].any():
        print(
            "No validation split is given: the last training interaction of every user who has two "
            "or more is the validation target."
        )
        moved = counts[:, 0] > 1
        counts[:, 0] -= moved
        counts[:, 1] += moved
    ends = counts.cumsum(1)
    pairs = list(zip(data.histories, ends, strict=True))
    for column, which in ((1, "validation"), (2, "test")):
        several = (counts[:, column] > 1).sum()
        if several:
            print(
                f"{several:,} of {len(counts):,} users have several {which} interactions: the "
                "first of each is the target."
            )
    return Split(
        data,
        [history[:train] for history, (train, _, _) in pairs],
        np.array([h[end] if end < up_to else -1 for h, (end, up_to, _) in pairs]),
        np.array([h[end] if end < up_to else -1 for h, (_, end, up_to) in pairs]),
        [history[train:end] for history, (train, end, _) in pairs],
    )
