"""Whatever mode torch or the model is in, what is asked and changed is the same."""

import copy

import pytest
import torch

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.reranker_ttds import FEATURES, TTDSReranker
from recipes.ranking.cooccurrence import build_cooccurrence


@pytest.fixture(scope="module")
def folder(built, split, tmp_path_factory):
    """A folder of a model with a co-occurrence memory and a re-ranker fitted for nothing."""
    folder = tmp_path_factory.mktemp("modes") / "model"
    built.save_pretrained(folder)
    model = TTDSForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    model.config.prompts = {"query": "Query: {query}:", "search": "<user> <item> {query}:"}
    model.save_pretrained(folder)
    return folder


def loaded(folder):
    return TTDSForCausalLM.from_pretrained(folder).eval()


def changed(model):
    """Change the catalogue in every way."""
    names = [entry["item_id"] for entry in model.catalogue]
    model.add_items([{"item_id": "new", "title": "A walnut kettle"}])
    model.add_items([{"item_id": "newer", "title": "Oak"}], histories=[[names[3], "newer"]])
    model.remove_items(names[5:7])
    return model


def answers(model):
    names = [entry["item_id"] for entry in model.catalogue]
    asked = [[], names[:3], names[20:40], names[-1:]]
    lists = [model.recommend(asked, rerank=rerank) for rerank in (True, False)]
    return lists + [model.recommend(asked[:2], queries=["walnut kettle", "oak board"])]


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("loading", [False, True])
def test_inference_mode_makes_no_difference(folder, loading, asking, changing):
    expected = answers(changed(loaded(folder)))
    with torch.inference_mode(loading):
        model = loaded(folder)
    with torch.inference_mode(asking):
        answers(model)
        twin = copy.deepcopy(model)
    for asked in (model, twin):
        with torch.inference_mode(changing):
            changed(asked)
        for mode in (asking, not asking):
            with torch.inference_mode(mode):
                assert answers(asked) == expected
