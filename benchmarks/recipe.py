"""Run the recipe and keep one JSON per row of its table; the ranked lists go into outputs/lists.

python -m benchmarks.recipe --name toyshop --seed 0
python -m benchmarks.recipe --name scientific --seed 0 --dataset_name FOLDER
    --config recipes/sparse.yaml
python -m benchmarks.recipe --name scientific --method "TIGER, static text SIDs"
    --output_dir outputs/tiger-0 --dataset_name FOLDER
    --config recipes/experiments/scientific/tiger.yaml

A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

import argparse
from pathlib import Path

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn at random.")
    parser.add_argument(
        "--variant", help="Keeps the rows of TTDS only, under names with this; by default all."
    )
    parser.add_argument(
        "--method", help="Keeps what is language model only, under this name; by default all."
    )
    parser.add_argument("--output_dir", type=Path, help="outputs/benchmark-NAME-SEED by default.")
    ARGUMENTS, RECIPE = parser.parse_known_args()

import json
import resource
import shutil
import signal
import subprocess
import sys
import time

from benchmarks.result import order, protocol, result_name, write_result
from recipes.evaluation import report
from recipes.evaluation.report import LM_ONLY, TTDS

ROOT = Path(__file__).resolve().parents[1]


def lists_of(output: Path, metrics: dict) -> dict[str, list[list[int]]]:
    """Return the ranked test lists of every row that kept them, as item rows.

    Args:
        output: The recipe's output folder.
        metrics: Its `metrics.json`.
    """
    entries = (output / "catalogue.jsonl").read_text("utf-8").splitlines()
    row_of = {json.loads(entry)["item_id"]: row for row, entry in enumerate(entries)}
    beside = report.lists_folder(output)
    files = {row: beside / report.run_file(row, metrics["test"]) for row in metrics["test"]}
    return {
        row: [
            [row_of[item] for item in json.loads(line)["items"]]
            for line in file.read_text("utf-8").splitlines()
        ]
        for row, file in files.items()
        if file.exists()
    }


def train(output: Path, recipe: list[str]) -> float:
    """Run the recipe, from the last checkpoint if it was stopped; return the seconds of all calls.

    Args:
        output: Its output folder; beside it lies with what arguments and for how long it ran.
        recipe: Its arguments.
    """
    ledger = output.with_name(f"{output.name}.json")
    before = json.loads(ledger.read_text("utf-8")) if ledger.exists() else {}
    sealed = any(output.glob("checkpoint-*/complete.json"))
    if sealed and before.get("arguments") == recipe and not (output / "metrics.json").exists():
        resume, spent = ["--resume_from_checkpoint", "true"], before["seconds"]
    else:
        shutil.rmtree(output, ignore_errors=True)
        resume, spent = [], 0.0
    output.mkdir(parents=True, exist_ok=True)
    report.write_json(ledger, {"arguments": recipe, "seconds": spent})
    begun = time.perf_counter()
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "recipes/sft.py", *recipe, "--output_dir", str(output), *resume,
    ]  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # past the finally below
    try:
        subprocess.run(command, cwd=ROOT, check=True)
    finally:
        seconds = spent + time.perf_counter() - begun
        report.write_json(ledger, {"arguments": recipe, "seconds": seconds})
    return seconds


def main(arguments: argparse.Namespace, recipe: list[str]) -> None:
    """Train, evaluate, and write what came out.

    Args:
        arguments: The command line.
        recipe: What of it is handed to the recipe.
    """
    output = arguments.output_dir or Path("outputs", f"benchmark-{arguments.name}-{arguments.seed}")
    output = ROOT / output
    seconds = train(output, [*recipe, "--seed", str(arguments.seed)])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    metrics = json.loads((output / "metrics.json").read_text())
    lists = lists_of(output, metrics)
    measured = {"config": metrics["options"]}
    for row, test in metrics["test"].items():
        if arguments.method and row != LM_ONLY:
            continue
        if arguments.variant and not row.startswith(TTDS):
            continue
        if row in report.BASELINES and metrics["options"]["dataset_name"]:
            continue  # benchmarks/baseline.py tunes them
        method = f"{row} ({arguments.variant})" if arguments.variant else arguments.method or row
        name = result_name(arguments.name, order(measured), method, arguments.seed)
        content = {
            "dataset": arguments.name,
            **protocol(measured),
            "method": method,
            **measured,
            "data_sha256": metrics["data_sha256"],
            "towers": metrics["towers"],
            "peak_memory_mb": round(peak),
            "validation": metrics["validation"].get(row),
            "test": test,
        }
        write_result(name, arguments.seed, seconds, content, lists.get(row))


if __name__ == "__main__":
    main(ARGUMENTS, RECIPE)
