"""What a co-occurrence memory counts, as joins and group-bys for any engine that Ibis runs.

A log is a table of one row per interaction: `user` of any type, `item` (row in the catalogue),
`place` (0 for a user's newest interaction, 1 for the one before) and `timestamp` (seconds, null
where unknown). All counts are integers, so every engine gives the same.
"""

import ibis
import numpy as np
import pyarrow as pa
from ibis import _
from ibis.expr.types import Table

from modeling_ttds.cooccurrence_ttds import TTDSCooccurrence
from recipes.ranking.cooccurrence import (
    HALF_LIFE,
    LATE,
    LONGEST,
    MAX_PAIRS,
    UNIT,
    mean_ages,
    memory_of,
)

# A step from one item to the next weighs 1, one over an item between them 0.6, and so on; the
# opposite direction half as much: in integers, so many parts of `UNIT`.
FORWARD = (1250, 750, 450, 270, 162)
BACKWARD = (625, 375, 225, 135, 81)


def embedded_log(histories: list[np.ndarray], timestamps: list[np.ndarray] | None = None) -> Table:
    """Return histories as a log that the embedded DuckDB counts, Ibis' default.

    Args:
        histories: Item rows in order, per user.
        timestamps: When each of the interactions was, in seconds, NaN where unknown.
    """
    lengths = np.array([len(history) for history in histories])
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    ends = np.repeat(lengths.cumsum(), lengths)
    when = np.full(len(items), np.nan)
    if timestamps is not None and len(items):
        when = np.concatenate(timestamps).astype(float)
    columns = {
        "user": pa.array(np.repeat(np.arange(len(histories), dtype=np.int32), lengths)),
        "item": pa.array(items.astype(np.int32)),
        "place": pa.array((ends - 1 - np.arange(len(items))).astype(np.int32)),
        "timestamp": pa.array(when, from_pandas=True),  # NaN becomes null
    }
    return ibis.memtable(pa.table(columns))


def count(
    log: Table, num_items: int, min_pair_users: int = 1, max_pairs: int | None = MAX_PAIRS
) -> TTDSCooccurrence:
    """Return the co-occurrence memory of a log, counted by the engine that holds it.

    Args:
        log: The log.
        num_items: Size of the catalogue.
        min_pair_users: As of `build_cooccurrence`.
        max_pairs: As of `build_cooccurrence`.
    """
    steps = step_counts(log)
    sums = steps.group_by("first").agg(weight=_.weight.sum(), follows=_.follows.sum())
    pairs = pair_counts(log, steps, min_pair_users, max_pairs)
    items = _columns(item_counts(log))
    sums, pairs = _columns(sums), _columns(pairs)

    def per_item(name: str, counts: dict[str, np.ndarray], key: str = "item") -> np.ndarray:
        column = np.zeros(num_items)
        column[counts[key]] = np.nan_to_num(counts[name])
        return column

    first, other = pairs["first"], pairs["other"]
    weight = np.maximum(per_item("weight", sums, "first") / UNIT, 1e-12)
    follows = np.maximum(per_item("follows", sums, "first"), 1)
    buyers = np.maximum(per_item("buyers", items), 1)
    values = (
        pairs["weight"] / UNIT / np.sqrt(weight[first]),
        pairs["follows"] / np.sqrt(follows[first]),
        pairs["users"] / np.sqrt(buyers[first] * buyers[other]),
    )
    known = per_item("known", items)
    about = (
        per_item("popularity", items),
        per_item("late", items) / 2 ** (LATE - 1),
        per_item("recent", items),
        mean_ages(per_item("age", items), known),
    )
    return memory_of(first, other, np.stack(values, axis=1), np.stack(about, axis=1))


def _columns(table: Table) -> dict[str, np.ndarray]:
    fetched = table.to_pyarrow()
    return {name: fetched[name].to_numpy() for name in fetched.column_names}


def item_counts(log: Table) -> Table:
    """Return what is known of each item in the log.

    Columns: `item`; `popularity`, `late` (in units of the oldest late place) and `buyers` of the
    newest interactions; `known`, `age` (sum of seconds before the log's newest) and `recent` (sum
    of halves per `HALF_LIFE`) of those with a timestamp.

    Args:
        log: The log.
    """
    newest = _.place < LONGEST
    halves = ((_.place == place, 2 ** (LATE - 1 - place)) for place in range(LATE))
    log = log.mutate(age=log.timestamp.max().over() - log.timestamp)
    return log.group_by("item").agg(
        popularity=newest.sum(),
        late=ibis.cases(*halves, else_=0).sum(),
        buyers=_.user.nunique(where=newest),
        known=_.age.count(),
        age=_.age.sum(),
        recent=(0.5 ** (_.age / HALF_LIFE)).sum(),
    )


def step_counts(log: Table) -> Table:
    """Return what followed what: `first`, `other`, `weight` (both directions), `follows`.

    Args:
        log: The log.
    """
    log = log.filter(_.place < LONGEST)
    before = log.select("user", first=_.item, place=_.place)
    after = log.select(user_after=_.user, other=_.item, until=_.place)
    lag = _.place - _.until
    steps = before.join(
        after, [before.user == after.user_after, before.place > after.until,
                before.place <= after.until + len(FORWARD)],
    ).select("first", "other", lag=lag)  # fmt: skip

    def weight(of_lag: tuple[int, ...]) -> ibis.Value:
        return ibis.cases(*((_.lag == n, value) for n, value in enumerate(of_lag, 1)))

    steps = steps.group_by("first", "other").agg(
        forward=weight(FORWARD).sum(), backward=weight(BACKWARD).sum(), follows=(_.lag == 1).sum()
    )
    forward = steps.select("first", "other", "follows", weight=_.forward)
    zero = ibis.literal(0, forward.follows.type())
    backward = steps.select(first=_.other, other=_.first, follows=zero, weight=_.backward)
    both = forward.union(backward)
    return both.group_by("first", "other").agg(weight=_.weight.sum(), follows=_.follows.sum())


def pair_counts(log: Table, steps: Table, min_users: int, max_pairs: int | None) -> Table:
    """Return the pairs of items with users in common: `first`, `other`, `users`, and their steps.

    Args:
        log: The log.
        steps: As of `step_counts`.
        min_users: Least number of users behind a pair.
        max_pairs: Most pairs of an item: those of most weight stay, then those of most users; None
            keeps all.
    """
    bought = log.filter(_.place < LONGEST).select("user", "item").distinct()
    first = bought.select("user", first=_.item)
    other = bought.select(user_other=_.user, other=_.item)
    together = first.join(other, [first.user == other.user_other, first.first != other.other])
    together = together.group_by("first", "other").agg(users=_.count()).filter(_.users >= min_users)
    pairs = together.left_join(steps, ["first", "other"]).select(
        "first", "other", "users", weight=_.weight.fill_null(0), follows=_.follows.fill_null(0)
    )
    if max_pairs is not None:
        order = [_.weight.desc(), _.users.desc(), _.other.asc()]
        rank = ibis.row_number().over(group_by="first", order_by=order)
        pairs = pairs.mutate(rank=rank).filter(_.rank < max_pairs).drop("rank")
    return pairs.order_by("first", "other")
