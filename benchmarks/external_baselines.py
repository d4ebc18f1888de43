"""Run somebody else's implementation under our protocol: our split, full catalogue, no seen items.

python -m benchmarks.external_baselines --method tiger --dataset_name FOLDER

Its package gets an environment of its own under outputs/external_baselines. It is handed histories
and text embeddings by row, no id and no test target; what it lists is scored here. Of a few
configurations the best on validation is reported. A configuration that was run before is passed
over, so the command resumes.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--method", required=True, help="Whose: tiger, rpg, sasrec or esasrec.")
    parser.add_argument("--dataset_name", required=True, help="Folder of the data set.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn at random.")
    ARGUMENTS = parser.parse_args()

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.result import TEXT_FILE, slug, write_result
from recipes.data.split import Split, split_data
from recipes.data.tables import read_data
from recipes.evaluation.metrics import evaluate_run
from recipes.evaluation.report import write_json
from recipes.index.embeddings import read_text_embeddings

ROOT = Path(__file__).resolve().parents[1]

WORKER = ROOT / "benchmarks" / "external_worker.py"
OUTPUTS = ROOT / "outputs" / "external_baselines"
# As in the Makefile: on Linux the index may bring CUDA; TORCH names another build.
TORCH = os.environ.get("TORCH", "torch==2.13.0")
PACKAGES = {
    "cornac": [
        "cornac==3.0.1", "transformers==5.17.0", "faiss-cpu==1.15.1", "scikit-learn==1.9.1",
    ],
    "rectools": ["rectools[torch]==0.19.0"],
}  # fmt: skip


@dataclass(frozen=True)
class ExternalBaseline:
    """A method as a package implements it.

    Args:
        name: Its row in the tables.
        package: Key of `PACKAGES`.
        configs: Arguments of the package's class, one set per configuration that is tried.
    """

    name: str
    package: str
    configs: list[dict]


SMALL_T5 = {
    "tokenizer": "rkmeans", "d_model": 64, "d_ff": 256, "num_heads": 4, "d_kv": 16,
    "num_enc_layers": 2, "num_dec_layers": 2, "dropout": 0.2, "max_len": 10, "n_epochs": 40,
    "batch_size": 128, "weight_decay": 0.035, "lr_schedule": "cosine", "warmup_steps": 300,
    "model_selection": "best", "val_eval_every": 8, "val_sample": 500, "n_beams": 30,
    "device": "cpu",
}  # fmt: skip
SMALL_GPT = {
    "pca_dim": 128, "d_model": 128, "n_inner": 512, "max_len": 20, "temperature": 0.03,
    "learning_rate": 0.003, "batch_size": 64, "n_epochs": 60, "lr_schedule": "cosine",
    "warmup_steps": 200, "model_selection": "best", "val_eval_every": 4,
    "early_stopping_patience": 4, "val_sample": None, "scoring": "exact", "device": "cpu",
}  # fmt: skip
SASREC = {
    "n_blocks": 2, "n_heads": 4, "session_max_len": 20, "lr": 0.001, "batch_size": 128,
    "epochs": 200,
}  # fmt: skip
# As its authors ran it on beauty, blondered/transformer_benchmark, configs/paper/loo.
ESASREC = {
    "n_factors": 256, "n_blocks": 1, "n_heads": 1, "session_max_len": 50, "dropout_rate": 0.2,
    "transformer_layers_kwargs": {"ff_factors_multiplier": 4}, "use_key_padding_mask": True,
    "loss": "sampled_softmax", "n_negatives": 256, "lr": 0.001, "batch_size": 128, "epochs": 200,
}  # fmt: skip
EXTERNAL_BASELINES = {
    "tiger": ExternalBaseline(
        "TIGER (cornac)",
        "cornac",
        [
            SMALL_T5 | {"rqvae_codebook_size": 256, "learning_rate": 0.002},
            SMALL_T5 | {"rqvae_codebook_size": 64, "learning_rate": 0.002},
        ],
    ),
    "rpg": ExternalBaseline("RPG (cornac)", "cornac", [SMALL_GPT | {"n_codebook": 16}]),
    "sasrec": ExternalBaseline(
        "SASRec (RecTools)", "rectools", [SASREC | {"n_factors": 128, "dropout_rate": 0.5}]
    ),
    "esasrec": ExternalBaseline("eSASRec (RecTools)", "rectools", [ESASREC]),
}


def environment(package: str) -> Path:
    """Return the Python that has a baseline's package and nothing of ours, made once.

    Args:
        package: Key of `PACKAGES`.
    """
    folder = OUTPUTS / package
    python = folder / "bin" / "python"
    done = folder / "installed.json"
    wanted = [TORCH, *PACKAGES[package]]
    if not done.exists() or json.loads(done.read_text()) != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for names in ([TORCH], wanted):  # torch first, or pip takes the build it likes
            subprocess.run([str(python), "-m", "pip", "install", "-q", *names], check=True)
        write_json(done, wanted)
    return python


def write_histories(split: Split, text: Tensor, folder: Path) -> None:
    """Write what an external baseline may know: `histories.json` and `text.npy`, rows without ids.

    Args:
        split: The split; its test targets stay here.
        text: Text embeddings, (num_items, text_dim).
        folder: Where to; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "num_items": split.num_items,
        "training": [history.tolist() for history in split.training],
        "validation_targets": split.validation_targets.tolist(),
    }
    write_json(folder / "histories.json", content)
    np.save(folder / "text.npy", text.numpy())


def hand_over(source: Path, folder: Path) -> Split:
    """Read and split a data set, write what an external baseline may know of it.

    Args:
        source: Folder of the data set, with `text_embeddings.safetensors`.
        folder: As of `write_histories`.
    """
    split = split_data(read_data(str(source)))
    write_histories(split, read_text_embeddings(source / TEXT_FILE, split.num_items), folder)
    return split


def run(method: str, config: dict, folder: Path, output: Path) -> dict:
    """Train an external baseline with one configuration and return what it wrote.

    Args:
        method: Key of `EXTERNAL_BASELINES`.
        config: The configuration.
        folder: What `write_histories` wrote.
        output: File of the result; kept, and used if it is of the same configuration.
    """
    if output.exists() and json.loads(output.read_text())["config"] == config:
        return json.loads(output.read_text())
    python = environment(EXTERNAL_BASELINES[method].package)
    # -I: neither this folder nor PYTHONPATH can be imported from.
    command = [str(python), "-I", str(WORKER), method, str(folder), json.dumps(config), str(output)]
    subprocess.run(command, check=True)
    return json.loads(output.read_text())


def main(arguments: argparse.Namespace) -> None:
    """Try the configurations, choose on validation, score the choice on test, write one result.

    Args:
        arguments: The command line.
    """
    if arguments.method not in EXTERNAL_BASELINES:
        known = ", ".join(EXTERNAL_BASELINES)
        raise SystemExit(f"`--method` is {arguments.method!r}; take one of {known}.")
    external, source = EXTERNAL_BASELINES[arguments.method], Path(arguments.dataset_name)
    folder = OUTPUTS / source.name
    split = hand_over(source, folder)

    found, tried = [], []
    for number, config in enumerate(external.configs):
        output = folder / f"{arguments.method}-{number}-seed{arguments.seed}.json"
        result = run(arguments.method, config | {"seed": arguments.seed}, folder, output)
        found.append(result)
        tried.append(
            {
                "config": result["config"],
                "NDCG@10": evaluate_run(split, "validation", result["validation"])["NDCG@10"],
                "curve": result["curve"],
                "seconds": result["seconds"],
                "cpu_seconds": result["cpu_seconds"],
            }
        )
        print(external.name, number, round(tried[-1]["NDCG@10"], 4), flush=True)
    best = max(range(len(tried)), key=lambda number: tried[number]["NDCG@10"])
    chosen = found[best]
    name = f"{source.name}-{slug(external.name)}-seed{arguments.seed}"
    content = {
        "dataset": source.name,
        "method": external.name,
        "package": chosen["package"],
        "config": chosen["config"],
        "tuning": {"configurations": len(tried), "chosen": best, "tried": tried},
        "data_sha256": split.data_sha256,
        "peak_memory_mb": chosen["peak_memory_mb"],
        "validation": evaluate_run(split, "validation", chosen["validation"]),
        "test": evaluate_run(split, "test", chosen["test"]),
        "users_a_second": round(len(chosen["test"]) / chosen["listing_cpu_seconds"], 1),
    }
    write_result(name, arguments.seed, chosen["seconds"], content, chosen["test"])
    print({metric: round(content["test"][metric], 4) for metric in ("HR@10", "NDCG@10")})


if __name__ == "__main__":
    main(ARGUMENTS)
