"""One reading of timestamps, whatever the format: seconds, their fractions, or dates."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd

from modeling_ttds.records_ttds import is_missing
from recipes.data.cleaning import as_number, each_distinct, refuse

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Until the year 5138 a number is closest to its unit; numbers of other magnitudes lie before 1973.
LIMITS = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": 1e20}
# The digits of a date, from a year to parts of a second: as a count they would be of another age.
DATE = re.compile(
    r"(19|20)\d\d"
    r"((0[1-9]|1[0-2])((0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])([0-5]\d([0-6]\d\d{0,9})?)?)?)?)?"
)
LONG_AFTER = 1e8  # seconds after 1970, in 1973: a 0 beside later moments only is none
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def seconds(frame: pd.DataFrame, unit: str | None = None) -> np.ndarray:
    """Return the column `timestamp` in seconds since 1970, NaN where there is none.

    A date without a zone is one of UTC. Numbers are seconds, or milli-, micro- or nanoseconds where
    all are too large for the unit before. They may count from any moment: then they give an order.

    Args:
        frame: The interactions.
        unit: What numbers count: `"s"`, `"ms"`, `"us"` or `"ns"`; by their magnitude if None.

    Raises:
        ValueError: A value is neither finite nor a date, or the unit cannot be told.
    """
    if unit is not None and unit not in UNITS:
        raise ValueError(f"`timestamp_unit` is {unit!r}; it must be one of {', '.join(UNITS)}.")
    column = frame["timestamp"]
    if isinstance(column.dtype, pd.DatetimeTZDtype) or column.dtype.kind == "M":
        dates = pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy()
        steps = dates.astype(np.int64) / UNITS[np.datetime_data(dates.dtype)[0]]
        values = np.where(np.isnat(dates), np.nan, steps)
        kinds = {"date"}
    elif column.dtype.kind in "iuf" and isinstance(column.dtype, np.dtype):
        values = column.to_numpy(dtype=np.float64 if column.dtype.kind == "f" else np.int64)
        kinds = {"number"}
        if np.isinf(values).any():
            refuse(frame, int(np.isinf(values).argmax()), "timestamp", "give a finite time")
    else:
        kinds = set()

        def read(value: object, column: str, where: str) -> float | int:
            if is_missing(value) or (isinstance(value, str) and not value.strip()):
                return np.nan
            kind, moment = _moment(value, where)
            kinds.add(kind)
            return moment

        values = _array(each_distinct(frame, "timestamp", read))
    if len(kinds) > 1:
        raise ValueError("`timestamp` holds both numbers and dates; give one of them.")
    if unit is not None and "date" in kinds:
        raise ValueError(
            f"`timestamp_unit` is {unit!r}, but `timestamp` holds dates; leave it out."
        )
    values = values if "date" in kinds else _in_seconds(values, unit)
    others = values[(values != 0) & ~np.isnan(values)]
    if len(others) and others.min() >= LONG_AFTER and (values == 0).any():
        print(
            f"{(values == 0).sum():,} of {len(values):,} interactions have the `timestamp` 0, "
            "years before all others: if it stands for nothing, leave it empty."
        )
    return values


def _moment(value: object, where: str) -> tuple[str, float | int]:
    """Return whether a cell is a number or a date, and what it says."""
    if isinstance(value, pd.Timestamp | datetime):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value
        return "date", (moment - EPOCH).total_seconds()
    if isinstance(value, np.datetime64 | date):
        return "date", (pd.Timestamp(value, tz="UTC") - pd.Timestamp(EPOCH)).total_seconds()
    try:
        return "number", as_number(value, "timestamp", where)
    except ValueError:
        if not isinstance(value, str):
            raise
    try:
        return _moment(datetime.fromisoformat(value.strip()), where)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{where}: `timestamp` holds neither seconds nor dates but {value[:40]!r}; give a "
            "number, or a date such as 2024-05-01T12:00:00Z."
        ) from None


def _array(values: list) -> np.ndarray:
    whole = all(isinstance(value, int) and abs(value) < 2**63 for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float64)


def _digits(value: float) -> str:
    return f"{Decimal(f'{value:.15g}'):f}"  # further ones a float does not hold


def _in_seconds(values: np.ndarray, unit: str | None) -> np.ndarray:
    known = np.unique(np.abs(values[~np.isnan(values)].astype(np.float64)))
    if not len(known):
        return values
    if unit is None:
        least, most = (
            next((u for u, limit in LIMITS.items() if value < limit), None)
            for value in (known[0], known[-1])
        )
        doubt = None
        if least != most or most is None:
            doubt = "may be more than one unit"
        elif all(DATE.fullmatch(_digits(value)) for value in known):
            doubt = "look like the digits of dates"
        if doubt:
            raise ValueError(
                f"`timestamp` runs from {known[0]:.15g} to {known[-1]:.15g} in magnitude, which "
                f"{doubt}; give dates such as 2024-05-01T12:00:00Z, or, if they count a "
                f"unit of time, name it by `timestamp_unit`, one of {', '.join(UNITS)}."
            )
        unit = most
        if unit != "s":
            print(
                f"The numbers of `timestamp` are read as {unit}; `timestamp_unit` says otherwise."
            )
    elif known[-1] / UNITS[unit] >= LIMITS["s"]:
        raise ValueError(
            f"`timestamp` reaches {known[-1]:g}, which is no time in `timestamp_unit` {unit!r}."
        )
    return values if unit == "s" else values / UNITS[unit]
