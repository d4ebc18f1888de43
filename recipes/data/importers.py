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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_ttds.records_ttds import TEXT_FIELDS, as_text
from recipes.data.reading import read_csv
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
    # Of 32 million rows numbers take a tenth of the memory that texts do; ids there are numbers.
    ratings = pd.read_csv(_one(source, "ratings.csv"))
    movies = read_csv(_one(source, "movies.csv"))
    names = {"userId": "user_id", "movieId": "item_id"}
    return ratings.rename(columns=names), _movies(movies.rename(columns=names))


def amazon_2014(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `reviews_*.json` and `meta_*.json` of one category, packed or not.

    Args:
        source: The folder with both files.
    """
    reviews = _frame(
        _records(_one(source, "reviews_*.json*")),
        {
            "user_id": "reviewerID", "item_id": "asin", "rating": "overall",
            "timestamp": "unixReviewTime", "review_text": "reviewText",
        },
    )  # fmt: skip
    items = _frame(_records(_one(source, "meta_*.json*")), {"item_id": "asin"} | _same(TEXT_FIELDS))
    # A path of categories per list; the first is the main one.
    items["categories"] = [
        " > ".join(paths[0]) if isinstance(paths, list) and paths and isinstance(paths[0], list)
        else paths
        for paths in items["categories"]
    ]  # fmt: skip
    return reviews, items


def amazon_2023(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the reviews `X.jsonl` and `meta_X.jsonl` of one category, packed or not.

    An item is its `parent_asin`, which all colours and sizes share.

    Args:
        source: The folder with both files.
    """
    meta = _one(source, "meta_*.jsonl*")
    reviews = _frame(
        _records(_one(source, meta.name.removeprefix("meta_"))),
        {
            "user_id": "user_id", "item_id": "parent_asin", "rating": "rating",
            "timestamp": "timestamp", "review_text": "text",
        },
    )  # fmt: skip
    names = {"item_id": "parent_asin", "brand": "store", "features": "features"}
    items = _frame(_records(meta), _same(TEXT_FIELDS) | names)
    items["categories"] = [
        " > ".join(path) if isinstance(path, list) else path for path in items["categories"]
    ]
    items["description"] = [
        " ".join(text) if isinstance(text, list) else text
        for text in items["description"].where(items["description"].astype(bool), items["features"])
    ]
    return reviews, items.drop(columns="features")


def steam(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `steam_reviews.json` (or `steam_new.json`) and `steam_games.json`, packed or not.

    Args:
        source: The folder with both files.
    """
    reviews = _frame(
        _records(_one(source, "steam_reviews.json*", "steam_new.json*")),
        {
            "user_id": "username", "item_id": "product_id", "timestamp": "date",
            "review_text": "text",
        },
    )  # fmt: skip
    games = _frame(
        _records(_one(source, "steam_games.json*")),
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
        ValueError: A file is there twice or cannot be read, or the folder is not empty.
    """
    source, folder = Path(source), Path(folder)
    if not source.is_dir():
        raise FileNotFoundError(f"`SOURCE` {source} is no folder; unpack the data set first.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`FOLDER` {folder} is there already; name a new or an empty one.")
    interactions, items = IMPORTERS[name](source)
    count = len(interactions)
    interactions = interactions.dropna(subset=["user_id", "item_id", "timestamp"])
    interactions.index = pd.MultiIndex.from_product([["interactions"], range(len(interactions))])
    interactions = interactions.assign(timestamp=seconds(interactions)).reset_index(drop=True)
    for column in ("user_id", "item_id"):
        interactions[column] = interactions[column].astype(str)
    interactions = interactions.drop_duplicates(["user_id", "item_id", "timestamp"])
    interactions = interactions.sort_values(["user_id", "timestamp"], kind="stable")
    interactions["position"] = interactions.groupby("user_id").cumcount()
    print(
        f"{len(interactions):,} interactions; {count - len(interactions):,} had no user, item or "
        "time, or were there twice."
    )
    if "review_text" in interactions:
        interactions["review_text"] = _texts(interactions, "review_text")
    if "rating" in interactions:
        interactions["rating"] = interactions["rating"].astype(float)
    items = _items(items, set(interactions.item_id))
    folder.mkdir(parents=True, exist_ok=True)
    for table, frame in (("items", items), ("interactions", interactions)):
        scratch = folder / f"{table}.tmp"
        frame.to_parquet(scratch, index=False)
        scratch.replace(folder / f"{table}.parquet")


def _items(items: pd.DataFrame, chosen: set[str]) -> pd.DataFrame:
    """Return the items that somebody chose, with plain texts, one row each."""
    items = items.dropna(subset="item_id")
    items["item_id"] = items["item_id"].astype(str)
    items = items[items.item_id.isin(chosen)].drop_duplicates("item_id")
    for column in items.columns.drop("item_id"):
        items[column] = _texts(items, column)
    if "price" in items:
        prices = items["price"].str.strip().str.removeprefix("$")
        items["price"] = prices.where(~prices.str.lower().isin(NO_PRICE), "")
    missing = sorted(chosen - set(items.item_id))
    print(f"{len(chosen):,} items; the catalogue lacks {len(missing):,} of them.")
    rest = pd.DataFrame({"item_id": missing}, dtype=object)
    return pd.concat([items, rest], ignore_index=True).fillna("")


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    return [html.unescape(as_text(cell, column, column)) for cell in frame[column]]


def _one(source: Path, *patterns: str) -> Path:
    found = sorted({file for pattern in patterns for file in source.glob(pattern)})
    if not found:
        raise FileNotFoundError(f"{source} has no {' or '.join(patterns)}.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{source} has {names}; keep one.")
    return found[0]


def _dat(file: Path, columns: list[str]) -> pd.DataFrame:
    """Read fields that `::` parts, in the encoding of 2003."""
    rows = []
    with _one(file.parent, file.name).open(encoding="latin-1") as lines:
        for number, line in enumerate(lines, 1):
            row = line.rstrip("\r\n").split("::")
            if len(row) != len(columns):
                raise ValueError(f"{file} line {number} has {len(row)} of {len(columns)} fields.")
            rows.append(row)
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _movies(movies: pd.DataFrame) -> pd.DataFrame:
    genres = movies["genres"].replace("(no genres listed)", "").str.replace("|", ", ")
    return movies[["item_id", "title"]].assign(categories=genres)


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


def _frame(records: Iterator[dict[str, Any]], names: dict[str, str]) -> pd.DataFrame:
    """Return a table of the records' fields, by our names."""
    rows = [[record.get(source) for source in names.values()] for record in records]
    return pd.DataFrame(rows, columns=list(names), dtype=object)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file: one per line, as JSON or, in older sets, as Python writes it."""
    decode = json.JSONDecoder(parse_float=str).decode  # a price of 12.50 stays one
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = decode(line)
            except json.JSONDecodeError:
                try:
                    record = ast.literal_eval(line)
                except (SyntaxError, ValueError):
                    raise ValueError(
                        f"{file} line {number} is no record; the file may have been cut."
                    ) from None
            yield record


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
