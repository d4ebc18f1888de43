"""What has made one of several, or several of one, of ids and rows is refused or told."""

import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from modeling_ttds.records_ttds import as_id
from recipes.data.tables import read_data

ITEMS = "item_id,title\na,A\nb,B\n"


def csv(folder, interactions, items=ITEMS):
    (folder / "interactions.csv").write_text(interactions, "utf-8")
    (folder / "items.csv").write_text(items, "utf-8")
    return str(folder)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_ids_up_to_where_their_type_takes_neighbours_for_one(tmp_path, kind):
    first = {np.float16: 2**11, np.float32: 2**24, np.float64: 2**53}[kind]
    assert kind(first) == kind(first + 1)
    rows = pd.DataFrame({"user_id": [kind(first - 1)] * 2, "item_id": ["a", "b"]})
    rows["position"] = [0, 1]
    csv(tmp_path, "")
    (tmp_path / "interactions.csv").unlink()
    rows.to_parquet(tmp_path / "interactions.parquet")
    assert read_data(str(tmp_path)).user_ids == [str(first - 1)]
    rows.loc[1, "user_id"] = kind(first)
    rows.to_parquet(tmp_path / "interactions.parquet")
    message = f"interactions row 1: `user_id` is .*, a {kind.__name__}, which does not tell"
    if kind is np.float64:
        message = message.replace("float64", "float(64)?")
    with pytest.raises(ValueError, match=message):
        read_data(str(tmp_path))


def test_exact_types_are_ids_whatever_their_size():
    big = 2**70 + 1
    for value in (big, Decimal(big), Decimal(f"{big}.000")):
        assert as_id(value, "item_id", "Item 0") == str(big)
    text = "6b221fcf-eb5e-41b0-b84a-598702687111"
    assert as_id(uuid.UUID(text), "item_id", "Item 0") == text


def test_a_short_float_is_the_text_of_its_digits(tmp_path):
    items = pd.DataFrame({"item_id": ["a", "b"], "price": np.float32([1.99, 12])})
    csv(tmp_path, "user_id,item_id,position\nu,a,0\n")
    (tmp_path / "items.csv").unlink()
    items.to_parquet(tmp_path / "items.parquet")
    assert read_data(str(tmp_path)).catalogue.fields["price"] == ["1.99", "12"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("ann", "ann "), (" ann", "ann "), ("ann", "\ufeffann"), ("a\u00f1", "an\u0303")],
)
def test_users_that_look_alike_are_told(tmp_path, capsys, one, other):
    rows = f"user_id,item_id,position\n{one},a,0\n{other},b,0\nbob,b,0\n"
    assert len(read_data(csv(tmp_path, rows)).user_ids) == 3
    said = capsys.readouterr().out
    pair = sorted([ascii(one), ascii(other)])
    assert "which look alike" in said and all(name in said for name in pair)


@pytest.mark.parametrize(("chosen", "known"), [("a ", "a"), ("caf\u00e9", "cafe\u0301")])
def test_an_item_that_looks_like_a_known_one_is_named_with_it(tmp_path, chosen, known):
    rows = f"user_id,item_id,position\nu,{chosen},0\n"
    with pytest.raises(ValueError, match="is not in items, but .* is, which looks alike") as error:
        read_data(csv(tmp_path, rows, f"item_id,title\n{known},A\n"))
    assert ascii(chosen) in str(error.value) and ascii(known) in str(error.value)


def test_numbers_that_a_spreadsheet_rounded_are_told(tmp_path, capsys):
    rows = "user_id,item_id,position\n1.23457E+11,a,0\n1.23457E+11,b,1\n1E10,a,0\n2E+05,a,0\n"
    assert read_data(csv(tmp_path, rows)).user_ids == ["1.23457E+11", "1E10", "2E+05"]
    assert "2 ids in `user_id` of interactions look like numbers" in capsys.readouterr().out


def test_columns_that_nothing_reads_are_told(tmp_path, capsys):
    rows = "user_id,item_id,Position,timestamp,rating\nu,a,1,0,5\nu,b,0,1,1\n"
    read_data(csv(tmp_path, rows, "item_id,Title,category\na,A,x\nb,B,y\n"))
    said = capsys.readouterr().out
    assert "Columns of interactions that are not read: 'Position', 'rating'." in said
    assert "Columns of items that are not read: 'Title', 'category'." in said
    read_data(csv(tmp_path, rows.replace("Position", "").replace("rating", "review_text")))
    frame = pd.DataFrame({"item_id": ["a", "b"]}, index=[3, 4])
    (tmp_path / "items.csv").unlink()
    frame.to_parquet(tmp_path / "items.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "items.parquet").names
    read_data(str(tmp_path))
    assert "not read" not in capsys.readouterr().out


def test_ties_of_timestamps_are_counted(tmp_path, capsys):
    """As where a spreadsheet rounded them: two users of equal moments are no tie."""
    moments = [("u", "1.71E+12"), ("u", "1.71E+12"), ("u", "1.72E+12"), ("v", "1.71E+12")]
    rows = "".join(f"{user},a,{moment}\n" for user, moment in moments)
    read_data(csv(tmp_path, "user_id,item_id,timestamp\n" + rows))
    assert "; 2 of 4 share one with another of their user and" in capsys.readouterr().out


def test_interactions_that_are_there_again_are_counted(tmp_path, capsys):
    """As where two exports overlap."""
    rows = ["u,a,1", "u,b,2", "u,b,2", "u,b,3", "v,b,2", "u,b,2"]
    data = read_data(csv(tmp_path, "\n".join(["user_id,item_id,timestamp", *rows])))
    assert sum(map(len, data.histories)) == 6
    assert "2 of 6 interactions have user, item and `timestamp`" in capsys.readouterr().out
    read_data(csv(tmp_path, "user_id,item_id,timestamp\nu,a,1\nu,b,1\n"))
    assert "another one" not in capsys.readouterr().out
    rows = "user_id,item_id,timestamp,position\nu,a,,1\nu,a,,2\n"
    read_data(csv(tmp_path, rows))
    assert "another one" not in capsys.readouterr().out
