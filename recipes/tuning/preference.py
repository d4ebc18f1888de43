"""Preference tuning: the next item against hard negatives of the model's own beams."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence
from trl import DPOConfig, DPOTrainer

from modeling_ttds.generation_ttds import score_items
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.data.split import Split

# From easy to hard: any item, the beams of the lower ranks, those of the first ones.
STAGES = ("random", "low", "top")
NUM_BEAMS = 50


@dataclass(frozen=True)
class Moment:
    """A moment of a training history.

    Args:
        user: Whose history it is.
        position: How many items the user has chosen by then; the next one is the target.
    """

    user: int
    position: int


def draw_moments(split: Split, per_user: int, draw: np.random.Generator) -> list[Moment]:
    """Draw moments of the training histories of every user that has one.

    Args:
        split: The split.
        per_user: How many of a user, all if there are fewer.
        draw: Draws them.
    """
    return [
        Moment(user, int(position))
        for user, history in enumerate(split.training)
        if len(history) > 1
        for position in sorted(
            1 + draw.choice(len(history) - 1, min(per_user, len(history) - 1), replace=False)
        )
    ]


def choose_negatives(
    model: TTDSForCausalLM,
    split: Split,
    moments: Sequence[Moment],
    stage: str,
    count: int,
    draw: np.random.Generator,
) -> list[list[int]]:
    """Return item rows that moments are told apart from, none of which their user chose.

    Only training histories tell what a user chose: held-out targets are not looked at.

    Args:
        model: The model, whose beams they are.
        split: The split.
        moments: The moments.
        stage: One of `STAGES`.
        count: How many a moment.
        draw: Draws them, and those that the beams are short of.
    """
    beams: list[list[int]] = [[] for _ in moments]
    if stage != "random":
        allowed = torch.arange(len(model.item_sids), device=model.device) < split.num_items
        histories = [split.training[m.user][: m.position].tolist() for m in moments]
        number = min(NUM_BEAMS, split.num_items)
        found = model.recommend_rows(
            histories, number, allowed=allowed, num_beams=number, rerank=False, memory=False
        )
        beams = [[row for row, _ in pairs] for pairs in found]
    chosen = []
    for moment, rows in zip(moments, beams, strict=True):
        taken = set(split.training[moment.user].tolist())
        rows = [row for row in rows if row not in taken]
        if stage == "low":
            rows = rows[len(rows) // 2 :]
            rows = draw.permutation(rows).astype(int).tolist()
        rows = rows[:count]
        taken.update(rows)
        while len(rows) < count and len(taken) < split.num_items:
            row = int(draw.integers(split.num_items))
            if row not in taken:
                rows.append(row)
                taken.add(row)
        chosen.append(rows)
    return chosen


def softmax_dpo(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the loss of S-DPO (Chen et al. 2024) per example, (batch,).

    With one negative it is DPO's.

    Args:
        chosen: Rewards of the chosen items, (batch,).
        rejected: Rewards of the negatives, (batch, num_negatives).
    """
    return F.softplus((rejected - chosen[:, None]).logsumexp(1))


def item_log_probs(model: TTDSForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-probabilities of items after their prompts, with gradient, (batch, num_items).

    They are those that `recommend` ranks by; a prompt is read once for all its items.

    Args:
        model: The model.
        batch: As of `collate`.
    """
    ids, mask, items = batch["input_ids"], batch["attention_mask"], batch["items"]
    return score_items(model, ids, mask, model.trie, items)[..., -1]


def collate(rows: Sequence[dict], pad_token_id: int) -> dict[str, Tensor]:
    """Return prompts padded on the right, and their items.

    Args:
        rows: `prompt_ids`, `items` with the chosen one first, and `reference`, their
            log-probabilities by the reference.
        pad_token_id: Id to pad prompts with.
    """
    ids = [torch.tensor(row["prompt_ids"]) for row in rows]
    batch = {
        "input_ids": pad_sequence(ids, True, pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0),
        "items": torch.tensor([row["items"] for row in rows]),
    }
    if "reference" in rows[0]:
        batch["reference"] = torch.tensor([row["reference"] for row in rows])
    return batch


class PreferenceTrainer(DPOTrainer):
    """`DPOTrainer` with the model's own likelihood of an item, and several negatives.

    TRL's loss multiplies the trunk's states by the head, which leaves out node logits and what
    codes carry. Ours does not go through `forward`, so one process tunes.

    Args:
        model: The model; as it is now it is the reference too.
        args: How it is tuned.
        rows: `prompt_ids`, and `items` with the chosen one first.
        dpo_weight: Weight of the preference loss.
        sft_weight: Weight of the chosen item's negative log-likelihood.
    """

    def __init__(
        self,
        model: TTDSForCausalLM,
        args: DPOConfig,
        rows: datasets.Dataset,
        dpo_weight: float,
        sft_weight: float,
    ):
        self.ttds, self.dpo_weight, self.sft_weight = model, dpo_weight, sft_weight
        args.remove_unused_columns = False
        args.precompute_ref_log_probs = True
        super().__init__(
            model=model,
            args=args,
            processing_class=model.tokenizer,
            data_collator=lambda batch: collate(batch, model.tokenizer.pad_token_id),
            train_dataset=rows,
        )
        del model.forward  # TRL's fused head, which is not asked, would stay with the model

    def _prepare_dataset(self, dataset, *args) -> datasets.Dataset:
        return dataset  # it holds ids already

    @torch.no_grad()
    def _precompute_ref_logps(self, dataset, name, batch_size) -> datasets.Dataset:
        model, found = self.ttds.eval(), []
        for first in range(0, len(dataset), batch_size):
            rows = dataset.select(range(first, min(first + batch_size, len(dataset))))
            batch = self._prepare_inputs(self.data_collator(list(rows)))
            found += item_log_probs(model, batch).tolist()
        return dataset.add_column("reference", found)

    def _compute_loss(self, model, inputs, return_outputs=False):
        log_probs = item_log_probs(self.ttds, inputs)
        rewards = self.beta * (log_probs - inputs["reference"])
        preference = softmax_dpo(rewards[:, 0], rewards[:, 1:]).mean()
        loss = self.dpo_weight * preference - self.sft_weight * log_probs[:, 0].mean()
        margins, known = (rewards[:, :1] - rewards[:, 1:]).detach(), log_probs.detach()
        logged = {
            "rewards/margins": margins, "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": known[:, 0], "logps/rejected": known[:, 1:],
        }  # fmt: skip
        mode = "train" if self.model.training else "eval"
        for name, value in logged.items():
            self._metrics[mode][name].append(value.mean().item())
        return loss


@dataclass(frozen=True)
class PreferenceOptions:
    """How a model is tuned by preference.

    Args:
        beta: How much a log-ratio to the reference counts.
        learning_rate: Peak of every stage.
        negatives: How many an example.
        sft_weight: As of `PreferenceTrainer`.
        dpo_weight: As of `PreferenceTrainer`.
        per_user: Moments of a user's history in a stage.
        batch_size: Examples per step and process.
        dropout: Whether the model's dropout stays on.
        stages: Which of `STAGES`.
    """

    beta: float = 0.1
    learning_rate: float = 1e-4
    negatives: int = 3
    sft_weight: float = 1.0
    dpo_weight: float = 1.0
    per_user: int = 1
    batch_size: int = 32
    dropout: bool = True
    stages: tuple[str, ...] = STAGES


def tune(
    model: TTDSForCausalLM, split: Split, options: PreferenceOptions, seed: int
) -> Iterator[dict[str, float]]:
    """Tune a model stage by stage; yield what each says at its end.

    Args:
        model: The model, whose semantic IDs stay.
        split: The split; its training histories alone are read.
        options: How.
        seed: Seed of everything drawn.
    """
    for number, stage in enumerate(options.stages):
        with tempfile.TemporaryDirectory() as folder:  # TRL asks for one
            yield {"stage": stage} | tune_stage(
                model, split, stage, options, 1000 * seed + number, folder
            )


def tune_stage(
    model: TTDSForCausalLM,
    split: Split,
    stage: str,
    options: PreferenceOptions,
    seed: int,
    folder: str,
) -> dict[str, float]:
    """Tune a model on one stage's negatives; return the last log of the loss.

    Args:
        model: The model, whose semantic IDs stay.
        split: The split; its training histories alone are read.
        stage: One of `STAGES`.
        options: How.
        seed: Seed of everything drawn.
        folder: Where TRL may write; nothing is kept there.
    """
    draw = np.random.default_rng(seed)
    moments = draw_moments(split, options.per_user, draw)
    negatives = choose_negatives(model, split, moments, stage, options.negatives, draw)
    histories = [split.training[m.user][: m.position].tolist() for m in moments]
    ids, mask = model.history_prompts(histories, histories)
    lengths = mask.sum(1).tolist()
    targets = [int(split.training[m.user][m.position]) for m in moments]
    rows = datasets.Dataset.from_dict(
        {
            "prompt_ids": [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)],
            "items": [[t, *rest] for t, rest in zip(targets, negatives, strict=True)],
        }
    )
    for name in ("item_tower", "user_tower", "prior_head", "reranker"):
        if hasattr(model, name):
            getattr(model, name).requires_grad_(False)
    args = DPOConfig(
        output_dir=folder,
        beta=options.beta,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        precompute_ref_batch_size=64,
        num_train_epochs=1,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.1,
        disable_dropout=not options.dropout,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=50,
        seed=seed,
        ddp_broadcast_buffers=False,
    )
    trainer = PreferenceTrainer(model, args, rows, options.dpo_weight, options.sft_weight)
    trainer.train()
    model.eval()
    logs = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    return logs[-1] if logs else {}
