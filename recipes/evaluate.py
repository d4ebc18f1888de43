"""Rank the catalogue for every user of a data set by a saved model, and measure the lists.

The metrics go into metrics.json in the model's folder, the lists, by user id, into the folder
beside it whose name ends in -lists. What is measured otherwise than by the training run is printed,
and written where --output says.

python recipes/evaluate.py --model outputs/demo
python recipes/evaluate.py --model FOLDER_OR_HUB_ID --dataset_name FOLDER --output FOLDER
python recipes/evaluate.py --model FOLDER --dataset_name FOLDER --targets validation
"""

from pathlib import Path

from recipes.config import LIST_LENGTH, SPLITS, add_data_arguments
from recipes.errors import Parser, check_writable, one_sentence


def main() -> None:
    """Rank the catalogue for every user of the split and write what came out."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument(
        "--allow_other_data", action="store_true", help="Measure on data it was not trained on."
    )
    parser.add_argument(
        "--targets",
        default="test",
        choices=("validation", "test"),
        help="Whose targets are looked for.",
    )
    parser.add_argument("--split", choices=SPLITS, help="Which split; as for training by default.")
    parser.add_argument(
        "--num_beams", type=int, help="Prefixes kept per level; as for training by default."
    )
    parser.add_argument("--output", help="Folder to write to; by default the model's.")
    arguments = parser.parse_args()
    if arguments.num_beams is not None and arguments.num_beams < LIST_LENGTH:
        raise ValueError(
            f"`--num_beams` is {arguments.num_beams}; lists of {LIST_LENGTH} items need as many."
        )

    # They take seconds, which --help and a wrong option need not wait for.
    from recipes.config import EvaluationOptions
    from recipes.data.origin import data_identity, difference
    from recipes.data.split import check_split
    from recipes.evaluation import report
    from recipes.evaluation.report import LM_ONLY
    from recipes.hub.card import GENERATED_DATA
    from recipes.hub.files import model_sha256
    from recipes.hub.saved import (
        check_items,
        check_same_data,
        load_model,
        model_folder,
        read_as_trained,
        split_as_trained,
        which_split,
    )

    model = load_model(arguments.model)
    name, which = which_split(arguments, model.config), arguments.targets
    if which == "validation" and name == "timeline":
        raise ValueError(
            f"{arguments.model} learnt from the validation's interactions before its test, as a "
            "model of a timeline does; its metrics.json has what was measured before."
        )
    output, folder = Path(arguments.output or arguments.model), model_folder(arguments.model)
    if not output.is_dir():
        missing = f"`--output` {output} is no folder"
        if arguments.output is None:
            missing = f"`--model` {output} is on the Hub, which takes no results"
        raise ValueError(f"{missing}; name a folder that exists by --output.")
    own = output.resolve() == folder.resolve()
    if not own and (output / "config.json").exists():
        raise ValueError(f"`--output` {output} is the folder of another model; name another.")
    check_writable("--output", report.lists_folder(output))
    file = output / "metrics.json"
    known = report.read_json(file) if file.exists() else {}
    beams = known.get("options", {}).get("num_beams") if own else None
    num_beams = arguments.num_beams or beams or EvaluationOptions.num_beams

    data, shop, otherwise = read_as_trained(arguments, model.config)
    if not (otherwise or arguments.allow_other_data):
        check_same_data(model.config, arguments.model, data)
    split = split_as_trained(arguments, model.config, data)
    check_split(split)
    if check_items(model, arguments.model, split.data) != list(range(split.num_items)):
        raise ValueError(f"{arguments.model} was built on another catalogue than the data set's.")
    trained = model.config.trained_on
    otherwise |= bool(trained and difference(data_identity(data), trained))
    otherwise |= split.exclude_seen != model.config.exclude_seen
    otherwise |= beams not in (None, num_beams)
    shown = report.rows_of(model)
    if which == "validation" and shown != [LM_ONLY]:
        print(
            "Priors and re-ranker were fitted on the validation targets, so only the language "
            "model is measured on them; metrics.json of the training run has all rows, "
            "cross-fitted."
        )
        shown = [LM_ONLY]
    split, rows = split.view(which), {}
    for row in shown:
        rows[row], lists = report.evaluate_model(model, split, which, num_beams, row)
    rows[LM_ONLY]["unique_sids"] = report.unique_sids(model)
    rows |= report.baseline_rows(split, which, shop)
    print(report.table(rows))
    if own and otherwise:
        print(
            "\nThis was measured otherwise than by the training run, whose figures stay in "
            f"{file}. Name a folder by --output to write it there."
        )
        return
    found = {
        "data_sha256": data.sha256,
        "split": name,
        "measured_with": {"num_beams": num_beams, "exclude_seen": split.exclude_seen},
    }
    content, today = {"dataset": arguments.dataset_name or GENERATED_DATA}, model_sha256(folder)
    theirs = {"split": known.get("options", {}).get("split", "leave_one_out")} | known
    if all(theirs.get(name, value) == value for name, value in found.items()):
        content = known  # what was measured before stays true
        if known.get("model_sha256", today) != today:  # but for an earlier state of the model
            content = {n: part for n, part in known.items() if n not in ("validation", "test")}
    content |= found | {"model_sha256": today}
    lists_file = "run.jsonl" if which == "test" else "run-validation.jsonl"
    report.write_run(report.lists_folder(output) / lists_file, split, which, lists)
    report.write_json(file, content | {which: content.get(which, {}) | rows})


if __name__ == "__main__":
    with one_sentence():
        main()
