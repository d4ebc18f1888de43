"""Let a catalogue drift: an index of the first half of the log, a language model of nine tenths.

python -m benchmarks.drift --name toys --dataset_name FOLDER --seed 0
    --config recipes/experiments/toys/sft.yaml

Towers, collaborative embeddings and semantic IDs of the first half meet the log up to the test:
items that came since are added from their text. The language model is tuned on all of it with that
index; with new collaborative embeddings below old semantic IDs; with semantic IDs that move from
there while it learns, the new embeddings as they are or turned to the axes of the old ones, which
the towers were fitted on; with an index made anew. Ranked by the language model alone. A form whose
result is there is passed over. What follows is handed to the recipe.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn at random.")
    ARGUMENTS, RECIPE = parser.parse_known_args()

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.result import RESULTS, slug, write_result
from modeling_ttds import TTDSForCausalLM
from recipes.config import RefreshOptions, TTDSArguments
from recipes.data.load import load_data
from recipes.data.split import Split, split_data
from recipes.evaluation.metrics import rank_metrics
from recipes.evaluation.report import LM_ONLY, evaluate_model
from recipes.index.embeddings import add_new_items, embed_items, given_text_embeddings
from recipes.index.refresh import build_sid_table, init_codebook_projections
from recipes.tuning.arguments import parse_arguments
from recipes.tuning.build import build_model, build_tokenizer
from recipes.tuning.examples import Examples, UserStates
from recipes.tuning.profiles import fit_profiles
from recipes.tuning.trainer import TTDSTrainer

OLD, VECTORS, NEW = "old index", "new embeddings", "new index"
MOVING, TURNED = "moving semantic IDs", "moving semantic IDs, aligned embeddings"
QUANTILES = (0.5, 0.9)  # of the timestamps: the index is of what precedes the first
MOVES = RefreshOptions(refresh_steps=100, freeze_at=0.6, tower_learning_rate=3e-5)  # as ablated


def built(
    known: Split, text: Tensor | None, options: TTDSArguments, seed: int, states: UserStates
) -> TTDSForCausalLM:
    """Return a model with embeddings, towers and semantic IDs of what is known, not yet tuned."""
    shapes = options.index, options.language_model, options.examples
    tokenizer = build_tokenizer(known, *shapes, None)
    model = build_model(known, tokenizer, *shapes, None, text, seed)
    model.config.exclude_seen = known.exclude_seen
    embed_items(model, known, options.index, text, seed)
    build_sid_table(
        model,
        states.on_demand(),
        states.latest(),
        num_epochs=options.index.tower_epochs,
        freeze=True,
        seed=seed,
        folder=Path(options.index.cache_dir),
    )
    return model


def aligned(new: Tensor, old: Tensor, known: int) -> Tensor:
    """Return embeddings turned to the axes of earlier ones (orthogonal Procrustes), (num_items, d).

    Args:
        new: The embeddings, (num_items, d).
        old: The earlier ones, (num_items, d).
        known: How many items, the first ones, were there when the earlier ones were made.
    """
    left, _, right = torch.linalg.svd(new[:known].T.double() @ old[:known].double())
    return (new.double() @ left @ right).to(new.dtype)


def give_index(model: TTDSForCausalLM, old: TTDSForCausalLM, form: str, known: int) -> float:
    """Give a model towers and semantic IDs of an earlier one of the same items.

    Args:
        model: The model; its users are attached.
        old: The earlier model, to which what came since was added.
        form: Says which collaborative embeddings it gets.
        known: As of `aligned`.

    Returns:
        The share of the items whose semantic ID was another one.
    """
    changed = (model.item_sids != old.item_sids).any(1).float().mean().item()
    model.item_tower.load_state_dict(old.item_tower.state_dict())
    model.user_tower.load_state_dict(old.user_tower.state_dict())
    if form == OLD:
        model.item_collaborative.copy_(old.item_collaborative)
    elif form == TURNED:
        turned = aligned(model.item_collaborative, old.item_collaborative, known)
        model.item_collaborative.copy_(turned)
    model.item_sids.copy_(old.item_sids)
    model.refresh_users()
    init_codebook_projections(model)
    model.make_node_pairs()
    return changed


def main(arguments: argparse.Namespace, recipe: list[str]) -> None:
    """Tune every form that has no result yet and write one.

    Args:
        arguments: The command line.
        recipe: What of it is handed to the recipe.
    """
    asked, seed = sys.argv, arguments.seed
    sys.argv = [asked[0], *recipe, "--seed", str(seed), "--save_strategy", "no"]
    sys.argv += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    options, training, model_config = parse_arguments()
    sys.argv = asked
    data, _ = load_data(options.data, seed)
    split = split_data(data, split="timeline", seed=seed, quantiles=QUANTILES)
    text = given_text_embeddings(options.index, options.data.dataset_name, split.num_items)
    text = split.in_order(text)
    first, known = split.view("training"), split.view("refit")
    states = [UserStates(view, options.examples.max_history) for view in (first, known)]

    def of(view: Split) -> Tensor | None:
        return None if text is None else text[: view.num_items]

    old = built(first, of(first), options, seed, states[0])
    add_new_items(old, known, of(known))
    for form in (OLD, VECTORS, MOVING, TURNED, NEW):
        name = f"drift-{arguments.name}-{slug(form)}-seed{seed}"
        if (RESULTS / f"{name}.json").exists():
            continue
        begun = time.perf_counter()
        model = built(known, of(known), options, seed, states[1])
        moves = form in (MOVING, TURNED)
        model.config.tower_weight = float(moves)
        changed = 0.0
        if form != NEW:
            changed = give_index(model, old, form, first.num_items)
        fit_profiles(
            model, known.training, num_epochs=options.language_model.profile_epochs, seed=seed
        )
        examples = Examples(
            known, states[1], model.tokenizer, options.examples, seed, training.max_length
        )
        with tempfile.TemporaryDirectory() as scratch:
            training.output_dir = scratch
            trainer = TTDSTrainer(
                model,
                training,
                examples=examples,
                split=known,
                refresh=MOVES if moves else RefreshOptions(refresh_steps=0),
                evaluation=options.evaluation,
                backbone=model_config,
            )
            tuning = trainer.tune()
            model = trainer.tuned()
        add_new_items(model, split, text)
        test, lists = evaluate_model(model, split, "test", options.evaluation.num_beams, LM_ONLY)
        targets = split.test_targets[split.users("test")]
        came = np.flatnonzero((targets >= first.num_items) & (targets < known.num_items))
        joined = rank_metrics([lists[place] for place in came], targets[came])
        content = {
            "drift": arguments.name,
            "form": form,
            "quantiles": QUANTILES,
            "config": options.flat(),
            "data_sha256": data.sha256,
            "items": {"first half": first.num_items, "before the test": known.num_items},
            "share_of_other_sids": changed,
            "refreshes": tuning["refreshes"],
            "tokens": tuning["tokens"],
            "test": test | {f"joined_{name}": joined[name] for name in ("HR@10", "NDCG@10")},
            "users": {"all": len(targets), "joined": len(came)},
        }
        write_result(name, seed, time.perf_counter() - begun, content)
        shown = {metric: round(content["test"][metric], 4) for metric in ("HR@10", "NDCG@10")}
        print(form, shown, {metric: round(joined[metric], 4) for metric in shown}, flush=True)


if __name__ == "__main__":
    main(ARGUMENTS, RECIPE)
