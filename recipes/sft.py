"""Fit the towers, tune the language model, evaluate, save.

accelerate launch recipes/sft.py
accelerate launch recipes/sft.py --config recipes/scientific/sft.yaml --dataset_name FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import set_seed  # noqa: E402
from trl import ModelConfig  # noqa: E402

from recipes.building import build_model, build_tokenizer  # noqa: E402
from recipes.config import TTDSArguments, TTDSTrainingArguments, parse_arguments  # noqa: E402
from recipes.data import read_data, split_data  # noqa: E402
from recipes.examples import NextItemExamples, UserStates  # noqa: E402
from recipes.metrics import evaluate_run  # noqa: E402
from recipes.trainer import TTDSTrainer, recommend_to  # noqa: E402


def main(
    options: TTDSArguments, training: TTDSTrainingArguments, model_config: ModelConfig
) -> None:
    set_seed(training.seed)
    data = read_data(
        options.dataset_name,
        column_map=options.column_map,
        min_interactions=options.min_interactions,
        tie_break=options.tie_break,
        seed=training.seed,
    )
    split = split_data(data)
    tokenizer = build_tokenizer(split, options, model_config.model_name_or_path)
    states = UserStates(split, options.max_history)
    model, towers = build_model(
        split, states, tokenizer, options, model_config.model_name_or_path, training.seed
    )
    print(towers)
    if not options.tower_weight and not options.lm_gradient:
        model.item_tower.requires_grad_(False)
        model.user_tower.requires_grad_(False)
    examples = NextItemExamples(split, states, tokenizer, options.per_position, training.seed)
    trainer = TTDSTrainer(
        model=model,
        args=training,
        examples=examples,
        eval_dataset=examples.as_dataset(),
        processing_class=tokenizer,
        split=split,
        options=options,
    )
    trainer.train()
    metrics = evaluate_run(split, "test", recommend_to(model, split, "test", options.num_beams))
    print(metrics)


if __name__ == "__main__":
    main(*parse_arguments())
