"""The bilinear similarity: where it starts, a rotation learnt, seeds."""

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from recipes.evaluation.baselines.bilinear import (
    BilinearSettings,
    BilinearSimilarity,
    fit_bilinear,
    rank_bilinear,
)
from recipes.evaluation.metrics import evaluate_run


def test_it_starts_from_cosine_similarity_to_the_profiles():
    torch.manual_seed(0)
    text, collaborative = (
        F.normalize(torch.randn(9, 4), dim=-1),
        F.normalize(torch.randn(9, 3), dim=-1),
    )
    model = BilinearSimilarity([text, collaborative], BilinearSettings(scale=6.0, max_history=2))
    found = model.logits([np.array([8, 1, 4]), np.array([7])])
    expected = torch.zeros(2, 9)
    for table in (text, collaborative):
        for decay in (0.9, 0.6, 0.0):  # of the first history only the newest two are read
            profile = F.normalize(decay * table[1] + table[4], dim=0)
            expected[0] += 2 * table @ profile
            expected[1] += 2 * table @ table[7]
    torch.testing.assert_close(found, expected)


def test_learns_what_follows_what_and_the_seed_decides(cycle):
    tables = [torch.eye(20)]
    settings = BilinearSettings(learning_rate=0.1, batch_size=32)

    def lists(model):
        return rank_bilinear(model, cycle, "test", 5)

    assert (
        evaluate_run(cycle, "test", lists(BilinearSimilarity(tables, settings)).tolist())["HR@1"]
        < 0.5
    )
    model, epoch = fit_bilinear(cycle, tables, settings, seed=0)
    fitted = lists(model)
    assert evaluate_run(cycle, "test", fitted.tolist())["HR@1"] > 0.98
    again, _ = fit_bilinear(cycle, tables, settings, seed=0, stop_after=epoch)
    assert torch.equal(again.weight, model.weight)
    other, _ = fit_bilinear(cycle, tables, settings, seed=1)
    assert not torch.equal(other.weight, model.weight)
