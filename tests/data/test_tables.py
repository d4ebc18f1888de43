"""The data contract: what is read, how it is split, what is refused."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from recipes.data.split import split_data
from recipes.data.tables import read_data, write_data
from recipes.evaluation.baselines.oracle import oracle

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", "B", None, "D"]})
ROWS = [("u", "a", 0), ("u", "b", 1), ("u", "c", 2), ("u", "d", 3), ("v", "d", 0), ("v", "a", 1)]
START = 1_600_000_000
INTERACTIONS = pd.DataFrame(ROWS, columns=["user_id", "item_id", "position"])


def write(folder, interactions=INTERACTIONS, items=ITEMS, suffix="parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in (("interactions", interactions), ("items", items)):
        file = folder / f"{name}.{suffix}"
        if suffix == "parquet":
            frame.to_parquet(file)
        elif suffix == "csv":
            frame.to_csv(file, index=False)
        else:
            frame.to_json(file, orient="records", lines=True)
    return str(folder)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_every_format_gives_the_same_data(tmp_path, suffix):
    shuffled = INTERACTIONS.sample(frac=1, random_state=1)
    data = read_data(write(tmp_path, shuffled, suffix=suffix))
    assert data.user_ids == ["u", "v"]
    assert [history.tolist() for history in data.histories] == [[0, 1, 2, 3], [3, 0]]
    assert data.catalogue.texts() == ["A", "B", "", "D"]


def test_ids_are_opaque_strings(tmp_path):
    items = pd.DataFrame({"item_id": ["007", "7"]})
    rows = pd.DataFrame([("01", "007", 0), ("01", "7", 1)], columns=INTERACTIONS.columns)
    for suffix in ("csv", "jsonl"):
        data = read_data(write(tmp_path / suffix, rows, items, suffix))
        assert data.catalogue.item_ids == ["007", "7"] and data.user_ids == ["01"]


def test_split_is_leave_one_out_and_counts_short_users(tmp_path, capsys):
    split = split_data(read_data(write(tmp_path)))
    assert "1 of 2 users have fewer than three" in capsys.readouterr().out
    assert [h.tolist() for h in split.training] == [[0, 1], [3, 0]]
    assert split.validation_targets.tolist() == [2, -1]
    assert split.test_targets.tolist() == [3, -1]
    assert split.history(0, "validation").tolist() == [0, 1]
    assert split.history(0, "test").tolist() == [0, 1, 2]
    assert split.users("test").tolist() == [0]


def test_column_map_and_core(tmp_path, capsys):
    frame = INTERACTIONS.rename(columns={"item_id": "asin"})
    folder = write(tmp_path, frame, ITEMS.rename(columns={"item_id": "asin"}))
    data = read_data(folder, column_map={"asin": "item_id"}, min_interactions=2)
    # b and c have one interaction each; without them both users keep a and d.
    assert data.catalogue.item_ids == ["a", "d"]
    assert [history.tolist() for history in data.histories] == [[0, 1], [1, 0]]
    said = "`min_interactions` 2 leaves out 0 users, 2 items and 2 interactions."
    assert said in capsys.readouterr().out
    write_data(data, tmp_path)
    read_data(folder, min_interactions=2)
    assert "leaves out" not in capsys.readouterr().out, "nothing is"


def test_ties_are_shuffled_within_a_stamp_only(tmp_path):
    rows = [("u", item, place, place // 2) for place, item in enumerate("abcd")]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "timestamp"])
    folder = write(tmp_path, frame)
    orders = {
        tuple(read_data(folder, tie_break="shuffled", seed=seed).histories[0]) for seed in range(20)
    }
    assert orders == {(0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (1, 0, 3, 2)}
    assert split_data(read_data(folder)).later_day_users("test").tolist() == []
    frame.timestamp = [0, 0, 1, 2]
    assert split_data(read_data(write(tmp_path, frame))).later_day_users("test").tolist() == [0]


@pytest.mark.parametrize(
    ("seed", "as_written", "backwards"),
    [
        (0, ["bacedfhg", "bacfdegh"], ["cbaefdgh", "acbdefgh"]),
        (1, ["bcaefdhg", "cbaedfhg"], ["acbdefgh", "abcfdegh"]),
        (2, ["acbdefhg", "bacdfehg"], ["cabedfgh", "abcedfhg"]),
    ],
)
def test_the_shuffle_of_a_seed_stays_what_it_is(tmp_path, seed, as_written, backwards):
    """Published figures rest on these orders: three moments, the rows of two users mixed."""
    rows = [(u, item, k, START + k // 3) for k, item in enumerate("abcdefgh") for u in "uv"]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "timestamp"])
    items = pd.DataFrame({"item_id": list("abcdefgh")})

    def orders(frame):
        data = read_data(write(tmp_path, frame, items), tie_break="shuffled", seed=seed)
        return ["".join("abcdefgh"[row] for row in history) for history in data.histories]

    assert orders(frame) == orders(frame.drop(columns="position")) == as_written
    assert orders(frame[::-1]) == backwards


def test_the_shuffle_holds_to_positions(tmp_path, capsys):
    frame = pd.DataFrame({"user_id": "u", "item_id": list("abcd"), "position": range(4)})

    def orders(*days):
        times = pd.array([None if day is None else START + day for day in days], dtype="Int64")
        folder = write(tmp_path, frame.assign(timestamp=times))
        found = (read_data(folder, tie_break="shuffled", seed=seed) for seed in range(12))
        return {"".join("abcd"[row] for row in data.histories[0]) for data in found}

    assert orders(1, None, 2, 2) == {"abcd", "abdc"}, "what has no time keeps its place"
    assert orders(1, None, None, 1) == {"abcd"}, "only neighbours are shuffled"
    assert "contradict" not in capsys.readouterr().out
    assert orders(2, 1, 1, 2) == {"abcd", "acbd"}, "positions hold against timestamps"
    assert orders(None, 2, None, 1) == {"abcd"}
    said = capsys.readouterr().out
    assert said.count("contradict each other for 1 users, the first is 'u'") == 24


def replaced(column, row, value, frame=INTERACTIONS):
    frame = frame.astype({column: object}).copy()
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        (INTERACTIONS.drop(columns="position"), ITEMS, "neither a column `timestamp` nor"),
        (INTERACTIONS.iloc[:0], ITEMS, "interactions is empty"),
        (INTERACTIONS, ITEMS.iloc[:0], "items is empty"),
        (INTERACTIONS, pd.concat([ITEMS, ITEMS[:1]], ignore_index=True), "row 4: .*'a' is there"),
        (replaced("item_id", 2, "zz"), ITEMS, "row 2: `item_id` 'zz' is not in items"),
        (replaced("user_id", 1, None), ITEMS, "interactions row 1: `user_id` is null"),
        (INTERACTIONS, replaced("item_id", 3, None, ITEMS), "items row 3: `item_id` is null"),
    ],
)
def test_broken_tables_are_refused_by_name(tmp_path, interactions, items, message):
    with pytest.raises(ValueError, match=message):
        read_data(write(tmp_path, interactions, items))


def test_missing_table_and_wrong_encoding(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table of interactions"):
        read_data(str(tmp_path))
    folder = write(tmp_path, suffix="csv")
    (tmp_path / "items.csv").write_bytes("item_id,title\na,Café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="items.csv is not UTF-8"):
        read_data(folder)
    (tmp_path / "items.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="items.csv is empty"):
        read_data(folder)


def test_unknown_tie_break_and_core_too_high(tmp_path):
    folder = write(tmp_path)
    with pytest.raises(ValueError, match="`tie_break` is 'random'"):
        read_data(folder, tie_break="random")
    with pytest.raises(ValueError, match="needs the column `timestamp`"):
        read_data(folder, tie_break="shuffled")
    with pytest.raises(ValueError, match="`min_interactions` 9 leaves no interaction"):
        read_data(folder, min_interactions=9)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_dates_are_read_as_seconds(tmp_path, suffix):
    seconds = [0.0, 86400.0, 86400.0, np.nan, 0.0, 3600.0]
    dates = pd.to_datetime(pd.Series(seconds), unit="s")
    dates = dates if suffix == "parquet" else dates.dt.strftime("%Y-%m-%dT%H:%M:%S")
    data = read_data(write(tmp_path, INTERACTIONS.assign(timestamp=dates), suffix=suffix))
    np.testing.assert_array_equal(np.concatenate(data.timestamps), seconds)
    wrong = INTERACTIONS.assign(timestamp="soon")
    with pytest.raises(ValueError, match="`timestamp` holds neither seconds nor dates"):
        read_data(write(tmp_path, wrong, suffix=suffix))


def test_hash_sees_every_change(tmp_path):
    first = read_data(write(tmp_path)).sha256
    assert read_data(write(tmp_path)).sha256 == first
    assert read_data(write(tmp_path, items=replaced("title", 1, "X", ITEMS))).sha256 != first
    assert read_data(write(tmp_path, replaced("item_id", 0, "b"))).sha256 != first


def test_hub_data_set_by_name(tmp_path):
    """A repository with a configuration per table, as `datasets` reads it from a folder."""
    repo = tmp_path / "shop"
    write(repo / "data")
    configs = [
        {"config_name": name, "data_files": f"data/{name}.parquet"}
        for name in ("interactions", "items")
    ]
    (repo / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    from recipes.data.reading import read_table

    table = read_table(str(repo), "interactions")
    assert len(table) == len(INTERACTIONS)


def test_generated_shop(shop, split):
    assert np.bincount(np.concatenate(shop.data.histories), minlength=72).min() == 0, "new items"
    for user in (0, 7):
        history = shop.data.histories[user]
        assert len(set(history.tolist())) == len(history)
        chances = shop.probabilities(user, history[:3])
        assert chances[history[:3]].sum() == 0 and np.isclose(chances.sum(), 1)
    perfect = partial(oracle, shop)(split, "test", 5)
    chances = shop.probabilities(0, split.history(0, "test"))
    assert perfect[0].tolist() == np.argsort(-chances, kind="stable")[:5].tolist()


def test_generated_shop_is_the_same_for_a_seed(shop, tmp_path):
    from recipes.data.toyshop import generate

    assert generate(seed=1, num_users=150, num_items=72).data.sha256 == shop.data.sha256
    assert generate(seed=2, num_users=150, num_items=72).data.sha256 != shop.data.sha256
    write_data(shop.data, tmp_path)
    assert read_data(str(tmp_path)).sha256 == shop.data.sha256
