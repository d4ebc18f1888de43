"""What an external baseline is handed, and that its lists hold nothing the user has had."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

from benchmarks.external_baselines import hand_over, write_histories
from benchmarks.external_worker import best_unseen, ndcg, read_histories
from recipes.data.split import Split
from recipes.data.tables import write_data
from recipes.evaluation.metrics import rank_metrics


def test_histories_come_back_as_they_were(shop, tmp_path):
    text = F.normalize(
        torch.rand(len(shop.data.catalogue), 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    write_data(shop.data, tmp_path)
    save_file({"text": text}, tmp_path / "text_embeddings.safetensors")
    split = hand_over(tmp_path, tmp_path / "handed over")
    histories = read_histories(tmp_path / "handed over")
    assert histories.users == split.users("test").tolist()
    for which in ("validation", "test"):
        before = histories.before(which)
        for user in histories.users:
            assert before[user] == split.history(user, which).tolist()
    np.testing.assert_allclose(histories.text, text, rtol=1e-6)


def test_a_user_without_targets_is_trained_on_but_not_asked(tmp_path, split):
    training = [np.array([0, 1, 2]), np.array([3, 4])]
    short = Split(split.data, training, np.array([5, -1]), np.array([6, -1]))
    write_histories(short, torch.zeros(split.num_items, 4), tmp_path)
    histories = read_histories(tmp_path)
    assert histories.users == [0]
    assert histories.before("test") == [[0, 1, 2, 5], [3, 4]]


def test_no_test_target_and_no_id_is_handed_over(split, tmp_path):
    other = Split(split.data, split.training, split.validation_targets, split.test_targets[::-1])
    for number, version in enumerate((split, other)):
        write_histories(version, torch.zeros(split.num_items, 4), tmp_path / str(number))
    files = [(tmp_path / str(number) / "histories.json").read_text() for number in (0, 1)]
    assert files[0] == files[1]
    assert set(json.loads(files[0])) == {"num_items", "training", "validation_targets"}
    assert not any(name in files[0] for name in split.data.catalogue.item_ids)


def test_a_missing_embedding_stops(shop, tmp_path):
    write_data(shop.data, tmp_path)
    text = torch.ones(len(shop.data.catalogue) - 1, 4)
    save_file({"text": text}, tmp_path / "text_embeddings.safetensors")
    with pytest.raises(ValueError, match="the catalogue needs"):
        hand_over(tmp_path, tmp_path / "handed over")
    assert not (tmp_path / "handed over").exists()


def test_lists_leave_out_the_history_and_what_cannot_be_had():
    scores = np.random.default_rng(0).random(50)
    history = scores.argsort()[::-1][:5].tolist()  # the best ones
    assert best_unseen(scores, history) == scores.argsort()[::-1][5:25].tolist()
    scores[10:] = -np.inf
    listed = best_unseen(scores, [3])
    assert set(listed) == set(range(10)) - {3}


def test_the_stopping_measure_is_ours():
    lists, targets = [[4, 1, 2], [3, 5], [*range(10), 77]], [2, 9, 77]
    assert ndcg(lists, targets) == pytest.approx(rank_metrics(lists, targets)["NDCG@10"])
