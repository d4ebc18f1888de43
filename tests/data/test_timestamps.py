"""Timestamps: one moment, however it is written, is one number of seconds."""

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

from recipes.data.timestamps import seconds

MOMENTS = np.array([1_600_000_000, 1_500_000_000, 0x5F5E1000, 1_700_000_000])
DATES = [datetime.fromtimestamp(int(moment), UTC) for moment in MOMENTS]


def read(values, unit=None):
    index = pd.MultiIndex.from_product([["interactions"], range(len(values))])
    return seconds(pd.DataFrame({"timestamp": pd.Series(values).set_axis(index)}), unit)


@pytest.mark.parametrize(
    "values",
    [
        MOMENTS, MOMENTS.astype(float), MOMENTS * 1000, MOMENTS * 10**6, MOMENTS * 10**9,
        MOMENTS.astype(np.uint64), (MOMENTS * 1000).astype(str), MOMENTS.astype(str), DATES,
        pd.array(MOMENTS, dtype="Int64"), pd.Series(MOMENTS, dtype="category"),
        [d.isoformat() for d in DATES], [d.strftime("%Y-%m-%dT%H:%M:%SZ") for d in DATES],
        [d.strftime("%Y-%m-%d %H:%M:%S") for d in DATES],
        [d.astimezone(timezone(timedelta(hours=5))).isoformat() for d in DATES],
        [d.replace(tzinfo=None) for d in DATES],
        *(pd.Series(DATES).dt.as_unit(unit) for unit in ("s", "ms", "us", "ns")),
        pd.Series(DATES).dt.tz_convert("Asia/Tokyo"), pd.Series(DATES).dt.tz_localize(None),
        pd.Series(DATES, dtype=object), pd.Series(DATES).astype("category"),
    ],
    ids=lambda values: str(getattr(values, "dtype", type(values[0]))),
)  # fmt: skip
def test_every_form_of_a_moment_is_the_same_second(values):
    np.testing.assert_array_equal(read(values), MOMENTS)


def test_days_years_before_counting_and_fractions():
    assert read([date(1970, 1, 2), date(2, 1, 1)]).tolist()[0] == 86400
    first = (datetime(1, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    assert read(["0001-01-01", "1970-01-01"]).tolist() == [first, 0]
    assert read(pd.Series([datetime(1, 1, 1)]).astype("datetime64[s]")).tolist() == [first]
    assert read([1600000000.25, 1600000000.5]).tolist() == [1600000000.25, 1600000000.5]
    assert read(["1600000000.25", "1.6e9"]).tolist() == [1600000000.25, 1600000000]


def test_what_is_missing_is_nan():
    for values in (
        [1.0, None], ["1", ""], ["1", None], [pd.Timestamp(1, unit="s"), pd.NaT],
        pd.array([1, None], dtype="Int64"), ["1970-01-01T00:00:01", None],
    ):  # fmt: skip
        assert read(values)[0] == 1 and np.isnan(read(values)[1])
    assert np.isnan(read([None, None])).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, np.inf], "interactions row 1: `timestamp` is inf"),
        ([1.0, -np.inf], "interactions row 1: `timestamp` is -inf"),
        (["1", "inf"], "row 1: `timestamp` holds neither seconds nor dates but 'inf'"),
        (["1", "soon"], "row 1: `timestamp` holds neither seconds nor dates but 'soon'"),
        (["03/04/2020", "04/03/2020"], "neither seconds nor dates"),
        ([True, False], "`timestamp` is True"),
        ([[1], [2]], "`timestamp` is \\[1\\]"),
        ([pd.Timedelta(1), pd.Timedelta(2)], "`timestamp` is Timedelta"),
        ([pd.Period("2020"), pd.Period("2021")], "`timestamp` is Period"),
        (["2020-01-01", "1600000000"], "both numbers and dates"),
        (
            [1_600_000_000, 1_600_000_000_000],
            "`timestamp` runs from .* name it by `timestamp_unit`",
        ),
        ([0, 1_600_000_000_000], "name it by `timestamp_unit`"),
        ([1e300, 1e300], "name it by `timestamp_unit`"),
    ],
)
def test_what_is_no_moment_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read(values)


@pytest.mark.parametrize(
    "form", ["%Y", "%Y%m", "%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%d%H%M%S%f"]
)
def test_the_digits_of_dates_are_no_count(form):
    """From years to microseconds, as numbers and as text; by a unit they are what they are."""
    digits = [moment.strftime(form) for moment in DATES]
    for values in (digits, [int(number) for number in digits]):
        with pytest.raises(ValueError, match="which look like the digits of dates; .* name it by"):
            read(values)
    assert read(digits, "ns").tolist() == [int(number) / 10**9 for number in digits]


def test_what_only_counts_is_taken_as_it_is():
    for values in (range(5), [1, 2, 3], [1, 2100], [18_262, 19_000], [190_001, 190_013], [0, 0]):
        assert read(list(values)).tolist() == list(values)
    rows = np.arange(1, 1_500_000)
    assert read(rows)[-1] == rows[-1], "a number per row"
    assert read([9, 944_249_077]).tolist() == [9, 944_249_077], "not all are early"
    assert read([0, 30 * 86400]).tolist() == [0, 30 * 86400], "seconds since any moment"


def test_a_unit_by_name(capsys):
    assert read([0, 1_600_000_000_000], "ms").tolist() == [0, 1_600_000_000]
    assert read([20200101], "s").tolist() == [20200101]
    assert "are read as" not in capsys.readouterr().out
    read(MOMENTS * 1000)
    assert "read as ms" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="`timestamp_unit` is 'm'; it must be one of s, ms, us, ns"
    ):
        read([1], "m")
    with pytest.raises(ValueError, match="`timestamp_unit` is 'ms', but `timestamp` holds dates"):
        read(["2020-01-01"], "ms")
    with pytest.raises(ValueError, match="no time in `timestamp_unit` 's'"):
        read(MOMENTS * 1000, "s")


@pytest.mark.parametrize(
    ("values", "unit", "zeros"),
    [
        ([0, 1_700_000_000, 0, 1_600_000_000.5], None, 2),
        (["1970-01-01", "2024-05-01T12:00Z"], None, 1),
        ([0, 1_700_000_000_000], "ms", 1),
        ([0, 1, 2], None, 0),
        ([0, 86_400, 1_700_000_000], None, 0),
        ([0, 0], None, 0),
        ([1_700_000_000, np.nan], None, 0),
    ],
)
def test_zeros_that_may_stand_for_nothing_are_counted(capsys, values, unit, zeros):
    found = read(values, unit)
    assert np.isnan(found).sum() == pd.isna(pd.Series(values)).sum(), "it stays a moment"
    said = f"{zeros:,} of {len(values):,} interactions have the `timestamp` 0"
    assert (said in capsys.readouterr().out) == bool(zeros)
