"""The data contract: two tables in, catalogue and histories out; the leave-one-out split."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_ttds.text_ttds import item_text

SUFFIXES = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": pd.read_json}
TEXT_FIELDS = ("title", "brand", "categories", "description", "price")


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
    """

    catalogue: Catalogue
    user_ids: list[str]
    histories: list[np.ndarray]
    timestamps: list[np.ndarray] | None = None
    reviews: list[list[str]] | None = None

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
    items = {"item_id": data.catalogue.item_ids, **data.catalogue.fields}
    for name, table in (("items", items), ("interactions", columns)):
        scratch = folder / f"{name}.tmp"
        pd.DataFrame(table).to_parquet(scratch)
        scratch.replace(folder / f"{name}.parquet")


def read_data(
    name: str,
    *,
    column_map: dict[str, str] | None = None,
    min_interactions: int = 1,
    tie_break: str = "published",
    seed: int = 0,
) -> Data:
    """Read a data set of the two tables `interactions` and `items`.

    Args:
        name: A folder with both tables as parquet, CSV or JSONL, or a data set name on the Hub that
            has a configuration per table.
        column_map: Column names of the source to ours, e.g. `{"asin": "item_id"}`.
        min_interactions: Drop users and items with fewer interactions, again and again until none
            is left; 5 gives a 5-core.
        tie_break: `"published"` keeps the order of the source; `"shuffled"` shuffles interactions
            of a user that carry the same timestamp.
        seed: Seed of the shuffle.

    Raises:
        FileNotFoundError: A table is missing.
        ValueError: A table breaks the contract; the message names the column, row and value.
    """
    interactions = _read_table(name, "interactions").rename(columns=column_map or {})
    items = _read_table(name, "items").rename(columns=column_map or {})
    _check(interactions, "interactions", ("user_id", "item_id", "position"))
    _check(items, "items", ("item_id",))
    duplicated = items.item_id.duplicated()
    if duplicated.any():
        row = int(duplicated.argmax())
        raise ValueError(f"items row {row}: `item_id` {items.item_id[row]!r} is there twice.")
    known = interactions.item_id.isin(set(items.item_id))
    if not known.all():
        row = int((~known).argmax())
        raise ValueError(
            f"interactions row {row}: `item_id` {interactions.item_id[row]!r} is not in items; "
            "add the item or drop the interaction."
        )
    if tie_break not in ("published", "shuffled"):
        raise ValueError(f"`tie_break` is {tie_break!r}; it must be 'published' or 'shuffled'.")
    order = ["user_id", "position"]
    if tie_break == "shuffled":
        if "timestamp" not in interactions:
            raise ValueError("`tie_break` 'shuffled' needs the column `timestamp`.")
        interactions["_draw"] = np.random.default_rng(seed).random(len(interactions))
        order = ["user_id", "timestamp", "_draw"]
    interactions = interactions.sort_values(order, kind="stable")
    if min_interactions > 1:
        interactions = _core(interactions, min_interactions)
        items = items[items.item_id.isin(set(interactions.item_id))].reset_index(drop=True)
    return _build(interactions, items)


def _read_table(name: str, table: str) -> pd.DataFrame:
    folder = Path(name)
    if not folder.is_dir():
        return _read_hub_table(name, table)
    for suffix, read in SUFFIXES.items():
        file = folder / f"{table}{suffix}"
        if file.exists():
            options = {
                ".csv": {"dtype": {"user_id": str, "item_id": str}},
                ".jsonl": {"lines": True},
            }
            if suffix == ".jsonl":
                options[".jsonl"]["dtype"] = {"user_id": str, "item_id": str}
            try:
                return read(file, **options.get(suffix, {}))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8.") from None
            except pd.errors.EmptyDataError:
                raise ValueError(f"{file} is empty.") from None
    wanted = ", ".join(f"{table}{suffix}" for suffix in SUFFIXES)
    raise FileNotFoundError(f"{folder} has no table of {table}; add one of {wanted}.")


def _read_hub_table(name: str, table: str) -> pd.DataFrame:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        parts = load_dataset(name, table)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"`dataset_name` {name!r} is neither a folder nor a data set on the Hub: {error}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{name} has no configuration {table!r}: {error}") from None
    return pd.concat([part.to_pandas() for part in parts.values()], ignore_index=True)


def _check(frame: pd.DataFrame, table: str, required: tuple[str, ...]) -> None:
    for column in required:
        if column not in frame:
            raise ValueError(
                f"{table} has no column `{column}` (it has {', '.join(map(str, frame.columns))}); "
                "rename one by the column map."
            )
    if frame.empty:
        raise ValueError(f"{table} is empty.")
    for column in required:
        missing = frame[column].isna()
        if missing.any():
            raise ValueError(f"{table} row {int(missing.argmax())}: `{column}` is null.")
        if column != "position":
            frame[column] = frame[column].astype(str)


def _core(interactions: pd.DataFrame, least: int) -> pd.DataFrame:
    size = -1
    while size != len(interactions):
        size = len(interactions)
        for column in ("user_id", "item_id"):
            counts = interactions[column].map(interactions[column].value_counts())
            interactions = interactions[counts >= least]
    if interactions.empty:
        raise ValueError(f"`min_interactions` {least} leaves no interaction; lower it.")
    return interactions


def _build(interactions: pd.DataFrame, items: pd.DataFrame) -> Data:
    fields = {}
    for name in TEXT_FIELDS:
        values = items[name] if name in items else pd.Series([""] * len(items))
        fields[name] = [_as_text(value) for value in values]
    catalogue = Catalogue(items.item_id.tolist(), fields)
    rows = interactions.item_id.map(catalogue.row_of).to_numpy(dtype=np.int64)
    users, starts = np.unique(interactions.user_id.to_numpy(dtype=str), return_index=True)

    def per_user(values: np.ndarray) -> list[np.ndarray]:
        return np.split(values, starts[1:])

    timestamps = reviews = None
    if "timestamp" in interactions:
        timestamps = per_user(_seconds(interactions.timestamp))
    if "review_text" in interactions:
        texts = interactions.review_text.fillna("").astype(str).to_numpy(dtype=object)
        reviews = [list(part) for part in per_user(texts)]
    return Data(catalogue, users.tolist(), per_user(rows), timestamps, reviews)


def _seconds(timestamps: pd.Series) -> np.ndarray:
    """Return numbers as they are and dates as seconds since 1970, NaN where there is none."""
    if pd.api.types.is_numeric_dtype(timestamps):
        return timestamps.to_numpy()
    try:
        dates = pd.to_datetime(timestamps, utc=True)
    except ValueError as error:
        raise ValueError(
            f"`timestamp` holds neither seconds nor dates ({error}); give one of them."
        ) from error
    return (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy()


def _as_text(value: object) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(_as_text(part) for part in value)
    return "" if value is None or value != value else str(value)
