"""Baselines against plain loops, and against published counts where the data is at hand."""

from dataclasses import replace

import numpy as np
import pytest

from recipes.data.split import Split, split_data
from recipes.data.tables import Catalogue, Data, read_data
from recipes.evaluation.baselines.ease import ease, ease_weights
from recipes.evaluation.baselines.markov import (
    markov_chain,
    markov_chain_and_text,
    transition_matrix,
)
from recipes.evaluation.baselines.neighbours import item_knn
from recipes.evaluation.baselines.popularity import popularity
from recipes.evaluation.baselines.rank import rank
from recipes.evaluation.metrics import evaluate_run
from tests.conftest import SHARED


def test_transitions_equal_a_plain_loop(split):
    n = split.num_items
    forward = np.zeros((n, n))
    for history in split.training:
        for i, before in enumerate(history):
            for lag in range(1, 6):
                if i + lag < len(history):
                    forward[before, history[i + lag]] += 0.6 ** (lag - 1)
    matrix = forward + forward.T / 2
    matrix /= np.sqrt(np.maximum(matrix.sum(1, keepdims=True), 1e-12))
    found = transition_matrix(split.training, n).toarray()
    np.testing.assert_allclose(found, matrix)
    user = split.users("test")[3]
    history = split.history(user, "test")
    scores = sum(0.5**back * matrix[item] for back, item in enumerate(history[::-1]))
    scores = scores + split.training_counts / split.training_counts.max() * 1e-6
    scores[history] = -np.inf
    expected = np.argsort(-scores, kind="stable")[:5]
    assert markov_chain(split, "test", 5)[3].tolist() == expected.tolist()


def test_popularity_ranks_by_training_counts_without_the_history(split):
    lists = popularity(split, "test", 10)
    for user, items in zip(split.users("test"), lists, strict=True):
        assert not set(items) & set(split.history(user, "test"))
        counts = split.training_counts[items]
        assert (np.diff(counts) <= 0).all()


def test_item_knn_finds_the_item_with_the_same_buyers():
    training = [np.array(h) for h in ([0, 1], [0, 1], [2, 3], [2, 3], [0, 2])]
    fields = {name: [""] * 4 for name in ("title", "brand", "categories", "description", "price")}
    data = Data(Catalogue(list("abcd"), fields), list("uvwxy"), training)
    split = Split(data, training, np.full(5, -1), np.array([-1, -1, -1, -1, 1]))
    # User 4 holds 0 and 2; buyers of 1 are two of the three of 0, of 3 two of the three of 2.
    assert set(item_knn(split, "test", 2)[0]) == {1, 3}


def test_ease_weights_equal_the_definition(split):
    touched = np.zeros((len(split.training), split.num_items))
    for user, history in enumerate(split.training):
        touched[user, history] = 1
    inverse = np.linalg.inv(touched.T @ touched + 30 * np.eye(split.num_items))
    expected = np.eye(split.num_items) - inverse / inverse.diagonal()
    found = ease_weights(split, 30)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.diagonal() == 0).all()
    user = split.users("test")[3]
    history = split.history(user, "test")
    scores = sum(0.5**back * expected[item] for back, item in enumerate(history[::-1]))
    scores[history] = -np.inf
    lists = ease(split, "test", 5, l2=30, decay=0.5)
    np.testing.assert_allclose(scores[lists[3]], np.sort(scores)[::-1][:5], atol=1e-5)


def test_ease_weights_over_several_blocks(split, monkeypatch):
    whole = ease_weights.__wrapped__(split, 30)
    monkeypatch.setattr("recipes.evaluation.baselines.ease.CHUNK", 17)
    np.testing.assert_array_equal(ease_weights.__wrapped__(split, 30), whole)


def test_rank_puts_the_first_of_equal_scores_first(split):
    values = np.random.default_rng(0).integers(0, 4, split.num_items).astype(float)
    lists = rank(split, "test", 20, lambda users: np.tile(values, (len(users), 1)))
    for user, found in zip(split.users("test"), lists, strict=True):
        scores = values.copy()
        scores[split.history(user, "test")] = -np.inf
        assert found.tolist() == np.argsort(-scores, kind="stable")[:20].tolist()


def test_no_list_shows_the_history_however_few_the_items_are():
    training = [np.array(h) for h in ([0, 1, 2], [2, 1, 3])]
    fields = {name: [""] * 4 for name in ("title", "brand", "categories", "description", "price")}
    data = Data(Catalogue(list("abcd"), fields), ["u", "v"], training)
    split = Split(data, training, np.full(2, -1), np.array([1, 0]))
    lists = popularity(split, "test", 4).tolist()
    assert lists == [[3, -1, -1, -1], [0, -1, -1, -1]]
    found = evaluate_run(split, "test", lists)
    assert found["HR@10"] == 0.5, "item 1 is in the history of u"
    assert found["coverage@10"] == 0.5
    open_split = replace(split, exclude_seen=False)
    assert popularity(open_split, "test", 4).tolist() == [[1, 2, 0, 3]] * 2


def test_counts_and_text_without_text_are_the_counts(split):
    text = np.random.default_rng(0).normal(size=(split.num_items, 8)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    settings = {"decay": 0.7, "reverse": 1.0}
    counts = markov_chain(split, "test", 10, **settings)
    both = markov_chain_and_text(split, "test", 10, text, weight=0.0, **settings)
    np.testing.assert_array_equal(both, counts)
    # At a high weight, what is nearest to the history's text comes first.
    near = markov_chain_and_text(split, "test", 1, text, weight=1e6, temperature=0.05)
    history = split.history(split.users("test")[0], "test")
    likeness = text @ sum(0.6**back * text[item] for back, item in enumerate(history[::-1]))
    likeness[history] = -np.inf
    assert near[0, 0] == likeness.argmax()


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="../shared/data is not here")
def test_counts_on_scientific_as_measured_elsewhere():
    split = split_data(read_data(str(SHARED / "data" / "scientific")))
    result = evaluate_run(split, "test", markov_chain(split, "test", 20).tolist())
    assert round(result["HR@10"], 3) == 0.149 and round(result["NDCG@10"], 3) == 0.102
