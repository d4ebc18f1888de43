"""The data contract: two tables in, catalogue and histories out."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_ttds.records_ttds import TEXT_FIELDS, as_text
from modeling_ttds.text_ttds import item_text
from recipes.data.cleaning import (
    bare,
    check_columns,
    each_distinct,
    ids,
    named,
    ranks,
    refuse,
    renamed,
    tell_unread,
    where,
)
from recipes.data.reading import read_table
from recipes.data.timestamps import seconds

SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class Catalogue:
    """The items, one per row; a text field that is missing is empty.

    Args:
        item_ids: Opaque ids, unique.
        fields: Per name of `TEXT_FIELDS`, one string per item.
    """

    item_ids: list[str]
    fields: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id to row."""
        return {item: row for row, item in enumerate(self.item_ids)}

    def text(self, row: int) -> str:
        """Return title, brand, categories and description of an item as one string."""
        return item_text({name: values[row] for name, values in self.fields.items()})

    def texts(self) -> list[str]:
        """Return `text` of every row."""
        return [self.text(row) for row in range(len(self))]

    def entries(self) -> list[dict[str, str]]:
        """Return what travels with a model: id, title, brand and categories of every item."""
        names = ("title", "brand", "categories")
        return [
            {"item_id": item, **{name: self.fields[name][row] for name in names}}
            for row, item in enumerate(self.item_ids)
        ]


@dataclass(frozen=True)
class Data:
    """A catalogue and the histories of its users.

    Args:
        catalogue: The items.
        user_ids: Opaque ids, unique, sorted.
        histories: Per user, item rows from oldest to newest.
        timestamps: Per user, the timestamps of the history in seconds, or None.
        reviews: Per user, the review texts of the history, or None.
        given: Per user, how many of the history are of the given splits train, validation and test,
            in this order, or None where no splits are given.
    """

    catalogue: Catalogue
    user_ids: list[str]
    histories: list[np.ndarray]
    timestamps: list[np.ndarray] | None = None
    reviews: list[list[str]] | None = None
    given: list[np.ndarray] | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of everything in the data set."""
        digest = hashlib.sha256()
        for item in self.catalogue.entries():
            digest.update(repr(item).encode())
        for name in TEXT_FIELDS:
            digest.update("\x1f".join(self.catalogue.fields[name]).encode())
        for user, history in zip(self.user_ids, self.histories, strict=True):
            digest.update(user.encode() + b"\x1f" + history.tobytes())
        for timestamps in self.timestamps or ():
            digest.update(timestamps.tobytes())
        for reviews in self.reviews or ():
            digest.update("\x1f".join(reviews).encode())
        for counts in self.given or ():
            digest.update(counts.tobytes())
        return digest.hexdigest()


def write_data(data: Data, folder: str | Path) -> None:
    """Write both tables as parquet.

    Args:
        data: The data set.
        folder: Where to; made if need be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "user_id": np.repeat(data.user_ids, [len(history) for history in data.histories]),
        "item_id": np.array(data.catalogue.item_ids)[np.concatenate(data.histories)],
        "position": np.concatenate([np.arange(len(history)) for history in data.histories]),
    }
    if data.timestamps is not None:
        columns["timestamp"] = np.concatenate(data.timestamps)
    if data.reviews is not None:
        columns["review_text"] = [text for reviews in data.reviews for text in reviews]
    tables = {"items": pd.DataFrame({"item_id": data.catalogue.item_ids, **data.catalogue.fields})}
    interactions = pd.DataFrame(columns)
    if data.given is None:
        tables["interactions"] = interactions
    else:
        splits = np.concatenate([np.repeat(SPLIT_ORDER, counts) for counts in data.given])
        tables |= {f"interactions-{name}": part for name, part in interactions.groupby(splits)}
    for name, table in tables.items():
        scratch = folder / f"{name}.tmp"
        table.to_parquet(scratch)
        scratch.replace(folder / f"{name}.parquet")


def read_data(
    name: str,
    *,
    column_map: dict[str, str] | None = None,
    min_interactions: int = 1,
    tie_break: str = "published",
    timestamp_unit: str | None = None,
    merge_repeats: bool = False,
    seed: int = 0,
) -> Data:
    """Read a data set of the two tables `interactions` and `items`; print what was decided.

    Args:
        name: A folder with both tables as parquet, CSV or JSONL, or a data set name on the Hub that
            has a configuration per table. Interactions may be given in the splits train, validation
            and test.
        column_map: Column names of the source to ours, e.g. `{"asin": "item_id"}`.
        min_interactions: Drop users and items with fewer interactions, again and again until none
            is left; 5 gives a 5-core.
        tie_break: `"published"` keeps the order of the source; `"shuffled"` shuffles neighbouring
            interactions of a user that carry the same timestamp.
        timestamp_unit: What numbers in `timestamp` count, `"s"`, `"ms"`, `"us"` or `"ns"`; by their
            magnitude if None.
        merge_repeats: Make one interaction of those of a user in a row with the same item.
        seed: Seed of the shuffle.

    Raises:
        FileNotFoundError: A table is missing.
        ValueError: A table breaks the contract; the message names the column, row and value.
    """
    if tie_break not in ("published", "shuffled"):
        raise ValueError(f"`tie_break` is {tie_break!r}; it must be 'published' or 'shuffled'.")
    interactions, items = read_table(name, "interactions"), read_table(name, "items")
    renamed({"interactions": interactions, "items": items}, column_map or {})
    check_columns(interactions, "interactions", ("user_id", "item_id"))
    check_columns(items, "items", ("item_id",))
    tell_unread(interactions, "interactions")
    tell_unread(items, "items")
    catalogue = _catalogue(items)
    rows = _clean_interactions(interactions, catalogue, timestamp_unit)
    rows = _in_order(rows, interactions, tie_break, seed)
    if merge_repeats:
        rows = _merged(rows)
    if min_interactions > 1:
        rows, catalogue = _core(rows, catalogue, min_interactions)
    return _build(rows, catalogue, given=interactions.index[0][0] != "interactions")


def _catalogue(items: pd.DataFrame) -> Catalogue:
    item_ids = ids(items, "items", "item_id")
    seen: set[str] = set()
    for row, item in enumerate(item_ids):
        if item in seen:
            raise ValueError(
                f"{where(items, row)}: `item_id` {item!r} is there twice; keep one row of it."
            )
        seen.add(item)
    empty = [""] * len(items)
    fields = {
        name: each_distinct(items, name, as_text) if name in items else empty
        for name in TEXT_FIELDS
    }
    catalogue = Catalogue(item_ids, fields)
    silent = [item for item, text in zip(item_ids, catalogue.texts(), strict=True) if not text]
    if silent:
        print(
            f"{len(silent):,} of {len(items):,} items have no text, the first is {silent[0]!r}: "
            "only what users chose beside them tells what they are."
        )
    return catalogue


def _clean_interactions(
    interactions: pd.DataFrame, catalogue: Catalogue, timestamp_unit: str | None
) -> pd.DataFrame:
    """Return the interactions with ids as strings, ranks for positions, timestamps in seconds."""
    item_ids = ids(interactions, "interactions", "item_id")
    for row, item in enumerate(item_ids):
        if item not in catalogue.row_of:
            place = where(interactions, row)
            for other in catalogue.item_ids:
                if bare(other) == bare(item):
                    raise ValueError(
                        f"{place}: `item_id` {ascii(item)} is not in items, but {ascii(other)} is, "
                        "which looks alike; write both in the same characters."
                    )
            raise ValueError(
                f"{place}: `item_id` {item!r} is not in items; add the item or drop the "
                "interaction."
            )
    clean = pd.DataFrame(
        {"user_id": ids(interactions, "interactions", "user_id"), "item_id": item_ids}, dtype=object
    )
    tables = interactions.index.get_level_values(0)
    clean["split"] = 0 if tables[0] == "interactions" else tables.map(SPLIT_ORDER.index)
    if "position" in interactions:
        clean["position"] = ranks(interactions, "position")
    if "timestamp" in interactions:
        clean["timestamp"] = seconds(interactions, timestamp_unit)
    if "review_text" in interactions:
        clean["review_text"] = each_distinct(interactions, "review_text", as_text)
    return clean


def _in_order(
    rows: pd.DataFrame, interactions: pd.DataFrame, tie_break: str, seed: int
) -> pd.DataFrame:
    """Sort by user and moment; refuse repeated positions, tell of doubtful orders."""
    unknown = rows.timestamp.isna() if "timestamp" in rows else pd.Series(True, rows.index)
    if "position" in rows:
        repeated = rows.duplicated(["user_id", "split", "position"])
        if repeated.any():
            row = int(repeated.to_numpy().argmax())
            raise ValueError(
                f"{where(interactions, row)}: `position` {interactions.position.iloc[row]} of user "
                f"{rows.user_id[row]!r} is there twice; number each user's interactions, or leave "
                "the column out and give a `timestamp`."
            )
        if "timestamp" in rows and unknown.any():
            print(f"{unknown.sum():,} of {len(rows):,} interactions have no `timestamp`.")
        order = "position"
    else:
        if "timestamp" not in rows:
            raise ValueError(
                "interactions has neither a column `timestamp` nor `position` (it has "
                f"{', '.join(map(named, interactions))}), so nothing says what came first; give "
                "one, or rename one by the column map."
            )
        if unknown.any():
            row = int(unknown.to_numpy().argmax())
            refuse(interactions, row, "timestamp", "without `position` every interaction needs one")
        order = "timestamp"
    if tie_break == "shuffled":
        if "timestamp" not in rows:
            raise ValueError("`tie_break` 'shuffled' needs the column `timestamp`.")
        rows["draw"] = np.random.default_rng(seed).random(len(rows))
    rows = rows.sort_values(["user_id", "split", order], kind="stable", ignore_index=True)
    if order == "timestamp":
        _tell_ties(rows, tie_break)
    if tie_break == "shuffled":
        # Only neighbours change places. NaN is unlike NaN: what has no timestamp keeps its place.
        moment = rows[["user_id", "split", "timestamp"]]
        run = (moment != moment.shift()).any(axis=1).cumsum()
        rows = rows.iloc[np.lexsort((rows["draw"], run))].reset_index(drop=True)
    if order == "position" and "timestamp" in rows:
        known = rows[rows.timestamp.notna()]
        before = known.groupby(["user_id", "split"], sort=False).timestamp.shift()
        backwards = known.user_id[before > known.timestamp].unique()
        if len(backwards):
            print(
                f"`position` and `timestamp` contradict each other for {len(backwards):,} users, "
                f"the first is {backwards[0]!r}: the order of `position` is taken."
            )
    return rows


def _tell_ties(rows: pd.DataFrame, tie_break: str) -> None:
    """Print how many interactions the timestamps do not order, and how many are there again."""
    moment = rows[["user_id", "split", "timestamp"]]
    behind = (moment == moment.shift()).all(axis=1)
    tied = behind | behind.shift(-1, fill_value=False)
    if tie_break == "published":
        print(
            "There is no column `position`: interactions are ordered by `timestamp`; "
            f"{tied.sum():,} of {len(rows):,} share one with another of their user and stay in the "
            "order of their rows."
        )
    again = rows[tied].duplicated(["user_id", "split", "timestamp", "item_id"]).sum()
    if again:
        print(
            f"{again:,} of {len(rows):,} interactions have user, item and `timestamp` of another "
            "one: drop them if they are there twice by mistake."
        )


def _merged(rows: pd.DataFrame) -> pd.DataFrame:
    columns = ["user_id", "split", "item_id"]
    again = (rows[columns] == rows[columns].shift()).all(axis=1)
    print(f"`merge_repeats` merged {again.sum():,} of {len(rows):,} interactions.")
    return rows[~again]


def _core(rows: pd.DataFrame, catalogue: Catalogue, least: int) -> tuple[pd.DataFrame, Catalogue]:
    """Return the rows and items that are left; refuse if a split is not, say what is left out."""
    left, size = rows, -1
    while size != len(left):
        size = len(left)
        for column in ("user_id", "item_id"):
            left = left[left[column].map(left[column].value_counts()) >= least]
    if left.empty:
        raise ValueError(f"`min_interactions` {least} leaves no interaction; lower it.")
    for split, name in enumerate(SPLIT_ORDER):
        if (rows.split == split).any() and not (left.split == split).any():
            raise ValueError(
                f"`min_interactions` {least} leaves no interaction of the given split {name}; "
                "lower it."
            )
    chosen = sorted(left["item_id"].unique(), key=catalogue.row_of.get)
    kept = [catalogue.row_of[item] for item in chosen]
    fields = {name: [texts[k] for k in kept] for name, texts in catalogue.fields.items()}
    users, items = rows.user_id.nunique() - left.user_id.nunique(), len(catalogue) - len(chosen)
    if users or items:
        print(
            f"`min_interactions` {least} leaves out {users:,} users, {items:,} items and "
            f"{len(rows) - len(left):,} interactions."
        )
    return left, Catalogue(chosen, fields)


def _build(rows: pd.DataFrame, catalogue: Catalogue, given: bool) -> Data:
    items = rows.item_id.map(catalogue.row_of).to_numpy(dtype=np.int64)
    codes, users = pd.factorize(rows.user_id)  # sorted, as the rows are
    starts = np.flatnonzero(np.diff(codes, prepend=-1))

    def per_user(values: np.ndarray) -> list[np.ndarray]:
        return np.split(values, starts[1:])

    timestamps = reviews = counts = None
    if "timestamp" in rows:
        timestamps = per_user(rows.timestamp.to_numpy())
    if "review_text" in rows:
        reviews = [list(part) for part in per_user(rows.review_text.to_numpy(dtype=object))]
    if given:
        counts = [np.bincount(part, minlength=3) for part in per_user(rows.split.to_numpy())]
    return Data(catalogue, list(users), per_user(items), timestamps, reviews, counts)
