"""Arguments of public methods: what is no list, id, count or flag is refused by name."""

import operator
from typing import Any

import torch

from .records_ttds import as_stream, shown


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
        raise ValueError(f"`{name}` is the string {shown(values)}; give a list of {of}.")
    stream = as_stream(values)
    if stream is None:
        raise ValueError(f"`{name}` is {shown(values)}; give a list of {of}.")
    return list(stream)


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
                f"`{name}` holds {shown(item)} of type {type(item).__name__}; item ids are "
                f"strings, such as {str(item)[:20]!r}."
            )
    return item_ids


def as_histories(values: Any, name: str) -> list[list[str]]:
    """Return an argument as a list of histories, each a list of item ids.

    Args:
        values: What was passed.
        name: Name of the argument, for the message.

    Raises:
        ValueError: It is no list of them; one history is none.
    """
    histories, of = [], "histories, each a list of item ids"
    for number, history in enumerate(as_list(values, name, of)):
        if isinstance(history, str):
            raise ValueError(f"`{name}` holds the string {shown(history)}; give a list of {of}.")
        histories.append(as_item_ids(history, f"{name}[{number}]"))
    return histories


def as_integers(values: Any, name: str, of: str) -> list[int]:
    """Return an argument as a list of integers.

    Args:
        values: What was passed.
        name: Name of the argument, for the message.
        of: What it should hold, for the message.

    Raises:
        ValueError: It is no list, or holds something else.
    """
    integers = []
    for value in as_list(values, name, of):
        try:
            integers.append(operator.index(value))
        except TypeError:
            raise ValueError(f"`{name}` holds {shown(value)}; give a list of {of}.") from None
    return integers


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
    truth = isinstance(value, bool) or getattr(value, "dtype", None) is torch.bool
    try:
        count = operator.index(None if truth else value)
    except TypeError:
        raise ValueError(
            f"`{name}` is {shown(value)}; it must be an integer of at least 1."
        ) from None
    if count < 1:
        raise ValueError(f"`{name}` is {shown(count)}; it must be at least 1.")
    return count


def as_flag(value: Any, name: str) -> bool:
    """Return an argument as a truth value; a text is none, whatever it says.

    Args:
        value: What was passed.
        name: Name of the argument, for the message.

    Raises:
        ValueError: It is neither true nor false.
    """
    try:
        is_flag = not isinstance(value, str | bytes) and value in (True, False)
    except (RuntimeError, TypeError, ValueError):  # an array of several, or what is missing
        is_flag = False
    if not is_flag:
        raise ValueError(f"`{name}` is {shown(value)}; it must be True or False.")
    return bool(value)
