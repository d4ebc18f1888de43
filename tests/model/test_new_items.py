"""What `add_items` takes: records in any form a table gives them; the rest is refused by name."""

import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from modeling_ttds import nodes_ttds
from modeling_ttds.entries_ttds import TTDSEntries, TTDSRoom
from modeling_ttds.nodes_ttds import TTDSNodeTable
from modeling_ttds.trie_ttds import TTDSTrie

PLAIN = [
    {"item_id": "7", "title": "Walnut kettle", "categories": "Kitchen, Kettles", "brand": "12"},
    {"item_id": "8", "title": "1984", "categories": "", "brand": ""},
]
FORMS = {
    "records": PLAIN,
    "lists, integers, nothing": [
        {"item_id": 7, "title": "Walnut kettle", "categories": ["Kitchen", "Kettles"], "brand": 12},
        {"item_id": np.int64(8), "title": 1984, "categories": None, "brand": np.nan},
    ],
    "numpy": [
        {"item_id": np.str_("7"), "title": np.str_("Walnut kettle"),
         "categories": np.array(["Kitchen", "Kettles"]), "brand": np.float64(12)},
        {"item_id": Decimal(8), "title": np.int32(1984), "categories": [], "brand": pd.NA},
    ],
    "frame": pd.DataFrame(PLAIN),
    "frame of nullable columns": pd.DataFrame(
        {"item_id": pd.array([7, 8], "Int64"), "title": pd.array(["Walnut kettle", 1984], object),
         "categories": pd.array(["Kitchen, Kettles", None], "string"),
         "brand": pd.array([12, pd.NA], "Int64"), "price": [1.5, np.nan]},
        index=[5, 3],
    ),
    "dataset": Dataset.from_list(PLAIN),
    "generator": (dict(item) for item in PLAIN),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(built):
    texts = ["Walnut kettle. 12. Kitchen, Kettles", "1984"]
    return built.embed_texts(texts)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_records_is_the_same(model, expected, form):
    model.add_items(FORMS[form])
    assert model.catalogue[-2:] == [
        {name: item[name] for name in ("item_id", "title", "brand", "categories")} for item in PLAIN
    ]
    torch.testing.assert_close(model.item_text[-2:], expected)
    assert model.tokenizer.decode_items(model.tokenizer.encode_items(["7", "8"])) == ["7", "8"]
    assert model.recommend([["7", "8"]], top_k=3)[0]


def test_a_lone_surrogate_is_no_character_and_can_be_saved(model, tmp_path):
    model.add_items([{"item_id": "odd", "title": "kettle \ud800", "brand": "\ud83d\ude00"}])
    model.save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m")
    entry = again.catalogue[-1]
    assert entry["title"] == "kettle \ufffd" and entry["brand"] == "\U0001f600"
    assert model.recommend([["odd"]], top_k=3, exclude_seen=False)[0]


@pytest.mark.parametrize(
    ("item", "message"),
    [({"title": "a"}, "^Item 1 has no `item_id`"), ({"item_id": None}, "^Item 1 has no `item_id`"),
     ({"item_id": ""}, "^Item 1: `item_id` is empty"),
     ({"item_id": True}, "^Item 1: `item_id` is True"),
     ({"item_id": 7.5}, "^Item 1: `item_id` is 7.5"),
     ({"item_id": "a\ud800"}, "^Item 1: `item_id` is .* surrogate"),
     ({"item_id": "7", "title": {"en": "a"}}, r"^Item 1 \('7'\): `title` is {'en': 'a'}"),
     ({"item_id": "7", "brand": b"a"}, r"^Item 1 \('7'\): `brand` is b'a'"),
     ({"item_id": "7", "title": np.inf}, r"^Item 1 \('7'\): `title` is inf"),
     ({"item_id": "7", "categories": [["a", object]]}, r"^Item 1 \('7'\): `categories` is "),
     ("7", "^Item 1 is '7'; give a record"), (["7", "a title"], "^Item 1 is .*; give a record"),
     (None, "^Item 1 is None; give a record"),
     ({"item_id": "first"}, "^`item_id` 'first' of item 1 is there already"),
     ({"item_id": "item-0000"}, "^`item_id` 'item-0000' of item 1 is there already")],
)  # fmt: skip
def test_what_is_no_item_is_refused_with_item_field_and_value(built, item, message):
    before = built.item_sids, built.catalogue, built.row_of
    with pytest.raises(ValueError, match=message):
        built.add_items([{"item_id": "first", "title": "Kettle"}, item])
    after = built.item_sids, built.catalogue, built.row_of
    assert all(ours is theirs for ours, theirs in zip(before, after, strict=True))


def test_an_item_of_which_nothing_is_known_is_named(model):
    with pytest.warns(UserWarning, match=r"^Item 1 \('bare'\) has no text that the model knows"):
        model.add_items([{"item_id": "a", "title": "Kettle"}, {"item_id": "bare", "title": "  "}])
    past = model.catalogue[3]["item_id"]
    some = torch.randn(1, model.item_text.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.add_items([{"item_id": "b"}], histories=[[past, "b"]])
        model.add_items([{"item_id": "c"}], text_embeddings=some)
        model.add_items([])
    assert len({tuple(sid) for sid in model.item_sids.tolist()}) == len(model.catalogue)


@pytest.mark.parametrize(
    "form",
    [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.double().numpy(),
     lambda x: x.half(), lambda x: 3 * x, lambda x: list(x.numpy()),
     lambda x: pd.DataFrame(x.numpy())],
)  # fmt: skip
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_text_embeddings_come_in_any_form_and_length(model, form):
    given = torch.nn.functional.normalize(torch.randn(2, model.item_text.shape[1]), dim=-1)
    model.add_items([{"item_id": "7"}, {"item_id": "8"}], text_embeddings=form(given))
    torch.testing.assert_close(model.item_text[-2:], given, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "given",
    [np.zeros((2, 3)), np.zeros((1, 24)), [[1.0] * 24, [np.nan] * 24], [[1.0] * 24, [1.0]],
     [["a"] * 24] * 2, "text", [None, None], np.full((2, 24), np.inf), np.zeros((2, 24), object),
     np.ones((2, 24), complex), torch.ones(2, 24).to_sparse()],
    ids=repr,
)  # fmt: skip
def test_what_is_no_embedding_is_refused_by_name(built, given):
    before = len(built.catalogue)
    with pytest.raises(ValueError, match="^`text_embeddings` (must be finite|is no table)"):
        built.add_items([{"item_id": "7"}, {"item_id": "8"}], text_embeddings=given)
    assert len(built.catalogue) == len(built.item_sids) == before


@pytest.mark.parametrize("size", [1e39, 3e38, 1e-30, -1e39, np.nan])
def test_an_embedding_without_a_length_is_named_with_its_item(built, size):
    before, given = len(built.catalogue), np.ones((2, 24))
    given[1] = size
    with pytest.raises(ValueError, match=r"^`text_embeddings` must be finite .* item 1 \('8'\)"):
        built.add_items([{"item_id": "7"}, {"item_id": "8"}], text_embeddings=given)
    assert len(built.catalogue) == len(built.item_sids) == before


@pytest.mark.parametrize("size", [1e18, 1e-10, 1, 0])
def test_an_embedding_of_any_length_is_a_unit_row_or_none(model, size):
    model.add_items([{"item_id": "7"}], [[size] * 24], [[model.catalogue[3]["item_id"], "7"]])
    torch.testing.assert_close(model.item_text[-1].norm(), torch.tensor(float(size > 0)))
    assert all(best.score == best.score for best in model.recommend([["7"]])[0])


def assert_same_trie(found, expected):
    for name, value in vars(expected).items():
        if name.startswith("_"):
            continue
        for ours, theirs in zip(
            *([v] if isinstance(v, torch.Tensor) else v for v in (getattr(found, name), value)),
            strict=True,
        ):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("seed", range(12))
def test_a_trie_that_items_join_is_the_trie_of_all(seed):
    draw = torch.Generator().manual_seed(seed)
    codes, old, new = 2 + seed % 4, 1 + 7 * seed, 1 + 5 * (seed % 3)
    sids = torch.randint(0, codes, (old + new, 3), generator=draw)
    before = TTDSTrie.build(sids[:old])
    after, numbers = before.extended(sids[old:])
    assert_same_trie(after, TTDSTrie.build(sids))
    for depth, moved in enumerate(numbers):
        assert torch.equal(before.codes[depth], after.codes[depth][moved])
        if depth:
            assert torch.equal(before.paths(depth), after.paths(depth)[moved])


@pytest.mark.parametrize("dense", [0, 9, 1000])
@pytest.mark.parametrize("projected", [False, True])
def test_a_node_table_that_items_join_is_the_table_of_all(monkeypatch, dense, projected):
    monkeypatch.setattr(nodes_ttds, "DENSE", dense)
    draw = torch.Generator().manual_seed(0)
    sids = torch.randint(0, 3, (40, 3), generator=draw)
    text, other = torch.randn(40, 5, generator=draw), torch.randn(40, 2, generator=draw)
    projection = torch.randn(7, 4, generator=draw) if projected else torch.zeros(0, 0)
    before = TTDSTrie.build(sids[:30])
    after, numbers = before.extended(sids[30:])
    table = TTDSNodeTable.build(before, (text[:30], other[:30]), projection)
    grown = table.extended(after, numbers, (text, other))
    vectors = torch.cat([text, other], 1)
    vectors = vectors @ projection if projected else vectors
    for depth in (1, 2, 3):
        nodes = torch.arange(len(after.codes[depth]))
        mean, variance = grown.rows(nodes, depth)
        below = [
            vectors[(after.node_of(torch.arange(40), depth) == node).nonzero()[:, 0]]
            for node in nodes
        ]
        expected = torch.stack([part.mean(0) for part in below])
        torch.testing.assert_close(mean, expected, atol=5e-3, rtol=0)
        if depth < 3:
            expected = torch.stack([part.var(0, unbiased=False) for part in below])
            torch.testing.assert_close(variance, expected, atol=2e-2, rtol=0)
        counts = torch.tensor([float(len(part)) for part in below])
        torch.testing.assert_close(grown.log_counts[depth], counts.log())


def test_what_grows_leaves_who_shares_it_as_they_are():
    room, table = TTDSRoom(), torch.arange(6.0).view(3, 2)
    first = room.appended(table, torch.full((1, 2), 7.0))
    second = room.appended(first, torch.full((1, 2), 8.0))
    assert second.data_ptr() == first.data_ptr(), "nothing was copied"
    other = room.appended(first, torch.full((2, 2), 9.0))
    assert second.tolist() == [[0, 1], [2, 3], [4, 5], [7, 7], [8, 8]]
    assert other.tolist() == [[0, 1], [2, 3], [4, 5], [7, 7], [9, 9], [9, 9]]
    assert first.tolist() == [[0, 1], [2, 3], [4, 5], [7, 7]] and len(table) == 3


def test_entries_are_those_of_the_file_and_labels_tell_equal_ones():
    entries = [
        {"item_id": 'a"\u2028b', "title": "x", "brand": "acme", "categories": ""},
        {"item_id": "c", "brand": "acme"},
        {"item_id": "d", "brand": "", "categories": "acme"},
    ]
    lines = list(TTDSEntries(entries).lines())
    read = TTDSEntries(lines)
    assert list(read.item_ids()) == [entry["item_id"] for entry in entries]
    assert list(read.lines()) == lines and read == entries and read[-1:] == entries[-1:]
    more = read.extended([{"item_id": "e", "categories": "acme", "brand": "acme"}])
    labels = more.labels[torch.tensor([[0, 1], [2, 3]])]
    assert labels[0, 0].tolist() == [labels[0, 1, 0], -1] and labels[1, 0, 0] == -1
    assert labels[1, 0, 1] == labels[1, 1, 1] >= 0 and labels[1, 1, 0] == labels[0, 0, 0] >= 0
    assert len(read) == 3 and more.without({0, 2}) == [entries[1], more[3]]


def test_a_text_encoder_that_is_gone_is_named_and_nothing_is_added(model, tmp_path):
    model.config.text_encoder = str(tmp_path / "gone")
    before = list(model.catalogue)
    with pytest.raises(OSError, match=r"`text_encoder` .*gone cannot be loaded.*text_embeddings"):
        model.add_items([{"item_id": "new", "title": "kettle"}])
    assert list(model.catalogue) == before and len(model.item_sids) == len(before)
    model.add_items([{"item_id": "new", "title": "kettle"}], model.item_text[:1])
    assert model.catalogue[-1]["item_id"] == "new"
