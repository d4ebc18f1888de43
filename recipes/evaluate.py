"""Evaluate a saved model on a data set: metrics.json and run.jsonl beside the model.

python recipes/evaluate.py --model outputs/demo
python recipes/evaluate.py --model FOLDER_OR_HUB_ID --dataset_name FOLDER --output FOLDER
"""

import argparse
import json
from pathlib import Path

from modeling_ttds import TTDSForCausalLM
from recipes.config import DataOptions
from recipes.data.load import load_data
from recipes.data.split import split_data
from recipes.evaluation import report
from recipes.evaluation.report import LM_ONLY
from recipes.hub.card import GENERATED_DATA


def main() -> None:
    """Rank the catalogue for every user of the split and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--dataset_name", help="folder or Hub id; the generated data by default")
    parser.add_argument("--tie_break", default="published", choices=("published", "shuffled"))
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--num_beams", type=int, default=50)
    parser.add_argument("--output", help="folder to write to; the model's by default")
    arguments = parser.parse_args()
    output = Path(arguments.output or arguments.model)
    if not output.is_dir():
        raise SystemExit(f"`--output` {output} is no folder; name one that exists.")

    data, shop = load_data(
        DataOptions(dataset_name=arguments.dataset_name, tie_break=arguments.tie_break)
    )
    split = split_data(data)
    model = TTDSForCausalLM.from_pretrained(arguments.model).eval()
    names = [entry["item_id"] for entry in model.catalogue]
    if names[: split.num_items] != data.catalogue.item_ids:
        raise SystemExit(f"{arguments.model} was built on another catalogue than the data set's.")
    rows = {}
    for row in report.rows_of(model):
        rows[row], lists = report.evaluate_model(
            model, split, arguments.split, arguments.num_beams, row
        )
    rows[LM_ONLY] |= report.sid_metrics(model, split, arguments.split)
    rows |= report.baseline_rows(split, arguments.split, shop)
    report.write_run(output / "run.jsonl", split, arguments.split, lists)
    # What the training run wrote beside the model stays true of it.
    content = {"dataset": arguments.dataset_name or GENERATED_DATA, "data_sha256": data.sha256}
    file = output / "metrics.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if known.get("data_sha256") == data.sha256:
        content = known
    report.write_json(file, content | {arguments.split: content.get(arguments.split, {}) | rows})
    print(report.table(rows))


if __name__ == "__main__":
    main()
