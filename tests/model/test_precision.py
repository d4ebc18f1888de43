"""Whichever way a model is cast, what semantic IDs are made of stays float32 and whole."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import modeling_ttds  # noqa: F401, registers the classes
from modeling_ttds.reranker_ttds import FEATURES, TTDSReranker
from recipes.ranking.cooccurrence import build_cooccurrence

CASTS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "to(device, float16)": lambda model: model.to("cpu", torch.float16),
    "to(tensor)": lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
    "type": lambda model: model.type(torch.bfloat16),
    "twice": lambda model: model.half().float().bfloat16(),
}
KEPT = ("item_tower.", "user_tower.", "token_table.", "reranker.", "prior_head.", "cooccurrence.")
TABLES = ("item_text", "item_collaborative", "vector_projection")


@pytest.fixture
def joined(model, split):
    """A model with a co-occurrence memory and a re-ranker that nothing was fitted for."""
    torch.manual_seed(0)
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    return model


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_halves_the_language_model_alone(joined, cast):
    before = {name: value.clone() for name, value in joined.state_dict().items()}
    histories = torch.tensor([[3, 4, 5], [-1, 7, 2]])
    users = joined.sids_of_users(histories)
    past = [joined.catalogue[row]["item_id"] for row in (3, 9, 12)]
    scores = {best.item_id: best.score for best in joined.recommend([past], top_k=20)[0]}
    cast_model = CASTS[cast](joined)
    assert cast_model is joined
    kept = {name for name in before if name.startswith(KEPT) or name in TABLES}
    assert kept > {"item_text", "cooccurrence.values", "reranker.mean", "token_table.table"}
    for name, value in joined.state_dict().items():
        if name in kept:
            assert torch.equal(value, before[name]), f"{name} lost digits"
        elif value.is_floating_point():
            assert value.dtype in (torch.float16, torch.bfloat16), name
    assert joined.sids_of_users(histories).equal(users)
    for rerank in (True, False):
        for best in joined.recommend([past], top_k=20, rerank=rerank)[0]:
            assert best.score == best.score, "a score is a number"
            if rerank and best.item_id in scores:
                assert abs(best.score - scores[best.item_id]) < 0.2
    joined.add_items([{"item_id": "new", "title": "A walnut kettle"}])
    assert joined.recommend([["new"]], top_k=3)[0]


def test_a_model_made_in_half_precision_has_whole_towers(built):
    made = AutoModelForCausalLM.from_config(built.config, dtype=torch.bfloat16)
    for name, value in made.state_dict().items():
        if name.startswith(KEPT) or name in TABLES:
            assert value.dtype in (torch.float32, torch.long), name
    assert made.lm_head.weight.dtype == torch.bfloat16


def test_double_precision_is_for_all(model):
    model.double()
    assert model.item_text.dtype == model.item_tower.codebooks.dtype == torch.float64
