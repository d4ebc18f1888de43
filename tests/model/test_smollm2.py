"""The real SmolLM2-135M with an adapter, where TTDS_SMOLLM2 names a folder of it."""

import copy
import os

import pytest
import torch
from safetensors.torch import load_file
from trl import ModelConfig

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.tuning.arguments import TTDSTrainingArguments
from recipes.tuning.examples import Examples, collate
from recipes.tuning.trainer import TTDSTrainer
from tests.conftest import altered, build_model, build_tokenizer

FOLDER = os.environ.get("TTDS_SMOLLM2")
pytestmark = pytest.mark.skipif(not FOLDER, reason="TTDS_SMOLLM2 names no folder of SmolLM2-135M")
STEPS = 20


@torch.no_grad()
def mean_loss(model, batch):
    return model.eval()(**batch).loss.item()


def uniform_loss(model, items):
    """Return the mean loss of a model that finds all children of a node equally likely."""
    trie = model.trie
    counts = [
        trie.children(trie.node_of(items, level), level)[1].sum(-1).log()
        for level in range(trie.num_levels)
    ]
    return torch.stack(counts).mean().item()


def test_twenty_steps_teach_an_adapter_and_its_lists_come_back(split, states, options, tmp_path):
    settings = altered(options, tasks={"next_title": 0.2}, pair_dim=0)
    tokenizer = build_tokenizer(split, settings, FOLDER)
    model = build_model(split, states, tokenizer, settings, FOLDER, seed=0)
    words = model.get_input_embeddings().weight[: model.config.sid_token_start].clone()
    examples = Examples(split, states, tokenizer, settings.examples, 0)
    histories = [history[:6] for history in split.training[:8]]
    rows = [
        examples.encode_next_item(history, user, 0, 1, len(history))
        for user, history in enumerate(histories)
    ]
    targets = torch.cat([torch.tensor(history[1:]) for history in histories])
    batch = collate(rows, tokenizer.pad_token_id)
    uniform, start = uniform_loss(model, targets), mean_loss(model, batch)
    assert start < 1.05 * uniform, "none of 49,152 words stands beside a node's children"

    training = TTDSTrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, learning_rate=1e-3, head_learning_rate=1e-4,
        warmup_steps=2, per_device_train_batch_size=4, eval_strategy="no", save_strategy="no",
        load_best_model_at_end=False, use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = TTDSTrainer(
        model, training, examples=examples, split=split, refresh=settings.refresh,
        evaluation=settings.evaluation, backbone=ModelConfig(use_peft=True, lora_r=8),
    )  # fmt: skip
    trainer.tune()
    end = mean_loss(trainer.ttds, batch)
    assert end < min(start, uniform)
    trainer.model.train()
    trainer.compute_loss(trainer.model, copy.deepcopy(batch)).backward()
    gradients = {
        name: weight.grad.abs().max()
        for name, weight in trainer.model.named_parameters()
        if "lora_" in name
    }
    assert len(gradients) == 2 * 7 * 30 and min(gradients.values()) > 0

    tuned = trainer.tuned().eval()
    start_of_sids = tuned.config.sid_token_start
    assert torch.equal(tuned.get_input_embeddings().weight[:start_of_sids], words)
    assert mean_loss(tuned, batch) == pytest.approx(end, abs=1e-3), "merged as it was"
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)
    tuned.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    again = TTDSForCausalLM.from_pretrained(tmp_path / "whole")
    shown = [[tuned.catalogue[row]["item_id"] for row in history] for history in histories[:2]]
    assert again.recommend(shown) == tuned.recommend(shown)
