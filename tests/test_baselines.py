"""Baselines against plain loops, and against published counts where the data is at hand."""

import numpy as np
import pytest
from conftest import SHARED

from recipes import baselines
from recipes.data import read_data, split_data
from recipes.metrics import evaluate_run


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
    found = baselines.transition_matrix(split.training, n).toarray()
    np.testing.assert_allclose(found, matrix)
    user = split.users("test")[3]
    history = split.history(user, "test")
    scores = sum(0.5**back * matrix[item] for back, item in enumerate(history[::-1]))
    scores = scores + split.training_counts / split.training_counts.max() * 1e-6
    scores[history] = -np.inf
    expected = np.argsort(-scores, kind="stable")[:5]
    assert baselines.transitions(split, "test", 5)[3].tolist() == expected.tolist()


def test_popularity_ranks_by_training_counts_without_the_history(split):
    lists = baselines.popularity(split, "test", 10)
    for user, items in zip(split.users("test"), lists, strict=True):
        assert not set(items) & set(split.history(user, "test"))
        counts = split.training_counts[items]
        assert (np.diff(counts) <= 0).all()


def test_item_knn_finds_the_item_with_the_same_buyers():
    from recipes.data import Catalogue, Data, Split

    training = [np.array(h) for h in ([0, 1], [0, 1], [2, 3], [2, 3], [0, 2])]
    fields = {name: [""] * 4 for name in ("title", "brand", "categories", "description", "price")}
    data = Data(Catalogue(list("abcd"), fields), list("uvwxy"), training)
    split = Split(data, training, np.full(5, -1), np.array([-1, -1, -1, -1, 1]))
    # User 4 holds 0 and 2; buyers of 1 are two of the three of 0, of 3 two of the three of 2.
    assert set(baselines.item_knn(split, "test", 2)[0]) == {1, 3}


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="../shared/data is not here")
def test_counts_on_scientific_as_measured_elsewhere():
    split = split_data(read_data(str(SHARED / "data" / "scientific")))
    result = evaluate_run(split, "test", baselines.transitions(split, "test", 20).tolist())
    assert round(result["HR@10"], 3) == 0.149 and round(result["NDCG@10"], 3) == 0.102
