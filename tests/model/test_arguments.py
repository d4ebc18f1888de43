"""What is no list of strings, text, count or flag is refused by the name of its argument."""

import numpy as np
import pandas as pd
import pytest
import torch

from modeling_ttds.pipeline_ttds import TTDSPipeline
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.index.vocabulary import train_vocabulary
from tests.model.test_generation import make_model

HISTORY = ["i1", "i2"]
LISTS = {
    "recommend histories": ("histories", lambda m, x: m.recommend(x)),
    "recommend user_histories": ("user_histories", lambda m, x: m.recommend([[]], 5, x)),
    "recommend allowed": ("allowed", lambda m, x: m.recommend([[]], allowed=x)),
    "recommend queries": ("queries", lambda m, x: m.recommend([[]], queries=x)),
    "similar_items": ("item_ids", lambda m, x: m.similar_items(x)),
    "similar_items allowed": ("allowed", lambda m, x: m.similar_items(["i1"], allowed=x)),
    "next_users histories": ("histories", lambda m, x: m.next_users("i1", x)),
    "next_users buyers": ("buyers", lambda m, x: m.next_users("i1", [HISTORY], buyers=x)),
    "profiles": ("histories", lambda m, x: m.profiles(x)),
    "explain history": ("history", lambda m, x: m.explain(x, ["i1"])),
    "explain items": ("items", lambda m, x: m.explain(HISTORY, x)),
    "remove_items": ("item_ids", lambda m, x: m.remove_items(x)),
    "add_items": ("items", lambda m, x: m.add_items(x)),
    "add_items histories": ("histories", lambda m, x: m.add_items([], histories=x)),
    "embed_texts": ("texts", lambda m, x: m.embed_texts(x)),
    "encode_items": ("item_ids", lambda m, x: m.tokenizer.encode_items(x)),
    "decode_items": ("ids", lambda m, x: m.tokenizer.decode_items(x)),
    "set_sid_table": ("item_ids", lambda m, x: m.tokenizer.set_sid_table(x, [[0, 0, 0]])),
}
OF_IDS = set(LISTS) - {"recommend queries", "add_items", "embed_texts", "decode_items"}
OF_HISTORIES = {
    name for name in OF_IDS if LISTS[name][0] in ("histories", "user_histories", "buyers")
}


@pytest.fixture(scope="module")
def asked():
    """A model some of whose ids are digits, with a tokenizer to refuse by."""
    model = make_model()
    names = [f"i{row}" for row in range(40)] + [str(row) for row in range(20)]
    model.catalogue = [{"item_id": name, "title": f"Title {name}"} for name in names]
    model.tokenizer = TTDSTokenizer.from_base(train_vocabulary(["a kettle"], 300), 3, 8)
    model.config.prompts = {
        "bought_together": "With <item>:", "next_user": "<item> <user> then",
        "profile_of_history": "<item> is", "query": "{query}:", "search": "{query} <item> <user>",
    }  # fmt: skip
    model.share_sid_table()
    return model


@pytest.mark.parametrize(
    "value", ["12", b"12", 12, None, {"12": 1}, np.array(12), torch.tensor(12)], ids=repr
)
@pytest.mark.parametrize("where", LISTS)
def test_what_is_no_list_is_refused_by_name(asked, where, value):
    name, call = LISTS[where]
    if value is None and name in ("allowed", "user_histories", "queries"):
        pytest.skip("None means that nothing was passed")
    before = len(asked.catalogue)
    with pytest.raises(ValueError, match=rf"^`{name}` is .*; give a list"):
        call(asked, value)
    assert len(asked.catalogue) == len(asked.item_sids) == before


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize("where", LISTS)
def test_a_set_is_refused_where_order_says_something(asked, where, kind):
    name, call = LISTS[where]
    if where in ("recommend allowed", "similar_items allowed", "remove_items", "add_items"):
        pytest.skip("Order says nothing, or a record cannot be in a set")
    before = len(asked.catalogue)
    with pytest.raises(ValueError, match=rf"^`{name}` is a set, which has no order; give a list"):
        call(asked, kind(["i1", "i2"]))
    if where in OF_HISTORIES:
        with pytest.raises(ValueError, match=rf"^`{name}\[0\]` is a set, which has no order"):
            call(asked, [kind(["i1", "i2"])])
    assert len(asked.catalogue) == before


@pytest.mark.parametrize("value", [12, np.int64(12), 1.5, None, ["i1"], torch.tensor(3)], ids=repr)
@pytest.mark.parametrize("where", sorted(OF_IDS))
def test_ids_are_strings(asked, where, value):
    name, call = LISTS[where]
    values = [["i1", value]] if where in OF_HISTORIES else [value]
    with pytest.raises(ValueError, match=rf"^`{name}(\[0\])?` holds .*; item ids are strings"):
        call(asked, values)


@pytest.mark.parametrize("where", sorted(OF_HISTORIES))
def test_a_history_is_a_list(asked, where):
    name, call = LISTS[where]
    with pytest.raises(ValueError, match=rf"^`{name}(\[1\])?` (holds|is) the string '12'; give a"):
        call(asked, [["i1"], "12"])


@pytest.mark.parametrize("where", sorted(OF_IDS - OF_HISTORIES - {"set_sid_table"}))
def test_an_unknown_item_is_named_with_its_argument(asked, where):
    name, call = LISTS[where]
    with pytest.raises(ValueError, match="zzz") as error:
        call(asked, ["i1", "zzz"])
    assert "History" not in str(error.value)
    assert f"`{name}`" in str(error.value) or where == "encode_items"


def test_an_unknown_item_of_a_second_list_of_histories_is_named_with_it(asked):
    for name, call in (LISTS["recommend user_histories"], LISTS["next_users buyers"]):
        with pytest.raises(ValueError, match=f"^`{name}`: history 0 holds the unknown item 'zzz'"):
            call(asked, [["zzz"]])


@pytest.mark.parametrize("item", [7, None, ["i1"]], ids=repr)
def test_the_item_of_next_users_is_a_string(asked, item):
    with pytest.raises(ValueError, match="^`item_id` holds .*; item ids are strings"):
        asked.next_users(item, [HISTORY])
    with pytest.raises(ValueError, match="^`item_id` holds the unknown item 'zzz'"):
        asked.next_users("zzz", [HISTORY])


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, iter])
def test_any_list_of_strings_will_do(asked, make):
    expected = asked.recommend([HISTORY], top_k=3, allowed=["i3", "i4", "7"])
    assert asked.recommend([make(HISTORY)], top_k=3, allowed=make(["i3", "i4", "7"])) == expected
    assert asked.recommend([HISTORY], top_k=3, allowed={"i3", "i4", "7"}) == expected


@pytest.mark.parametrize(
    "value",
    [3.0, "3", None, [3], 0, -1, True, np.bool_(True), torch.tensor(True), torch.tensor(3.0)],
    ids=repr,
)
@pytest.mark.parametrize("name", ["top_k", "batch_size", "num_beams"])
def test_a_count_is_an_integer_of_at_least_one(asked, name, value):
    if value is None and name != "batch_size":
        pytest.skip("None means the default")
    with pytest.raises(ValueError, match=rf"^`{name}` is "):
        asked.recommend([HISTORY], **{name: value})


@pytest.mark.parametrize(
    "value",
    ["no", "false", b"", 2, [], None, 0.5, np.array([]), np.array([True, False]),
     torch.tensor([True, False]), pd.NA, pd.Series([True, False])],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("name", ["rerank", "memory", "exclude_seen"])
def test_a_flag_is_true_or_false(asked, name, value):
    if value is None and name == "exclude_seen":
        pytest.skip("None means the default")
    with pytest.raises(ValueError, match=rf"^`{name}` is .*; it must be True or False"):
        asked.recommend([HISTORY], **{name: value})


@pytest.mark.parametrize("name", ["rerank", "memory", "exclude_seen"])
def test_flags_of_numpy_and_numbers_are_flags(asked, name):
    for said in (True, False):
        expected = asked.recommend([HISTORY], **{name: said})
        for value in (np.bool_(said), int(said)):
            assert asked.recommend([HISTORY], **{name: value}) == expected


@pytest.mark.parametrize("value", ["both", None, True, np.array(["skip", "error"])], ids=repr)
def test_what_to_do_with_unknown_items_is_one_of_two_words(asked, value):
    with pytest.raises(ValueError, match="^`unknown` is .*; it must be 'error' or 'skip'"):
        asked.recommend([HISTORY], unknown=value)


LONG = "x" * 5000
REFUSED = {
    "unknown item": lambda m: m.recommend([[LONG]]),
    "unknown item of `user_histories`": lambda m: m.recommend([[]], user_histories=[[LONG]]),
    "unknown item allowed": lambda m: m.recommend([[]], allowed=[LONG]),
    "one history": lambda m: m.recommend([LONG]),
    "unknown": lambda m: m.recommend([[]], unknown=LONG),
    "query": lambda m: m.recommend([[]], queries=["?" * 5000]),
    "count": lambda m: m.recommend([[]], top_k=10**4000),
    "negative count": lambda m: m.recommend([[]], top_k=-(10**4000)),
    "item to explain": lambda m: m.explain([], [LONG]),
    "similar item": lambda m: m.similar_items([LONG]),
    "item to remove": lambda m: m.remove_items([LONG]),
    "item twice": lambda m: m.add_items([{"item_id": LONG}, {"item_id": LONG}]),
    "title": lambda m: m.add_items([{"item_id": LONG, "title": {LONG: LONG}}]),
    "history of a new item": lambda m: m.add_items([], histories=[[LONG]]),
    "embedding of a new item": lambda m: m.add_items([{"item_id": LONG}], [[np.nan] * 6]),
    "item of the table": lambda m: m.tokenizer.encode_items([LONG]),
    "id of a token": lambda m: m.tokenizer.decode_items([LONG]),
    "request": lambda m: TTDSPipeline(m)(LONG),
    "key of a request": lambda m: TTDSPipeline(m)({"history": [], LONG: 1}),
    "ids": lambda m: m.generate([[1] * 5000]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_long_value_is_shortened(asked, what):
    before = len(asked.catalogue)
    with pytest.raises(ValueError) as refused:
        REFUSED[what](asked)
    assert len(str(refused.value)) < 400 and len(asked.catalogue) == before


def test_a_long_id_is_shortened_in_what_is_said_of_a_catalogue_or_a_bare_item(asked):
    with pytest.raises(ValueError, match=r"holds the item 'x+\.\.\.x+' twice"):
        asked.catalogue = [{"item_id": LONG}] * 60
    with pytest.warns(UserWarning, match=r"^Item 0 \('x+\.\.\.x+'\) has no text"):
        asked.add_items([{"item_id": LONG}], [[0.0] * 6])
    asked.remove_items([LONG])


def test_counts_of_numpy_are_integers(asked):
    assert len(asked.recommend([HISTORY], top_k=np.int64(3))[0]) == 3


@pytest.mark.parametrize("value", [3.0, 0, "3"], ids=repr)
def test_counts_of_questions_are_integers(asked, value):
    for call in (
        lambda: asked.similar_items(["i1"], top_k=value),
        lambda: asked.next_users("i1", [HISTORY], top_k=value),
    ):
        with pytest.raises(ValueError, match="^`top_k` is "):
            call()
    with pytest.raises(ValueError, match="^`max_new_tokens` is "):
        asked.profiles([HISTORY], max_new_tokens=value)


def test_queries_are_texts_one_each(asked):
    with pytest.raises(ValueError, match="^`queries` has 1 entries for 2 `histories`"):
        asked.recommend([HISTORY, []], queries=["a"])
    with pytest.raises(ValueError, match="^Query 1: `queries` is "):
        asked.recommend([HISTORY, []], queries=["a", {}])


def test_a_small_catalogue_gives_all_it_has(asked):
    model = make_model()
    model.remove_items([f"i{row}" for row in range(5, 60)])
    (found,) = model.recommend([[]])
    assert sorted(best.item_id for best in found) == [f"i{row}" for row in range(5)]
    assert len(model.recommend([["i0"]])[0]) == 4
    assert len(make_model().recommend([[]])[0]) == 10
    with pytest.raises(ValueError, match="`top_k` is 6; it must be from 1 to the 5 items"):
        model.recommend([[]], top_k=6)
