"""Records of items: what a table or a caller gives, as ids and texts, or refused by name."""

import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any
from uuid import UUID

import numpy as np

TEXT_FIELDS = ("title", "brand", "categories", "description", "price")
EXACT = 2**53  # floats of double precision beyond it do not tell neighbouring integers apart
SHORT = reprlib.Repr()
SHORT.maxstring = 80  # letters of a text in a message: ids are shown whole


def is_missing(value: object) -> bool:
    """Return whether a value stands for nothing: None, NaN, NaT or the `NA` of pandas.

    Args:
        value: A cell of a table.
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, Real) and math.isnan(value)


def shown(value: object) -> str:
    """Return a value as messages show it, cut where it is long, on one line.

    Args:
        value: What stands in a field.
    """
    text = SHORT.repr(value.item() if isinstance(value, np.generic) else value)
    return text.replace("\n", " ")


def as_stream(values: Any) -> Iterator | None:
    """Return what goes through several values, or None where there is one: a text, a mapping.

    Args:
        values: What was passed.
    """
    try:
        return None if isinstance(values, str | bytes | Mapping) else iter(values)
    except TypeError:  # an array of no dimension is no list, whatever its class can do
        return None


def as_id(value: object, field: str, where: str) -> str:
    """Return an id as the opaque string it is.

    An integer gives its decimal text, and so does a float that is a whole number; a UUID gives the
    text that it is known by.

    Args:
        value: What stands there.
        field: Name of the field, for the message.
        where: Which record it is, for the message, e.g. `"Item 3"`.

    Raises:
        ValueError: It is missing, empty, or neither text nor a whole number, or a float so large
            that neighbouring integers are one.
    """
    if isinstance(value, str):
        text = str(value)
        if not text.strip():
            raise ValueError(f"{where}: `{field}` is empty; give each an id, or drop the row.")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"{where}: `{field}` is {shown(text)}, which holds half a character (a lone "
                "surrogate) and cannot be saved; give another id."
            )
        return text
    if is_missing(value):
        raise ValueError(f"{where}: `{field}` is null; give each an id, or drop the row.")
    if isinstance(value, UUID):
        return str(value)
    if _is_number(value) and (isinstance(value, Integral) or _is_whole(value)):
        if isinstance(value, Real) and abs(value) >= _exact(value):
            raise ValueError(
                f"{where}: `{field}` is {shown(value)}, a {type(value).__name__}, which does not "
                "tell neighbouring integers apart; write ids as integers or strings."
            )
        return str(int(value))
    raise ValueError(
        f"{where}: `{field}` is {shown(value)}; ids are strings, or integers that are read "
        "as their digits."
    )


def as_text(value: object, field: str, where: str) -> str:
    """Return what a text field says as one string, empty where it is missing.

    The parts of a list are joined by commas. A float that is a whole number is written without
    `.0`, as it was before a missing value beside it made a float of it.

    Args:
        value: What stands there.
        field: Name of the field, for the message.
        where: Which record it is, for the message, e.g. `"Item 3"`.

    Raises:
        ValueError: It is neither text, a finite number, nor a list of them.
    """
    if isinstance(value, str):
        # Pairs of surrogates become the character they stand for; a lone one is no character.
        return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        parts = (as_text(part, field, where) for part in value)
        return ", ".join(part for part in parts if part)
    if is_missing(value):
        return ""
    if _is_number(value) and math.isfinite(value):
        whole = isinstance(value, Integral) or (
            isinstance(value, Real) and abs(value) < EXACT and _is_whole(value)
        )
        return str(int(value)) if whole else str(value)
    raise ValueError(
        f"{where}: `{field}` is {shown(value)}; give text, a finite number, or a list of them."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool | np.timedelta64)


def _is_whole(value: Real | Decimal) -> bool:
    return math.isfinite(value) and value == int(value)


def _exact(value: Real) -> float:
    """Return from where on numbers of a type do not tell neighbouring integers apart."""
    if isinstance(value, Integral):
        return math.inf
    short = isinstance(value, np.floating)  # as pandas makes where it is to save memory
    return 2.0 ** (np.finfo(type(value)).nmant + 1) if short else EXACT


def item_records(
    items: Iterable[Mapping[str, object]], name: str = "items"
) -> list[dict[str, str]]:
    """Return items as records of strings: `item_id` and the fields of `TEXT_FIELDS`.

    Args:
        items: Records, or a table of them: a pandas DataFrame or a `datasets.Dataset`. Fields of
            other names are left out.
        name: Name of the argument, for the message.

    Raises:
        ValueError: There is something else than records, or a field holds what it cannot; the
            message names item, field and value.
    """
    if hasattr(items, "to_dict") and hasattr(items, "columns"):
        items = items.to_dict("records")
    stream = as_stream(items)
    if stream is None:
        raise ValueError(f"`{name}` is {shown(items)}; give a list of records.")
    records = []
    for number, item in enumerate(stream):
        where = f"Item {number}"
        if not isinstance(item, Mapping):
            raise ValueError(
                f"{where} is {shown(item)}; give a record such as "
                '{"item_id": "7", "title": "A title"}.'
            )
        if is_missing(item.get("item_id")):
            raise ValueError(f"{where} has no `item_id`; give each a string.")
        record = {"item_id": as_id(item["item_id"], "item_id", where)}
        named = f"{where} ({shown(record['item_id'])})"
        record |= {field: as_text(item.get(field), field, named) for field in TEXT_FIELDS}
        records.append(record)
    return records
