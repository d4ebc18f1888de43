"""Tokens a second in training, beside plain TRL SFT of the same trunk on the same rows.

python -m benchmarks.throughput --max_steps 60

All options of `recipes/sft.py` hold. Rows are made beforehand, so what is timed is batches, model
and optimizer. Seconds are those of the processor, since others may use the machine meanwhile; on a
GPU those that pass.
"""

from recipes.config import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # what is imported below takes seconds

import copy
import time
from dataclasses import fields

import datasets
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from benchmarks.result import write_result
from modeling_ttds.losses_ttds import TTDSChoices
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.data.load import load_data
from recipes.data.split import split_data
from recipes.errors import one_sentence
from recipes.index.embeddings import embed_items, given_text_embeddings
from recipes.index.refresh import build_sid_table
from recipes.tuning.arguments import TTDSTrainingArguments, parse_arguments
from recipes.tuning.build import build_model, build_tokenizer
from recipes.tuning.examples import EpochSampler, Examples, UserStates
from recipes.tuning.trainer import TTDSTrainer

WARM_UP = 5  # steps that are not timed
PLAIN, OURS, WITHOUT = "plain SFT", "TTDS", "TTDS without node logits"


class MadeExamples(Examples):
    """Examples that are made once, before anything is timed."""

    def make(self) -> None:
        """Make all of the first epoch."""
        self.made = [super(MadeExamples, self).__getitem__(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.made[index]


class WithoutNodes(TTDSForCausalLM):
    """The same model with a loss over the whole vocabulary, to time what node logits cost."""

    def _choices(self, hidden: Tensor, supervised: Tensor, targets: Tensor, *args):
        logits = self.token_logits(hidden[supervised]).float()
        yield TTDSChoices(torch.ones_like(targets, dtype=torch.bool), logits, self.bind(targets))


class Clock(TrainerCallback):
    """Notes the time at the end of every step: the processor's, or that of a GPU's finished work.

    Args:
        on_gpu: Whether a GPU computes.
    """

    def __init__(self, on_gpu: bool):
        self.on_gpu, self.ends = on_gpu, []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        if self.on_gpu:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter() if self.on_gpu else time.process_time())


def plain_settings(training: TTDSTrainingArguments) -> SFTConfig:
    """Return the same settings for plain SFT, which takes its rows in the order given.

    Args:
        training: The settings.
    """
    names = [field.name for field in fields(SFTConfig) if field.init]
    settings = {name: getattr(training, name) for name in names}
    changed = {"train_sampling_strategy": "sequential", "remove_unused_columns": True}
    return SFTConfig(**settings | changed | {"dataset_kwargs": None})


def main() -> None:
    """Time the three and write the result."""
    options, training, backbone = parse_arguments()
    begun, seed, steps = time.perf_counter(), training.seed, training.max_steps
    if steps <= WARM_UP:
        raise ValueError(f"`max_steps` is {steps}; name more than the {WARM_UP} that warm up.")
    set_seed(seed)
    training.eval_strategy = training.save_strategy = "no"
    training.load_best_model_at_end = False
    shapes = options.index, options.language_model, options.examples
    split = split_data(load_data(options.data, seed)[0], options.evaluation.exclude_seen)
    text = given_text_embeddings(options.index, options.data.dataset_name, split.num_items)
    tokenizer = build_tokenizer(split, *shapes, backbone.model_name_or_path)
    states = UserStates(split, options.examples.max_history)
    examples = MadeExamples(split, states, tokenizer, options.examples, seed, training.max_length)
    examples.make()
    model = build_model(split, tokenizer, *shapes, backbone.model_name_or_path, text, seed)
    embed_items(model, split, options.index, text, seed)
    build_sid_table(
        model, states.on_demand(), states.latest(), num_epochs=1, freeze=True, seed=seed
    )
    size = training.per_device_train_batch_size
    order = list(EpochSampler(examples, size, seed))
    if len(order) < size * steps:
        raise ValueError(
            f"`max_steps` is {steps}, but an epoch has {len(order) // size} batches of {size}; "
            "lower it."
        )
    rows = [examples[index] for index in order]
    tokens = sum(len(row["input_ids"]) for row in rows[size * WARM_UP : size * steps])
    bound = datasets.Dataset.from_list(
        [
            {name: model.bind(torch.tensor(row[name])).tolist() for name in ("input_ids", "labels")}
            for row in rows
        ]
    )

    def plain() -> SFTTrainer:
        trunk = AutoModelForCausalLM.from_config(model.config.backbone_config)
        settings = plain_settings(training)
        return SFTTrainer(
            model=trunk, args=settings, processing_class=tokenizer, train_dataset=bound
        )

    def ours(nodes: bool) -> TTDSTrainer:
        tuned = copy.deepcopy(model)
        if not nodes:
            tuned.__class__ = WithoutNodes
        return TTDSTrainer(
            tuned, copy.deepcopy(training), examples=examples, split=split,
            refresh=options.refresh, evaluation=options.evaluation, backbone=backbone,
        )  # fmt: skip

    found, on_gpu = {}, training.device.type == "cuda"
    device = "GPU" if on_gpu else "processor"
    makers = {PLAIN: plain, OURS: lambda: ours(True), WITHOUT: lambda: ours(False)}
    for name, make in makers.items():
        trainer, clock = make(), Clock(on_gpu)
        trainer.add_callback(clock)
        trainer.train()
        found[name] = tokens / (clock.ends[-1] - clock.ends[WARM_UP - 1])
        print(f"{name}: {found[name]:.0f} tokens a second of the {device}")
    print(f"TTDS has {found[OURS] / found[PLAIN]:.2f} of plain SFT, without node logits "
          f"{found[WITHOUT] / found[PLAIN]:.2f}.")  # fmt: skip
    trunk = model.config.get_text_config()
    write_result(
        f"throughput-{trunk.hidden_size}x{trunk.num_hidden_layers}",
        seed,
        time.perf_counter() - begun,
        {
            "trunk": {
                "hidden_size": trunk.hidden_size,
                "num_hidden_layers": trunk.num_hidden_layers,
                "vocab_size": trunk.vocab_size,
                "parameters": sum(weight.numel() for weight in model.model.parameters()),
            },
            "batch_size": size,
            "steps": steps - WARM_UP,
            "tokens": tokens,
            f"tokens_per_{device.lower()}_second": {
                name: round(rate, 1) for name, rate in found.items()
            },
            "share_of_plain": round(found[OURS] / found[PLAIN], 3),
            "share_without_node_logits": round(found[WITHOUT] / found[PLAIN], 3),
        },
    )


if __name__ == "__main__":
    with one_sentence():
        main()
