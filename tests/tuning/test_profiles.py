"""What the profiles of histories are fitted to."""

import pytest
import torch

from recipes.tuning import profiles
from recipes.tuning.profiles import fit_profiles, profile_loss


def test_the_loss_is_that_of_the_language_model_whose_state_says_nothing(built, split, states):
    """The same targets by the model's own path: prompts, context, loss, with a state of zeros."""
    user = max(range(len(split.training)), key=lambda u: len(split.training[u]))
    history = split.training[user][:5]
    with torch.no_grad():
        found = profile_loss(built, [history])
        losses = []
        for end in range(1, len(history)):
            prompt = built.history_prompts([history[:end].tolist()], [history[:end].tolist()])[0]
            context = built.context(prompt)
            known = context.histories[torch.tensor([0]), context.slots[:, -1]]
            state = torch.zeros(1, built.config.backbone_config.hidden_size)
            for level in range(built.trie.num_levels):
                target = torch.tensor([int(history[end])])
                nodes, child = (built.trie.node_of(target, d) for d in (level, level + 1))
                logits, children = built.node_logits(state, known, nodes, level)
                losses.append(-logits.log_softmax(-1)[0, int(child - children[0, 0])])
    torch.testing.assert_close(found, torch.stack(losses).sum() / (len(history) - 1))


def test_fitting_learns_moves_nothing_else_and_is_the_same_again(
    model, split, tmp_path, monkeypatch
):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        start = profile_loss(model.eval(), split.training)
    fit_profiles(model, split.training, num_epochs=0, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fit_profiles(model, split.training, num_epochs=6, batch_size=8, seed=0)
    with torch.no_grad():
        assert profile_loss(model.eval(), split.training) < start - 0.3
    after = {name: value.clone() for name, value in model.state_dict().items()}
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(name.startswith(("node_head.profile", "node_pairs.")) for name in moved) and moved
    held = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert held == {f"node_head.profile_{level}" for level in range(model.trie.num_levels)}
    model.load_state_dict(before)
    kept = {"num_epochs": 6, "batch_size": 8, "seed": 0, "folder": tmp_path}
    fit_profiles(model, split.training, **kept)
    drawn = torch.rand(3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]), name

    model.load_state_dict(before)
    monkeypatch.setattr(profiles, "profile_loss", None)  # from the cache there is nothing to fit
    fit_profiles(model, split.training, **kept)
    assert torch.equal(torch.rand(3), drawn), "what follows is the same either way"
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]), name
    assert held == {name for name, p in model.named_parameters() if not p.requires_grad}
    model.load_state_dict(before)
    with pytest.raises(TypeError):  # of other histories it is another fit
        fit_profiles(model, split.training[1:], **kept)


def test_epochs_end_where_the_steps_do(model, split, monkeypatch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fits = []
    for most, epochs in ((1500, 1), (-(-len(split.training) // 8), 6)):
        monkeypatch.setattr(profiles, "MOST_STEPS", most)
        model.load_state_dict(before)
        fit_profiles(model, split.training, num_epochs=epochs, batch_size=8, seed=0)
        fits.append([value.clone() for value in model.state_dict().values()])
    assert all(map(torch.equal, *fits))


def test_items_that_share_one_semantic_id_leave_nothing_to_learn(model, split):
    model.item_sids = torch.zeros_like(model.item_sids)
    loss = profile_loss(model, split.training[:4])
    loss.backward()
    assert loss == 0
    assert all(weight.grad.abs().max() == 0 for weight in model.node_head.parameters())
