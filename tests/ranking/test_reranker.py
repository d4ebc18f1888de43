"""Co-occurrence memory and re-ranker against plain Python on tiny histories, and inside a model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_ttds.cooccurrence_ttds import TTDSCooccurrence, TTDSNeighbours
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.nodes_ttds import TTDSNodeTable
from modeling_ttds.reranker_ttds import (
    FEATURES,
    MODEL_FEATURES,
    TTDSRecall,
    TTDSReranker,
    generated_scores,
)
from modeling_ttds.trie_ttds import TTDSCandidates, TTDSTrie
from recipes.config import RerankerOptions
from recipes.evaluation.report import GENERATED, TTDS
from recipes.index.embeddings import hashed
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.ranking.reranker import RankedUsers, cross_fit, fit_reranker, join, without_model

HISTORIES = [np.array(h) for h in ([0, 1, 2], [0, 1], [3, 1], [2])]
ITEMS = 5


def plain_scores(history, decays):
    """Recompute the three statistics with loops."""
    forward, follow = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    together = np.zeros((ITEMS, ITEMS))
    for items in HISTORIES:
        for i, first in enumerate(items):
            for lag, second in enumerate(items[i + 1 :], start=1):
                forward[first, second] += 0.6 ** (lag - 1)
                follow[first, second] += lag == 1
            together[first, items] += 1
    transition = forward + forward.T / 2
    transition /= np.sqrt(np.maximum(transition.sum(1, keepdims=True), 1e-12))
    follow /= np.sqrt(np.maximum(follow.sum(1, keepdims=True), 1))
    buyers = np.maximum(together.diagonal(), 1)
    cosine = together / np.sqrt(np.outer(buyers, buyers)) * (1 - np.eye(ITEMS))
    weights = [np.power(decay, np.arange(len(history))[::-1]) for decay in decays]
    parts = zip((transition, follow, cosine), weights, strict=True)
    return np.stack([w @ matrix[history] for matrix, w in parts], axis=-1)


def scores(memory, histories, decays):
    """Return the sums of every item, (batch, num_items, num_statistics)."""
    found = TTDSNeighbours(memory, histories)
    every = torch.arange(len(memory.items)).expand(len(histories), -1)
    return found.at(every, found.sums(decays))


def test_scores_equal_plain_loops():
    cooccurrence = build_cooccurrence(HISTORIES, ITEMS)
    decays = (0.5, 0.0, 0.8)
    found = scores(cooccurrence, torch.tensor([[0, 1], [-1, 2], [-1, -1]]), decays)
    np.testing.assert_allclose(found[0], plain_scores([0, 1], decays), atol=1e-6)
    np.testing.assert_allclose(found[1], plain_scores([2], decays), atol=1e-6)
    assert not found[2].any()
    assert cooccurrence.popularity.tolist() == [2, 3, 2, 1, 0]
    row = plain_scores([1], (1, 1, 1))[:, 0].sum()
    assert cooccurrence.totals(torch.tensor([1, 4])).tolist() == pytest.approx([row, 0])


def test_strongest_equal_plain_loops():
    cooccurrence = build_cooccurrence(HISTORIES, ITEMS)
    found = TTDSNeighbours(cooccurrence, torch.tensor([[-1, 0, 2], [-1, -1, -1]]))
    every = torch.arange(ITEMS).expand(2, -1)
    strongest, links = found.at(every, found.strongest(newest=3)).unbind(-1)
    single = np.stack([plain_scores([item], (1, 1, 1))[:, 0] for item in (0, 2)])
    np.testing.assert_allclose(strongest[0], single.max(0), atol=1e-6)
    assert links[0].tolist() == (single > 0).sum(0).tolist()
    assert not strongest[1].any() and not links[1].any()


def test_what_the_memory_knows_of_time():
    day = 86400.0
    timestamps = [np.array([0, 0, 240.0]) * day, np.array([120, np.nan]) * day]
    timestamps += [np.array([240.0, 240]) * day, np.array([np.nan])]
    cooccurrence = build_cooccurrence(HISTORIES, ITEMS, timestamps=timestamps)
    popularity, late, recent, era = cooccurrence.items.T
    # [0, 1, 2], [0, 1], [3, 1], [2]: the newest item of a history counts 1, the one before 1/2.
    torch.testing.assert_close(late, torch.tensor([0.75, 2.5, 2.0, 0.5, 0.0]))
    # Ages in days of what has a timestamp: 0: 240, 120; 1: 240, 0; 2: 0; 3: 0. Half-life: 120.
    torch.testing.assert_close(recent, torch.tensor([0.75, 1.25, 1.0, 1.0, 0.0]))
    average = 100.0
    ages = torch.tensor([360 + 3 * average, 240 + 3 * average, 300, 300, 300])
    torch.testing.assert_close(era, -ages / torch.tensor([5.0, 5, 4, 4, 3]) / 365)
    assert not build_cooccurrence(HISTORIES, ITEMS).items[:, 2:].any(), (
        "without timestamps nothing is known"
    )
    cooccurrence.extend(1)
    assert not cooccurrence.items[-1].any(), "a new item is of the newest day"


def test_rare_pairs_are_dropped():
    cooccurrence = build_cooccurrence(HISTORIES, ITEMS, min_pair_users=2)
    pairs = {
        (first, int(other))
        for first in range(ITEMS)
        for other in cooccurrence.others[
            cooccurrence.starts[first] : cooccurrence.starts[first + 1]
        ]
    }
    assert pairs == {(0, 1), (1, 0)}, "only 0 and 1 have two users in common"


def test_new_and_removed_items():
    cooccurrence = build_cooccurrence(HISTORIES, ITEMS)
    histories, decays = torch.tensor([[0, 1]]), (0.5, 0.0, 0.8)
    before = scores(cooccurrence, histories, decays)
    cooccurrence.extend(2)
    after = scores(cooccurrence, histories, decays)
    torch.testing.assert_close(after[:, :ITEMS], before)
    assert not after[:, ITEMS:].any()
    keep = torch.ones(ITEMS + 2, dtype=torch.bool)
    keep[2] = False
    cooccurrence.keep(keep)
    torch.testing.assert_close(scores(cooccurrence, histories, decays), after[:, keep])


def recall_of(memory, text, collaborative, labels, histories, excluded=(), number=ITEMS):
    """Return what is known after histories over a trie of arbitrary semantic IDs."""
    trie = TTDSTrie.build(torch.arange(len(text))[:, None] // torch.tensor([[2, 1]]))
    excluded = torch.tensor([list(excluded)] * len(histories), dtype=torch.long)
    table = TTDSNodeTable.build(trie, (text, collaborative), torch.zeros(0, 0))
    allowed = TTDSCandidates(trie, None, excluded)
    return TTDSRecall(memory, text, collaborative, labels, histories, allowed, table, number)


def recall(histories, excluded=(), num_items=ITEMS):
    torch.manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(num_items, 6), dim=-1)
    labels = torch.tensor([[0, 0], [0, 1], [1, 1], [-1, -1], [-1, -1]])
    memory = build_cooccurrence(HISTORIES, num_items)
    return recall_of(memory, text, text, labels, torch.tensor(histories), excluded)


def test_features_are_finite_for_empty_histories_and_cold_items():
    items = torch.tensor([[0, 4], [3, 4]])
    features = recall([[-1, -1], [0, 1]]).features(items, torch.zeros(2, 2, 3), torch.zeros(2, 2))
    assert features.shape == (2, 2, len(FEATURES)) and features.isfinite().all()
    named = dict(zip(FEATURES, features[1].T.tolist(), strict=True))
    assert named["brand"] == [0, 0] and named["log_popularity"][1] == 0
    same = recall([[-1, 0]]).features(torch.tensor([[1, 2]]), None, None)[0]
    assert same[:, FEATURES.index("brand")].tolist() == [1, 0]
    assert not same[:, [FEATURES.index(name) for name in MODEL_FEATURES]].any()


def test_a_candidate_is_told_what_it_was_generated_with_and_another_less_than_any_beam():
    items = torch.tensor([[4, 2, 0, 7, -1], [4, 2, 0, 7, 1]])
    beams = torch.tensor([[7, 0, 4], [3, -1, -1]])
    scores = torch.tensor([[-0.5, -1.5, -3.0], [-2.0, -torch.inf, -torch.inf]])
    found = generated_scores(items, beams, scores)
    assert found.tolist() == [[-3, -4, -1.5, -0.5, -4], [-3] * 5]
    features = recall([[0, 1]]).features(items[:1, 1:3], None, found[:1, 1:3])[0]
    assert features[:, FEATURES.index("generated_gap")].tolist() == [-2.5, 0]
    assert generated_scores(items, beams[:, :0], scores[:, :0]).tolist() == [[0] * 5] * 2


def test_what_is_said_of_an_item_does_not_depend_on_forbidden_ones():
    with_it = recall([[0, 1]], excluded=[2])
    assert 2 not in with_it.candidates()[0].tolist()
    every = torch.arange(ITEMS)[None]
    assert with_it.counts(every)[0, 2] == 0
    assert with_it.text(every)[0].sum() == pytest.approx(1)


def test_gate_learns_a_planted_signal_and_not_from_others():
    torch.manual_seed(0)
    items = torch.arange(6).expand(900, 6).clone()
    items[:, 5] = -1
    features = torch.randn(900, 6, len(FEATURES))
    lm = FEATURES.index("lm")
    target = features[:, :5, lm].argmax(1)
    users = RankedUsers(items, features, target)
    lists = cross_fit(users, num_folds=4, num_epochs=20, batch_size=40)
    assert (lists[:, 0] == target).float().mean() > 0.9
    assert (lists[:, 4] >= 0).all() and (lists[:, 5:] == -1).all()
    blind = cross_fit(without_model(users, 1), num_epochs=20, batch_size=40)
    assert (blind[:, 0] == target).float().mean() < 0.4


def test_gate_fitted_with_new_items_finds_a_new_target_by_its_text():
    torch.manual_seed(0)
    items = torch.arange(8).expand(400, 8)
    features = torch.randn(400, 8, len(FEATURES)) - 8  # logs of small counts
    column = {name: number for number, name in enumerate(FEATURES)}
    target = torch.randint(0, 8, (400,))
    hit = torch.arange(8) == target[:, None]
    for name, noise in (("log_counts", 0.1), ("text", 0.5)):  # counts tell better than text
        features[..., column[name]] = (hit + noise * torch.randn(400, 8)).abs()
    features[..., column["log_popularity"]] = 1 + torch.rand(400, 8)
    forgotten = features.clone()  # as if nobody had chosen the targets
    for name, nothing in (("log_counts", -9.0), ("log_popularity", 0.0)):
        forgotten[..., column[name]] = features[..., column[name]].where(~hit, nothing)
    users, new = (RankedUsers(items, part, target) for part in (features, forgotten))

    def found(rate, seen):
        reranker = fit_reranker(
            users, new[:300], num_epochs=40, batch_size=16, cold_item_dropout=rate
        )
        return (reranker(seen.features).argmax(1) == target).float().mean()

    assert found(0.0, users) > 0.95 and found(0.2, users) > 0.95
    assert found(0.2, new) > 0.5 > 2 * found(0.0, new)


def test_fit_is_the_same_for_a_seed():
    torch.manual_seed(0)
    items, features = torch.arange(4).expand(50, 4), torch.randn(50, 4, len(FEATURES))
    users = RankedUsers(items, features, torch.randint(-1, 4, (50,)))
    first, second = (fit_reranker(users, num_epochs=2, seed=3) for _ in range(2))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_finished_fit_is_not_made_again(tmp_path):
    torch.manual_seed(0)
    items, features = torch.arange(4).expand(50, 4), torch.randn(50, 4, len(FEATURES))
    target = torch.randint(-1, 4, (50,))
    users = RankedUsers(items, features, target)
    fit = {"num_epochs": 2, "folder": tmp_path}
    fitted = fit_reranker(users, **fit)
    (file,) = tmp_path.iterdir()
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            fitted.state_dict().values(),
            fit_reranker(users, num_epochs=2).state_dict().values(),
            strict=True,
        )
    )
    marked = torch.full_like(load_file(file)["reranker"], 0.5)  # nothing a fit would come to
    save_file({"reranker": marked}, file, metadata={"hash": hashed(marked)})
    taken = fit_reranker(users, **fit)
    assert all((tensor == 0.5).all() for tensor in taken.state_dict().values())
    for changed in ((items, features + 1, target), (items, features, target.roll(1))):
        assert (fit_reranker(RankedUsers(*changed), **fit).layers[0].weight != 0.5).any()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def ranking(model, split):
    """A model with a co-occurrence memory and re-ranker that nothing was fitted for."""
    torch.manual_seed(0)
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    return model


def test_reranked_lists_are_legal_and_survive_a_save(ranking, tmp_path):
    history = [ranking.catalogue[row]["item_id"] for row in (3, 9, 12)]
    lists = ranking.recommend([history, []], top_k=10)
    for found in lists:
        assert len({r.item_id for r in found}) == 10
        assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert not set(history) & {r.item_id for r in lists[0]}
    assert lists != ranking.recommend([history, []], top_k=10, rerank=False)
    ranking.save_pretrained(tmp_path / "m")
    ranking.tokenizer.save_pretrained(tmp_path / "m")
    again = TTDSForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert again.recommend([history, []], top_k=10) == lists


def test_reranked_lists_over_old_items_stay_when_items_come_and_go(ranking):
    old = [entry["item_id"] for entry in ranking.catalogue]
    before = ranking.recommend([old[:3]], top_k=10, allowed=old, num_beams=80)
    ranking.add_items([{"item_id": "new", "title": "A walnut kettle"}])
    after = ranking.recommend([old[:3]], top_k=10, allowed=old, num_beams=80)
    assert [r.item_id for r in after[0]] == [r.item_id for r in before[0]]
    found = ranking.recommend([["new"]], top_k=len(old), num_beams=len(old))[0]
    assert len(found) == len(old)
    few = ranking.recommend([old[:3]], top_k=10, allowed=old[:5])[0]
    assert {r.item_id for r in few} == set(old[3:5])
    ranking.remove_items(["new", old[4]])
    assert old[4] not in {r.item_id for r in ranking.recommend([old[:3]], top_k=60)[0]}


def test_explanations_add_up_to_the_scores(ranking):
    ids = [entry["item_id"] for entry in ranking.catalogue]
    history = ids[3:6]
    found = ranking.recommend([history], top_k=10, rerank=False)[0]
    reasons = ranking.explain(history, [r.item_id for r in found])
    for expected, reason in zip(found, reasons, strict=True):
        assert reason.item_id == expected.item_id
        assert sum(map(math.log, reason.steps)) == pytest.approx(expected.score, abs=1e-4)
    past = torch.tensor([[row] for row in (3, 4, 5)])
    counts = scores(ranking.cooccurrence, past, (1.0, 1.0, 1.0))[..., 0]  # (history, num_items)
    for item, reason in zip(ids, ranking.explain(history, ids), strict=True):
        column = counts[:, ranking.row_of[item]]
        assert reason.follows == (history[column.argmax()] if column.any() else None)
    assert [reason.resembles for reason in ranking.explain(history, history)] == history
    alone = ranking.explain([], ids[:2])
    assert [(reason.follows, reason.resembles) for reason in alone] == [(None, None)] * 2
    assert ranking.explain(history, []) == []


def test_memory_of_a_plain_model_is_empty():
    assert scores(TTDSCooccurrence(3, 0), torch.tensor([[0, 1]]), (1.0, 1.0, 1.0)).sum() == 0


@pytest.mark.parametrize("seed", [4, 10])  # better with a re-ranker by .073, and without by .093
def test_a_reranker_that_makes_lists_worse_is_left_out(model, split, seed):
    draw, targets = np.random.default_rng(seed), np.full_like(split.validation_targets, -1)
    for user in split.users("validation")[:40]:  # chance alone: nothing can be learnt
        unseen = np.setdiff1d(range(split.num_items), split.history(user, "validation"))
        targets[user] = draw.choice(unseen)
    some = replace(split, validation_targets=targets)
    options = RerankerOptions(cold_item_dropout=0)
    rows, lists = join(model, model, some, options, num_beams=20, seed=0)
    both, written = rows["validation"][TTDS], rows["validation"][GENERATED]
    kept = both.get("reranked_NDCG@10", both["NDCG@10"]) >= written["NDCG@10"]
    assert model.config.has_reranker == kept == ("reranked_NDCG@10" not in both) == (seed == 4)
    assert (lists[TTDS] == lists[GENERATED]) == (not kept)
    generated, ours = rows["test"][GENERATED], rows["test"][TTDS]
    assert (generated.items() <= ours.items()) == ("reranked_HR@10" in ours) == (not kept)
    asked = [some.history(user, "test").tolist() for user in some.users("test")]
    found = model.recommend_rows(asked, 10, num_beams=20, exclude_seen=some.exclude_seen)
    assert [[row for row, _ in pairs] for pairs in found] == [rows[:10] for rows in lists[TTDS]]
