"""Run the recipe and keep one JSON per row of its table in benchmarks/results.

python benchmarks/recipe.py --name toyshop --seed 0
python benchmarks/recipe.py --name scientific --seed 0 --config recipes/scientific/sft.yaml
    --dataset_name FOLDER
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result import RESULTS, result_name, write_result  # noqa: E402

LARGEST_RUN_FILE = 3_000_000


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
    for method, test in metrics["test"].items():
        content = {
            "dataset": arguments.name,
            "method": method,
            "config": metrics["options"],
            "data_sha256": metrics["data_sha256"],
            "towers": metrics["towers"],
            "peak_memory_mb": round(peak),
            "validation": metrics["validation"].get(method),
            "test": test,
        }
        order = metrics["options"]["tie_break"]
        name = result_name(arguments.name, order, method, arguments.seed)
        write_result(name, arguments.seed, seconds, content)
    run = gzip.compress((output / "run.jsonl").read_bytes(), mtime=0)
    if len(run) < LARGEST_RUN_FILE and arguments.name == "toyshop":
        (RESULTS / f"{arguments.name}-ttds-seed{arguments.seed}.run.jsonl.gz").write_bytes(run)


if __name__ == "__main__":
    main()
