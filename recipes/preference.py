"""Tune a trained model's next item against hard negatives of its own beams; heads fitted anew.

python recipes/preference.py --model outputs/demo --output_dir outputs/preferred
python recipes/preference.py --model FOLDER --dataset_name FOLDER --output_dir FOLDER

Negatives are staged from easy to hard: any item, low beams, top beams. Only training histories tell
what a user chose. Measure the result by `recipes/evaluate.py`, on validation first.
"""

import shutil
from pathlib import Path

from recipes.config import add_data_arguments
from recipes.errors import Parser, one_sentence

LEAST = {"negatives": 1, "per_user": 1, "batch_size": 1, "num_beams": 1}


def main() -> None:
    """Read, check, tune stage by stage, fit what counts, save."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument(
        "--output_dir", required=True, type=Path, help="Folder to write to, which is not there yet."
    )
    parser.add_argument(
        "--beta", type=float, default=0.1, help="How much a log-ratio to the first model counts."
    )
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="Peak of every stage.")
    parser.add_argument("--negatives", type=int, default=3, help="Negatives of an example.")
    parser.add_argument(
        "--sft_weight", type=float, default=1.0, help="Weight of the chosen item's likelihood."
    )
    parser.add_argument(
        "--per_user", type=int, default=1, help="Moments of a history in a stage, drawn at random."
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Examples per step and process.")
    parser.add_argument("--num_beams", type=int, default=50, help="Prefixes kept per level.")
    arguments = parser.parse_args()
    output = arguments.output_dir
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"`--output_dir` {output} is there already; name another.")
    for name, least in LEAST.items():
        if getattr(arguments, name) < least:
            raise ValueError(f"`--{name}` is {getattr(arguments, name)}; it must be at least 1.")
    for name in ("beta", "learning_rate"):
        if not getattr(arguments, name) > 0:
            raise ValueError(f"`--{name}` is {getattr(arguments, name)}; it must be above 0.")
    if arguments.sft_weight < 0:
        raise ValueError(f"`--sft_weight` is {arguments.sft_weight}; it must be 0 or more.")

    # They take seconds, which --help and a wrong option need not wait for.
    from accelerate import PartialState

    if (count := PartialState().num_processes) > 1:
        raise ValueError(f"There are {count} processes; preference tuning runs in one.")

    from recipes.data.split import check_split
    from recipes.evaluation import report
    from recipes.hub.saved import (
        check_items,
        check_same_data,
        load_model,
        read_as_trained,
        split_as_trained,
    )
    from recipes.serving.updating import fit_ranking, reranker_options, saved_facts
    from recipes.tuning.preference import STAGES, PreferenceOptions, tune

    model = load_model(arguments.model)
    known, seed = saved_facts(arguments.model), model.config.trained_on["options"]["seed"]
    data, _, _ = read_as_trained(arguments, model.config)
    check_same_data(model.config, arguments.model, data)
    arguments.split, arguments.allow_other_data = None, False
    split = split_as_trained(arguments, model.config, data)
    check_split(split)
    check_items(model, arguments.model, split.data)
    options = PreferenceOptions(
        beta=arguments.beta,
        learning_rate=arguments.learning_rate,
        negatives=arguments.negatives,
        sft_weight=arguments.sft_weight,
        per_user=arguments.per_user,
        batch_size=arguments.batch_size,
    )
    with report.stage(f"Tune against negatives, stages {', '.join(STAGES)}"):
        for step in tune(model, split.view("training"), options, seed):
            print(step)
    chosen = reranker_options(model, known, split)
    if chosen.memory:
        with report.stage("Fit priors and re-ranker"):
            fit_ranking(model, split.view("validation"), chosen, arguments.num_beams, seed)
    scratch = output.with_name(f"{output.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    report.write_json(scratch / "metrics.json", known)
    scratch.replace(output)
    named = f" --dataset_name {arguments.dataset_name}" if arguments.dataset_name else ""
    print(f"The model is in {output}. Measure it:\n")
    print(f"    python recipes/evaluate.py --model {output}{named} --targets validation")


if __name__ == "__main__":
    with one_sentence():
        main()
