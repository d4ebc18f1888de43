"""Semantic IDs of users: made when a batch names them, by the tower of the last refresh."""

import torch

from modeling_ttds.configuration_ttds import PLACEHOLDER_START
from modeling_ttds.users_ttds import TTDSUserHistories
from recipes.index.refresh import refresh_sids


def moved(model):
    with torch.no_grad():
        for weight in model.user_tower.parameters():
            weight.add_(torch.randn_like(weight))


def test_histories_are_cut_at_their_user_and_at_the_longest():
    histories = TTDSUserHistories(torch.tensor([-1, 4, 5, 6, 7, -1, -1, 8]), 3)
    found = histories[torch.tensor([0, 2, 4, 5, 6, 7])]
    expected = [[-1, -1, -1], [-1, 4, 5], [5, 6, 7], [-1, -1, -1], [-1, -1, -1], [-1, -1, 8]]
    assert found.tolist() == expected and len(histories) == 8


def test_users_keep_their_semantic_ids_until_the_next_refresh(model, states):
    torch.manual_seed(0)
    model.attach_users(states.on_demand())
    histories = states.histories()
    before = model.sids_of_users(histories)
    moved(model)
    after = model.sids_of_users(histories)
    assert (after != before).any()
    assert torch.equal(model.user_sids, before)
    report = refresh_sids(model)
    assert torch.equal(model.user_sids, after)
    assert report["user_churn"] == (after != before).any(1).float().mean().item()


def test_a_prompt_names_users_by_their_semantic_ids(model, states):
    model.attach_users(states.on_demand())
    moved(model)
    levels, start = model.config.item_tower.num_levels, model.config.sid_token_start
    rows = torch.tensor([[7, 3], [3, 11]])
    ids = PLACEHOLDER_START + (2 * rows[..., None] + 1) * levels + torch.arange(levels)
    tokens = model.sid_tokens(model.user_sids[rows], "user")
    assert torch.equal(model.bind(ids), tokens) and (tokens >= start).all()
    model.attach_users(states.histories())  # a table does as well; the tower is today's
    assert torch.equal(model.user_sids, model.sids_of_users(states.histories()))


def test_nothing_of_the_users_is_trained_or_saved(model, states):
    keys, names = set(model.state_dict()), {name for name, _ in model.named_parameters()}
    model.attach_users(states.on_demand())
    assert set(model.state_dict()) == keys
    assert {name for name, _ in model.named_parameters()} == names
    weights = [weight.clone() for weight in model.refreshed_tower.buffers()]
    assert weights, "the tower of the last refresh is held in buffers"
    model.train()
    moved(model)
    assert all(map(torch.equal, model.refreshed_tower.buffers(), weights))
