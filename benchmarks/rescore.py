"""Write the ranked lists of a result, and the data they are about, as any referee reads them.

python -m benchmarks.rescore scientific-ttds-seed0 --dataset_name FOLDER --lists FOLDER_OR_FILE
    --output outputs/rescore --referee score.py

The lists of every run lie in outputs/lists; a result records their SHA-256, and the command that
makes them again. Other lists than the recorded ones are refused.

A referee is called with the output folder, which gets both tables of the data set in the order of
the result, and a file of lists: {"user_id": ..., "items": [best, ...]} per test user.
"""

import argparse
from pathlib import Path

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", help="Name of the result, without .json.")
    parser.add_argument("--dataset_name", help="Folder; the generated data by default.")
    parser.add_argument("--lists", help="Folder or file of the lists; outputs/lists by default.")
    parser.add_argument("--output", required=True, type=Path, help="Folder to write to.")
    parser.add_argument(
        "--referee", help="Python script to call with the output and the lists; by default none."
    )
    ARGUMENTS = parser.parse_args()

import json
import subprocess
import sys

from benchmarks.result import LISTS, RESULTS, protocol, read_run
from recipes.config import DataOptions
from recipes.data.load import load_data
from recipes.data.split import split_data
from recipes.data.tables import write_data
from recipes.evaluation.metrics import evaluate_run
from recipes.evaluation.report import write_run

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: argparse.Namespace) -> None:
    """Check that data and lists are those of the result, write both, call the referee.

    Args:
        arguments: The command line.
    """
    if not (RESULTS / f"{arguments.name}.json").is_file():
        raise SystemExit(f"{RESULTS} has no {arguments.name}.json; name one of its results.")
    row = json.loads((RESULTS / f"{arguments.name}.json").read_text("utf-8"))
    options = DataOptions(arguments.dataset_name, **protocol(row))
    if arguments.referee and options.split == "timeline":
        raise SystemExit(f"{arguments.name} is of a timeline; a referee splits by leave-one-out.")
    data, _ = load_data(options, row["seed"])
    if data.sha256 != row["data_sha256"]:
        raise SystemExit(
            f"`data_sha256` of {arguments.name} is {row['data_sha256']}, that of "
            f"{arguments.dataset_name or 'the generated data'} is {data.sha256}: pass the data "
            "set of the result as --dataset_name."
        )
    try:
        lists = read_run(arguments.name, Path(arguments.lists or LISTS))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"These are the recorded lists of {arguments.name}.", flush=True)
    split = split_data(data, True, options.split, options.timeline_target, row["seed"])
    metrics = evaluate_run(split, "test", lists)
    for key in sorted(metrics.keys() & row["test"].keys()):
        if metrics[key] != row["test"][key]:
            raise SystemExit(
                f"`{key}` of the lists of {arguments.name} is {metrics[key]}, its result says "
                f"{row['test'][key]}: they are of different runs; run its command again."
            )
    write_data(data, arguments.output)
    file = arguments.output / "run.jsonl"
    write_run(file, split, "test", lists)
    print(f"The lists of {arguments.name} give its metrics; they are in {file}.", flush=True)
    if arguments.referee:
        subprocess.run([sys.executable, arguments.referee, arguments.output, file], check=True)


if __name__ == "__main__":
    main(ARGUMENTS)
