"""Reading tables: one reader per format, cells as they were written, from a folder or the Hub.

A table's index names its rows in messages: the table, or the split of it, and the number in there.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# What given splits are called, and what we call them.
SPLITS = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # a folder of rows whose value is missing


@contextmanager
def as_utf8(file: Path) -> Iterator[None]:
    """Say which file is not UTF-8, when its lines are read within.

    Args:
        file: The file.

    Raises:
        ValueError: It is not.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8.") from None


def read_csv(file: Path) -> pd.DataFrame:
    """Read a CSV file with a header; every cell is the text that stands there.

    Args:
        file: The file.

    Raises:
        ValueError: A row has another number of cells than the header, a quote stays open, cells are
            not separated by commas, or it is not UTF-8.
    """
    limit = csv.field_size_limit(sys.maxsize)
    same: dict[str, str] = {}  # equal cells share their memory
    try:
        with as_utf8(file), file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            header = next((row for row in rows if row), None)
            if header is None:
                raise ValueError(f"{file} is empty.")
            for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
                if len(header) == 1 and separator in header[0]:
                    raise ValueError(f"{file} is separated by {name}; save it with commas.")
            columns: list[list[str]] = [[] for _ in header]
            begin = rows.line_num
            for row in rows:
                if row and len(row) != len(header):
                    raise ValueError(
                        f"{file} line {begin + 1} has {len(row)} cells, the header {len(header)}; "
                        "quote cells that hold a comma."
                    )
                begin = rows.line_num
                for column, cell in zip(columns, row, strict=False):  # an empty line has no cell
                    column.append(same.setdefault(cell, cell))
    except csv.Error as error:
        raise ValueError(
            f"{file} line {begin + 1} is no CSV ({error}); close every quote, and double those "
            "inside."
        ) from None
    finally:
        csv.field_size_limit(limit)
    return _frame(file, header, columns)


def read_jsonl(file: Path) -> pd.DataFrame:
    """Read a file of one JSON object per line; numbers are the text that stands there.

    Args:
        file: The file.

    Raises:
        ValueError: A line is no JSON object, or the file is not UTF-8.
    """
    columns: dict[str, list] = {}
    count = 0
    # Digits stay as written: an id of 1E10 or a price of 12.50 is no number to us.
    decode = json.JSONDecoder(
        parse_int=str,
        parse_float=str,
        parse_constant=lambda name: None if name == "NaN" else float(name),
    ).decode
    with as_utf8(file), file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = decode(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"{file} line {number} is no JSON object ({error}); the file may have been cut."
                ) from None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{file} line {number} is no JSON object; JSONL has one object per line."
                )
            for name, value in record.items():
                columns.setdefault(name, [None] * count).append(value)
            count += 1
            if len(record) < len(columns):
                for column in columns.values():
                    column.extend([None] * (count - len(column)))
    if not count:
        raise ValueError(f"{file} is empty.")
    return _frame(file, list(columns), list(columns.values()))


def read_parquet(file: Path) -> pd.DataFrame:
    """Read a parquet file without the row labels pandas may have kept.

    Args:
        file: The file.

    Raises:
        ValueError: It is no parquet.
    """
    try:
        table = pq.read_table(file, partitioning=None)  # folders above it make no columns
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is no parquet ({reason}); write it again.") from None
    repeated = [name for name in table.column_names if table.column_names.count(name) > 1]
    if repeated:
        raise ValueError(f"{file} has two columns {repeated[0]!r}; keep one.")
    # Integers beside missing ones stay integers.
    return table.to_pandas(ignore_metadata=True, integer_object_nulls=True)


READERS = {".parquet": read_parquet, ".csv": read_csv, ".jsonl": read_jsonl}


def read_table(name: str, table: str) -> pd.DataFrame:
    """Read one of the two tables of a data set.

    Args:
        name: A folder, or a data set on the Hub.
        table: `"interactions"` or `"items"`.

    Returns:
        The rows; the first level of the index is the table, or the given split a row is of.

    Raises:
        FileNotFoundError: There is no such folder, data set or table.
        ValueError: A file is there twice or cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return _read_hub(name, table)
    files = [folder / f"{table}{suffix}" for suffix in READERS]
    files = [file for file in files if file.exists()]
    splits = _split_files(folder) if table == "interactions" else {}
    several = files + [file for found in splits.values() for file in found]
    if len(files) > 1 or (files and splits) or len({file.suffix for file in several}) > 1:
        names = [str(file.relative_to(folder)) for file in several]
        raise _more_than_once(folder, f"table of {table}", names)
    if several:
        return _read_files(name, table, {table: files} if files else splits, several[0].suffix)
    card = folder / "README.md"
    if card.exists() and re.search(rf"config_name\W+{table}\b", card.read_text("utf-8")):
        return _read_hub(name, table)
    wanted = ", ".join(f"{table}{suffix}" for suffix in READERS)
    raise FileNotFoundError(f"{folder} has no table of {table}; add one of {wanted}.")


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of interactions that are given in splits, e.g. `train.csv`, `test.csv`.

    Those of one split are the parts of one file, `train-00000-of-00002.csv` and so on.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for file in sorted([*folder.iterdir(), *folder.glob("interactions/*")]):
        whole = re.sub(r"-\d+(-of-\d+)$", r"-*\1", file.stem)
        stem = re.sub(r"^interactions[-_.]", "", re.sub(r"-\*-of-\d+$", "", whole))
        if stem in SPLITS and file.suffix in READERS:
            name = str(file.with_name(whole + file.suffix).relative_to(folder))
            found.setdefault(SPLITS[stem], {}).setdefault(name, []).append(file)
    return _under_one_name(folder, found)


def _under_one_name(
    place: str | Path, splits: dict[str, dict[str, list[Path]]]
) -> dict[str, list[Path]]:
    """Return the files of each split; refuse a split that is there under several names."""
    for split, named in splits.items():
        if len(named) > 1:
            raise _more_than_once(place, f"split {split}", named)
    return {split: files for split, named in splits.items() for files in named.values()}


def _more_than_once(place: str | Path, what: str, names: Iterable[str]) -> ValueError:
    return ValueError(f"{place} has the {what} more than once, in {', '.join(names)}; keep one.")


def _read_hub(name: str, table: str) -> pd.DataFrame:
    """Read a table of a Hub data set, or of a folder laid out like one, by its configuration."""
    import datasets

    folder = Path(name).is_dir()
    if not folder and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        kind = "a file" if Path(name).is_file() else "no folder"
        raise FileNotFoundError(
            f"`dataset_name` {name!r} is {kind}; name the folder of a data set."
        )
    try:
        files = datasets.load_dataset_builder(name, table).config.data_files or {}
        download = datasets.DownloadManager().download
        paths = {split: [Path(path) for path in download(list(files[split]))] for split in files}
    except ValueError as error:
        raise ValueError(f"{name} has no configuration {table!r}: {error}") from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"`dataset_name` {name!r} is no folder, nor a data set of the Hub ({reason})."
        ) from None
    suffixes = {Path(str(origin)).suffix for several in files.values() for origin in several}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        raise ValueError(
            f"{name} keeps {table!r} as {', '.join(sorted(suffixes)) or 'nothing'}; one of "
            f"{', '.join(READERS)} can be read."
        )
    if len(paths) == 1 or table == "items":
        paths = {table: [path for several in paths.values() for path in several]}
    else:
        found: dict[str, dict[str, list[Path]]] = {}
        for split, several in paths.items():
            found.setdefault(SPLITS.get(split, split), {})[split] = several
        paths = _under_one_name(name, found)
    return _read_files(name, table, paths, suffixes.pop())


def _read_files(name: str, table: str, files: dict[str, list[Path]], suffix: str) -> pd.DataFrame:
    """Read the files of a table, or of each of its splits."""
    if table not in files:
        missing = {"train", "test"} - files.keys()
        unknown = files.keys() - set(SPLITS.values())
        if missing or unknown:
            raise ValueError(
                f"{name} gives the interactions in the splits {', '.join(files)}; give train, test "
                "and, if there is one, validation, or all interactions in one table."
            )
    frames = {}
    for split in sorted(files, key=list(SPLITS.values()).index) if table not in files else files:
        parts = [(file, part) for file in files[split] for part in _parts(file, suffix)]
        frames[split] = _joined([_read_part(file, part, suffix) for file, part in parts])
        frames[split].index = pd.MultiIndex.from_product([[split], range(len(frames[split]))])
    return _joined(list(frames.values()))


def _parts(file: Path, suffix: str) -> list[Path]:
    """Return a file, or the files in a folder that has the name of one, as Spark writes it."""
    if not file.is_dir():
        return [file]
    if (file / "_delta_log").exists():
        raise ValueError(
            f"{file} is a Delta table, whose files hold rows of earlier states too; write its "
            "present state as parquet."
        )
    deep = suffix == ".parquet"  # whose parts may have any name, in folders such as `day=7`
    parts = [
        part
        for part in sorted(file.rglob("*") if deep else file.iterdir())
        if not any(place[0] in "._" for place in part.relative_to(file).parts)
        and not (deep and part.is_dir())
    ]
    allowed = {suffix} | ({".json"} if suffix == ".jsonl" else set())  # Spark's name of JSONL
    for part in parts:
        if not deep and (part.suffix not in allowed or not part.is_file()):
            raise ValueError(
                f"{part} is no {suffix} file; unpack it, or take it out of the folder."
            )
    # Spark's first part is there even if it has no row.
    parts = [part for part in parts if deep or part.stat().st_size]
    if not parts:
        raise ValueError(f"{file} is a folder without rows; write the table again.")
    return parts


def _read_part(table: Path, part: Path, suffix: str) -> pd.DataFrame:
    """Read a part of a table, with the columns that the folders around it hold (`day=7`)."""
    frame = READERS[suffix](part)
    for place in part.relative_to(table).parts[:-1]:
        name, is_column, value = place.partition("=")
        if is_column and name not in frame:
            cell = None if value == NO_VALUE else unquote(value)
            frame[name] = pd.Series(cell, frame.index, dtype=object)
    return frame


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several tables as one; what one of them lacks is missing in its rows.

    Cells of a column that is not of one type throughout stay what they are: a common type would
    round large integers beside fractions, and give short floats digits that nobody wrote.
    """
    frames = [frame for frame in frames if len(frame)] or frames[:1]
    for name in dict.fromkeys(name for frame in frames for name in frame):
        kinds = [frame[name].dtype if name in frame else None for frame in frames]
        if kinds.count(kinds[0]) == len(kinds):
            continue
        for frame in frames:
            cells = list(frame[name].array) if name in frame else None
            frame[name] = pd.Series(cells, frame.index, dtype=object)
    return pd.concat(frames)


def _frame(file: Path, names: list[str], columns: list[list]) -> pd.DataFrame:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{file} has two columns {repeated[0]!r}; keep one.")
    return pd.DataFrame(dict(zip(names, columns, strict=True)), dtype=object)
