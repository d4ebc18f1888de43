"""Turn the files of a well-known data set, as its owners publish them, into our two tables.

python -m recipes.data.importers movielens-1m ml-1m data/movielens
python -m recipes.data.importers amazon-2023 FOLDER_WITH_REVIEWS_AND_META data/books
"""

import argparse

from recipes.errors import Parser, one_sentence

if __name__ == "__main__":  # before the imports that take seconds
    with one_sentence():
        parser = Parser(
            prog="python -m recipes.data.importers", description=__doc__.splitlines()[0]
        )
        parser.add_argument(
            "name",
            metavar="NAME",
            choices=("movielens-1m", "movielens-32m", "amazon-2014", "amazon-2023", "steam"),
            help="Which: %(choices)s.",
        )
        parser.add_argument("source", metavar="SOURCE", help="Folder with the published files.")
        parser.add_argument("folder", metavar="FOLDER", help="Where both tables go.")
        ARGUMENTS = parser.parse_args()

import ast
import gzip
import html
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from modeling_ttds.records_ttds import TEXT_FIELDS, as_text, is_missing
from recipes.data.cleaning import as_number, each_distinct, ids
from recipes.data.reading import as_utf8, read_csv
from recipes.data.timestamps import seconds

NO_PRICE = ("", "none", "—", "nan")


def movielens_1m(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `ratings.dat` and `movies.dat`; the genres become the categories.

    Args:
        source: The unpacked folder.
    """
    ratings = _dat(source / "ratings.dat", ["user_id", "item_id", "rating", "timestamp"])
    movies = _dat(source / "movies.dat", ["item_id", "title", "genres"])
    return ratings, _movies(movies)


def movielens_32m(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `ratings.csv` and `movies.csv`, as MovieLens has them since 20M.

    Args:
        source: The unpacked folder.
    """
    ratings = _ratings(_one(source, "ratings.csv"))
    file = _one(source, "movies.csv")
    movies = read_csv(file)
    _check_fields(file, movies, ("movieId", "title", "genres"))
    _check_end(file, len(movies) + 1)
    names = {"userId": "user_id", "movieId": "item_id"}
    return ratings.rename(columns=names), _movies(movies.rename(columns=names))


def amazon_2014(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `reviews_*.json` and `meta_*.json` of one category, packed or not.

    Args:
        source: The folder with both files.
    """
    reviews = _frame(
        _one(source, "reviews_*.json*"),
        {
            "user_id": "reviewerID", "item_id": "asin", "rating": "overall",
            "timestamp": "unixReviewTime", "review_text": "reviewText",
        },
    )  # fmt: skip
    items = _frame(_one(source, "meta_*.json*"), {"item_id": "asin"} | _same(TEXT_FIELDS))
    # A path of categories per list; the first is the main one.
    items["categories"] = [
        _joined(" > ", paths[0])
        if isinstance(paths, list) and paths and isinstance(paths[0], list)
        else paths
        for paths in items["categories"]
    ]
    return reviews, items


def amazon_2023(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the reviews `X.jsonl` and `meta_X.jsonl` of one category, packed or not.

    An item is its `parent_asin`, which all colours and sizes share.

    Args:
        source: The folder with both files.
    """
    meta = _one(source, "meta_*.jsonl*")
    reviews = _frame(
        _one(source, meta.name.removeprefix("meta_")),
        {
            "user_id": "user_id", "item_id": "parent_asin", "rating": "rating",
            "timestamp": "timestamp", "review_text": "text",
        },
    )  # fmt: skip
    names = {"item_id": "parent_asin", "brand": "store", "features": "features"}
    items = _frame(meta, _same(TEXT_FIELDS) | names)
    items["categories"] = [_joined(" > ", path) for path in items["categories"]]
    items["description"] = [
        _joined(" ", text)
        for text in items["description"].where(items["description"].astype(bool), items["features"])
    ]
    return reviews, items.drop(columns="features")


def steam(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `steam_reviews.json` (or `steam_new.json`) and `steam_games.json`, packed or not.

    Args:
        source: The folder with both files.
    """
    reviews = _frame(
        _one(source, "steam_reviews.json*", "steam_new.json*"),
        {
            "user_id": "username", "item_id": "product_id", "timestamp": "date",
            "review_text": "text",
        },
    )  # fmt: skip
    games = _frame(
        _one(source, "steam_games.json*"),
        {
            "item_id": "id", "title": "app_name", "brand": "developer", "categories": "genres",
            "price": "price", "tags": "tags", "other": "title",
        },
    )  # fmt: skip
    games["title"] = games["title"].fillna(games.pop("other"))
    games["description"] = games.pop("tags")
    return reviews, games


IMPORTERS: dict[str, Callable[[Path], tuple[pd.DataFrame, pd.DataFrame]]] = {
    "movielens-1m": movielens_1m,
    "movielens-32m": movielens_32m,
    "amazon-2014": amazon_2014,
    "amazon-2023": amazon_2023,
    "steam": steam,
}


def import_data(name: str, source: str | Path, folder: str | Path) -> None:
    """Write both tables of a well-known data set; say what was left out.

    Only items that somebody chose are kept; one that the catalogue lacks has no text.

    Args:
        name: One of `IMPORTERS`.
        source: Folder with the published files.
        folder: Where to; it must be empty or new.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is there twice or cannot be read, the catalogue is of other items, or the
            folder is not empty.
    """
    source, folder = Path(source), Path(folder)
    if not source.is_dir():
        raise FileNotFoundError(f"`SOURCE` {source} is no folder; unpack the data set first.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`FOLDER` {folder} is there already; name a new or an empty one.")
    interactions, items = IMPORTERS[name](source)
    count = len(interactions)
    interactions = _identified(interactions, "interactions", ("user_id", "item_id"))
    interactions["timestamp"] = seconds(interactions)
    if "rating" in interactions:
        interactions["rating"] = each_distinct(interactions, "rating", _number)
    interactions = interactions.dropna(subset="timestamp")
    if interactions.empty:
        raise ValueError(f"{source} has no interaction with user, item and time; fetch it again.")
    interactions = interactions.drop_duplicates(["user_id", "item_id", "timestamp"])
    interactions = interactions.sort_values(["user_id", "timestamp"], kind="stable")
    interactions["position"] = interactions.groupby("user_id").cumcount()
    print(
        f"{len(interactions):,} interactions; {count - len(interactions):,} had no user, item or "
        "time, or were there twice."
    )
    if "review_text" in interactions:
        interactions["review_text"] = _texts(interactions, "review_text")
    items = _items(items, set(interactions.item_id))
    folder.mkdir(parents=True, exist_ok=True)
    for table, frame in (("items", items), ("interactions", interactions)):
        scratch = folder / f"{table}.tmp"
        frame.to_parquet(scratch, index=False)
        scratch.replace(folder / f"{table}.parquet")


def _items(items: pd.DataFrame, chosen: set[str]) -> pd.DataFrame:
    """Return the items that somebody chose, with plain texts, one row each."""
    items = _identified(items, "items", ("item_id",))
    items = items[items.item_id.isin(chosen)].drop_duplicates("item_id")
    if items.empty:
        raise ValueError(
            f"The catalogue knows none of the {len(chosen):,} items that were chosen, the first is "
            f"{min(chosen)!r}; put both files of one data set into `SOURCE`."
        )
    for column in items.columns.drop("item_id"):
        items[column] = _texts(items, column)
    if "price" in items:
        prices = items["price"].str.strip().str.removeprefix("$")
        items["price"] = prices.where(~prices.str.lower().isin(NO_PRICE), "")
    missing = sorted(chosen - set(items.item_id))
    print(f"{len(chosen):,} items; the catalogue lacks {len(missing):,} of them.")
    rest = pd.DataFrame({"item_id": missing}, dtype=object)
    return pd.concat([items, rest], ignore_index=True).fillna("")


def _identified(frame: pd.DataFrame, table: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the rows that have the ids, as strings; the index names rows as `read_table` does."""
    frame.index = pd.MultiIndex.from_product([[table], range(len(frame))])
    cells = frame[list(columns)]
    frame = frame[(cells.notna() & (cells != "")).all(axis=1)].copy()
    for column in columns:
        frame[column] = ids(frame, table, column)
    return frame


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    return each_distinct(frame, column, _text)


def _text(value: object, column: str, where: str) -> str:
    return html.unescape(as_text(value, column, where))


def _number(value: object, column: str, where: str) -> float:
    return np.nan if is_missing(value) or value == "" else float(as_number(value, column, where))


def _joined(separator: str, parts: object) -> object:
    """Return the texts of a list as one, anything else as it is."""
    if not isinstance(parts, list):
        return parts
    return separator.join(str(part) for part in parts if part is not None)


def _one(source: Path, *patterns: str) -> Path:
    found = {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}
    if not found:
        raise FileNotFoundError(f"{source} has no {' or '.join(patterns)}.")
    if len(found) > 1:
        names = ", ".join(sorted(file.name for file in found))
        raise ValueError(f"{source} has {names}; keep one.")
    return found.pop()


def _check_fields(file: Path, there: Iterable[str], needed: Iterable[str]) -> None:
    there = list(there)
    for name in needed:
        if name not in there:
            raise ValueError(
                f"{file} has no `{name}` (it has {', '.join(there) or 'nothing'}); it is of "
                "another data set or edition."
            )


def _ratings(file: Path) -> pd.DataFrame:
    """Read ratings of which every one is complete, ids as they are written."""
    names = dict.fromkeys(("userId", "movieId"), pa.string())
    try:
        # Our reader of CSV would take minutes and twice the memory for 32 million rows.
        ratings = pa.csv.read_csv(
            file,
            pa.csv.ReadOptions(use_threads=False),  # a thread does not know the row it is at
            pa.csv.ParseOptions(ignore_empty_lines=False),
            pa.csv.ConvertOptions(column_types=names, null_values=[""], strings_can_be_null=True),
        ).to_pandas()
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is no table of ratings ({reason}); it may have been cut: fetch it again."
        ) from None
    needed = (*names, "rating", "timestamp")
    _check_fields(file, ratings, needed)
    for column in needed:
        empty = ratings[column].isna().to_numpy()
        if empty.any():
            raise ValueError(
                f"{file} line {empty.argmax() + 2} has no `{column}`; complete or drop it."
            )
    _check_end(file, len(ratings) + 1)
    return ratings


def _check_end(file: Path, lines: int) -> None:
    """Refuse a file that ends within a line: what stands there may be half a number."""
    with file.open("rb") as content:
        content.seek(-1, 2)
        if content.read() != b"\n":
            raise ValueError(
                f"{file} line {lines} has no end; the file may have been cut: fetch it again, or "
                "end the line."
            )


def _dat(file: Path, columns: list[str]) -> pd.DataFrame:
    """Read fields that `::` parts, in the encoding of 2003."""
    rows = []
    with _one(file.parent, file.name).open(encoding="latin-1") as lines:
        for number, line in enumerate(lines, 1):
            row = line.rstrip("\r\n").split("::")
            if len(row) != len(columns):
                raise ValueError(f"{file} line {number} has {len(row)} of {len(columns)} fields.")
            for name, cell in zip(columns, row, strict=True):
                if not cell and name not in ("title", "genres"):
                    raise ValueError(f"{file} line {number} has no `{name}`; complete or drop it.")
            rows.append(row)
    if not rows:
        raise ValueError(f"{file} is empty.")
    _check_end(file, len(rows))
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _movies(movies: pd.DataFrame) -> pd.DataFrame:
    genres = movies["genres"].replace("(no genres listed)", "").str.replace("|", ", ")
    return movies[["item_id", "title"]].assign(categories=genres)


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


def _frame(file: Path, names: dict[str, str]) -> pd.DataFrame:
    """Return a table of the fields of a file's records, by our names."""
    rows, there = [], {}
    for record in _records(file):
        rows.append([record.get(source) for source in names.values()])
        there |= dict.fromkeys(record)
    needed = ("user_id", "item_id", "timestamp")
    _check_fields(file, there, (source for name, source in names.items() if name in needed))
    for source in names.values():
        if source not in there:
            print(f"{file} has no `{source}`; it stays empty.")
    return pd.DataFrame(rows, columns=list(names), dtype=object)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file: one per line, as JSON or, in older sets, as Python writes it."""
    decode = json.JSONDecoder(parse_float=str).decode  # a price of 12.50 stays one
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = decode(line)
        except (ValueError, RecursionError):
            try:
                record = ast.literal_eval(line)
            except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
                record = None
        if not isinstance(record, dict):
            raise ValueError(f"{file} line {number} is no record; the file may have been cut.")
        yield record


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a file, packed or not."""
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with as_utf8(file), opened(file, "rt", encoding="utf-8") as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{file} cannot be unpacked ({error}); it may have been cut: fetch it again."
        ) from None


def main(arguments: argparse.Namespace) -> None:
    """Import.

    Args:
        arguments: The command line.
    """
    import_data(arguments.name, arguments.source, arguments.folder)
    print(f"Both tables are in {arguments.folder}; pass it as --dataset_name.")


if __name__ == "__main__":
    with one_sentence():
        main(ARGUMENTS)
