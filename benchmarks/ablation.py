"""Add the method's parts one by one: a row per YAML, several seeds, one JSON per run.

python -m benchmarks.ablation --name scientific --config recipes/sparse.yaml --dataset_name FOLDER
python -m benchmarks.ablation --name toys --config recipes/experiments/toys/sft.yaml
    --dataset_name FOLDER --seeds 0

A row's YAML, in recipes/experiments/ablation, holds what it adds to the settings of --config, and
under `without` the parts that `benchmarks.without` switches off. No re-ranker is fitted, so that a
run takes minutes. A run whose result is there is passed over, so the command resumes. What follows
is handed to the recipe.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--config", required=True, help="YAML of the settings that rows share.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds to run.")
    parser.add_argument("--rows", nargs="+", help="Stems of the rows' YAML files; all by default.")
    parser.add_argument("--parallel", type=int, default=2, help="Runs side by side.")
    ARGUMENTS, RECIPE = parser.parse_known_args()

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from benchmarks.result import RESULTS, write_result
from recipes.evaluation.report import LM_ONLY

ROOT = Path(__file__).resolve().parents[1]

ROWS = ROOT / "recipes" / "experiments" / "ablation"
ALONE = {"memory": False, "reranker": False}


def run(row: Path, dataset: str, config: Path, seed: int, threads: int, recipe: list[str]) -> None:
    """Tune one row with one seed and write its result.

    Args:
        row: The row's YAML.
        dataset: Name of the data set.
        config: YAML of the settings that rows share.
        seed: The seed.
        threads: Threads of the run.
        recipe: Further arguments of the recipe.
    """
    name = f"ablation-{dataset}-{row.stem}-seed{seed}"
    if (RESULTS / f"{name}.json").exists():
        return
    output = ROOT / "outputs" / name
    output.parent.mkdir(exist_ok=True)
    settings = yaml.safe_load(config.read_text()) | ALONE | yaml.safe_load(row.read_text())
    without = settings.pop("without", [])
    merged = output.with_suffix(".yaml")
    merged.write_text(yaml.safe_dump(settings | {"seed": seed}))
    begun = time.perf_counter()
    tune = ["-m", "benchmarks.without", *without] if without else ["recipes/sft.py"]
    command = [
        sys.executable, *tune, "--config", str(merged), "--output_dir", str(output),
        "--overwrite_output_dir", "true", "--disable_tqdm", "true", "--save_total_limit", "1",
        *recipe,
    ]  # fmt: skip
    with output.with_suffix(".log").open("w") as log:
        subprocess.run(
            command, cwd=ROOT, check=True, stdout=log, stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
    metrics = json.loads((output / "metrics.json").read_text())
    content = {
        "ablation": row.stem,
        "dataset": dataset,
        "method": f"ablation: {row.stem}",
        "threads": threads,
        "without": without,
        "config": metrics["options"],
        "data_sha256": metrics["data_sha256"],
        "tuning": metrics["tuning"],
        "validation": metrics["validation"][LM_ONLY],
        "test": metrics["test"][LM_ONLY],
    }
    write_result(name, seed, time.perf_counter() - begun, content)
    print(name, {n: round(content["validation"][n], 4) for n in ("HR@10", "NDCG@10")}, flush=True)


def main(arguments: argparse.Namespace, recipe: list[str]) -> None:
    """Run what is missing, several runs side by side.

    Args:
        arguments: The command line.
        recipe: What of it is handed to the recipe.
    """
    rows = sorted(ROWS.glob("*.yaml"))
    if arguments.rows:
        rows = [row for row in rows if row.stem in arguments.rows]
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, os.cpu_count() // arguments.parallel)))
    shared = arguments.name, Path(arguments.config)
    with ThreadPoolExecutor(arguments.parallel) as pool:
        runs = [
            pool.submit(run, row, *shared, seed, threads, recipe)
            for seed in arguments.seeds
            for row in rows
        ]
        for future in runs:
            future.result()


if __name__ == "__main__":
    main(ARGUMENTS, RECIPE)
