"""Fit the towers, tune the language model, join the co-occurrence memory, evaluate, save.

accelerate launch recipes/sft.py
accelerate launch recipes/sft.py --config recipes/experiments/scientific/sft.yaml --dataset_name
FOLDER accelerate launch recipes/sft.py --push_to_hub --hub_model_id org/name
"""

import shutil
import time
from pathlib import Path

from transformers import set_seed
from trl import ModelConfig

from recipes.config import TTDSArguments, TTDSTrainingArguments, parse_arguments
from recipes.data import toyshop
from recipes.data.split import split_data
from recipes.data.tables import read_data
from recipes.evaluation import report
from recipes.hub import card
from recipes.hub.files import PublishError, model_files, write_card
from recipes.hub.publishing import take_over_push
from recipes.ranking import reranker
from recipes.tuning import adapter
from recipes.tuning.build import build_model, build_tokenizer
from recipes.tuning.examples import Examples, UserStates
from recipes.tuning.trainer import TTDSTrainer, last_whole_checkpoint


def check_output(options: TTDSArguments, training: TTDSTrainingArguments) -> None:
    """Refuse to overwrite an earlier run unless told to, or to resume it.

    Args:
        options: Says whether to overwrite.
        training: Says where, and whether to resume.
    """
    folder = Path(training.output_dir)
    if options.overwrite_output_dir:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()) and not training.resume_from_checkpoint:
        raise SystemExit(
            f"`output_dir` {folder} is not empty. Pass --overwrite_output_dir true to replace it, "
            "--resume_from_checkpoint true to go on, or another --output_dir."
        )


def main(
    options: TTDSArguments, training: TTDSTrainingArguments, model_config: ModelConfig
) -> None:
    """Run the stages in order.

    Args:
        options: What is built.
        training: How it is tuned.
        model_config: The backbone, if one is given.
    """
    destination = take_over_push(training, options)
    check_output(options, training)
    set_seed(training.seed)
    begun = time.perf_counter()
    shop = toyshop.generate() if options.dataset_name is None else None
    data = shop.data if shop else read_data(
        options.dataset_name,
        column_map=options.column_map,
        min_interactions=options.min_interactions,
        tie_break=options.tie_break,
        seed=training.seed,
    )  # fmt: skip
    split = split_data(data)

    backbone = model_config.model_name_or_path
    tokenizer = build_tokenizer(split, options, backbone)
    states = UserStates(split, options.max_history)
    model, towers = build_model(split, states, tokenizer, options, backbone, training.seed)
    if options.refresh_steps == 0:
        model.item_tower.requires_grad_(False)
        model.user_tower.requires_grad_(False)

    folder = Path(training.output_dir)
    peft_config = None
    if model_config.use_peft:
        peft_config = adapter.lora_config(model, model_config)
        if not training.resume_from_checkpoint and training.process_index == 0:
            adapter.save_base(model, folder)

    trainer = TTDSTrainer(
        model=model,
        peft_config=peft_config,
        args=training,
        examples=Examples(split, states, tokenizer, options, training.seed, training.max_length),
        processing_class=tokenizer,
        split=split,
        options=options,
    )
    resume = training.resume_from_checkpoint
    if resume in ("true", "True"):
        resume = last_whole_checkpoint(training.output_dir)
    trainer.train(resume_from_checkpoint=resume)
    tuning = trainer.report()
    if not trainer.is_world_process_zero():
        return
    if model_config.use_peft:
        model = adapter.save_adapter(trainer.accelerator.unwrap_model(trainer.model), folder)
    model.share_sid_table()

    if options.reranker:
        rows, lists = reranker.join(
            model,
            split,
            num_beams=options.num_beams,
            min_pair_users=options.min_pair_users,
            cold_item_dropout=options.cold_item_dropout,
            seed=training.seed,
            folder=folder / "rerankers",
        )
    else:
        rows, lists = {"validation": {}, "test": {}}, {}
        for which in rows:
            rows[which][report.LM_ONLY], lists[report.LM_ONLY] = report.evaluate_model(
                model, split, which, options.num_beams, rerank=False
            )
    rows["test"][report.LM_ONLY] |= report.sid_metrics(model, split, "test")
    for which in rows:
        rows[which] |= report.baseline_rows(split, which, shop)

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for row, found in lists.items():
        report.write_run(folder / report.run_file(row, lists), split, "test", found)
    facts = {
        "dataset": options.dataset_name or card.GENERATED_DATA,
        "data": card.data_facts(options.dataset_name, data),
        "data_sha256": data.sha256,
        "backbone": backbone and card.shown_name(backbone),
        "seed": training.seed,
        "options": vars(options),
        "towers": towers,
        "tuning": tuning,
        "hardware": report.hardware(),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    report.write_json(folder / "metrics.json", facts | rows)
    shutil.rmtree(folder / "rerankers", ignore_errors=True)
    write_card(folder, training.hub_model_id or str(folder))
    print(report.examples(model, split))
    print(f"\n{report.table(rows['test'])}\n")
    print(f"The model is in {folder}. Load it anywhere:\n")
    print("    from transformers import AutoModel")
    print(f'    model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)')
    print(f'    model.recommend([["{data.catalogue.item_ids[0]}"]], top_k=5)')
    if destination:
        files = model_files(folder, destination.repo_id, allow_rare_pairs=options.allow_rare_pairs)
        print(f"Published: {destination.send(files)}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    try:
        main(*parse_arguments())
    except PublishError as error:
        raise SystemExit(str(error)) from None
