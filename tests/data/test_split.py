"""Given splits: used as they are, however positions count and wherever they come from."""

import json

import numpy as np
import pandas as pd
import pytest

from recipes.data.split import check_split, split_data
from recipes.data.tables import read_data, write_data
from recipes.evaluation.metrics import slices

ITEMS = pd.DataFrame({"item_id": list("abcdef"), "title": list("ABCDEF")})
# u has all three parts, v no validation, w is new at the test, x has nothing but training.
PARTS = {
    "train": [("u", "a"), ("u", "b"), ("v", "c"), ("v", "a"), ("x", "f")],
    "validation": [("u", "c"), ("u", "d")],
    "test": [("u", "e"), ("v", "b"), ("w", "f")],
}


def frames(counting):
    """Number the interactions within each part, over all parts of a user, or over all rows."""
    rows = pd.DataFrame(
        [(split, *pair) for split, pairs in PARTS.items() for pair in pairs],
        columns=["split", "user_id", "item_id"],
    )
    by = {"within": ["split", "user_id"], "user": "user_id"}
    rows["position"] = rows.groupby(by[counting]).cumcount() if counting in by else range(len(rows))
    if counting == "timestamps":
        rows["timestamp"] = rows.pop("position")
    return {name: part.drop(columns="split") for name, part in rows.groupby("split")}


def write_folder(folder, parts, layout):
    """Write the parts as a person lays them out; return the name to read."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "csv": "{}.csv", "prefixed": "interactions-{}.jsonl", "folder": "interactions/{}.parquet",
        "shards": "interactions/{}-00000-of-00001.parquet", "card": "data/{}.csv",
    }  # fmt: skip
    paths = {name: files[layout].format(name) for name in parts}
    for name, part in parts.items():
        file = folder / paths[name]
        file.parent.mkdir(exist_ok=True)
        if file.suffix == ".csv":
            part.to_csv(file, index=False)
        elif file.suffix == ".jsonl":
            part.to_json(file, orient="records", lines=True)
        else:
            part.to_parquet(file)
    ITEMS.to_parquet(folder / "items.parquet")
    if layout == "card":
        data_files = [{"split": name, "path": path} for name, path in paths.items()]
        configs = [{"config_name": "interactions", "data_files": data_files}]
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return str(folder)


@pytest.mark.parametrize("layout", ["csv", "prefixed", "folder", "shards", "card"])
@pytest.mark.parametrize("counting", ["within", "user", "rows", "timestamps"])
def test_given_splits_are_used_as_given(tmp_path, layout, counting, capsys):
    split = split_data(read_data(write_folder(tmp_path, frames(counting), layout)))
    assert split.data.user_ids == ["u", "v", "w", "x"]
    assert [h.tolist() for h in split.training] == [[0, 1], [2, 0], [], [5]]
    assert split.validation_targets.tolist() == [2, -1, -1, -1]
    assert split.test_targets.tolist() == [4, 1, 5, -1]
    assert split.history(0, "validation").tolist() == [0, 1]
    assert split.history(0, "test").tolist() == [0, 1, 2, 3]
    assert split.history(1, "test").tolist() == [2, 0] and not len(split.history(2, "test"))
    assert "1 of 4 users have several validation interactions" in capsys.readouterr().out
    if counting == "timestamps":
        assert split.later_day_users("test").tolist() == [0, 1], "w has nothing before"
        assert slices(split, "test")["later"].tolist() == [True, True, False]


def test_ids_of_a_hub_data_set_are_strings(tmp_path):
    parts = frames("user")
    for part in parts.values():
        part["user_id"] = part.user_id.map({"u": "007", "v": "1E5", "w": "12", "x": "None"})
    data = read_data(write_folder(tmp_path, parts, "card"))
    assert data.user_ids == ["007", "12", "1E5", "None"]


def test_without_a_validation_part_training_gives_its_last_one(tmp_path, capsys):
    parts = frames("within")
    del parts["validation"]
    split = split_data(read_data(write_folder(tmp_path, parts, "csv")))
    assert [h.tolist() for h in split.training] == [[0], [2], [], [5]]
    assert split.validation_targets.tolist() == [1, 0, -1, -1]
    assert split.history(0, "test").tolist() == [0, 1]
    assert split.test_targets.tolist() == [4, 1, 5, -1]
    assert "No validation split is given" in capsys.readouterr().out


def test_a_part_of_the_splits_and_a_table_beside_them_are_refused(tmp_path):
    parts = frames("within")
    folder = write_folder(tmp_path / "whole", parts, "csv")
    pd.concat(parts).to_parquet(tmp_path / "whole" / "interactions.parquet")
    with pytest.raises(ValueError, match="more than once, in interactions.parquet, test.csv"):
        read_data(folder)
    del parts["test"]
    with pytest.raises(ValueError, match="in the splits train, validation; give train, test and"):
        read_data(write_folder(tmp_path / "half", parts, "csv"))


@pytest.mark.parametrize("lost", ["validation", "test"])
def test_given_splits_stay_given_where_one_falls_away(tmp_path, lost):
    """Every user and item of training has two interactions, those of the lost split have one."""
    parts = {
        "train": [("u", "a"), ("u", "b"), ("v", "a"), ("v", "b")],
        "validation": [("u", "b"), ("v", "a")],
        "test": [("u", "a"), ("v", "b")],
    } | {lost: [("w", "c")]}
    parts = {
        name: pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(position=range(len(rows)))
        for name, rows in parts.items()
    }
    folder = write_folder(tmp_path, parts, "csv")
    assert read_data(folder).given is not None
    with pytest.raises(ValueError, match=f"`min_interactions` 2 leaves .* given split {lost}; low"):
        read_data(folder, min_interactions=2)


def test_an_empty_test_split_is_one_that_is_given(tmp_path):
    parts = frames("within")
    folder = write_folder(tmp_path, parts | {"test": parts["test"][:0]}, "csv")
    split = split_data(read_data(folder))
    assert [h.tolist() for h in split.training] == [[0, 1], [2, 0], [5]], "not leave-one-out"
    with pytest.raises(ValueError, match="No user has a test target in the given splits; give a s"):
        check_split(split)


def test_users_of_one_split_each_have_no_history(tmp_path):
    parts = {"train": "uv", "validation": "wx", "test": "yz"}
    for name, users in parts.items():
        rows = [(user, item, place) for user in users for place, item in enumerate("abc")]
        parts[name] = pd.DataFrame(rows, columns=["user_id", "item_id", "position"])
    split = split_data(read_data(write_folder(tmp_path, parts, "csv")))
    with pytest.raises(ValueError, match="No user with a validation target has a history before"):
        check_split(split)


def test_a_repeated_position_counts_within_a_part_only(tmp_path):
    parts = frames("within")
    parts["train"].loc[1, "position"] = 0
    with pytest.raises(ValueError, match="^train row 1: `position` 0 of user 'u' is there twice"):
        read_data(write_folder(tmp_path, parts, "csv"))


def test_written_data_keep_their_splits(tmp_path):
    data = read_data(write_folder(tmp_path / "one", frames("user"), "csv"))
    write_data(data, tmp_path / "two")
    assert read_data(str(tmp_path / "two")).sha256 == data.sha256
    parts = frames("user")
    parts["test"] = pd.concat([parts["validation"][1:], parts["test"]])
    parts["validation"] = parts["validation"][:1]
    other = read_data(write_folder(tmp_path / "three", parts, "csv"))
    assert [h.tolist() for h in other.histories] == [h.tolist() for h in data.histories]
    assert other.sha256 != data.sha256, "the hash sees where the splits are"


def test_repeated_targets_are_counted(tmp_path):
    rows = pd.DataFrame({"user_id": "u", "item_id": list("abcba"), "position": range(5)})
    rows = pd.concat([rows, rows[:4].assign(user_id="v"), rows[:3].assign(user_id="w")])
    rows.to_parquet(tmp_path / "interactions.parquet")
    ITEMS.to_parquet(tmp_path / "items.parquet")
    split = split_data(read_data(str(tmp_path)))
    assert split.repeated("validation") == 1 and split.repeated("test") == 2
    assert np.array_equal(split.users("test"), [0, 1, 2])
