"""Measure what preference tuning brings to a trained language model and to all of TTDS.

python recipes/sft.py --config recipes/experiments/scientific/sft.yaml --dataset_name FOLDER
    --memory false --reranker false --seed 0 --output_dir outputs/base-0
python -m benchmarks.preference --name scientific --model outputs/base-0 --dataset_name FOLDER

Priors and re-ranker are fitted for the model as it is and again for what is tuned of it. With
--trial NAME a setting, of --options or the default, is tried on validation targets instead, by the
language model alone.
"""

import argparse
import json

from recipes.config import add_data_arguments
from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--trial", help="Name of what is tried on validation; none by default.")
    parser.add_argument(
        "--options",
        default={},
        type=json.loads,
        help="What of `PreferenceOptions` differs, as JSON.",
    )
    parser.add_argument(
        "--language_model_only", action="store_true", help="Fit neither priors nor re-ranker."
    )
    add_data_arguments(parser)
    ARGUMENTS = parser.parse_args()

import time
from dataclasses import asdict

from benchmarks.result import order, protocol, result_name, write_result
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import RerankerOptions
from recipes.data.split import Split
from recipes.evaluation.report import GENERATED, LM_ONLY, TTDS, evaluate_model
from recipes.hub.saved import check_same_data, load_model, read_as_trained, split_as_trained
from recipes.ranking.reranker import join
from recipes.tuning.preference import NUM_BEAMS, PreferenceOptions, tune


def ranked(model: TTDSForCausalLM, split: Split, seed: int) -> dict:
    """Rank for all users; return the metrics of every part on both targets.

    Args:
        model: The model; it gets priors and re-ranker, unless they are not asked for.
        split: The split.
        seed: Seed of their fits.
    """
    if ARGUMENTS.language_model_only:
        return {
            which: {LM_ONLY: evaluate_model(model, split, which, NUM_BEAMS, LM_ONLY)[0]}
            for which in ("validation", "test")
        }
    rows, _ = join(model, split, RerankerOptions(), num_beams=NUM_BEAMS, seed=seed)
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
    known, seed, method = split.view("training"), config["seed"], "preference"
    options = PreferenceOptions(**ARGUMENTS.options)
    content = {
        "preference": ARGUMENTS.name, **protocol({"config": config}), "data_sha256": data.sha256,
        "config": config, "options": asdict(options),
    }  # fmt: skip
    if ARGUMENTS.trial:
        method = f"preference {ARGUMENTS.trial}"
    else:
        content["without"] = ranked(load_model(ARGUMENTS.model), split, seed)
    start = time.perf_counter()
    content["stages"] = list(tune(model, known, options, seed))
    content["tuning_seconds"] = round(time.perf_counter() - start, 1)
    if ARGUMENTS.trial:
        found, _ = evaluate_model(model, split, "validation", NUM_BEAMS, LM_ONLY)
        content["with"] = {"validation": {LM_ONLY: found}}
    else:
        content["with"] = ranked(model, split, seed)
    name = result_name(ARGUMENTS.name, order({"config": config}), method, seed)
    write_result(name, seed, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main()
