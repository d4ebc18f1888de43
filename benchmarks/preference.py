"""Measure what preference tuning brings to a trained language model and to all of TTDS.

python recipes/sft.py --config recipes/experiments/scientific/sft.yaml --dataset_name FOLDER
    --memory false --reranker false --seed 0 --output_dir outputs/base-0
python -m benchmarks.preference --name scientific --model outputs/base-0 --dataset_name FOLDER

Priors and re-ranker are fitted for the model as it is and again for what is tuned of it. With
--trials some settings are compared on validation targets instead, the language model alone.
"""

import argparse

from recipes.config import add_data_arguments
from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--trials", action="store_true", help="Compare settings on validation.")
    add_data_arguments(parser)
    ARGUMENTS = parser.parse_args()

import time
from dataclasses import asdict, replace

from benchmarks.result import order, protocol, result_name, write_result
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import RerankerOptions
from recipes.data.split import Split
from recipes.evaluation.report import GENERATED, LM_ONLY, TTDS, evaluate_model
from recipes.hub.saved import check_same_data, load_model, read_as_trained, split_as_trained
from recipes.ranking.reranker import join
from recipes.tuning.preference import NUM_BEAMS, PreferenceOptions, tune

TRIALS = {
    "as by default": {},
    "preference alone": {"sft_weight": 0.0},
    "a stronger pull": {"beta": 0.5},
    "a third of the learning rate": {"learning_rate": 3e-5},
    "likelihood alone": {"dpo_weight": 0.0, "negatives": 1, "stages": ("random",) * 3},
}
SHOWN = ("HR@10", "NDCG@10")


def tuned(
    model: TTDSForCausalLM, split: Split, options: PreferenceOptions, seed: int
) -> list[dict[str, float]]:
    """Tune a model; return what each stage said last, and how validation moved.

    Args:
        model: The model.
        split: The split.
        options: How.
        seed: Seed of everything drawn.
    """
    steps = []
    for step in tune(model, split, options, seed):
        found, _ = evaluate_model(model, split, "validation", NUM_BEAMS, LM_ONLY)
        steps.append(step | {name: found[name] for name in SHOWN})
        print(steps[-1], flush=True)
    return steps


def ranked(model: TTDSForCausalLM, split: Split, options: RerankerOptions, config: dict) -> dict:
    """Fit priors and re-ranker; return the metrics of every part on both targets.

    Args:
        model: The model; it gets them.
        split: The split.
        options: How they are fitted.
        config: Options of the training run.
    """
    rows, _ = join(model, split, options, num_beams=NUM_BEAMS, seed=config["seed"])
    return {which: {row: rows[which][row] for row in (LM_ONLY, GENERATED, TTDS)} for which in rows}


def main() -> None:
    """Measure and write the result."""
    begun = time.perf_counter()
    model = load_model(ARGUMENTS.model)
    config = model.config.trained_on["options"]
    data, _, _ = read_as_trained(ARGUMENTS, model.config)
    check_same_data(model.config, ARGUMENTS.model, data)
    ARGUMENTS.split, ARGUMENTS.allow_other_data = None, False
    split = split_as_trained(ARGUMENTS, model.config, data)
    known, seed, options = split.view("training"), config["seed"], PreferenceOptions()
    content = {
        "dataset": ARGUMENTS.name, **protocol({"config": config}), "data_sha256": data.sha256,
        "config": config,
    }  # fmt: skip
    before, _ = evaluate_model(model, split, "validation", NUM_BEAMS, LM_ONLY)
    content["before_tuning"] = {name: before[name] for name in SHOWN}
    print(content["before_tuning"], flush=True)
    if ARGUMENTS.trials:
        content["trials"] = {}
        for name, changes in TRIALS.items():
            chosen = replace(options, **changes)
            steps = tuned(load_model(ARGUMENTS.model), known, chosen, seed)
            content["trials"][name] = {"options": asdict(chosen), "steps": steps}
        method = "preference trials"
    else:
        reranker = RerankerOptions()
        content |= {"options": asdict(options), "re-ranker": asdict(reranker)}
        content["without"] = ranked(model, split, reranker, config)
        model = load_model(ARGUMENTS.model)
        start = time.perf_counter()
        content["steps"] = tuned(model, known, options, seed)
        content["tuning_seconds"] = round(time.perf_counter() - start, 1)
        content["with"] = ranked(model, split, reranker, config)
        method = "preference"
    name = result_name(ARGUMENTS.name, order({"config": config}), method, seed)
    write_result(name, seed, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main()
