"""Tomorrow's data for a trained model: what follows them, and what stays to the last bit."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.cold_start import without
from modeling_ttds import TTDSForCausalLM
from modeling_ttds.priors_ttds import TTDSPriorHead
from modeling_ttds.reranker_ttds import FEATURES, TTDSReranker
from recipes import evaluate, update
from recipes.data.origin import data_identity, origin
from recipes.data.split import split_data
from recipes.data.tables import Catalogue, Data, read_data, write_data
from recipes.errors import one_sentence
from recipes.hub.files import model_files
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.serving.updating import follow_catalogue, newest_users
from recipes.tuning.examples import UserStates
from tests.conftest import altered, build_model, build_tokenizer

NEW_ITEMS, GONE = [3, 40, 66], 7
COUNTED = ("cooccurrence.", "prior_head.", "reranker.")  # what is made anew
BY_ITEM = ("item_sids", "item_text", "item_collaborative", "node_pairs.source")


def reversed_items(data):
    """Return the data set with its catalogue in another order."""
    catalogue = data.catalogue
    fields = {name: values[::-1] for name, values in catalogue.fields.items()}
    last = len(catalogue) - 1
    histories = [last - history for history in data.histories]
    return Data(Catalogue(catalogue.item_ids[::-1], fields), data.user_ids, histories)


@pytest.fixture(scope="module")
def place(shop, options, tmp_path_factory):
    """A folder with yesterday's data, a model of them, today's data, and other data."""
    place = tmp_path_factory.mktemp("update")
    old = without(shop.data, np.array(NEW_ITEMS))
    longest = [history[: max(3, len(history) - 1)] for history in old.histories]
    write_data(Data(old.catalogue, old.user_ids, longest), place / "old")
    write_data(reversed_items(without(shop.data, np.array([GONE]))), place / "new")
    few = without(shop.data, np.arange(60))
    write_data(few, place / "few")

    settings = altered(options, dataset_name=str(place / "old"))
    split = split_data(read_data(str(place / "old")))
    states, tokenizer = UserStates(split, 6), build_tokenizer(split, settings, None)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for target in model.node_pairs.targets:  # as if it had been tuned
            target.normal_()
    model.config.trained_on = origin(split.data, tokenizer.get_vocab(), settings, None, 0)
    memory = build_cooccurrence(split.training, split.num_items, 2)
    model.config.min_pair_users = 2
    model.set_priors(memory, TTDSPriorHead(3))
    model.set_reranker(memory, TTDSReranker(len(FEATURES)))
    model.save_pretrained(place / "model")
    facts = {"dataset": "old", "towers": {"item": {"collision_rate": 0.25}}, "test": {"TTDS": {}}}
    (place / "model" / "metrics.json").write_text(json.dumps(facts))
    return place


@pytest.fixture(scope="module")
def call(place):
    """Return a function that runs a script in this process: its last sentence, None if all went."""

    def run(script, **options):
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["script.py", *arguments])
            said = []
            patch.setattr("recipes.errors._say_last", said.append)
            try:
                with one_sentence():
                    script.main()
            except SystemExit as stopped:
                assert stopped.code == 2
            return said[0] if said else None

    return run


@pytest.fixture(scope="module")
def today(place, call):
    """Yesterday's model, today's, and today's split."""
    options = {"model": place / "model", "dataset_name": place / "new"}
    assert call(update, **options, output_dir=place / "today", num_beams=20) is None
    models = [TTDSForCausalLM.from_pretrained(place / name) for name in ("model", "today")]
    return *models, split_data(read_data(str(place / "new")))


def test_no_weight_changes(today):
    old, new, _ = today
    theirs = new.state_dict()
    compared = 0
    for name, tensor in old.state_dict().items():
        if name in BY_ITEM or name.startswith((*COUNTED, "node_pairs.targets")):
            continue
        assert tensor.equal(theirs[name]), name
        compared += 1
    assert compared > 30
    towers = [name for name in theirs if name.startswith(("item_tower.", "user_tower.", "model."))]
    assert len(towers) > 20


def test_old_items_keep_all_they_have_and_new_ones_get_semantic_ids(today):
    old, new, split = today
    names = [entry["item_id"] for entry in new.catalogue]
    assert names == split.data.catalogue.item_ids
    added = [name for name in names if name not in old.row_of]
    assert len(added) == 3 and len(names) == 71
    assert {*old.row_of} - {*names} and len({*old.row_of} - {*names}) == 1
    ours, theirs = old.state_dict(), new.state_dict()
    kept = [name for name in names if name in old.row_of]
    before, after = ([m.row_of[name] for name in kept] for m in (old, new))
    for name in BY_ITEM:
        assert ours[name][before].equal(theirs[name][after]), name
    assert len(new.item_sids.unique(dim=0)) == len(names)
    rows = [new.row_of[name] for name in added]
    assert new.item_text[rows].any(1).all() and new.item_collaborative[rows].any(1).all()
    assert not new.node_pairs.source[rows].any()
    for depth in range(1, 4):  # nodes that were there keep their vectors
        paths = old.trie.paths(depth)
        found = new.trie.walk(paths)[-1]
        was, now = (m.node_pairs.targets[depth - 1] for m in (old, new))
        assert was[found >= 0].equal(now[found[found >= 0]])
    assert new.tokenizer.decode_items(new.tokenizer.encode_items(names)) == names


def test_counts_and_rankers_are_made_anew(today):
    old, new, split = today
    counted = build_cooccurrence(split.training, split.num_items, 2)
    for name, tensor in counted.state_dict().items():
        assert tensor.equal(new.cooccurrence.state_dict()[name]), name
    assert new.config.min_pair_users == 2 and new.config.has_priors and new.config.has_reranker
    for name in ("prior_head", "reranker"):
        ours, theirs = (getattr(model, name).state_dict() for model in (old, new))
        assert not all(tensor.equal(theirs[key]) for key, tensor in ours.items()), name
    added = [name for name in new.row_of if name not in old.row_of]
    best = new.recommend([added[:1]], top_k=2, allowed=added)[0]
    assert len(best) == 2


def test_it_belongs_to_todays_data(today, place, call):
    old, new, split = today
    trained = new.config.trained_on
    identity = data_identity(split.data)
    assert identity.items() <= trained.items()
    assert trained["learnt_from"] == {name: old.config.trained_on[name] for name in identity}
    assert trained["options"] == old.config.trained_on["options"]
    for model, data, said in (
        ("today", "old", "today was trained on other data: these have 69 items, not 71"),
        ("model", "new", "model was trained on other data: these have 71 items, not 69"),
    ):
        assert said in call(evaluate, model=place / model, dataset_name=place / data)
    facts = json.loads((place / "today" / "metrics.json").read_text())
    assert "test" not in facts and facts["towers"] == {"item": {"collision_rate": 0.25}}
    assert facts["updated"]["new_items"] == 3 and facts["data"]["items"] == 71
    measured = place / "measured"
    shutil.copytree(place / "today", measured)
    assert call(evaluate, model=measured, dataset_name=place / "new", num_beams=20) is None
    assert json.loads((measured / "metrics.json").read_text())["test"]["TTDS"]["users"] == 150
    card = model_files(measured, "org/name")["README.md"].decode()
    count = trained["learnt_from"]["interactions"]
    assert f"learnt from {count:,} interactions of an earlier state" in card


def test_held_out_targets_do_not_move_new_items(today, place):
    _, new, split = today
    other = np.roll(np.arange(split.num_items), 1)
    shifted = [np.append(history[:-2], other[history[-2:]]) for history in split.data.histories]
    again = TTDSForCausalLM.from_pretrained(place / "model").eval()
    follow_catalogue(again, split_data(replace(split.data, histories=shifted)), None)
    for name in ("item_sids", "item_text", "item_collaborative"):
        assert getattr(again, name).equal(getattr(new, name)), name


def test_an_update_of_an_update_remembers_what_was_learnt(today, place, call):
    _, new, _ = today
    options = {"model": place / "today", "dataset_name": place / "new"}
    again = {"output_dir": place / "again", "num_beams": 20, "fit_users": 8, "exclude_seen": "no"}
    assert call(update, **options, **again) is None
    config = TTDSForCausalLM.from_pretrained(place / "again").config
    assert config.trained_on["learnt_from"] == new.config.trained_on["learnt_from"]
    assert config.exclude_seen is False


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"output_dir": "model"}, "model is there already; name another"),
        ({"dataset_name": "few"}, "these have 11 of its 69 items. Name a later state"),
        ({"fit_users": 3}, "`--fit_users` is 3; it must be at least 8"),
        ({"num_beams": 0}, "`--num_beams` is 0"),
        ({"text_embeddings": "none.npy"}, "`text_encoder` is 'tokens', which did not make"),
        ({"model": "old"}, "has no config.json"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_fitted(place, call, wishes, said):
    wish = {"model": "model", "dataset_name": "new", "output_dir": "other"} | wishes
    folders = {name: place / wish.pop(name) for name in ("model", "dataset_name", "output_dir")}
    assert said in call(update, **folders, **wish)
    assert not (place / "other").exists()


def test_the_newest_users_are_those_whose_target_is(cycle):
    when = [np.arange(len(history)) + 100.0 * user for user, history in
            enumerate(cycle.data.histories)]  # fmt: skip
    split = replace(cycle, data=replace(cycle.data, timestamps=when))
    chosen = newest_users(split, 10, seed=0)
    assert chosen.users("validation").tolist() == [*range(190, 200)]
    assert (chosen.validation_targets[190:] == cycle.validation_targets[190:]).all()
    drawn = newest_users(cycle, 10, seed=0).users("validation")
    assert len(drawn) == 10 and drawn.tolist() != [*range(190, 200)]
    assert len(newest_users(cycle, 5000, seed=0).users("validation")) == 200
