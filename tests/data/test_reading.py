"""Reading: what was written is what is read, by every format; what cannot be is named."""

import json
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recipes.data.tables import read_data

FORMATS = ("parquet", "csv", "jsonl")
ROWS = [("u", "a", 0), ("u", "b", 1), ("v", "b", 0)]
INTERACTIONS = pd.DataFrame(ROWS, columns=["user_id", "item_id", "position"])
ITEMS = pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]})


def write(folder, interactions=INTERACTIONS, items=ITEMS, suffix="parquet"):
    """Write both tables, by other writers than those that are tried."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in (("interactions", interactions), ("items", items)):
        file = folder / f"{name}.{suffix}"
        if suffix == "parquet":
            frame.to_parquet(file)
        elif suffix == "csv":
            frame.to_csv(file, index=False)
        else:
            lines = [json.dumps(row, default=str) for row in frame.to_dict("records")]
            file.write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("mapped", [False, True])
def test_ids_are_the_strings_that_were_written(tmp_path, suffix, mapped):
    names = ["0108775015", "1E10", "007", "1_000", "0x1F", "nan", "None", "NA", "true", "1.50"]
    rows = pd.DataFrame({"user_id": names, "item_id": names, "position": 0})
    items = pd.DataFrame({"item_id": names})
    to_asin = {"item_id": "asin", "user_id": "reviewer"}
    if mapped:
        rows, items = rows.rename(columns=to_asin), items.rename(columns=to_asin)
    folder = write(tmp_path, rows, items, suffix)
    data = read_data(folder, column_map={v: k for k, v in to_asin.items()} if mapped else None)
    assert data.catalogue.item_ids == names
    assert data.user_ids == sorted(names)


def test_digits_of_jsonl_stay_as_written(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"item_id": 1E10, "title": 007, "price": 12.50}\n')
    with pytest.raises(ValueError, match="items.jsonl line 1 is no JSON object"):
        read_data(write_interactions(tmp_path, "1E10"))
    (tmp_path / "items.jsonl").write_text('{"item_id": 1E10, "title": 7, "price": 12.50}\n')
    catalogue = read_data(write_interactions(tmp_path, "1E10")).catalogue
    assert catalogue.item_ids == ["1E10"]
    assert catalogue.fields["title"] == ["7"] and catalogue.fields["price"] == ["12.50"]


def write_interactions(folder, item):
    (folder / "interactions.jsonl").write_text(
        json.dumps({"user_id": "u", "item_id": item, "position": 0})
    )
    return str(folder)


def test_whole_numbers_of_parquet_are_ids_by_their_digits(tmp_path, capsys):
    rows = INTERACTIONS.assign(item_id=[1, 2, 2], user_id=np.array([2**62, 2**62, 7]))
    items = ITEMS.assign(item_id=[1, 2])
    data = read_data(write(tmp_path, rows, items))
    assert data.catalogue.item_ids == ["1", "2"] and data.user_ids == [str(2**62), "7"]
    assert "floats" not in capsys.readouterr().out
    rows = INTERACTIONS.assign(item_id=[1.0, 2.0, 2.0])
    assert read_data(write(tmp_path, rows, items)).histories[0].tolist() == [0, 1]
    assert "`item_id` of interactions is stored as floats" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"interactions row 1: `item_id` is 2.5; ids are strings"):
        read_data(write(tmp_path, INTERACTIONS.assign(item_id=[1.0, 2.5, 2.0]), items))


@pytest.mark.parametrize("suffix", FORMATS)
def test_texts_are_as_written(tmp_path, suffix):
    texts = ["None", "NA", "12", "", "null", "007", "-"]
    items = pd.DataFrame({"item_id": list("abcdefg"), "title": texts, "brand": texts[::-1]})
    catalogue = read_data(write(tmp_path, items=items, suffix=suffix)).catalogue
    assert catalogue.fields["title"] == texts and catalogue.fields["brand"] == texts[::-1]
    assert catalogue.fields["price"] == [""] * 7


def test_numbers_and_lists_of_parquet_are_texts(tmp_path):
    items = ITEMS.assign(
        brand=[12.0, None], price=[3.5, 7.0], categories=[["A", None, "B"], []],
        description=pd.array([2024, None], dtype="Int64"),
    )  # fmt: skip
    fields = read_data(write(tmp_path, items=items)).catalogue.fields
    assert fields["brand"] == ["12", ""] and fields["price"] == ["3.5", "7"]
    assert fields["categories"] == ["A, B", ""] and fields["description"] == ["2024", ""]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_an_empty_id_is_refused(tmp_path, suffix, column):
    rows = INTERACTIONS.copy()
    rows.loc[1, column] = ""
    with pytest.raises(ValueError, match=f"^interactions row 1: `{column}` is empty"):
        read_data(write(tmp_path, rows, suffix=suffix))


@pytest.mark.parametrize("suffix", FORMATS)
def test_positions_as_text_are_numbers(tmp_path, suffix):
    rows = pd.DataFrame({"user_id": "u", "item_id": list("cab"), "position": ["11", "9", "10"]})
    items = pd.DataFrame({"item_id": list("abc")})
    assert read_data(write(tmp_path, rows, items, suffix)).histories[0].tolist() == [0, 1, 2]
    rows.position = [str(2**63 + 2), str(2**63), str(2**63 + 1)]  # floats cannot tell them apart
    assert read_data(write(tmp_path, rows, items, suffix)).histories[0].tolist() == [0, 1, 2]
    rows.position = ["1" + "0" * 300, "0" * 5000 + "1", "9" * 300]
    assert read_data(write(tmp_path, rows, items, suffix)).histories[0].tolist() == [0, 1, 2]
    for digits in (400, 5000):
        rows.position = ["1", "7" * digits, "2"]
        with pytest.raises(ValueError, match="row 1: `position` is '77.*; give a finite number"):
            read_data(write(tmp_path, rows, items, suffix))
    rows.position = ["1", "first", "2"]
    with pytest.raises(ValueError, match="row 1: `position` is 'first'; give a finite number"):
        read_data(write(tmp_path, rows, items, suffix))


def test_positions_of_many_digits_in_parquet_are_numbers(tmp_path):
    position = [Decimal(10**37 + digit) for digit in (1, 0, 0)]
    folder = write(tmp_path, INTERACTIONS.assign(position=position))
    assert read_data(folder).histories[0].tolist() == [1, 0]


def test_positions_that_are_no_finite_numbers_or_repeated_are_refused(tmp_path):
    for position, shown in ((np.inf, "inf"), (None, "null"), (np.nan, "null")):
        rows = INTERACTIONS.assign(position=[0, position, 0])
        with pytest.raises(ValueError, match=f"row 1: `position` is {shown}"):
            read_data(write(tmp_path, rows))
    with pytest.raises(ValueError, match="row 1: `position` 0 of user 'u' is there twice"):
        read_data(write(tmp_path, INTERACTIONS.assign(position=[0, 0, 0])))


def test_order_without_positions_is_that_of_timestamps_then_rows(tmp_path, capsys):
    rows = pd.DataFrame({"user_id": "u", "item_id": list("dcab"), "timestamp": [9, 5, 5, 1]})
    items = pd.DataFrame({"item_id": list("abcd")})
    assert read_data(write(tmp_path, rows, items)).histories[0].tolist() == [1, 2, 0, 3]
    assert "no column `position`: interactions are ordered by `time" in capsys.readouterr().out
    with pytest.raises(ValueError, match="row 2: `timestamp` is null; without `position`"):
        read_data(write(tmp_path, rows.assign(timestamp=[9, 5, None, 1]), items))


def test_contradicting_orders_are_told(tmp_path, capsys):
    rows = INTERACTIONS.assign(timestamp=[2, 1, 5])
    assert read_data(write(tmp_path, rows)).histories[0].tolist() == [0, 1]
    told = capsys.readouterr().out
    assert "contradict each other for 1 users, the first is 'u'" in told
    read_data(write(tmp_path, rows.assign(timestamp=[1, 1, 5])))
    assert "contradict" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("items.csv", "item_id,title\na,A\nb,B, too\n", "items.csv line 3 has 3 cells, the head"),
        ("items.csv", 'item_id,title\n\na,"A\nA"\nb\n', "items.csv line 5 has 1 cells"),
        ("items.csv", 'item_id,title\na,"A\nb,B\n', "items.csv line 2 is no CSV .*close every quo"),
        ("items.csv", 'item_id,title\na,"A" \nb,B\n', "items.csv line 2 is no CSV"),
        ("items.csv", "item_id;title\na;A, B\n", "items.csv is separated by semicolons; save it"),
        ("items.csv", "item_id\ttitle\na\tA\n", "items.csv is separated by tabs; save it with co"),
        ("items.csv", "item_id,item_id\na,b\n", "items.csv has two columns 'item_id'"),
        ("items.csv", "", "items.csv is empty"),
        ("items.csv", "item_id\n", "items is empty"),
        ("items.jsonl", '{"item_id": "a"}\n{"item_i', "items.jsonl line 2 is no JSON object .*cut"),
        ("items.jsonl", '{"item_id": "a"}\n["b"]\n', "items.jsonl line 2 is no JSON object"),
        ("items.jsonl", '[{"item_id": "a"}]', "items.jsonl line 1 is no JSON object"),
        ("items.jsonl", "[" * 99999, "items.jsonl line 1 is no JSON object"),
        ("items.jsonl", "", "items.jsonl is empty"),
        ("items.parquet", "PAR1", "items.parquet is no parquet"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, message):
    folder = write(tmp_path)
    (tmp_path / "items.parquet").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_data(folder)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_byte_order_mark_line_ends_and_other_encodings(tmp_path, suffix):
    folder = write(tmp_path, suffix=suffix)
    for name in ("items", "interactions"):
        file = tmp_path / f"{name}.{suffix}"
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_data(folder).catalogue.texts() == ["A", "B"]
    file.write_bytes(file.read_text("utf-8").encode("utf-16"))
    with pytest.raises(ValueError, match=f"{file.name} is not UTF-8"):
        read_data(folder)


def test_a_quoted_cell_holds_commas_lines_and_quotes(tmp_path):
    folder = write(tmp_path, suffix="csv")
    text = 'item_id,title\na,"A, ""the"" one\nof two"\nb,5" pipe' + "\n"
    (tmp_path / "items.csv").write_text(text + "\n")
    assert read_data(folder).catalogue.fields["title"] == ['A, "the" one\nof two', '5" pipe']
    (tmp_path / "items.csv").write_text(f"item_id,title\na,{'x' * 200_000}\nb,B\n")
    assert len(read_data(folder).catalogue.fields["title"][0]) == 200_000


def test_a_lone_surrogate_is_no_character(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "A \\ud800 B"}\n')
    assert read_data(write_interactions(tmp_path, "a")).catalogue.texts() == ["A \ufffd B"]
    (tmp_path / "items.jsonl").write_text('{"item_id": "\\ud800", "title": "A"}\n')
    with pytest.raises(ValueError, match="items row 0: `item_id` .*surrogate"):
        read_data(write_interactions(tmp_path, "a"))


def test_parquet_of_a_filtered_frame_and_of_one_with_an_index(tmp_path):
    more = pd.concat([INTERACTIONS, INTERACTIONS[:1].assign(user_id="w")], ignore_index=True)
    data = read_data(write(tmp_path, more[more.user_id != "u"], ITEMS.iloc[::-1]))
    assert data.user_ids == ["v", "w"] and data.catalogue.item_ids == ["b", "a"]
    write(tmp_path, INTERACTIONS.set_index("user_id"), ITEMS.set_index("item_id"))
    assert read_data(str(tmp_path)).user_ids == ["u", "v"]
    broken = INTERACTIONS.assign(item_id=["a", "zz", "b"])[INTERACTIONS.position == 1]
    with pytest.raises(ValueError, match="interactions row 0: `item_id` 'zz' is not in items"):
        read_data(write(tmp_path, broken))


@pytest.mark.parametrize("other", ["items.csv", "items.jsonl"])
def test_two_tables_of_one_name_are_refused(tmp_path, other):
    folder = write(tmp_path)
    (tmp_path / other).write_text("item_id\na\n")
    with pytest.raises(
        ValueError, match=rf"table of items more than once, in items.parquet, {other}"
    ):
        read_data(folder)


def part(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("one", "two", "split"),
    [
        ("interactions-train.csv", "train.csv", "train"),
        ("interactions/train.csv", "train.csv", "train"),
        ("train-*-of-00002.csv", "train.csv", "train"),
        ("train-*-of-00001.csv", "train-*-of-00002.csv", "train"),
        ("val.csv", "valid.csv", "validation"),
        ("valid.csv", "validation.csv", "validation"),
        ("interactions-dev.csv", "val.csv", "validation"),
        ("test.csv", "test.jsonl", "test"),
    ],
)
def test_a_split_under_two_names_is_refused(tmp_path, one, two, split):
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    for name in ("train.csv", "val.csv", "test.csv"):
        part(tmp_path, name, "user_id,item_id,position\nu,a,0\n")
    if split == "validation":
        (tmp_path / "val.csv").unlink()
    elif "*" in two:
        (tmp_path / "train.csv").unlink()
    for name in (one, two):
        part(tmp_path, name.replace("*", "00000"), "user_id,item_id,position\nu,a,0\n")
    message = f"has the split {split} more than once, in {one}, {two}; keep one."
    with pytest.raises(ValueError, match=re.escape(message)):
        read_data(str(tmp_path))


def test_a_split_of_the_hub_under_two_names_is_refused(tmp_path):
    names = ("train", "val", "valid", "test")
    for name in names:
        part(tmp_path, f"data/{name}.csv", "user_id,item_id,position\nu,a,0\n")
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    files = [{"split": name, "path": f"data/{name}.csv"} for name in names]
    configs = json.dumps([{"config_name": "interactions", "data_files": files}])
    (tmp_path / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    with pytest.raises(ValueError, match="the split validation more than once, in val, valid; ke"):
        read_data(str(tmp_path))


def test_the_parts_of_a_split_are_read_one_after_the_other(tmp_path):
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    for name, row in (("train-00001-of-00002", "u,b,1"), ("train-00000-of-00002", "u,a,0"),
                      ("interactions-test", "u,a,2")):  # fmt: skip
        part(tmp_path, f"{name}.csv", f"user_id,item_id,position\n{row}\n")
    data = read_data(str(tmp_path))
    assert data.histories[0].tolist() == [0, 1, 0] and data.given[0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("suffix", "lines"),
    [
        (".csv", ["user_id,item_id,position\nu,a,0\n", "user_id,item_id,position\nu,b,1\n"]),
        (".jsonl", [json.dumps(row) for row in INTERACTIONS[:2].to_dict("records")]),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_read_whole(tmp_path, suffix, lines):
    """As Spark writes a table, whose name of JSONL is `.json`."""
    folder = tmp_path / f"interactions{suffix}"
    for number, text in enumerate(lines):
        part(folder, f"part-0000{number}-c000{suffix.removesuffix('l')}", text)
    for name in ("_SUCCESS", ".part-00000.crc"):
        part(folder, name, "")
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    assert read_data(str(tmp_path)).histories[0].tolist() == [0, 1]
    part(folder, "part-00002.csv.gz", "")
    with pytest.raises(ValueError, match=rf"part-00002.csv.gz is no \{suffix} file; unpack it"):
        read_data(str(tmp_path))
    for file in folder.glob("part-*"):
        file.unlink()
    with pytest.raises(ValueError, match=rf"interactions\{suffix} is a folder without rows"):
        read_data(str(tmp_path))


@pytest.mark.parametrize(
    ("column_map", "message"),
    [
        ({"assin": "item_id"}, "names 'assin', which no table has; did you mean 'asin'"),
        ({"asin": "item"}, "maps 'asin' onto 'item'; it must be one of"),
        ({"asin": ["item_id"]}, r"maps 'asin' onto \['item_id'\]; it must be one of"),
        (
            {7: "item_id"},
            r"names 7, which no table has\. The columns are .*; --column_map '{}' rena",
        ),
        ({"asin": "item_id"}, "would give interactions two columns `item_id`, of .*asin"),
        ({"asin": "title"}, "would give items two columns `title`, of title and asin"),
        ({"asin": "brand", "name": "brand"}, "would give items two columns `brand`"),
    ],
)
def test_maps_that_name_no_column_or_make_two_are_refused(tmp_path, column_map, message):
    rows, items = INTERACTIONS.assign(asin="a"), ITEMS.assign(asin="a", name="b")
    with pytest.raises(ValueError, match=f"`column_map` {message}"):
        read_data(write(tmp_path, rows, items), column_map=column_map)


def test_names_of_columns_with_invisible_ends_are_quoted(tmp_path):
    """As a space behind every comma of a CSV makes them."""
    rows = INTERACTIONS.rename(columns={"item_id": " item_id", "position": ""})
    with pytest.raises(
        ValueError, match=r"has no column `item_id` \(it has user_id, ' item_id', ''"
    ):
        read_data(write(tmp_path, rows))


def test_a_map_may_swap_columns_and_name_other_ones_per_table(tmp_path):
    items = ITEMS.rename(columns={"item_id": "title", "title": "item_id"})
    rows = INTERACTIONS.assign(item_id=["A", "B", "B"])
    swap = {"title": "item_id", "item_id": "title"}
    rows = rows.rename(columns={"item_id": "asin"})
    folder = write(tmp_path, rows, items)
    with pytest.raises(ValueError, match="interactions row 0: `item_id` 'A' is not in items"):
        read_data(folder, column_map=swap | {"asin": "item_id"})
    rows.asin = ["a", "b", "b"]
    data = read_data(write(tmp_path, rows, items), column_map=swap | {"asin": "item_id"})
    assert data.catalogue.item_ids == ["a", "b"] and data.catalogue.texts() == ["A", "B"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "'./nowhere' is no folder"),
        ("/nowhere/at/all", "'/nowhere/at/all' is no folder"),
        ("a/b/c", "'a/b/c' is no folder"),
        ("nobody/nothing", "'nobody/nothing' is no folder, nor a data set of the Hub"),
        ("pyproject.toml", "'pyproject.toml' is no folder, nor|'pyproject.toml' is a file"),
        ("../nowhere.toml", "'../nowhere.toml' is no folder"),
    ],
)
def test_a_wrong_folder_is_said_to_be_none(name, message):
    with pytest.raises(FileNotFoundError, match=f"`dataset_name` ({message})"):
        read_data(name)


def test_items_without_text_are_named(tmp_path, capsys):
    read_data(write(tmp_path, items=ITEMS.assign(title=["A", None])))
    assert "1 of 2 items have no text, the first is 'b'" in capsys.readouterr().out


def test_runs_of_an_item_are_merged_and_the_rest_stays(tmp_path, capsys):
    items = pd.DataFrame({"item_id": list("abc"), "title": list("ABC")})
    history = "aabbbac"
    rows = pd.DataFrame(
        {"user_id": "u", "item_id": list(history), "position": range(7), "timestamp": range(7)}
    )
    rows = pd.concat([rows, rows[-1:].assign(user_id="v")])
    folder = write(tmp_path, rows, items)
    assert read_data(folder).histories[0].tolist() == [0, 0, 1, 1, 1, 0, 2]
    data = read_data(folder, merge_repeats=True)
    assert [history.tolist() for history in data.histories] == [[0, 1, 0, 2], [2]]
    assert data.timestamps[0].tolist() == [0, 2, 5, 6]
    assert "merged 3 of 8 interactions" in capsys.readouterr().out
