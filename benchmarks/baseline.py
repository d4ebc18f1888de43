"""Tune a baseline on validation, evaluate what came out best, and keep one JSON of it.

python -m benchmarks.baseline --name scientific --dataset_name FOLDER --method ease
python -m benchmarks.baseline --name scientific --dataset_name FOLDER --method all
python -m benchmarks.baseline --name toys --dataset_name FOLDER
    --method sasrec-full-cross-entropy --max_configurations 3
python -m benchmarks.baseline --name beauty --dataset_name FOLDER --method all --split timeline

python -m benchmarks.baseline --name scientific --dataset_name FOLDER --method dense-text
    --encoder FOLDER_OR_HUB_ID

Every method has the same budget of at most twelve configurations; the JSON holds what each scored.
Markov chain + text starts from what Markov chain chose. Of SASRec, the bilinear similarity and
dense text, seed 0 tunes and other seeds take what it chose; `all` is all others. The JSON goes to
benchmarks/results, or to the folder that the environment variable TTDS_RESULTS names.
"""

import argparse

from recipes.config import SPLITS, TIMELINE_TARGETS
from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--dataset_name", required=True, help="Folder of the data set.")
    parser.add_argument(
        "--method",
        required=True,
        help="As in file names, e.g. ease; `all` is all that have no seed.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn at random.")
    parser.add_argument(
        "--tie_break",
        default="published",
        choices=("published", "shuffled"),
        help="Order of interactions with the same timestamp.",
    )
    parser.add_argument(
        "--split", default=SPLITS[0], choices=SPLITS, help="What is training, what is a target."
    )
    parser.add_argument(
        "--timeline_target",
        default=TIMELINE_TARGETS[0],
        choices=TIMELINE_TARGETS,
        help="Which interaction after a cut is the target.",
    )
    parser.add_argument("--encoder", help="Encoder that dense-text starts from; no default.")
    parser.add_argument(
        "--max_configurations", type=int, help="Try the first so many; all by default."
    )
    ARGUMENTS = parser.parse_args()

import itertools
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import torch

from benchmarks.result import RESULTS, TEXT_FILE, order_name, result_name, slug, write_result
from recipes.data.split import Split, split_data
from recipes.data.tables import read_data
from recipes.evaluation.baselines.bilinear import (
    BilinearSettings,
    fit_bilinear,
    rank_bilinear,
)
from recipes.evaluation.baselines.dense_text import (
    DenseTextSettings,
    fit_dense_text,
    rank_dense_text,
)
from recipes.evaluation.baselines.ease import ease
from recipes.evaluation.baselines.markov import markov_chain, markov_chain_and_text
from recipes.evaluation.baselines.neighbours import item_knn
from recipes.evaluation.baselines.popularity import popularity
from recipes.evaluation.baselines.sasrec import SASRecSettings, fit_sasrec, rank_sasrec
from recipes.evaluation.metrics import evaluate_run
from recipes.index.embeddings import collaborative_embeddings, read_text_embeddings

TOP_K = 20
COLLABORATIVE_DIM = 128  # as in the YAML files of the data sets
COUNTS, TEXT = "Markov chain", "Markov chain + text"
SASREC, SIMILARITY = "SASRec, full cross-entropy", "bilinear similarity"
DENSE_TEXT = "dense text"


def grid(**values: tuple) -> list[dict]:
    """Return all combinations, the last value changing fastest."""
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


# The first of a grid are those for data on which all would take hours.
GRIDS = {
    "popularity": [{}],
    COUNTS: grid(reverse=(0.25, 0.5, 1.0), decay=(0.35, 0.5, 0.65, 0.8)),
    TEXT: grid(temperature=(0.05, 0.07), weight=(0.3, 0.6, 1.0)),
    "item-kNN": grid(power=(0.1, 0.3, 0.0, 0.5), decay=(0.65, 0.5, 0.8)),
    "EASE": grid(l2=(200.0, 1000.0, 50.0, 10.0), decay=(0.5, 0.35, 0.8)),
    SIMILARITY: grid(num_epochs=(4, 8), scale=(3.0, 5.0, 2.0)),
    DENSE_TEXT: grid(learning_rate=(1e-4, 3e-5), temperature=(0.05, 0.02)),
    SASREC: grid(num_layers=(2, 1), dropout=(0.5, 0.2), hidden_size=(64, 128)),
}
FUNCTIONS = {
    "popularity": popularity,
    COUNTS: markov_chain,
    TEXT: markov_chain_and_text,
    "item-kNN": item_knn,
    "EASE": ease,
}


def fit(
    split: Split, method: str, config: dict, seed: int, folder: Path, encoder: str | None = None
) -> Callable[[str, int], np.ndarray]:
    """Return the function from `"validation"` or `"test"` and a length to ranked lists.

    On a timeline what ranks for the test is fitted anew, to the same epoch, on all before it.

    Args:
        split: The split.
        method: Name of the method.
        config: Its settings.
        seed: Seed of what is random.
        folder: The data set, for its text embeddings.
        encoder: What dense text starts from.
    """
    text = None
    if method in (TEXT, SIMILARITY):
        text = read_text_embeddings(folder / TEXT_FILE, split.num_items)
        text = split.in_order(text)
    if method in FUNCTIONS:

        def counted(which: str, top_k: int) -> np.ndarray:
            view = split.view(which)
            more = {} if text is None else {"text": text[: view.num_items].numpy()}
            return FUNCTIONS[method](view, which, top_k, **config, **more)

        return counted

    def fitted(known: Split, stop_after: int | None = None) -> tuple[Callable, int]:
        if method == SASREC:
            model, epoch = fit_sasrec(known, SASRecSettings(**config), seed, stop_after)
            return partial(rank_sasrec, model), epoch
        if method == DENSE_TEXT:
            settings = DenseTextSettings(**config)
            model, epoch = fit_dense_text(known, encoder, settings, seed, stop_after)
            return partial(rank_dense_text, model), epoch
        collaborative = collaborative_embeddings(
            known.training, known.num_items, COLLABORATIVE_DIM, seed
        )
        tables = [text[: known.num_items], collaborative]
        settings = BilinearSettings(**config)
        model, epoch = fit_bilinear(known, tables, settings, seed, stop_after)

        def ranker(view: Split, which: str, top_k: int) -> np.ndarray:
            nothing = collaborative.new_zeros(view.num_items - known.num_items, COLLABORATIVE_DIM)
            tables = [text[: view.num_items], torch.cat([collaborative, nothing])]
            return rank_bilinear(model.over(tables), view, which, top_k)

        return ranker, epoch

    chosen, epoch = fitted(split.view("training"))

    def ranker(which: str, top_k: int) -> np.ndarray:
        rank = chosen
        if which == "test" and split.views is not None:
            rank, _ = fitted(split.view("refit"), epoch)
        return rank(split.view(which), which, top_k)

    return ranker


def measure(arguments: argparse.Namespace, split: Split, method: str) -> None:
    """Tune and evaluate one method, and write its result."""
    begun = time.perf_counter()
    order = order_name(arguments.tie_break, arguments.split, arguments.timeline_target)
    name = result_name(arguments.name, order, method, arguments.seed)
    configs, source = GRIDS[method][: arguments.max_configurations], None
    tuning = {"configurations": len(configs), "validation NDCG@10": []}
    if method == TEXT:
        source = COUNTS
    elif method in (SASREC, SIMILARITY, DENSE_TEXT) and arguments.seed:
        source, configs, tuning["configurations"] = method, [{}], 0
    if source:
        tuned = RESULTS / f"{result_name(arguments.name, order, source, 0)}.json"
        if not tuned.exists():
            raise FileNotFoundError(f"{name} takes settings of {tuned}; make that result first.")
        settings = json.loads(tuned.read_text("utf-8"))["config"]
        configs = [settings | config for config in configs]
        tuning["settings of"] = tuned.name
    best = None
    for config in configs:
        ranker = fit(
            split, method, config, arguments.seed, Path(arguments.dataset_name), arguments.encoder
        )
        lists = ranker("validation", TOP_K).tolist()
        validation = evaluate_run(split.view("validation"), "validation", lists)
        score = validation["NDCG@10"]
        tuning["validation NDCG@10"].append(config | {"NDCG@10": score})
        print(f"{name} {config}: validation NDCG@10 {score:.4f}", flush=True)
        if best is None or score > best[1]["NDCG@10"]:
            best = config, validation, ranker
    config, validation, ranker = best
    lists = ranker("test", TOP_K).tolist()
    content = {
        "dataset": arguments.name,
        "method": method,
        "tie_break": arguments.tie_break,
        "split": arguments.split,
        "timeline_target": arguments.timeline_target,
        "config": config,
        "tuning": tuning,
        "data_sha256": split.data_sha256,
        "validation": validation,
        "test": evaluate_run(split, "test", lists),
    }
    write_result(name, arguments.seed, time.perf_counter() - begun, content, lists)


def main(arguments: argparse.Namespace) -> None:
    """Measure the method asked for, or all that have no seed.

    Args:
        arguments: The command line.
    """
    methods = {slug(method): method for method in GRIDS}
    if arguments.method not in (*methods, "all"):
        raise SystemExit(f"`--method` is {arguments.method!r}; take {', '.join(methods)} or all.")
    if methods.get(arguments.method) == DENSE_TEXT and arguments.encoder is None:
        raise SystemExit("`--method` dense-text needs --encoder, what it starts from; name one.")
    chosen = list(FUNCTIONS) if arguments.method == "all" else [methods[arguments.method]]
    file = Path(arguments.dataset_name, TEXT_FILE)
    if {TEXT, SIMILARITY} & {*chosen} and not file.exists():
        raise SystemExit(
            f"`--method` {arguments.method} needs text embeddings, and {file} does not exist; make "
            "it as docs/data.md says, or take another method."
        )
    data = read_data(arguments.dataset_name, tie_break=arguments.tie_break, seed=arguments.seed)
    split = split_data(
        data, split=arguments.split, timeline_target=arguments.timeline_target, seed=arguments.seed
    )
    for method in chosen:
        measure(arguments, split, method)


if __name__ == "__main__":
    main(ARGUMENTS)
