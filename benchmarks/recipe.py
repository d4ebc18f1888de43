"""Run the recipe and keep one JSON and the ranked lists per row of its table in benchmarks/results.

python benchmarks/recipe.py --name toyshop --seed 0
python benchmarks/recipe.py --name scientific --seed 0 --config recipes/scientific/sft.yaml
    --dataset_name FOLDER
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result import result_name, write_result, write_run  # noqa: E402
from recipes.card import GENERATED, JOINED  # noqa: E402


def lists_of(output: Path, metrics: dict) -> dict[str, list[list[int]]]:
    """Return the ranked test lists of every row that kept them, as item rows.

    Args:
        output: The recipe's output folder.
        metrics: Its `metrics.json`.
    """
    entries = (output / "catalogue.jsonl").read_text("utf-8").splitlines()
    row_of = {json.loads(entry)["item_id"]: row for row, entry in enumerate(entries)}
    files = {JOINED if JOINED in metrics["test"] else GENERATED: output / "run.jsonl"}
    return {
        method: [
            [row_of[item] for item in json.loads(line)["items"]]
            for line in file.read_text("utf-8").splitlines()
        ]
        for method, file in files.items()
    }


def main() -> None:
    """Train, evaluate, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="name of the data set in the results")
    parser.add_argument("--seed", type=int, default=0)
    arguments, recipe = parser.parse_known_args()
    output = ROOT / "outputs" / f"benchmark-{arguments.name}-{arguments.seed}"
    begun = time.perf_counter()
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch", "recipes/sft.py", *recipe,
        "--seed", str(arguments.seed), "--output_dir", str(output),
        "--overwrite_output_dir", "true",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    metrics = json.loads((output / "metrics.json").read_text())
    lists = lists_of(output, metrics)
    tie_break = metrics["options"]["tie_break"]
    for method, test in metrics["test"].items():
        name = result_name(arguments.name, tie_break, method, arguments.seed)
        content = {
            "dataset": arguments.name,
            "tie_break": tie_break,
            "method": method,
            "config": metrics["options"],
            "data_sha256": metrics["data_sha256"],
            "towers": metrics["towers"],
            "peak_memory_mb": round(peak),
            "validation": metrics["validation"].get(method),
            "test": test,
        }
        write_result(name, arguments.seed, seconds, content)
        if method in lists:
            write_run(name, lists[method])


if __name__ == "__main__":
    main()
