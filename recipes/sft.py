"""Train a recommender: fit towers, tune a language model, fit a re-ranker, evaluate, save.

python recipes/sft.py
python recipes/sft.py --config recipes/sparse.yaml --dataset_name FOLDER
python recipes/sft.py --push_to_hub --hub_model_id org/name
accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/sft.py
"""

from recipes.config import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # what is imported below takes seconds

import copy
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import IntervalStrategy, set_seed
from trl import ModelConfig

from modeling_ttds.sid_ttds import check_room
from recipes.config import TTDSArguments
from recipes.data.load import load_data
from recipes.data.origin import origin
from recipes.data.split import Split, check_split, split_data
from recipes.data.tables import Data
from recipes.errors import one_sentence
from recipes.evaluation import report
from recipes.hub.card import shown_name
from recipes.hub.files import model_files
from recipes.hub.publishing import take_over_push
from recipes.hub.run import REFIT, announce, check_output, make_room, run_facts, save_run
from recipes.index.embeddings import embed_items, given_text_embeddings
from recipes.index.refresh import build_sid_table
from recipes.ranking.reranker import rank_users
from recipes.tuning.arguments import TTDSTrainingArguments, parse_arguments
from recipes.tuning.build import build_model, build_tokenizer
from recipes.tuning.examples import Examples, UserStates
from recipes.tuning.profiles import fit_profiles
from recipes.tuning.trainer import TTDSTrainer, resume_from


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
    fresh = check_output(training, options, model_config.model_name_or_path)
    set_seed(training.seed)
    begun, seed = time.perf_counter(), training.seed
    folder, backbone = Path(training.output_dir), model_config.model_name_or_path

    with report.stage("Read and split the data"):
        data, shop = load_data(options.data, seed)
        of_data = options.data
        split = split_data(
            data, options.evaluation.exclude_seen, of_data.split, of_data.timeline_target, seed
        )
        check_split(split)
        check_room(split.num_items, options.index.num_levels, options.index.num_codes)
        text = given_text_embeddings(options.index, of_data.dataset_name, split.num_items)
        text = split.in_order(text)
    announce(split, training, options.reranker)
    what = data, text, options, fresh
    trainer, facts = fit_model(split.view("training"), *what, training, model_config)
    refit = None
    if split.views is not None:
        if training.process_index == 0:
            print("The same anew, on training and validation together, for the test:")
        again = as_refit(training)
        refit, facts[REFIT] = fit_model(split.view("refit"), *what, again, model_config)
    if not trainer.is_world_process_zero():
        return
    chosen = trainer.tuned()
    model = chosen if refit is None else refit.tuned()
    num_beams, rerankers = options.evaluation.num_beams, folder / "rerankers"
    with report.stage("Fit priors and re-ranker, rank for every user"):
        rows, lists = rank_users(
            chosen, model, split, shop, options.reranker, num_beams, seed, rerankers, text
        )
    facts |= run_facts(options, backbone, training, data)
    facts |= {"seconds": round(time.perf_counter() - begun, 1)}
    with report.stage("Save model, lists, picture and card"):
        save_run(folder, training.hub_model_id, model, split, lists, facts | rows)

    print(report.examples(model, split))
    print(f"\n{report.table(rows['test'])}\n")
    print(f"The model is in {folder}, the lists by user id in {report.lists_folder(folder).name}/")
    print("beside it. Load the model anywhere:\n")
    print("    from transformers import AutoModel")
    print(f'    model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)')
    print(f'    model.recommend([["{data.catalogue.item_ids[0]}"]], top_k=5)')
    if destination:
        allowed = options.output.allow_rare_pairs
        files = model_files(folder, destination.repo_id, allow_rare_pairs=allowed)
        print(f"Published: {destination.send(files)}")
    trainer.accelerator.end_training()


def fit_model(
    known: Split,
    data: Data,
    text: Tensor | None,
    options: TTDSArguments,
    fresh: bool,
    training: TTDSTrainingArguments,
    model_config: ModelConfig,
) -> tuple[TTDSTrainer, dict[str, Any]]:
    """Build a model, embed the items, fit towers and profiles, tune the language model.

    Args:
        known: What may be learnt from.
        data: The whole data set, which checkpoints are known by.
        text: Precomputed text embeddings, (num_items of the data set, text_dim), or None; those of
            the items known come first.
        options: What is built.
        fresh: Whether nothing was in the output folder when the run began.
        training: How it is tuned, and where its checkpoints go.
        model_config: The backbone, if one is given.

    Returns:
        The trainer after tuning, and what there is to say of towers and tuning.
    """
    seed, backbone = training.seed, model_config.model_name_or_path
    shapes = options.index, options.language_model
    text = None if text is None else text[: known.num_items]
    with report.stage("Build tokenizer, examples and model"):
        tokenizer = build_tokenizer(known, *shapes, options.examples, backbone)
        named = backbone and shown_name(backbone)
        made_of = origin(data, tokenizer.get_vocab(), options, named, seed)
        resume_from(training, made_of, options.evaluation)
        states = UserStates(known, options.examples.max_history)
        examples = Examples(known, states, tokenizer, options.examples, seed, training.max_length)
        model = build_model(known, tokenizer, *shapes, examples.options, backbone, text, seed)
        model.config.exclude_seen, model.config.trained_on = known.exclude_seen, made_of
    with report.stage("Embed the items"):
        embed_items(model, known, options.index, text, seed)
    with report.stage("Fit both towers, give semantic IDs"):
        towers = build_sid_table(
            model,
            states.on_demand(),
            states.latest(),
            num_epochs=options.index.tower_epochs,
            freeze=options.refresh.refresh_steps == 0,
            seed=seed,
            folder=Path(options.index.cache_dir),
        )
    with report.stage("Fit what profiles say of nodes"):
        fit_profiles(
            model,
            known.training,
            num_epochs=options.language_model.profile_epochs,
            seed=seed,
            folder=Path(options.index.cache_dir),
        )
    make_room(training, options.output, fresh)
    with report.stage("Tune the language model"):
        trainer = TTDSTrainer(
            model,
            training,
            examples=examples,
            split=known,
            refresh=options.refresh,
            evaluation=options.evaluation,
            backbone=model_config,
        )
        tuning = trainer.tune()
    return trainer, {"towers": towers, "tuning": tuning}


def as_refit(training: TTDSTrainingArguments) -> TTDSTrainingArguments:
    """Return the arguments of a tuning as of one on training and validation together.

    It has nothing to be measured on, so it runs to its end; its checkpoints go into a folder of
    their own, from which it goes on where the first tuning does.

    Args:
        training: Arguments of the tuning that validation was measured on.
    """
    refit = copy.copy(training)
    refit.output_dir = str(Path(training.output_dir, REFIT))
    refit.eval_strategy, refit.do_eval, refit.eval_on_start = IntervalStrategy.NO, False, False
    refit.load_best_model_at_end, refit.metric_for_best_model = False, None
    refit.resume_from_checkpoint = "true" if training.resume_from_checkpoint else None
    refit.report_to = []
    return refit


if __name__ == "__main__":
    with one_sentence():
        main(*parse_arguments())
