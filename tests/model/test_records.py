"""Records of items: every form of an id or a text is one string, or refused by name."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from modeling_ttds.records_ttds import as_id, as_text, item_records

NOTHING = [None, np.nan, pd.NA, pd.NaT, Decimal("nan")]


@pytest.mark.parametrize(
    ("value", "text"),
    [("007", "007"), ("1E10", "1E10"), (7, "7"), (np.int64(7), "7"), (7.0, "7"),
     (2**63, str(2**63)), (Decimal("7"), "7"), (" a ", " a ")],
)  # fmt: skip
def test_an_id_is_an_opaque_string(value, text):
    assert as_id(value, "item_id", "Item 3") == text


@pytest.mark.parametrize(
    "value",
    [*NOTHING, "", "  ", "a\ud800", 7.5, np.inf, 2.0**60, True, np.bool_(True), b"a", ["a"],
     pd.Timestamp(0), np.timedelta64(3)],
)  # fmt: skip
def test_what_is_no_id_is_refused_with_record_and_field(value):
    with pytest.raises(ValueError, match="^Item 3: `item_id` is .*; "):
        as_id(value, "item_id", "Item 3")


@pytest.mark.parametrize(
    ("value", "text"),
    [("None", "None"), ("NA", "NA"), ("", ""), (12, "12"), (12.0, "12"), (12.5, "12.5"),
     (np.float32(12.1), "12.1"), (Decimal("12.50"), "12.50"), (["a", None, ["b", 1.0]], "a, b, 1"),
     (np.array(["a", "b"], object), "a, b"), ([], ""), ("a\ud800", "a\ufffd"),
     ("\ud83d\ude00", "\U0001f600"), *((value, "") for value in NOTHING)],
)  # fmt: skip
def test_a_text_says_what_was_written(value, text):
    assert as_text(value, "title", "Item 3") == text


@pytest.mark.parametrize(
    "value", [{"a": 1}, {"a"}, True, np.inf, b"a", pd.Timestamp(0), np.timedelta64(3), object()]
)
def test_what_is_no_text_is_refused_with_record_and_field(value):
    for held in (value, [value]):
        with pytest.raises(ValueError, match="^Item 3: `title` is .*; give text"):
            as_text(held, "title", "Item 3")


def test_records_of_a_frame_are_those_of_its_rows():
    rows = [
        {"item_id": 7, "title": "A", "brand": pd.NA, "price": 3.0},
        {"item_id": 8, "title": None, "brand": "B", "price": np.nan},
    ]
    expected = [
        {"item_id": "7", "title": "A", "brand": "", "price": "3"},
        {"item_id": "8", "title": "", "brand": "B", "price": ""},
    ]
    expected = [record | {"categories": "", "description": ""} for record in expected]
    for frame in (rows, pd.DataFrame(rows), pd.DataFrame(rows).convert_dtypes()):
        assert item_records(frame) == expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("ab", "`items` is 'ab'; give a list"),
        ({"item_id": "a"}, "`items` is .*; give a list"),
        (3, "`items` is 3; give a list"),
        (["a"], "Item 0 is 'a'; give a record"),
        ([{"title": "A"}], "Item 0 has no `item_id`"),
        ([{"item_id": "a", "title": {}}], "Item 0 \\('a'\\): `title` is {}"),
    ],
)
def test_what_is_no_record_is_refused(items, message):
    with pytest.raises(ValueError, match=message):
        item_records(items)
