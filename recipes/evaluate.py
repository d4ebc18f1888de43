"""Rank the catalogue for every user of a data set by a saved model, and measure the lists.

The metrics go into metrics.json in the model's folder, the lists, by user id, into the folder
beside it whose name ends in -lists.

python recipes/evaluate.py --model outputs/demo
python recipes/evaluate.py --model FOLDER_OR_HUB_ID --dataset_name FOLDER --output FOLDER
python recipes/evaluate.py --model FOLDER --dataset_name FOLDER --targets validation
"""

import json
from pathlib import Path

from recipes.config import SPLITS, add_data_arguments
from recipes.errors import Parser, one_sentence


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
    parser.add_argument("--num_beams", type=int, default=50, help="Prefixes kept per level.")
    parser.add_argument("--output", help="Folder to write to; by default the model's.")
    arguments = parser.parse_args()
    if arguments.num_beams < 1:
        raise ValueError(f"`--num_beams` is {arguments.num_beams}; it must be at least 1.")

    # They take seconds, which --help and a wrong option need not wait for.
    from transformers.utils import cached_file

    from recipes.data.split import check_split
    from recipes.evaluation import report
    from recipes.evaluation.report import LM_ONLY
    from recipes.hub.card import GENERATED_DATA
    from recipes.hub.files import model_sha256
    from recipes.hub.saved import (
        check_items,
        check_same_data,
        load_model,
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
    output = Path(arguments.output or arguments.model)
    if not output.is_dir():
        missing = f"`--output` {output} is no folder"
        if arguments.output is None:
            missing = f"`--model` {output} is on the Hub, which takes no results"
        raise ValueError(f"{missing}; name a folder that exists by --output.")

    data, shop, otherwise = read_as_trained(arguments, model.config)
    if not (otherwise or arguments.allow_other_data):
        check_same_data(model.config, arguments.model, data)
    split = split_as_trained(arguments, model.config, data)
    check_split(split)
    if check_items(model, arguments.model, split.data) != list(range(split.num_items)):
        raise ValueError(f"{arguments.model} was built on another catalogue than the data set's.")
    split, rows = split.view(which), {}
    for row in report.rows_of(model):
        rows[row], lists = report.evaluate_model(model, split, which, arguments.num_beams, row)
    rows[LM_ONLY]["unique_sids"] = report.unique_sids(model)
    rows |= report.baseline_rows(split, which, shop)
    report.write_run(report.lists_folder(output) / "run.jsonl", split, which, lists)
    content = {"dataset": arguments.dataset_name or GENERATED_DATA, "data_sha256": data.sha256}
    content |= {"split": name}
    measured = model_sha256(Path(cached_file(arguments.model, "config.json")).parent)
    file = output / "metrics.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    theirs = known.get("split") or known.get("options", {}).get("split", "leave_one_out")
    if known.get("data_sha256") == data.sha256 and theirs == name:
        content = known  # what the training run wrote beside the model stays true of it
        if known.get("model_sha256", measured) != measured:  # but for figures of an earlier state
            content = {n: part for n, part in known.items() if n not in ("validation", "test")}
    content |= {"model_sha256": measured}
    report.write_json(file, content | {which: content.get(which, {}) | rows})
    print(report.table(rows))


if __name__ == "__main__":
    with one_sentence():
        main()
