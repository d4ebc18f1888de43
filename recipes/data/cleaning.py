"""Cleaning tables: names of columns, ids, numbers and texts; what is none is refused by name."""

import difflib
import math
import re
import string
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from numbers import Integral, Real

import numpy as np
import pandas as pd

from modeling_ttds.records_ttds import TEXT_FIELDS, as_id, is_missing, shown

COLUMNS = {
    "interactions": ("user_id", "item_id", "position", "timestamp", "rating", "review_text"),
    "items": ("item_id", *TEXT_FIELDS),
}
INVISIBLE = string.whitespace + "\xa0\u200b\ufeff"
# A long number as spreadsheets show it, and save it: the digits behind these are gone.
ROUNDED = re.compile(r"\d(\.\d+)?E\+\d+")


def where(frame: pd.DataFrame, row: int) -> str:
    """Return how a message names a row of a table.

    Args:
        frame: A table as of `read_table`.
        row: Its place in the frame.
    """
    table, number = frame.index[row]
    return f"{table} row {number}"


def refuse(frame: pd.DataFrame, row: int, column: str, remedy: str) -> None:
    """Raise the error of a cell that breaks the contract.

    Args:
        frame: The table.
        row: Place of the row.
        column: Name of the column.
        remedy: What to do.

    Raises:
        ValueError: Always.
    """
    value = frame[column].iloc[row]
    what = "null" if is_missing(value) else shown(value)
    raise ValueError(f"{where(frame, row)}: `{column}` is {what}; {remedy}.")


def renamed(tables: dict[str, pd.DataFrame], column_map: dict[str, str]) -> None:
    """Rename the columns of both tables in place.

    Args:
        tables: The tables by name.
        column_map: Column names of the source to ours.

    Raises:
        ValueError: A name is unknown, or two columns would have one name.
    """
    ours = {name for names in COLUMNS.values() for name in names}
    for source, target in column_map.items():
        if not isinstance(target, str) or target not in ours:
            raise ValueError(
                f"`column_map` maps {source!r} onto {shown(target)}; it must be one of "
                f"{', '.join(sorted(ours))}."
            )
        if not any(source in frame for frame in tables.values()):
            there = sorted({str(name) for frame in tables.values() for name in frame})
            close = difflib.get_close_matches(str(source), there, 1)
            raise ValueError(
                f"`column_map` names {source!r}, which no table has"
                + (f"; did you mean {close[0]!r}?" if close else ".")
                + f" The columns are {', '.join(there)}; --column_map '{{}}' renames none."
            )
    for table, frame in tables.items():
        names = [column_map.get(name, name) for name in frame]
        for target in set(column_map.values()):
            if names.count(target) > 1:
                sources = [str(s) for s, name in zip(frame, names, strict=True) if name == target]
                raise ValueError(
                    f"`column_map` would give {table} two columns `{target}`, of "
                    f"{' and '.join(sources)}; map the other one away, or drop it."
                )
        frame.columns = names


def named(column: object) -> str:
    """Return a column's name as messages list it, in quotes where its ends would not be seen.

    Args:
        column: The name.
    """
    return str(column) if str(column) == str(column).strip() != "" else repr(column)


def check_columns(frame: pd.DataFrame, table: str, required: tuple[str, ...]) -> None:
    """Refuse a table that lacks a column or has no row.

    Args:
        frame: The table.
        table: Its name.
        required: Columns it must have.

    Raises:
        ValueError: One is missing, or the table is empty.
    """
    for column in required:
        if column not in frame:
            there = ", ".join(map(named, frame))
            raise ValueError(
                f"{table} has no column `{column}` (it has {there}); rename one by the column map."
            )
    if frame.empty:
        raise ValueError(f"{table} is empty.")


def tell_unread(frame: pd.DataFrame, table: str) -> None:
    """Print which columns of a table nothing reads: one of them may have been meant.

    Args:
        frame: The table.
        table: Its name.
    """
    read = set(COLUMNS[table]) - {"rating"}  # a name that is ours, which nothing reads
    unread = [name for name in map(str, frame) if name not in read]
    unread = [shown(name) for name in unread if name and not name.startswith("__")]  # pandas' index
    if unread:
        print(f"Columns of {table} that are not read: {', '.join(unread)}.")


def each_distinct(
    frame: pd.DataFrame, column: str, convert: Callable[[object, str, str], object]
) -> list:
    """Return a column with every cell converted; equal cells are converted once.

    Args:
        frame: The table.
        column: Name of the column.
        convert: From a cell, the column's name and the row's name for messages.

    Raises:
        ValueError: As of `convert`.
    """
    values = frame[column]
    alike = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf"
    if alike or pd.api.types.infer_dtype(values, skipna=False) == "string":
        codes, distinct = pd.factorize(values, use_na_sentinel=False)
        if alike:  # cells keep their type: 1.99 in 4 bytes is another number than in 8
            distinct = distinct.to_numpy(dtype=values.dtype)
    else:  # 1, 1.0 and True are equal, but not the same; lists have no hash
        codes, distinct = np.arange(len(values)), list(values)
    converted = []
    for number, value in enumerate(distinct):
        try:
            converted.append(convert(value, column, ""))
        except ValueError:
            convert(value, column, where(frame, int((codes == number).argmax())))
            raise
    return [converted[code] for code in codes]


def ids(frame: pd.DataFrame, table: str, column: str) -> list[str]:
    """Return a column of ids as opaque strings.

    Args:
        frame: The table.
        table: Its name.
        column: Name of the column.

    Raises:
        ValueError: An id is missing or none.
    """
    if frame[column].dtype.kind == "f":
        print(f"`{column}` of {table} is stored as floats: 7.0 is read as the id '7'.")
    found = each_distinct(frame, column, as_id)
    distinct = set(found)
    rounded = {text for text in distinct if ROUNDED.fullmatch(text)}
    if rounded:
        print(
            f"{len(rounded):,} ids in `{column}` of {table} look like numbers that a spreadsheet "
            f"rounded, such as {min(rounded)!r}: those that differ in later digits have become one."
        )
    first: dict[str, str] = {}
    for text in sorted(text for text in distinct if bare(text) != text):
        other = bare(text) if bare(text) in distinct else first.setdefault(bare(text), text)
        if other != text:
            print(
                f"`{column}` of {table} holds {ascii(other)} and {ascii(text)}, which look alike: "
                "ids that differ in what nobody sees are different ids."
            )
            break
    return found


def bare(text: str) -> str:
    """Return an id without what nobody sees: white space around it, how its letters are composed.

    Args:
        text: The id.
    """
    return unicodedata.normalize("NFC", text).strip(INVISIBLE)


def as_number(value: object, column: str, where: str) -> int | float:
    """Return a finite number, also of its text; integers stay exact.

    Args:
        value: A cell.
        column: Name of its column, for messages.
        where: Name of its row, for messages.

    Raises:
        ValueError: It is none.
    """
    number = None
    if isinstance(value, str):
        if re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
            number = float(value)  # infinite where it has too many digits, which int() refuses
            number = int(Decimal(value)) if math.isfinite(number) else number
        elif re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", value):
            number = float(value)
    elif isinstance(value, Integral) and not isinstance(value, bool | np.timedelta64):
        number = int(value)
    elif isinstance(value, Real | Decimal) and not isinstance(value, bool):
        whole = isinstance(value, Decimal) and value == value.to_integral_value()
        number = int(value) if whole and value.is_finite() else float(value)
    if number is None or not math.isfinite(number):
        nothing = is_missing(value) or (isinstance(value, str) and not value.strip())
        what = "null" if nothing else shown(value)
        raise ValueError(f"{where}: `{column}` is {what}; give a finite number.")
    return number


def ranks(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Return numbers that order the rows as a column of numbers does, equal ones equal.

    Args:
        frame: The table.
        column: Name of the column; numbers may be written as text.

    Raises:
        ValueError: A cell is no finite number.
    """
    values = frame[column]
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iu":
        return values.to_numpy()
    numbers = each_distinct(frame, column, as_number)
    place = {number: rank for rank, number in enumerate(sorted(set(numbers)))}
    return np.array([place[number] for number in numbers])
