"""The split, leave-one-out, in time or as given: what may be learnt from, what is predicted."""

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from recipes.config import SPLITS, TIMELINE_TARGETS
from recipes.data.tables import Catalogue, Data

QUANTILES = (0.8, 0.9)  # of all timestamps: where training and validation end on a timeline


@dataclass(frozen=True, eq=False)  # a split equals itself, so that results can be cached by it
class Split:
    """Leave-one-out: a user's last item is the test target, the one before the validation target.

    Users with fewer than three interactions are kept whole for training and have no targets. Where
    the data set gives splits, the targets are the first ones of a user in there.

    A timeline is cut at two moments for all users, as a global temporal split (Gusak et al. 2025,
    arXiv:2507.16289): what precedes the first cut trains, what lies between validates, what follows
    is the test. Its catalogue is in the order of appearance: items that somebody chose before the
    first cut, items that came before the second, the rest. `view` is what was known at a cut. The
    test is of what was fitted anew on all that precedes it, with what was chosen on validation.

    Args:
        data: The data set that was split; of a timeline in its order.
        training: Per user, the item rows a model may be fitted on; of a timeline, and of its view
            of `"validation"`, those that may be counted: what precedes the targets' period.
        validation_targets: Per user, an item row, or -1.
        test_targets: Per user, an item row, or -1.
        histories: Per `"validation"` and `"test"` and user, what precedes the target; None where
            that is the training history, then the validation target.
        exclude_seen: Whether lists are ranked without the items of the history.
        as_read: The data as they were read, where `data` are in another order.
        order: Per item of a timeline, its row in the data as read; None where that is its own.
        views: Per `"training"`, `"validation"` and `"refit"`, what was known at the end of that
            period of a timeline; None where all is known from the start.
    """

    data: Data
    training: list[np.ndarray]
    validation_targets: np.ndarray
    test_targets: np.ndarray
    histories: dict[str, list[np.ndarray]] | None = None
    exclude_seen: bool = True
    as_read: Data | None = None
    order: np.ndarray | None = None
    views: dict[str, "Split"] | None = None

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return len(self.data.catalogue)

    @property
    def data_sha256(self) -> str:
        """Hash of everything in the data set as it was read."""
        return (self.as_read or self.data).sha256

    def targets(self, which: str) -> np.ndarray:
        """Return the targets of `"validation"` or `"test"`, -1 for users without one."""
        return {"validation": self.validation_targets, "test": self.test_targets}[which]

    def users(self, which: str) -> np.ndarray:
        """Return the positions of the users that have a target."""
        return np.flatnonzero(self.targets(which) >= 0)

    def history(self, user: int, which: str) -> np.ndarray:
        """Return all that precedes the user's target: what a model may see at evaluation."""
        if self.histories is not None:
            return self.histories[which][user]
        history = self.training[user]
        if which == "test" and self.validation_targets[user] >= 0:
            history = np.append(history, self.validation_targets[user])
        return history

    def view(self, period: str) -> "Split":
        """Return the split as it was known at the end of a period, with the items of then.

        What is fitted on training histories takes the view of `"training"`, what is fitted or
        chosen on validation targets that of `"validation"`. In the former, users whose validation
        target appeared after training have none. What is fitted anew before the test takes the view
        of `"refit"`: training and validation together, without targets. Of any split but a timeline
        a view is the split itself.

        Args:
            period: `"training"`, `"validation"`, `"refit"` or `"test"`.
        """
        return (self.views or {}).get(period, self)

    def in_order(self, table: Any) -> Any:
        """Return the rows of a table of the data as read in the order of this catalogue.

        Args:
            table: An array or a tensor, one row per item of the data; None stays None.
        """
        return table if self.order is None or table is None else table[self.order]

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


def split_data(
    data: Data,
    exclude_seen: bool = True,
    split: str = "leave_one_out",
    timeline_target: str = "first",
    seed: int = 0,
    quantiles: tuple[float, float] = QUANTILES,
) -> Split:
    """Split by leave-one-out, in time or as given; say what is left out and what cannot be found.

    Args:
        data: The data set.
        exclude_seen: Whether lists are ranked without the items of the history.
        split: `"leave_one_out"`, which splits that the data set gives take the place of, or
            `"timeline"`.
        timeline_target: Which of a user's interactions after a cut is the target: `"first"`,
            `"last"` or `"random"`.
        seed: Seed of random targets.
        quantiles: Of all timestamps, where training and validation end on a timeline.

    Raises:
        ValueError: The data have no timestamps or splits of their own, or an option is unknown.
    """
    check_timeline(split, timeline_target)
    if split == "timeline":
        made = _timeline(data, timeline_target, seed, exclude_seen, quantiles)
    else:
        made = _leave_one_out(data) if data.given is None else _as_given(data)
        made = replace(made, exclude_seen=exclude_seen)
    for which in ("validation", "test"):
        repeated = made.repeated(which) if exclude_seen else 0
        if repeated:
            print(
                f"{repeated:,} of {len(made.users(which)):,} {which} targets are in their user's "
                "history: no list shows what was chosen before, so they count as missed. "
                "--merge_repeats true makes one of an item's runs, --exclude_seen false lets lists "
                "show it again."
            )
    return made


def check_timeline(split: str, timeline_target: str) -> None:
    """Refuse values of the two options that name no split.

    Args:
        split: As of `split_data`.
        timeline_target: As of `split_data`.

    Raises:
        ValueError: One of them is unknown.
    """
    for name, value, known in (
        ("split", split, SPLITS),
        ("timeline_target", timeline_target, TIMELINE_TARGETS),
    ):
        if value not in known:
            raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(known)}.")


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
        if users == 0 and split.views is not None:
            raise ValueError(
                f"No user has a {which} target: none has interactions on both sides of the cut. "
                "Pass --split leave_one_out, or data of a longer time."
            )
        if users == 0 and split.data.given is not None:
            raise ValueError(
                f"No user has a {which} target in the given splits; give a split {which} that is "
                "not empty, or all interactions in one table."
            )
        if users == 0:
            raise ValueError(
                f"No user has a {which} target: each needs three interactions or more, and nobody "
                "has them; give longer histories."
            )
        if not any(len(split.history(user, which)) for user in split.users(which)):
            raise ValueError(
                f"No user with a {which} target has a history before it; put earlier choices "
                "into the split train, or give all interactions in one table."
            )
        if which == "validation" and not len(split.view("training").users(which)):
            raise ValueError(
                "No validation target was chosen by anybody in training; `split` 'timeline' needs "
                "items that last beyond the first cut. Pass --split leave_one_out."
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
        {
            "validation": [history[:train] for history, (train, _, _) in pairs],
            "test": [history[:end] for history, (_, end, _) in pairs],
        },
    )


def _timeline(
    data: Data, target: str, seed: int, exclude_seen: bool, quantiles: tuple[float, float]
) -> Split:
    """Cut all histories at two moments.

    An interaction at the moment of a cut lies after it. Of a user who has interactions on both
    sides one of those after it is the target. An item is known from its first interaction on, for
    its text may be of any time: one that nobody chose before the test is new at the test.
    """
    as_read, data = data, in_time(data)
    cuts = np.quantile(np.concatenate(data.timestamps), quantiles, method="lower")
    # Per user, how many interactions precede either cut, and how many there are.
    ends = np.array([[*np.searchsorted(times, cuts), len(times)] for times in data.timestamps])
    data, order, known = _by_appearance(data, ends)
    targets, histories = {}, {}
    for column, which in enumerate(("validation", "test")):
        places = []
        for user, (begin, end) in zip(data.user_ids, ends[:, column : column + 2], strict=True):
            places.append(begin)
            if begin and begin < end and target == "last":
                places[-1] = end - 1
            elif begin and begin < end and target == "random":  # whoever else there may be
                places[-1] = random.Random(f"{seed}-{which}-{user}").randrange(begin, end)
        has = (ends[:, column] > 0) & (ends[:, column] < ends[:, column + 1])
        lines = list(zip(data.histories, places, strict=True))
        targets[which] = np.array(
            [line[place] if yes else -1 for (line, place), yes in zip(lines, has, strict=True)]
        )
        histories[which] = [line[:place] for line, place in lines]
    views = {}
    for column, period in enumerate(("training", "validation")):
        users, size = np.flatnonzero(ends[:, column]), known[column]
        chosen = targets["validation"][users]
        views[period] = Split(
            _as_of(data, users, ends[users, column], size),
            [data.histories[user][: ends[user, 0]] for user in users],  # both precede validation
            np.where(chosen < size, chosen, -1),
            np.full(len(users), -1),
            {
                which: [rows[rows < size] for rows in (histories[which][user] for user in users)]
                for which in histories
            },
            exclude_seen,
            as_read,
            order[:size],
            dict(views),
        )
    counted = [line[:end] for line, end in zip(data.histories, ends[:, 1], strict=True)]
    users = np.flatnonzero(ends[:, 1])
    past, none = _as_of(data, users, ends[users, 1], known[1]), np.full(len(users), -1)
    views["refit"] = Split(past, past.histories, none, none, exclude_seen=exclude_seen)
    test = targets["test"]
    counts = [f"{(test >= size).sum():,}" for size in known]
    print(
        f"Training precedes {_day(cuts[0])}, the test begins on {_day(cuts[1])}: "
        f"{(test >= 0).sum():,} users have a test target; {counts[0]} targets are items that "
        f"nobody had chosen in training, {counts[1]} before the test."
    )
    return Split(
        data, counted, targets["validation"], test, histories, exclude_seen, as_read, order, views
    )


def _day(moment: float) -> np.datetime64:
    return np.datetime64(int(moment), "s").astype("datetime64[D]")


def in_time(data: Data) -> Data:
    """Return the data with histories in the order of time, without what has no time.

    Args:
        data: The data.

    Raises:
        ValueError: They have no timestamps, or splits of their own.
    """
    if data.given is not None:
        raise ValueError(
            "`split` is 'timeline', but the data set gives splits of its own; leave the option "
            "out, or give all interactions in one table."
        )
    known = [~np.isnan(times.astype(float)) for times in data.timestamps or ()]
    if not any(part.any() for part in known):
        raise ValueError(
            "`split` is 'timeline', which needs the column `timestamp` in interactions; give it, "
            "or leave the option out."
        )
    unknown = sum(int((~part).sum()) for part in known)
    if unknown:
        total = sum(map(len, known))
        print(f"{unknown:,} of {total:,} interactions have no place on a timeline: left out.")
    chosen = [  # stable: interactions of one moment keep their order
        np.flatnonzero(part)[times[part].argsort(kind="stable")]
        for part, times in zip(known, data.timestamps, strict=True)
    ]

    def picked(lines: list | None) -> list | None:
        return lines and [line[rows] for line, rows in zip(lines, chosen, strict=True)]

    reviews = data.reviews and [np.array(line, dtype=object) for line in data.reviews]
    reviews = reviews and [line.tolist() for line in picked(reviews)]
    return replace(
        data,
        histories=picked(data.histories),
        timestamps=picked(data.timestamps),
        reviews=reviews,
    )


def _by_appearance(data: Data, ends: np.ndarray) -> tuple[Data, np.ndarray, list[int]]:
    """Put items that appear before a cut before those that do not; return how many do, too."""
    cuts = ends.shape[1] - 1
    period = np.full(len(data.catalogue), cuts)
    for column in reversed(range(cuts)):
        for line, end in zip(data.histories, ends[:, column], strict=True):
            period[line[:end]] = column
    order = period.argsort(kind="stable")
    row = np.empty(len(order), dtype=np.int64)
    row[order] = np.arange(len(order))
    histories = [row[line] for line in data.histories]
    known = [int((period <= column).sum()) for column in range(cuts)]
    catalogue = _picked(data.catalogue, order)
    return replace(data, catalogue=catalogue, histories=histories), order, known


def _as_of(data: Data, users: np.ndarray, ends: np.ndarray, num_items: int) -> Data:
    """Return so many interactions of some users, and the items of then."""

    def lines(values: list | None) -> list | None:
        return values and [values[user][:end] for user, end in zip(users, ends, strict=True)]

    return Data(
        _picked(data.catalogue, np.arange(num_items)),
        [data.user_ids[user] for user in users],
        lines(data.histories),
        lines(data.timestamps),
        lines(data.reviews),
    )


def _picked(catalogue: Catalogue, rows: np.ndarray) -> Catalogue:
    fields = {name: [values[row] for row in rows] for name, values in catalogue.fields.items()}
    return Catalogue([catalogue.item_ids[row] for row in rows], fields)
