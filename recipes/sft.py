"""Fit the towers, tune the language model, join the co-occurrence memory, evaluate, save.

accelerate launch recipes/sft.py
accelerate launch recipes/sft.py --config recipes/experiments/scientific/sft.yaml --dataset_name
    FOLDER
accelerate launch recipes/sft.py --push_to_hub --hub_model_id org/name
"""

import time
from pathlib import Path

from transformers import set_seed
from trl import ModelConfig

from recipes.config import TTDSArguments, TTDSTrainingArguments, parse_arguments
from recipes.data.load import load_data
from recipes.data.split import split_data
from recipes.evaluation import report
from recipes.hub.files import PublishError, model_files
from recipes.hub.publishing import take_over_push
from recipes.hub.run import clear_output, run_facts, save_run
from recipes.index.embeddings import embed_items, given_text_embeddings
from recipes.index.refresh import build_sid_table
from recipes.ranking.reranker import rank_users
from recipes.tuning.build import build_model, build_tokenizer
from recipes.tuning.examples import Examples, UserStates
from recipes.tuning.trainer import TTDSTrainer


def main(
    options: TTDSArguments, training: TTDSTrainingArguments, model_config: ModelConfig
) -> None:
    """Run the stages in order.

    Args:
        options: What is built.
        training: How it is tuned.
        model_config: The backbone, if one is given.
    """
    destination = take_over_push(training, options.data, options.reranker, options.output)
    clear_output(training, options.output)
    set_seed(training.seed)
    begun, seed = time.perf_counter(), training.seed
    folder, backbone = Path(training.output_dir), model_config.model_name_or_path
    shapes = options.index, options.language_model, options.examples

    data, shop = load_data(options.data, seed)
    split = split_data(data)
    text = given_text_embeddings(options.index, options.data.dataset_name, split.num_items)
    tokenizer = build_tokenizer(split, *shapes, backbone)
    model = build_model(split, tokenizer, *shapes, backbone, text, seed)
    embed_items(model, split, options.index, text, seed)
    states = UserStates(split, options.examples.max_history)
    towers = build_sid_table(
        model,
        states.histories(),
        states.latest(),
        num_epochs=options.index.tower_epochs,
        freeze=options.refresh.refresh_steps == 0,
        seed=seed,
    )
    trainer = TTDSTrainer(
        model,
        training,
        examples=Examples(split, states, tokenizer, options.examples, seed, training.max_length),
        split=split,
        refresh=options.refresh,
        evaluation=options.evaluation,
        backbone=model_config,
    )
    tuning = trainer.tune()
    if not trainer.is_world_process_zero():
        return
    model = trainer.tuned()
    num_beams, rerankers = options.evaluation.num_beams, folder / "rerankers"
    rows, lists = rank_users(model, split, shop, options.reranker, num_beams, seed, rerankers)
    facts = run_facts(options, backbone, seed, data) | {"towers": towers, "tuning": tuning}
    facts |= {"seconds": round(time.perf_counter() - begun, 1)}
    save_run(folder, training.hub_model_id, model, split, lists, facts | rows)

    print(report.examples(model, split))
    print(f"\n{report.table(rows['test'])}\n")
    print(f"The model is in {folder}. Load it anywhere:\n")
    print("    from transformers import AutoModel")
    print(f'    model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)')
    print(f'    model.recommend([["{data.catalogue.item_ids[0]}"]], top_k=5)')
    if destination:
        allowed = options.output.allow_rare_pairs
        files = model_files(folder, destination.repo_id, allow_rare_pairs=allowed)
        print(f"Published: {destination.send(files)}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    try:
        main(*parse_arguments())
    except PublishError as error:
        raise SystemExit(str(error)) from None
