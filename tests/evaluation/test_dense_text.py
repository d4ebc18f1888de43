"""The dense text retriever: a loss of known value, a cycle of words, items without a history."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from recipes.data.tables import Catalogue
from recipes.evaluation.baselines.dense_text import (
    DenseText,
    DenseTextSettings,
    fit_dense_text,
    rank_dense_text,
)
from recipes.evaluation.metrics import evaluate_run

SMALL = DenseTextSettings(
    max_history=3, history_tokens=12, item_tokens=6, learning_rate=3e-3, batch_size=32, num_epochs=8
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT that starts from nothing and knows twenty words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *(f"word{i}" for i in range(20))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def told(cycle):
    """The circle of items, each with a word of its own for a title."""
    catalogue = cycle.data.catalogue
    fields = catalogue.fields | {"title": [f"word{row}" for row in range(20)]}
    return replace(cycle, data=replace(cycle.data, catalogue=Catalogue(catalogue.item_ids, fields)))


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_among_the_items_of_the_batch(encoder, told):
    model = DenseText(encoder, SMALL).eval()
    texts = told.data.catalogue.texts()
    histories, targets = [np.array([1, 2]), np.array([3]), np.array([7, 8, 9, 10])], [4, 9, 4]
    found = model.loss(texts, histories, targets)
    items = torch.cat([model.of_items([texts[row]]) for row in (4, 9)])
    assert torch.allclose(items.norm(dim=1), torch.ones(2))
    expected = 0
    for history, place in zip(histories, (0, 1, 0), strict=True):
        newest = ". ".join(texts[row] for row in history[::-1][:3])
        logits = model([newest], 12)[0] @ items.T / SMALL.temperature
        expected -= logits.log_softmax(-1)[place] / 3
    torch.testing.assert_close(found, expected)


def test_learns_a_cycle_and_the_seed_decides(encoder, told):
    model, epoch = fit_dense_text(told, encoder, SMALL, seed=0)
    lists = rank_dense_text(model, told, "test", 10)
    assert evaluate_run(told, "test", lists.tolist())["HR@1"] > 0.9
    again, _ = fit_dense_text(told, encoder, SMALL, seed=0, stop_after=epoch)
    assert (rank_dense_text(again, told, "test", 10) == lists).all()
    model = DenseText(encoder, SMALL)
    untuned = rank_dense_text(model, told, "test", 10).tolist()
    assert evaluate_run(told, "test", untuned)["HR@1"] < 0.5
