"""One call saves a folder that is whole and of one state, after whatever came and went."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from tests.model.test_generation import make_model

WHOLE = {"config.json", "generation_config.json", "model.safetensors", "catalogue.jsonl"}
WHOLE |= {"tokenizer.json", "tokenizer_config.json", "sid_table.json"}


@pytest.fixture
def model(origin):
    return TTDSForCausalLM.from_pretrained(origin).eval()


def assert_same(ours, theirs):
    assert ours.catalogue == theirs.catalogue and ours.row_of == theirs.row_of
    assert ours.tokenizer.sid_table == theirs.tokenizer.sid_table
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
    for name in ("num_items", "cooccurrence_pairs", "has_reranker"):
        assert getattr(ours.config, name) == getattr(theirs.config, name), name


def assert_of_one_state(model, folder):
    """Files and model agree in every item and semantic ID."""
    names = {file.name for file in folder.iterdir()}
    assert names >= WHOLE and not any(name.endswith(".tmp") for name in names)
    lines = (folder / "catalogue.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == model.catalogue
    table = json.loads((folder / "sid_table.json").read_text("utf-8"))
    assert list(table) == [entry["item_id"] for entry in model.catalogue]
    assert list(table.values()) == model.item_sids.tolist()
    assert len(set(map(tuple, table.values()))) == len(table) == model.config.num_items
    assert json.loads((folder / "config.json").read_text("utf-8"))["num_items"] == len(table)


CHANGES = st.lists(
    st.one_of(
        st.lists(st.text(max_size=20), min_size=1, max_size=3).map(lambda titles: ("add", titles)),
        st.lists(st.integers(0, 200), min_size=1, max_size=4).map(lambda rows: ("remove", rows)),
        st.just(("save and load", None)),
        st.just(("recommend", None)),
    ),
    max_size=7,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
@pytest.mark.filterwarnings("ignore:Item")
def test_save_and_load_keep_everything_after_any_changes(origin, tmp_path, changes):
    model, kept, number = TTDSForCausalLM.from_pretrained(origin).eval(), {}, 0
    kept = {entry["item_id"]: entry for entry in model.catalogue}
    sids = dict(model.tokenizer.sid_table)
    folder = tmp_path / "m"
    shutil.rmtree(folder, ignore_errors=True)
    for what, value in [*changes, ("save and load", None)]:
        names = list(kept)
        if what == "add":
            new = [{"item_id": f"{number + n} \u2028 {t}", "title": t} for n, t in enumerate(value)]
            model.add_items(new, histories=[[names[-1], new[0]["item_id"]]])
            kept |= {
                entry["item_id"]: {"brand": "", "categories": ""} | entry
                for entry in model.catalogue[len(kept) :]
            }
            number += len(value)
        elif what == "remove":
            gone = {names[row % len(names)] for row in value}
            if len(gone) < len(names):
                model.remove_items(gone)
                kept = {name: entry for name, entry in kept.items() if name not in gone}
        elif what == "recommend":
            assert len(model.recommend([names[:2]], top_k=3)[0]) == min(3, len(names) - 2)
        else:
            model.save_pretrained(folder)
            assert_of_one_state(model, folder)
            again = TTDSForCausalLM.from_pretrained(folder).eval()
            assert_same(again, model)
            model = again
        assert model.catalogue == list(kept.values())
    table = model.tokenizer.sid_table
    assert all(table[name] == sids[name] for name in table.keys() & sids.keys()), "old ones stay"
    original = TTDSForCausalLM.from_pretrained(origin)
    for name, weight in original.named_parameters():
        if name.startswith("node_pairs."):  # one row per node, as many as there are today
            continue
        assert torch.equal(weight, model.get_parameter(name)), name


def test_a_changed_model_is_whole_where_this_repo_is_not(model, tmp_path):
    model.add_items([{"item_id": "new", "title": "Walnut kettle"}])
    model.remove_items([model.catalogue[4]["item_id"]])
    model.save_pretrained(tmp_path / "m")
    script = (
        "import sys; sys.modules['modeling_ttds'] = sys.modules['recipes'] = None\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        "m = AutoModel.from_pretrained('m', trust_remote_code=True).eval()\n"
        "t = AutoTokenizer.from_pretrained('m', trust_remote_code=True)\n"
        "assert t.decode_items(t.encode_items(['new'])) == ['new']\n"
        "assert t.sid_table == m.tokenizer.sid_table\n"
        "m.add_items([{'item_id': 'newer', 'title': 'Oak board'}])\n"
        "m.save_pretrained('again')\n"
        "t = AutoTokenizer.from_pretrained('again', trust_remote_code=True)\n"
        "m = AutoModel.from_pretrained('again', trust_remote_code=True).eval()\n"
        "assert list(t.sid_table) == [e['item_id'] for e in m.catalogue]\n"
        "print(m.recommend([['new', 'newer']], top_k=3)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {file.name for file in (tmp_path / "again").iterdir()} == {
        file.name for file in (tmp_path / "m").iterdir()
    }


def test_a_saved_folder_can_be_saved_over(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.add_items([{"item_id": "new", "title": "Walnut kettle"}])
    model.save_pretrained(tmp_path)
    assert_of_one_state(model, tmp_path)


@pytest.mark.parametrize("variant", [None, "fp32"])
def test_weights_in_one_file_and_in_several_take_each_other_s_place(model, tmp_path, variant):
    history = [[entry["item_id"] for entry in model.catalogue[:3]]]
    whole = "model.safetensors" if variant is None else f"model.{variant}.safetensors"
    for number, size in enumerate(("5GB", "100KB", "5GB")):
        model.remove_items([model.catalogue[-1]["item_id"]])
        model.save_pretrained(tmp_path, max_shard_size=size, variant=variant)
        weights = {file.name for file in tmp_path.glob("model[.-]*")}
        assert (whole in weights) == (number != 1) == (len(weights) == 1)
        loaded = TTDSForCausalLM.from_pretrained(tmp_path, variant=variant).eval()
        state = loaded.state_dict()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        found, known = (one.recommend(history)[0] for one in (loaded, model))
        assert [best.item_id for best in found] == [best.item_id for best in known]
        # Where a table lies in memory decides how its products are rounded.
        scores = [[best.score for best in lists] for lists in (found, known)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "m", is_main_process=False)
    assert not list(tmp_path.rglob("*.*"))


def test_a_stop_leaves_no_half_of_a_file(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = (tmp_path / "catalogue.jsonl").read_bytes()
    model.add_items([{"item_id": "new", "title": "Walnut kettle"}])

    class Stopping(dict):
        def items(self):
            raise KeyboardInterrupt

    model.catalogue[-1] = Stopping(model.catalogue[-1])
    with pytest.raises(KeyboardInterrupt):
        model.write_catalogue(tmp_path)
    assert (tmp_path / "catalogue.jsonl").read_bytes() == before


def test_a_model_without_a_tokenizer_is_saved_without_one(tmp_path):
    model = make_model()
    model.remove_items(["i3"])
    model.save_pretrained(tmp_path)
    again = TTDSForCausalLM.from_pretrained(tmp_path)
    again.remove_items(["i4"])
    assert again.catalogue == [e for e in model.catalogue if e["item_id"] != "i4"]
    again.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_weights_in_hand_make_a_model_that_lacks_a_tokenizer(model):
    again = TTDSForCausalLM.from_pretrained(
        None, config=copy.deepcopy(model.config), state_dict=model.state_dict()
    )
    assert torch.equal(again.item_sids, model.item_sids) and not again.has_tokenizer
    again.catalogue = list(model.catalogue)
    history = [model.catalogue[0]["item_id"]]
    assert again.recommend([history], top_k=3) == model.recommend([history], top_k=3)


def test_the_tokenizer_is_that_of_the_folder_wherever_the_process_stands(
    model, tmp_path, monkeypatch
):
    model.save_pretrained(tmp_path / "here" / "shop")
    model.tokenizer.set_sid_table([], [])
    model.tokenizer.save_pretrained(tmp_path / "there" / "shop")  # a stranger of the same name
    monkeypatch.chdir(tmp_path / "here")
    loaded = [TTDSForCausalLM.from_pretrained(name) for name in ("shop", "./shop", Path("shop"))]
    names = [entry["item_id"] for entry in model.catalogue]
    for folder in ("..", "there"):
        monkeypatch.chdir(tmp_path / folder)
        for other in map(copy.deepcopy, loaded):
            assert list(other.tokenizer.sid_table) == names
            other.add_items([{"item_id": "new", "title": "Walnut kettle"}])
            other.save_pretrained(tmp_path / "saved")
    assert loaded[0].name_or_path == "shop"
    for file in (tmp_path / "saved").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_a_missing_tokenizer_is_named_and_nothing_is_changed_or_saved(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    gone = TTDSForCausalLM.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    never = TTDSForCausalLM.from_pretrained(tmp_path / "m")
    new, old = [{"item_id": "new", "title": "Walnut kettle"}], model.catalogue[0]["item_id"]
    for other, why in ((gone, r"tokenizer\.json is gone; put it"), (never, "none was beside")):
        refusals = [
            lambda m: m.tokenizer,
            lambda m: m.embed_texts([""]),
            lambda m: m.add_items(new),
        ]
        if other is gone:
            refusals += [
                lambda m: m.remove_items([old]),
                lambda m: m.save_pretrained(tmp_path / "no"),
            ]
        for refused in refusals:
            with pytest.raises(ValueError, match=f"^`tokenizer` is missing, as .*{why}"):
                refused(other)
            assert other.catalogue == model.catalogue and len(other.item_sids) == len(other.row_of)
            assert other.item_sids.equal(model.item_sids) and not (tmp_path / "no").exists()


def test_an_adapter_s_folder_gives_all_that_its_base_is(model, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    history = [[entry["item_id"] for entry in model.catalogue[:3]]]
    plain = model.recommend(history)
    tuned = get_peft_model(
        TTDSForCausalLM.from_pretrained(base).eval(),
        LoraConfig(target_modules=["query_key_value"], init_lora_weights=False),
    )
    tuned.save_pretrained(adapter)
    loaded = TTDSForCausalLM.from_pretrained(adapter).eval()
    assert loaded.recommend(history) == tuned.recommend(history) != plain
    assert loaded.tokenizer.sid_table == model.tokenizer.sid_table


def test_the_tokenizer_names_items_as_the_model_does(model, tmp_path):
    folder, apart = tmp_path / "new", TTDSTokenizer.from_pretrained(model._origin[0])
    model.add_items([{"item_id": "new", "title": "Walnut kettle"}])
    model.save_pretrained(folder)
    apart.save_pretrained(folder)  # as `Trainer` does with the tokenizer it was given
    loaded = TTDSForCausalLM.from_pretrained(folder)
    given = copy.deepcopy(model)
    given.tokenizer = apart
    moved = copy.deepcopy(model)
    state = copy.deepcopy(moved.state_dict())
    state["item_sids"] = state["item_sids"].flip(0)
    moved.load_state_dict(state)
    for other in (loaded, given, moved):
        for row in (0, -1):
            item = other.catalogue[row]["item_id"]
            ids = other.sid_tokens(other.item_sids[row]).tolist()
            assert other.tokenizer.encode_items([item]) == ids
            assert other.tokenizer.decode_items(ids) == [item]


@pytest.mark.parametrize(
    ("entries", "message"),
    [(None, "^`catalogue` is None; give a list of records"), ("text", "^`catalogue` is 'text'"),
     ({"item_id": "a"}, "^`catalogue` is {'item_id': 'a'}; give a list"),
     (["a"] * 60, "^Item 0 is 'a'; give a record"),
     ([{"title": "a"}] * 60, "^Item 0 has no `item_id`"),
     ([{"item_id": " "}] * 60, "^Item 0: `item_id` is empty"),
     ([{"item_id": "a", "title": {}}] * 60, r"^Item 0 \('a'\): `title` is {}"),
     ([{"item_id": "a"}], "^`catalogue` has 1 entries for 60 items")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_catalogue_is_refused(entries, message):
    model = make_model()
    before = model.catalogue
    with pytest.raises(ValueError, match=message):
        model.catalogue = entries
    assert model.catalogue is before and model.row_of["i3"] == 3


def test_a_catalogue_is_read_as_the_records_of_new_items_are():
    model = make_model()
    model.catalogue = ({"item_id": row, "title": None, "brand": ["a", 7]} for row in range(60))
    assert model.catalogue[3] == {"item_id": "3", "title": "", "brand": "a, 7", "categories": ""}
    assert all(best.title == "" for best in model.recommend([["3"]], allowed=["4", "5"])[0])


def test_items_twice_in_a_catalogue_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="`catalogue` holds the item 'i0' twice"):
        model.catalogue = [{"item_id": f"i{row % 59}"} for row in range(60)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_a_model_of_its_own(model, copied):
    twin = copied(model)
    history = [model.catalogue[3]["item_id"]]
    assert twin.recommend([history], top_k=5) == model.recommend([history], top_k=5)
    twin.add_items([{"item_id": "new", "title": "Walnut kettle"}])
    assert "new" not in model.row_of and "new" not in model.tokenizer.sid_table
    assert twin.lock is not model.lock and twin.recommend([["new"]], top_k=3)


def test_torch_saves_what_was_loaded(model, tmp_path):
    """An empty table lies in the file where its neighbour of another type begins."""
    assert any(not buffer.numel() for buffer in model.buffers())
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "whole.pt")
    state = torch.load(tmp_path / "state.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    history = [[entry["item_id"] for entry in model.catalogue[:3]]]
    assert whole.recommend(history) == model.recommend(history)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_state_that_is_loaded_into_a_model_is_all_that_it_answers_by(model):
    fresh, histories = copy.deepcopy(model), [[], [model.catalogue[3]["item_id"]]]
    model.recommend(histories)
    state = copy.deepcopy(model.state_dict())
    state["cooccurrence.items"] = state["cooccurrence.items"].flip(0)
    state["item_sids"] = state["item_sids"].flip(0)
    for other in (model, fresh):
        other.load_state_dict(state)
    assert model.cooccurrence.popular(9).tolist() == fresh.cooccurrence.popular(9).tolist()
    assert model.recommend(histories) == fresh.recommend(histories)


def test_a_trie_is_never_that_of_another_table():
    model = make_model()
    for number in range(20):
        assert model.trie is model.trie
        gone = model.catalogue[0]["item_id"]
        # Tables of the same shape, which may come to lie where the first one lay.
        model.remove_items([gone])
        model.add_items([{"item_id": gone}], text_embeddings=torch.randn(1, 6))
        fresh = type(model.trie).build(model.item_sids)
        for name, value in vars(fresh).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(model.trie, name), value), (number, name)


def test_a_damaged_catalogue_or_table_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    file, table = tmp_path / "catalogue.jsonl", tmp_path / "sid_table.json"
    whole = file.read_bytes()
    first = whole.index(b"\n")
    for damaged, reason in (
        (whole[:-20], "holds the line .* which is no item .*copy the file anew"),
        (whole[: first - 3] + whole[first:], "holds the line .* which is no item"),
        (b"7" + whole[first:], "no item .it has no `item_id`."),
        (b"\xef\xbb\xbf" + whole, "no item .Unexpected UTF-8 BOM"),
        (b"\xff" + whole, "catalogue.jsonl is no text in UTF-8"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=reason):
            TTDSForCausalLM.from_pretrained(tmp_path)
    # In the middle of a line it is seen when the line is read.
    file.write_bytes(whole.replace(b'"title": "', b'"title": ', 1))
    with pytest.raises(ValueError, match="holds the line"):
        TTDSForCausalLM.from_pretrained(tmp_path).catalogue[0]
    tokenizers = [TTDSTokenizer.from_pretrained(tmp_path) for _ in range(2)]
    for tokenizer, damage in zip(
        tokenizers, (lambda: table.write_text('{"i": [1, 2'), table.unlink), strict=True
    ):
        damage()
        with pytest.raises(ValueError, match=r"SID table .*sid_table.json cannot be read"):
            tokenizer.save_pretrained(tmp_path / "other")
