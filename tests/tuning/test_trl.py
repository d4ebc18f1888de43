"""TRL's own trainers on the model: the likelihood they train is the one that lists are made by."""

import types

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.model.test_generation import (
    CODES,
    ITEMS,
    LEVELS,
    SHAPES,
    START,
    exhaustive,
    make_model,
    prompts,
    spelt,
)

SETTINGS = dict(
    per_device_train_batch_size=4, max_steps=2, report_to=[], use_cpu=True, bf16=False,
    gradient_checkpointing=False, save_strategy="no", logging_steps=1, disable_tqdm=True,
    learning_rate=1e-2,
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_log_probabilities_are_those_of_items(shape):
    model, prompt = make_model(shape), prompts()[0][0]
    sids = START + torch.arange(LEVELS) * CODES + model.item_sids
    rows = torch.cat([prompt.expand(ITEMS, -1), sids], 1)
    labels = rows.clone()
    labels[:, : len(prompt)] = -100
    loss = model(input_ids=rows, labels=labels).loss
    add_fused_lm_head(model, outputs=("log_probs",))
    found = model(input_ids=rows, labels=labels, fused_lm_head=True)
    assert found.log_probs.shape == (ITEMS, rows.shape[1] - 1)
    assert torch.equal(found.label_mask, labels[:, 1:] != -100)
    assert not found.log_probs[~found.label_mask].any()
    scores = found.log_probs.sum(1)
    torch.testing.assert_close(scores, exhaustive(model, prompt), atol=1e-5, rtol=0)
    assert scores.logsumexp(0).item() == pytest.approx(0, abs=1e-5)  # they are all there is
    torch.testing.assert_close(found.loss, loss)
    assert torch.equal(
        model(input_ids=rows, labels=labels).logits, model(input_ids=rows).logits
    )  # as ever without it


@torch.no_grad()
def test_what_is_said_of_a_distribution_is_of_its_numbers():
    model, ids = make_model(), torch.tensor([[5, *spelt(3), 7, 9, *spelt(8)], [6] * 9])
    labels = ids.clone()
    labels[1, 4:] = -100
    for temperature in (1.0, 2.5):
        add_fused_lm_head(model, temperature=temperature)
        found = model(input_ids=ids, labels=labels, fused_lm_head=True)
        logits = model(input_ids=ids).logits / temperature
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        words = model.token_logits(hidden) / temperature
        for row, place in found.label_mask.nonzero().tolist():
            here, label = logits[row, place], int(ids[row, place + 1])
            if label >= START:  # a code: one of those that lead on
                items, level = model.item_sids, (label - START) // CODES
                offsets = START + CODES * torch.arange(level)
                before = ids[row, place + 1 - level : place + 1] - offsets
                codes = items[(items[:, :level] == before).all(1), level].unique()
                tokens = START + CODES * level + codes
            else:  # a word: the head alone, over the whole vocabulary
                here, tokens = words[row, place], torch.arange(len(here))
            p = here[tokens].softmax(0)
            of_label = p[tokens == label][0]
            expected = {
                "log_probs": of_label.log(), "entropy": -(p * p.log()).sum(),
                "log_sum_sq_probs": (p**2).sum().log(), "mean_logits": here[tokens].mean(),
                "is_top1": of_label == p.max(),
            }  # fmt: skip
            for name, value in expected.items():
                assert found[name][row, place].item() == pytest.approx(value.item(), abs=1e-5)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    same = model(input_ids=ids, shift_labels=shifted, fused_lm_head=True, num_items_in_batch=4)
    assert same.log_probs.shape == ids.shape
    assert torch.equal(same.log_probs[:, :-1], found.log_probs) and not same.log_probs[:, -1].any()
    torch.testing.assert_close(same.loss, -found.log_probs.sum() / 4)


def test_a_batch_without_labels_has_a_gradient_of_zero():
    model = make_model()
    add_fused_lm_head(model)
    ids = torch.tensor([spelt(3)])
    found = model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True)
    found.loss.backward()
    assert found.loss == 0 and not model.get_input_embeddings().weight.grad.any()


def test_another_head_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="`fused_lm_head` is true without `labels`"):
        model(input_ids=torch.tensor([spelt(3)]), fused_lm_head=True)

    def forward(self, input_ids):
        return self.get_output_embeddings()(self.model(input_ids).last_hidden_state)

    with pytest.raises(ValueError, match="misses node logits; train by `TTDSTrainer`"):
        model.forward = types.MethodType(forward, model)


@pytest.fixture
def text(model):
    """Return a function that writes an item as its SID tokens."""
    tokenizer = model.tokenizer
    return lambda row: "".join(
        tokenizer.convert_ids_to_tokens(tokenizer.encode_items([model.catalogue[row]["item_id"]]))
    )


def moved(model, train):
    """Train; return by how much the weights of the node head moved."""
    before = [value.detach().clone() for value in model.node_head.parameters()]
    train()
    after = model.node_head.parameters()
    return max((a - b).abs().max().item() for a, b in zip(after, before, strict=True))


def test_supervised_tuning(model, text, tmp_path):
    rows = [{"prompt": text(n) + text(n + 1), "completion": text(n + 2)} for n in range(8)]
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), **SETTINGS),
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    expected = model(**batch).loss
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)
    assert moved(model, trainer.train) > 1e-3


def test_preference_tuning(model, text, tmp_path):
    rows = [{"prompt": text(n), "chosen": text(n + 2), "rejected": text(n + 9)} for n in range(8)]
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path), **SETTINGS),
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    assert moved(model, trainer.train) > 1e-3
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=0.05) and losses[1] < losses[0]


def test_policy_gradient(model, text, tmp_path):
    rows = Dataset.from_list([{"prompt": text(n)} for n in range(8)])
    settings = SETTINGS | {"per_device_train_batch_size": 8, "num_generations": 4}
    tower, start = model.config.item_tower, model.config.sid_token_start
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completion_ids, **_: [
            float(ids[0] - start < tower.num_codes / 2) for ids in completion_ids
        ],
        args=GRPOConfig(
            str(tmp_path), **settings, max_completion_length=3, temperature=1.5, use_vllm=False
        ),
        train_dataset=rows,
        processing_class=model.tokenizer,
    )
    assert model.fused_temperature == 1.5
    assert moved(model, trainer.train) > 1e-3
