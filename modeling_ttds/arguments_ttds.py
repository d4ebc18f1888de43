"""Arguments of public methods: what is no list, id, count or flag is refused by name."""

import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any


def as_list(values: Any, name: str, of: str = "item ids") -> list:
    """Return an argument as a list; a string is no list of its letters, a set has no order.

    Args:
        values: What was passed.
        name: Name of the argument, for the message.
        of: What it should hold, for the message.

    Raises:
        ValueError: It is a string, a set, a mapping or nothing that could be gone through.
    """
    if isinstance(values, set | frozenset):
        raise ValueError(f"`{name}` is a set, which has no order; give a list of {of}.")
    if isinstance(values, str | bytes):
        raise ValueError(f"`{name}` is the string {reprlib.repr(values)}; give a list of {of}.")
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` is {reprlib.repr(values)}; give a list of {of}.")
    return list(values)


def as_item_ids(values: Any, name: str) -> list[str]:
    """Return an argument as a list of item ids.

    Args:
        values: What was passed.
        name: Name of the argument, for the message.

    Raises:
        ValueError: It is no list, or holds something else than strings.
    """
    item_ids = as_list(values, name)
    for item in item_ids:
        if not isinstance(item, str):
            raise ValueError(
                f"`{name}` holds {reprlib.repr(item)} of type {type(item).__name__}; item ids are "
                f"strings, such as {str(item)[:20]!r}."
            )
    return item_ids


def unordered(values: Any) -> Any:
    """Return a set as a list, and anything else as it is: for arguments whose order says nothing.

    Args:
        values: What was passed.
    """
    return list(values) if isinstance(values, set | frozenset) else values


def as_count(value: Any, name: str) -> int:
    """Return an argument as an integer of at least 1.

    Args:
        value: What was passed.
        name: Name of the argument, for the message.

    Raises:
        ValueError: It is no integer, or smaller.
    """
    try:
        count = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise ValueError(
            f"`{name}` is {reprlib.repr(value)}; it must be an integer of at least 1."
        ) from None
    if count < 1:
        raise ValueError(f"`{name}` is {count}; it must be at least 1.")
    return count


def as_flag(value: Any, name: str) -> bool:
    """Return an argument as a truth value; a text is none, whatever it says.

    Args:
        value: What was passed.
        name: Name of the argument, for the message.

    Raises:
        ValueError: It is neither true nor false.
    """
    if isinstance(value, str | bytes) or value not in (True, False):
        raise ValueError(f"`{name}` is {reprlib.repr(value)}; it must be True or False.")
    return bool(value)
