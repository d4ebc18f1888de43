"""The timeline: what lies on which side of a cut, and that nothing crosses it backwards."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from recipes.data.split import check_split, split_data
from recipes.data.tables import Catalogue, Data, read_data
from recipes.evaluation.baselines.bilinear import BilinearSettings, fit_bilinear
from recipes.evaluation.baselines.popularity import popularity
from recipes.evaluation.metrics import slices
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.tuning.examples import Examples, UserStates
from tests.conftest import build_model, build_tokenizer, small_options

DAY, START = 86400, 1_600_000_000
WORDS = ("amber", "birch", "cedar", "delft", "ember", "flint", "grape", "hazel", "ivory", "jade")


def data_of(rows, items="abcdefgh"):
    """Return data of rows (user, item, day)."""
    users = sorted({user for user, *_ in rows})
    lines = {user: [(item, day) for who, item, day in rows if who == user] for user in users}
    fields = {name: [""] * len(items) for name in ("brand", "categories", "description", "price")}
    fields["title"] = [f"{WORDS[i % 10]} {WORDS[i // 10]} {item}" for i, item in enumerate(items)]
    return Data(
        Catalogue(list(items), fields),
        users,
        [np.array([items.index(item) for item, _ in lines[user]]) for user in users],
        [np.array([START + DAY * day for _, day in lines[user]], dtype=float) for user in users],
    )


# Twenty interactions, one a day but for the last: training is before day 15, validation before 17.
ROWS = [("u", item, day) for day, item in enumerate("hgfehgfe")]
ROWS += [("v", item, 8 + day) for day, item in enumerate("ghfgeef")]
ROWS += [("u", "d", 15), ("v", "f", 16), ("u", "b", 17), ("w", "c", 18), ("u", "h", 19)]


def items_of(split, rows):
    return "".join(split.data.catalogue.item_ids[row] for row in rows)


def test_two_moments_cut_all_histories():
    split = split_data(data_of(ROWS), split="timeline")
    for period, lines in (
        ("training", ["hgfehgfe", "ghfgeef"]),
        ("validation", ["hgfehgfe", "ghfgeef"]),
        ("refit", ["hgfehgfed", "ghfgeeff"]),
        ("test", ["hgfehgfed", "ghfgeeff", ""]),
    ):
        assert [items_of(split, rows) for rows in split.view(period).training] == lines, period
    targets = {w: [items_of(split, [t]) if t >= 0 else "" for t in split.targets(w)]
               for w in ("validation", "test")}  # fmt: skip
    assert targets == {"validation": ["d", "f", ""], "test": ["b", "", ""]}, "w is new at the test"
    assert not {*split.view("refit").users("validation"), *split.view("refit").users("test")}
    assert items_of(split, split.history(0, "validation")) == "hgfehgfe"
    assert items_of(split, split.history(0, "test")) == "hgfehgfed", "the validation period too"
    assert slices(split, "test")["new"].tolist() == [True]
    assert split.later_day_users("test").tolist() == [0]


def test_the_catalogue_is_in_the_order_of_appearance():
    data = data_of(ROWS)
    split = split_data(data, split="timeline")
    assert split.data.catalogue.item_ids == list("efghdabc")
    sizes = {period: split.view(period).num_items for period in ("training", "validation", "test")}
    assert sizes == {"training": 4, "validation": 5, "test": 8}, "a is known to nobody"
    assert split.in_order(np.array(list("abcdefgh"))).tolist() == list("efghdabc")
    assert split.in_order(torch.arange(8)).tolist() == [4, 5, 6, 7, 3, 0, 1, 2]
    titles = split.data.catalogue.fields["title"]
    assert [title[-1] for title in titles] == split.data.catalogue.item_ids
    assert split.data_sha256 == data.sha256, "a result names the data as they were read"
    known = split.view("training")
    assert known.users("validation").tolist() == [1], "of u's target nobody knew"
    assert split.view("validation").users("validation").tolist() == [0, 1]
    assert split.view("validation").view("training") is known
    every = popularity(split.view("validation"), "validation", 9)
    assert every.max() == 4, "a list of the validation period shows no later item"


@pytest.mark.parametrize(("target", "history", "chosen"), [
    ("first", "hgfehgfed", "b"), ("last", "hgfehgfedb", "h"),
])  # fmt: skip
def test_the_target_of_a_period_can_be_chosen(target, history, chosen):
    split = split_data(data_of(ROWS), split="timeline", timeline_target=target)
    assert items_of(split, split.history(0, "test")) == history
    assert items_of(split, split.test_targets[:1]) == chosen
    assert items_of(split, split.view("training").training[0]) == "hgfehgfe"
    assert items_of(split, split.training[0]) == "hgfehgfed"


def test_a_random_target_depends_on_seed_and_user_only():
    def chosen(data, seed):
        made = split_data(data, split="timeline", timeline_target="random", seed=seed)
        found = dict(zip(made.data.user_ids, made.test_targets, strict=True))
        return items_of(made, [found["u"]]), items_of(made, made.history(0, "test"))

    data = data_of(ROWS)
    assert {chosen(data, seed) for seed in range(9)} == {("b", "hgfehgfed"), ("h", "hgfehgfedb")}
    other = replace(data, user_ids=["u", "v", "x"])
    assert [chosen(data, seed) for seed in range(9)] == [chosen(other, seed) for seed in range(9)]


def test_what_has_no_time_is_left_out_and_the_order_is_that_of_time(capsys):
    data = data_of(ROWS)
    data.timestamps[0][2] = np.nan
    back = np.r_[1, 0, 2 : len(data.histories[1])]
    swapped = replace(
        data,
        histories=[data.histories[0], data.histories[1][back], data.histories[2]],
        timestamps=[data.timestamps[0], data.timestamps[1][back], data.timestamps[2]],
        reviews=[[str(place) for place in range(len(line))] for line in data.histories],
    )
    split = split_data(swapped, split="timeline")
    assert "1 of 20 interactions have no place on a timeline" in capsys.readouterr().out
    known = split.view("training")
    assert items_of(split, known.training[0]) == "hgehgfe"
    assert items_of(split, known.training[1]) == "ghfgeef"
    assert split.view("training").data.reviews[1][:3] == ["1", "0", "2"], "in the same order"


def test_data_that_have_no_time_or_splits_of_their_own_are_refused(tmp_path):
    data = data_of(ROWS)
    nothing = [np.full(len(line), np.nan) for line in data.histories]
    for times in (None, nothing):
        with pytest.raises(ValueError, match="'timeline', which needs the column `timestamp`"):
            split_data(replace(data, timestamps=times), split="timeline")
    with pytest.raises(ValueError, match="the data set gives splits of its own"):
        split_data(replace(data, given=[np.array([1, 1, 1])] * 3), split="timeline")
    for option in ({"split": "time"}, {"split": "timeline", "timeline_target": "next"}):
        name, value = list(option.items())[-1]
        with pytest.raises(ValueError, match=f"`{name}` is '{value}'; it must be one of"):
            split_data(data, **option)
    same = data_of([("u", "a", 0), ("v", "b", 0), ("w", "c", 0)])
    with pytest.raises(ValueError, match="none has interactions on both sides of the cut"):
        check_split(split_data(same, split="timeline"))


def test_timestamps_are_read_from_a_table(tmp_path):
    rows = [(who, item, START + DAY * day) for who, item, day in ROWS]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(
        tmp_path / "interactions.csv", index=False
    )
    pd.DataFrame({"item_id": list("abcdefgh"), "title": list("ABCDEFGH")}).to_csv(
        tmp_path / "items.csv", index=False
    )
    split = split_data(read_data(str(tmp_path)), split="timeline")
    assert items_of(split, split.history(0, "test")) == "hgfehgfed"


NUM_USERS, NUM_ITEMS, NUM_DAYS = 60, 50, 100


def shop(after=None):
    """Users choose an item every few days; from day `after` on everything is otherwise.

    Of the first days only the first forty items are chosen, and the texts of items that come first
    after that day are other ones too.
    """
    draw, other = np.random.default_rng(0), np.random.default_rng(1)
    rows, items = [], [chr(ord("A") + i) for i in range(NUM_ITEMS)]
    for number in range(NUM_USERS):
        day = int(draw.integers(0, 6))
        while day < NUM_DAYS:
            user = f"user{number:02d}"
            item = int(draw.integers(0, 40 if day < 80 else 45 if day < 90 else NUM_ITEMS))
            if after is not None and day >= after:
                item, user = int(other.integers(0, NUM_ITEMS)), f"user{other.integers(0, 90):02d}"
            rows.append((user, items[item], day))
            day += int(draw.integers(1, 9))
    rows.sort(key=lambda row: row[2])
    data = data_of(rows, "".join(items))
    if after is not None:
        early = {item for _, item, day in rows if day < after}
        titles = data.catalogue.fields["title"]
        for row, item in enumerate(items):
            if item not in early:
                titles[row] = f"Zebra {WORDS[other.integers(10)]} {row} quixotic"
    return data


def fitted_on(data, cache, tasks, period):
    """Return everything that is fitted before the language model's first step."""
    split = split_data(data, split="timeline")
    known, options = split.view(period), small_options(cache, tasks=tasks)
    tokenizer = build_tokenizer(known, options, None)
    states = UserStates(known, options.examples.max_history)
    model = build_model(known, states, tokenizer, options, None, seed=0)
    memory = build_cooccurrence(
        known.training, known.num_items, timestamps=known.training_timestamps
    )
    examples = Examples(known, states, tokenizer, options.examples, seed=0)
    tables, settings = [model.item_text, model.item_collaborative], BilinearSettings(num_epochs=1)
    similarity, _ = fit_bilinear(known, tables, settings, seed=0, stop_after=1)
    parts = {
        "vocabulary": tokenizer.get_vocab(),
        "catalogue": model.catalogue,
        "rows": [examples[place] for place in range(len(examples))],
        "users": known.data.user_ids,
        "popularity": known.training_counts.tolist(),
    }
    tensors = {f"model {name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"memory {name}": tensor for name, tensor in memory.state_dict().items()}
    tensors["similarity"] = similarity.weight.detach()
    return split, parts, tensors


@pytest.mark.parametrize("period", ["training", "refit"])
def test_nothing_of_after_a_cut_is_in_what_is_fitted_before(period, tmp_path):
    tasks = {"query": 0.5, "search": 0.5, "next_user": 0.5, "bought_together": 0.5}
    ours, parts, tensors = fitted_on(shop(), tmp_path / "one", tasks, period)
    first = max(t.max() for t in ours.view(period).training_timestamps if len(t))
    after = round((first - START) / DAY) + 1
    theirs, others, other_tensors = fitted_on(shop(after), tmp_path / "two", tasks, period)
    assert not np.array_equal(ours.test_targets, theirs.test_targets)
    assert ours.data.catalogue.texts() != theirs.data.catalogue.texts()
    assert ours.data.user_ids != theirs.data.user_ids
    for name in parts:
        if name != "rows":
            assert parts[name] == others[name], name
    assert parts["rows"] == others["rows"]
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


def test_nothing_of_the_test_is_in_what_the_validation_shows(tmp_path):
    ours = split_data(shop(), split="timeline")
    first = max(t.max() for t in ours.view("validation").data.timestamps)
    theirs = split_data(shop(round((first - START) / DAY) + 1), split="timeline")
    assert not np.array_equal(ours.test_targets, theirs.test_targets)
    assert ours.data.catalogue.texts() != theirs.data.catalogue.texts()
    for period in ("training", "validation"):
        one, two = ours.view(period), theirs.view(period)
        assert one.data.sha256 == two.data.sha256
        assert np.array_equal(one.validation_targets, two.validation_targets)
        assert (one.validation_targets >= 0).sum() > 20
        for user in one.users("validation"):
            assert np.array_equal(one.history(user, "validation"), two.history(user, "validation"))
        assert (
            popularity(one, "validation", 20).tolist() == popularity(two, "validation", 20).tolist()
        )
