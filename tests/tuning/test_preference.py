"""Preference tuning: which negatives, in which order, by which likelihood, and that it moves."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from modeling_ttds.configuration_ttds import placeholder_ids
from modeling_ttds.generation_ttds import score_items
from recipes.tuning.preference import (
    STAGES,
    PreferenceOptions,
    choose_negatives,
    collate,
    draw_moments,
    item_log_probs,
    softmax_dpo,
    tune_stage,
)


@pytest.fixture(scope="module")
def moments(split):
    return draw_moments(split, 2, np.random.default_rng(0))


def negatives(model, split, moments, stage, count=4):
    return choose_negatives(model, split, moments, stage, count, np.random.default_rng(1))


def some(split, model, count=8):
    """Return rows of a prompt, its next item and two others."""
    moments = draw_moments(split, 1, np.random.default_rng(0))[:count]
    histories = [split.training[m.user][: m.position].tolist() for m in moments]
    ids, mask = model.history_prompts(histories, histories)
    items = [[int(split.training[m.user][m.position]), 3, 5] for m in moments]
    return [
        {"prompt_ids": row[:n], "items": chosen}
        for row, n, chosen in zip(ids.tolist(), mask.sum(1).tolist(), items, strict=True)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_negative_is_no_item_that_its_user_chose_and_none_comes_twice(
    built, split, moments, stage
):
    found = negatives(built, split, moments, stage)
    assert len(found) == len(moments) > 100
    for moment, rows in zip(moments, found, strict=True):
        assert len(set(rows)) == 4
        assert not set(rows) & set(split.training[moment.user].tolist())


def test_stages_go_from_easy_to_hard(built, split, moments):
    def mean_rank(stage):
        found = negatives(built, split, moments, stage)
        histories = [split.training[m.user][: m.position].tolist() for m in moments]
        lists = built.recommend_rows(histories, split.num_items - 8, num_beams=split.num_items,
                                     rerank=False, memory=False)  # fmt: skip
        places = [{row: place for place, (row, _) in enumerate(pairs)} for pairs in lists]
        return np.mean([place.get(row, 72) for place, rows in zip(places, found, strict=True)
                        for row in rows])  # fmt: skip

    ranks = [mean_rank(stage) for stage in STAGES]
    assert STAGES == ("random", "low", "top")
    assert ranks[2] < 10 < ranks[0] and ranks[2] < ranks[1]


def test_held_out_targets_change_no_negative(built, split, moments):
    other = copy.copy(split)
    for name in ("validation_targets", "test_targets"):
        object.__setattr__(other, name, np.roll(getattr(split, name), 1))
    for stage in STAGES:
        assert negatives(built, split, moments, stage) == negatives(built, other, moments, stage)


def test_its_likelihood_is_that_of_the_model_s_own_loss(built, split):
    rows = some(split, built)
    with torch.no_grad():
        found = item_log_probs(built, collate(rows, 0))
        for row, expected in zip(rows, found, strict=True):
            for item, log_prob in zip(row["items"], expected, strict=True):
                answer = placeholder_ids("item", item, 3)
                ids = torch.tensor([row["prompt_ids"] + answer])
                labels = torch.full_like(ids, -100)
                labels[0, -3:] = ids[0, -3:]
                loss = built(input_ids=ids, labels=labels).loss
                torch.testing.assert_close(-3 * loss, log_prob, atol=1e-4, rtol=1e-4)


def test_the_loss_reaches_trunk_and_node_head(model, split):
    rows = some(split, model)
    found = item_log_probs(model, collate(rows, 0))
    softmax_dpo(found[:, 0], found[:, 1:]).mean().backward()
    for name in ("model.layers.0.attention.query_key_value.weight", "node_head.state_0"):
        assert model.get_parameter(name).grad.abs().sum() > 0


def test_with_one_negative_the_loss_is_that_of_dpo():
    chosen, rejected = torch.tensor([0.3, -1.0]), torch.tensor([[0.1], [2.0]])
    torch.testing.assert_close(
        softmax_dpo(chosen, rejected), -F.logsigmoid(chosen - rejected[:, 0])
    )


def test_a_stage_widens_the_margin_and_leaves_the_rest_as_it_was(model, split, moments, tmp_path):
    found = negatives(model, split, moments, "top", 3)
    histories = [split.training[m.user][: m.position].tolist() for m in moments]
    ids, mask = model.history_prompts(histories, histories)
    targets = [[int(split.training[m.user][m.position])] for m in moments]
    items = torch.tensor([t + rest for t, rest in zip(targets, found, strict=True)])

    def margin():
        with torch.no_grad():
            scores = score_items(model.eval(), ids, mask, model.trie, items)[..., -1]
        return (scores[:, :1] - scores[:, 1:]).mean().item()

    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = margin()
    options = PreferenceOptions(learning_rate=3e-3, sft_weight=0.0, dropout=False)
    tune_stage(model, split, "top", options, 0, str(tmp_path))
    assert margin() > before + 0.1
    assert "forward" not in vars(model)
    moved = {name for name, tensor in model.state_dict().items()
             if not torch.equal(tensor, tensors[name])}  # fmt: skip
    assert any(name.startswith("model.") for name in moved)
    assert not any(name.startswith(("item_tower", "user_tower", "item_sids")) for name in moved)
