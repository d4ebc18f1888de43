"""A table in parts is the table it is: whatever the parts' columns, types and folders are."""

import json

import numpy as np
import pandas as pd
import pytest

from recipes.data.tables import read_data

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
ROWS = pd.DataFrame({"user_id": "u", "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
BIG = 2**53 + 1  # no float of double precision


def folder_of(folder, parts, table):
    """Write the parts of a table, and the other table whole."""
    (folder / f"{table}.parquet").mkdir()
    for number, part in enumerate(parts):
        part.to_parquet(folder / f"{table}.parquet" / f"part-{number}.parquet")
    other, whole = ("items", ITEMS) if table == "interactions" else ("interactions", ROWS)
    whole.to_parquet(folder / f"{other}.parquet")
    return read_data(str(folder))


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_some_parts_lack_is_read_from_the_others(tmp_path, first):
    parts = [ITEMS[:1].drop(columns="title"), ITEMS[1:]]
    data = folder_of(tmp_path, parts if first == 0 else parts[::-1], "items")
    found = dict(zip(data.catalogue.item_ids, data.catalogue.fields["title"], strict=True))
    assert found == {"a": "", "b": "B", "c": "C"}


def test_cells_of_parts_of_several_types_are_those_of_their_part(tmp_path):
    parts = [
        pd.DataFrame({"item_id": ["a"], "title": [None], "price": np.float32([1.99])}),
        pd.DataFrame({"item_id": ["b", "c"], "title": ["B", "C"], "price": [2.99, 3.5]}),
        pd.DataFrame({"item_id": ["d"], "title": [BIG], "price": ["4.50"]}),
    ]
    data = folder_of(tmp_path, parts, "items")
    assert data.catalogue.fields["price"] == ["1.99", "2.99", "3.5", "4.50"]
    assert data.catalogue.fields["title"] == ["", "B", "C", str(BIG)]


@pytest.mark.parametrize(
    ("first", "others"),
    [
        (np.int64([1]), [3.9, 3.2]),
        (pd.to_datetime(["2024-01-01"]), ["2024-01-03", "2024-01-02T12:00Z"]),
        (
            pd.to_datetime([1], unit="s").as_unit("s"),
            pd.to_datetime([3_000_000_009, 3_000_000_001]),
        ),
    ],
)
def test_moments_of_parts_of_several_types_keep_their_order(tmp_path, first, others):
    parts = [ROWS[:1].assign(timestamp=first), ROWS[1:].assign(timestamp=others)]
    assert folder_of(tmp_path, parts, "interactions").histories[0].tolist() == [0, 2, 1]


def test_ids_of_given_splits_keep_every_digit_whatever_the_other_split_is(tmp_path):
    ITEMS.to_parquet(tmp_path / "items.parquet")
    users = {"train": [BIG, BIG - 1], "validation": [7.0], "test": np.uint64([BIG])}
    for split, ids in users.items():
        rows = ROWS[: len(ids)].assign(user_id=ids)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    data = read_data(str(tmp_path))
    counts = {user: given.tolist() for user, given in zip(data.user_ids, data.given, strict=True)}
    assert counts == {"7": [0, 1, 0], str(BIG): [1, 0, 1], str(BIG - 1): [1, 0, 0]}


def test_folders_that_name_a_value_are_a_column_of_texts(tmp_path):
    ITEMS.to_parquet(tmp_path / "items.parquet")
    days = ("2024-01-03", "2024-01-02", "2024-01-01")
    for day, user, row in zip(days, ("007", "008", "007"), range(3), strict=True):
        folder = tmp_path / "interactions.parquet" / f"day={day}" / f"user_id={user}"
        folder.mkdir(parents=True)
        ROWS[row : row + 1][["item_id"]].to_parquet(folder / "0000")
    data = read_data(str(tmp_path), column_map={"day": "timestamp"})
    assert data.user_ids == ["007", "008"]
    assert [history.tolist() for history in data.histories] == [[2, 0], [1]]


def test_a_folder_above_the_data_makes_no_column(tmp_path):
    folder = tmp_path / "position=7"
    folder.mkdir()
    ITEMS.to_parquet(folder / "items.parquet")
    ROWS.to_parquet(folder / "interactions.parquet")
    assert read_data(str(folder)).histories[0].tolist() == [0, 1, 2]


def test_a_part_without_a_row_says_nothing(tmp_path):
    """Spark writes the first part of JSONL whether or not it has one."""
    (tmp_path / "items.jsonl").mkdir()
    for number, lines in enumerate(["", json.dumps({"item_id": "a"})]):
        (tmp_path / "items.jsonl" / f"part-{number}.json").write_text(lines)
    ROWS[:1].to_csv(tmp_path / "interactions.csv", index=False)
    assert read_data(str(tmp_path)).catalogue.item_ids == ["a"]


def test_a_delta_table_is_refused(tmp_path):
    folder = tmp_path / "interactions.parquet"
    (folder / "_delta_log").mkdir(parents=True)
    ROWS.to_parquet(folder / "part-0.parquet")
    ITEMS.to_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"interactions.parquet is a Delta table, whose files"):
        read_data(str(tmp_path))
