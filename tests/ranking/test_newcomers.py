"""A model as if some of its items had just joined, against taking them out and adding them."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from modeling_ttds.priors_ttds import TTDSPriorHead
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.ranking.newcomers import with_newcomers
from recipes.ranking.priors import fit_priors, node_choices, prior_loss


@pytest.fixture
def joined(model, split):
    """A model with a co-occurrence memory and an empty prior head."""
    memory = build_cooccurrence(split.training, split.num_items)
    model.set_priors(memory, TTDSPriorHead(model.config.item_tower.num_levels).eval())
    return model


def test_newcomers_are_what_adding_them_gives(joined):
    twin = with_newcomers(joined, seed=0)
    new = twin.cooccurrence.popularity != joined.cooccurrence.popularity
    new |= ~torch.isclose(twin.item_collaborative, joined.item_collaborative).all(1)
    rows = new.nonzero()[:, 0].tolist()
    assert 0 < len(rows) < len(new) / 2
    entries = [dict(joined.catalogue[row]) for row in rows]
    text, ids = joined.item_text[rows].clone(), [entry["item_id"] for entry in entries]
    sids, others = joined.item_sids.clone(), (~new).nonzero()[:, 0]
    weights = joined.model.state_dict()
    assert all(weights[name] is not None for name in weights)
    joined.remove_items(ids)
    joined.add_items(entries, text_embeddings=text)
    added = [joined.row_of[item] for item in ids]
    torch.testing.assert_close(twin.item_collaborative[rows], joined.item_collaborative[added])
    assert torch.equal(twin.item_sids[rows], joined.item_sids[added])
    assert torch.equal(twin.item_sids[others], sids[others])
    assert not twin.cooccurrence.items[rows].any()
    memory, added_last = twin.cooccurrence, joined.cooccurrence
    order = torch.cat([others, torch.tensor(rows)])  # of the twin's rows, as adding puts them
    for row, other in enumerate(order.tolist()):
        pairs = slice(memory.starts[other], memory.starts[other + 1])
        found = slice(added_last.starts[row], added_last.starts[row + 1])
        assert torch.equal(memory.others[pairs], order[added_last.others[found]].int())
        assert torch.equal(memory.values[pairs], added_last.values[found])


def test_the_model_itself_stays_as_it_was(joined):
    before = {name: tensor.clone() for name, tensor in joined.state_dict().items()}
    history = [joined.catalogue[3]["item_id"]]
    lists = joined.recommend([history], top_k=5)
    twin = with_newcomers(joined, seed=1)
    twin.prior_head = TTDSPriorHead(joined.config.item_tower.num_levels)
    twin.recommend([history], top_k=5)
    assert joined.recommend([history], top_k=5) == lists
    for name, tensor in joined.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not torch.equal(twin.item_sids, joined.item_sids)


def test_a_head_fitted_with_newcomers_judges_them_better(joined, split):
    choices = node_choices(joined, split, "validation")
    new = node_choices(with_newcomers(joined, seed=0), split, "validation", most=40)
    assert len(new[0].chosen) == 40
    plain = fit_priors(choices, num_epochs=30)
    told = fit_priors(choices, new, cold_item_dropout=0.5, num_epochs=30)
    with torch.no_grad():
        assert prior_loss(told, new) < prior_loss(plain, new) - 0.05
    never = fit_priors(choices, new, num_epochs=30)
    for ours, theirs in zip(plain.parameters(), never.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert F.cosine_similarity(plain.mean, told.mean).min() < 1 - 1e-6
