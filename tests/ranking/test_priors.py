"""Priors on nodes against plain sums over items, and the head that joins them."""

import math

import numpy as np
import pytest
import torch

from modeling_ttds.generation_ttds import score_items
from modeling_ttds.priors_ttds import DECAYS, FEATURES, UNIFORM, TTDSPriorHead, TTDSPriors
from modeling_ttds.recommendation_ttds import pad_rows
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.ranking.priors import cross_fit_priors, fit_priors, node_choices, prior_loss
from tests.ranking.test_reranker import scores

LEVELS = 3


@pytest.fixture
def joined(model, split):
    """A model with a co-occurrence memory and a prior head that says something."""
    memory = build_cooccurrence(split.training, split.num_items)
    model.set_priors(memory, TTDSPriorHead(LEVELS).eval())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.prior_head.parameters():
            parameter.normal_(std=0.2)
    return model


def test_neighbours_are_the_dense_sums_where_they_are_not_zero(joined, split):
    memory = joined.cooccurrence
    histories = pad_rows([split.training[0], [], split.training[7][:1]], 6, torch.device("cpu"))
    items, sums = memory.neighbours(histories, DECAYS)
    dense = torch.zeros(3, len(memory.items), 3)
    for user in range(3):
        real = items[user] >= 0
        assert len(items[user, real].unique()) == real.sum() and not sums[user, ~real].any()
        dense[user, items[user, real]] = sums[user, real]
    torch.testing.assert_close(dense, scores(memory, histories, DECAYS))


def test_mass_of_a_node_is_that_of_the_items_below_it(joined, split):
    history = split.training[0].tolist()
    priors = joined.priors([history], torch.tensor([history]))
    dense = scores(joined.cooccurrence, pad_rows([history], 6, torch.device("cpu")), DECAYS)[0]
    dense[history] = 0
    dense = dense / dense.sum(0).clamp_min(1e-12)
    dense = (1 - UNIFORM) * dense + UNIFORM / len(dense)
    trie = joined.trie
    for level in range(LEVELS):
        node = trie.node_of(torch.tensor([[5]]), level)
        children, real = trie.children(node, level)
        log_probs = torch.zeros(children.shape)
        features = priors.features(log_probs, children, node, level)[0, 0]
        above = [i for i in range(len(dense)) if trie.node_of(torch.tensor([i]), level) == node]
        for place, child in enumerate(children[0, 0][real[0, 0]]):
            below = [i for i in above if trie.node_of(torch.tensor([i]), level + 1) == child]
            for column, name in enumerate(("transition", "follow", "cooccurrence")):
                expected = (dense[below, column].sum() / dense[above, column].sum()).log()
                found = features[place, FEATURES.index(name)]
                assert found.item() == pytest.approx(expected.item(), abs=1e-4)
            sizes = features[place, FEATURES.index("items")]
            assert sizes.item() == pytest.approx(math.log(len(below) / len(above)), abs=1e-5)


@torch.no_grad()
def test_scores_with_priors_are_a_probability_over_the_catalogue_and_switch_off(joined, split):
    history = [joined.catalogue[row]["item_id"] for row in split.training[0][:4]]
    every = len(joined.catalogue)
    options = {"top_k": every, "num_beams": 2 * every, "exclude_seen": False, "rerank": False}
    found = joined.recommend([history], **options)[0]
    assert sum(math.exp(r.score) for r in found) == pytest.approx(1, abs=1e-4)
    alone = joined.recommend([history], **options, memory=False)[0]
    assert sum(math.exp(r.score) for r in alone) == pytest.approx(1, abs=1e-4)
    assert [r.score for r in found] != [r.score for r in alone]
    joined.prior_head.reset()
    again = joined.recommend([history], **options)[0]
    assert [r.item_id for r in again] == [r.item_id for r in alone]


@torch.no_grad()
def test_priors_survive_a_save_and_items_that_come_and_go(joined, split, tmp_path):
    history = [joined.catalogue[row]["item_id"] for row in split.training[0][:4]]
    before = joined.recommend([history], top_k=5)
    joined.save_pretrained(tmp_path / "m")
    joined.tokenizer.save_pretrained(tmp_path / "m")
    again = type(joined).from_pretrained(tmp_path / "m").eval()
    assert again.recommend([history], top_k=5) == before
    again.add_items([{"item_id": "new", "title": "A walnut kettle"}])
    every = len(again.catalogue) - len(history)
    assert "new" in {r.item_id for r in again.recommend([history], top_k=every)[0]}
    assert again.recommend([["new"]], top_k=3)
    again.remove_items(["new"])
    for old, new in zip(before[0], again.recommend([history], top_k=5)[0], strict=True):
        assert old.item_id == new.item_id and old.score == pytest.approx(new.score, abs=1e-5)


def test_fitting_finds_what_the_priors_know(joined, split):
    joined.prior_head.reset()
    choices = node_choices(joined, split, "validation")
    users = split.users("validation")
    shown = [split.history(user, "validation").tolist() for user in users]
    targets = torch.from_numpy(split.targets("validation")[users])[:, None]
    with torch.no_grad():  # a head that adds nothing: the language model's own loss
        scores = score_items(joined, *joined.history_prompts(shown, shown), joined.trie, targets)
        expected = -scores[:, 0, -1].mean()
        torch.testing.assert_close(prior_loss(joined.prior_head, choices), expected)
        part = torch.tensor([7, 3])
        some = prior_loss(joined.prior_head, [choice[part] for choice in choices])
        torch.testing.assert_close(some, -scores[part, 0, -1].mean())
    head = fit_priors(choices, num_epochs=30)
    with torch.no_grad():
        before, after = prior_loss(joined.prior_head, choices), prior_loss(head, choices)
    assert after < before - 0.1
    again = fit_priors(choices, num_epochs=30)
    assert all(
        torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True)
    )
    _, heads = cross_fit_priors(choices, num_folds=3)
    assert len(heads) == 3 and not np.isnan([float(prior_loss(h, choices)) for h in heads]).any()


def test_a_batch_of_priors_is_what_each_alone_is(joined, split):
    histories = [split.training[0].tolist(), [], split.training[3].tolist()[:2]]
    together = joined.priors(histories, pad_rows(histories, None, torch.device("cpu")))
    nodes = torch.zeros(3, 1, dtype=torch.long)
    children, _ = joined.trie.children(nodes, 0)
    batch = together.features(torch.zeros(children.shape), children, nodes, 0)
    assert batch.isfinite().all()
    for row, history in enumerate(histories):
        excluded = pad_rows([history], None, torch.device("cpu"))
        alone = joined.priors([history], excluded)
        assert isinstance(alone, TTDSPriors)
        found = alone.features(torch.zeros(children[:1].shape), children[:1], nodes[:1], 0)
        torch.testing.assert_close(found[0], batch[row])
