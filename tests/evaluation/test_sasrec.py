"""SASRec: causality, the loss against a plain loop, a cycle learnt, seeds."""

import numpy as np
import pytest
import torch

from recipes.evaluation.baselines.sasrec import (
    SASRec,
    SASRecSettings,
    _validation_ndcg,
    fit_sasrec,
    rank_sasrec,
)
from recipes.evaluation.metrics import evaluate_run

SMALL = SASRecSettings(
    hidden_size=16, num_layers=1, dropout=0.0, max_history=8, learning_rate=1e-2, batch_size=32
)


@torch.no_grad()
def test_a_later_item_changes_nothing_before_it():
    torch.manual_seed(0)
    model = SASRec(30, SASRecSettings(hidden_size=16, max_history=8)).eval()
    items = torch.randint(30, (3, 8))
    changed = items.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 30
    before, after = model.logits(model(items)), model.logits(model(changed))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(1, 2)).min() > 1e-3


@torch.no_grad()
def test_loss_equals_a_loop_over_histories_without_padding():
    torch.manual_seed(0)
    model = SASRec(30, SMALL).eval()
    histories = [torch.randint(30, (length,)) for length in (2, 9, 5)]
    losses = []
    for history in histories:
        for end in range(1, len(history)):
            logits = model.logits(model(history[None, :end])[0, -1])
            losses.append(-logits.log_softmax(-1)[history[end]])
    padded = torch.nn.utils.rnn.pad_sequence(histories, batch_first=True)
    found = model.loss(padded, torch.tensor([2, 9, 5]))
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_learns_a_cycle_and_the_seed_decides(cycle):
    model, epoch = fit_sasrec(cycle, SMALL, seed=0)
    lists = rank_sasrec(model, cycle, "test", 10)
    assert evaluate_run(cycle, "test", lists.tolist())["HR@1"] > 0.98
    again, _ = fit_sasrec(cycle, SMALL, seed=0, stop_after=epoch)
    np.testing.assert_array_equal(rank_sasrec(again, cycle, "test", 10), lists)
    other, _ = fit_sasrec(cycle, SMALL, seed=1)
    assert (rank_sasrec(other, cycle, "test", 10) != lists).any()


def test_stops_by_the_ndcg_of_its_lists(split):
    torch.manual_seed(0)
    model = SASRec(split.num_items, SMALL)
    lists = rank_sasrec(model, split, "validation", 10).tolist()
    expected = evaluate_run(split, "validation", lists)["NDCG@10"]
    assert _validation_ndcg(model, split) == pytest.approx(expected, abs=1e-6)
