"""Properties of the border: any frame pandas can make is read rightly or refused in a sentence."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from recipes.data.split import split_data
from recipes.data.tables import read_data

FEW = settings(max_examples=40)
TEXTS = st.text(max_size=8) | st.sampled_from(["None", "NA", "nan", "1E10", "007", "12.0", " ", ""])
WHOLE = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats() | st.sampled_from([1.0, 12.0, 2.0**53, -0.0, math.inf])
DATES = st.datetimes(min_value=pd.Timestamp(1700, 1, 1), max_value=pd.Timestamp(2200, 1, 1))
ODD = st.booleans() | DATES | st.binary(max_size=3) | st.lists(TEXTS, max_size=2)
CELLS = {"text": TEXTS, "whole": WHOLE, "float": FLOATS, "odd": ODD}


@st.composite
def columns(draw, length, kinds=tuple(CELLS)):
    """Return a column of one kind of cells, some of them missing, of any type that holds them."""
    kind = draw(st.sampled_from(kinds))
    cells = CELLS[kind] | st.none() if draw(st.booleans()) else CELLS[kind]
    values = draw(st.lists(cells, min_size=length, max_size=length))
    column = pd.Series(values, dtype=object if kind == "odd" or draw(st.booleans()) else None)
    how = draw(st.sampled_from(["as it is", "nullable", "categories"]))
    try:
        if how == "nullable":
            return column.convert_dtypes()
        return column.astype("category") if how == "categories" else column
    except (TypeError, ValueError, OverflowError):  # pandas holds it as it is only
        return column


def missing(cell):
    return cell is None or cell is pd.NA or cell is pd.NaT or cell != cell


def as_written(cell):
    """Return what an id or a text says, None where it says nothing that is text."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float | np.number) and not isinstance(cell, bool | np.bool_):
        if float(cell).is_integer() and (not isinstance(cell, float) or abs(cell) < 2**53):
            return str(int(cell))
        return str(cell) if math.isfinite(cell) else None
    return None


def whole(text):
    return text.lstrip("-").isdigit()


def write(folder, name, frame, suffix):
    file = Path(folder) / f"{name}.{suffix}"
    if suffix == "parquet":
        try:
            frame.to_parquet(file)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeEncodeError):
            assume(False)  # parquet cannot hold it
    else:
        rows = [
            {k: None if missing(v) else v for k, v in row.items()}
            for row in frame.astype(object).to_dict("records")
        ]
        file.write_text("".join(json.dumps(row, default=int) + "\n" for row in rows), "utf-8")


def read(interactions, items, suffix="parquet", **options):
    """Return what is read, or None where one sentence refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder, "interactions", interactions, suffix)
        write(folder, "items", items, suffix)
        try:
            return read_data(folder, **options)
        except ValueError as error:
            text = str(error)
            assert "\n" not in text and text.endswith((".", ")")), text
            return None


@FEW
@given(st.data(), st.sampled_from(["parquet", "jsonl"]))
def test_ids_of_any_column(data, suffix):
    length = data.draw(st.integers(1, 5))
    kinds = ("text", "whole", "float") if suffix == "jsonl" else tuple(CELLS)
    users = data.draw(columns(length, kinds))
    items = data.draw(columns(length, kinds))
    frame = pd.DataFrame({"user_id": users, "item_id": items, "position": range(length)})
    written = [[as_written(cell) for cell in column] for column in (users, items)]
    wrong = [
        text is None or not text.strip() or not (isinstance(cell, str) or whole(text))
        for column, texts in zip((users, items), written, strict=True)
        for cell, text in zip(column, texts, strict=True)
    ]
    if suffix == "jsonl":  # a float is the digits that stand there
        assume(not any(isinstance(cell, float) for column in (users, items) for cell in column))
    known = sorted({text for text in written[1] if text is not None and text.strip()})
    found = read(frame, pd.DataFrame({"item_id": known or ["a"]}, dtype=object), suffix)
    assert (found is None) == any(wrong)
    if found is not None:
        assert found.user_ids == sorted(set(written[0]))
        pairs = [
            (user, known[row])
            for user, history in zip(found.user_ids, found.histories, strict=True)
            for row in history
        ]
        assert sorted(pairs) == sorted(zip(*written, strict=True))


@FEW
@given(st.data())
def test_texts_of_any_column(data):
    length = data.draw(st.integers(1, 5))
    column = data.draw(columns(length, ("text", "whole", "float")))
    expected = ["" if missing(cell) else as_written(cell) for cell in column]
    items = pd.DataFrame({"item_id": [f"i{row}" for row in range(length)], "title": column})
    rows = pd.DataFrame({"user_id": ["u"], "item_id": ["i0"], "position": [0]})
    found = read(rows, items)
    assert (found is None) == (None in expected)
    assert found is None or found.catalogue.fields["title"] == expected


@FEW
@given(st.data())
def test_orders_of_any_column(data):
    length = data.draw(st.integers(1, 5))
    numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    position = data.draw(st.lists(numbers, min_size=length, max_size=length))
    items = [f"i{row}" for row in range(length)]
    cells = [str(number) for number in position]
    frame = pd.DataFrame({"user_id": "u", "item_id": items, "position": cells})
    found = read(frame, pd.DataFrame({"item_id": items}))
    assert (found is None) == (len(set(position)) < length)
    if found is not None:
        assert found.histories[0].tolist() == sorted(range(length), key=position.__getitem__)


@settings(FEW, max_examples=100)
@given(st.data())
def test_any_frame_at_all_is_read_whole_or_refused(data):
    length = data.draw(st.integers(0, 5))
    names = ["user_id", "item_id", "position", "timestamp", "review_text", "other"]
    names = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    frame = pd.DataFrame({name: data.draw(columns(length)) for name in names})
    if "position" in frame and data.draw(st.booleans()):
        frame["position"] = range(length)
    if {"user_id", "item_id"} <= set(frame) and data.draw(st.booleans()):
        frame["user_id"], frame["item_id"] = "u", "a"
    known = frame.item_id if "item_id" in frame else []
    known = sorted({text for text in map(as_written, known) if text and text.strip()} | {"a"})
    unit = data.draw(st.sampled_from([None, "s", "ns"]))
    found = read(frame, pd.DataFrame({"item_id": known}, dtype=object), timestamp_unit=unit)
    if found is not None:
        assert sum(len(history) for history in found.histories) == length
        assert not any(np.isinf(times).any() for times in found.timestamps or ())
        split = split_data(found)
        assert all(len(history) for history in split.training)


@FEW
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
@example([("a\r", 'b"'), ("\n", "\ufeff"), (",", "'"), ("#", "\x00")])
def test_csv_gives_back_the_text_of_every_cell(cells):
    """What pandas writes as CSV comes back letter by letter, but for the line ends of a file."""
    titles, brands = ([cell[side].replace("\r", "") for cell in cells] for side in (0, 1))
    items = pd.DataFrame({"item_id": [f"i{row}" for row in range(len(cells))]})
    items = items.assign(title=titles, brand=brands)
    with tempfile.TemporaryDirectory() as folder:
        items.to_csv(f"{folder}/items.csv", index=False)
        Path(folder, "interactions.csv").write_text("user_id,item_id,position\nu,i0,0\n")
        fields = read_data(folder).catalogue.fields
    assert fields["title"] == titles and fields["brand"] == brands
