"""Compare collaborative embeddings on validation targets: ours, implicit's ALS and BPR.

python -m benchmarks.collaborative FOLDER [FOLDER ...]

An item's score is its embedding's cosine with the recency-weighted mean of the history's. Items
of the history are left out, so a target among them is a miss; a tie counts against the target. Test
targets are not read.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="Folder of a data set.")
    ARGUMENTS = parser.parse_args()

import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking

from benchmarks.result import write_result
from recipes.data.split import Split, split_data
from recipes.data.tables import read_data
from recipes.index.embeddings import collaborative_embeddings

DIM, DECAY, SEED = 128, 0.8, 0


def interactions(split: Split) -> sp.csr_matrix:
    """Return which user touched which item in training, (num_users, num_items)."""
    users = np.repeat(np.arange(len(split.training)), [len(h) for h in split.training])
    items = np.concatenate(split.training)
    shape = (len(split.training), split.num_items)
    matrix = sp.coo_matrix((np.ones(len(items), np.float32), (users, items)), shape=shape).tocsr()
    matrix.data[:] = 1
    return matrix


def als(split: Split, regularization: float, alpha: float) -> np.ndarray:
    """Return the item factors of implicit's alternating least squares."""
    model = AlternatingLeastSquares(
        DIM, regularization, alpha, iterations=15, num_threads=1, random_state=SEED
    )
    model.fit(interactions(split), show_progress=False)
    return model.item_factors


def bpr(split: Split, regularization: float) -> np.ndarray:
    """Return the item factors of implicit's Bayesian personalised ranking, bias left out."""
    model = BayesianPersonalizedRanking(
        DIM, 0.05, regularization, iterations=200, num_threads=1, random_state=SEED
    )
    model.fit(interactions(split), show_progress=False)
    return model.item_factors[:, :DIM]


WAYS: dict[str, Callable[[Split], np.ndarray]] = {
    "ours": lambda split: collaborative_embeddings(
        split.training, split.num_items, DIM, SEED
    ).numpy(),
    "ALS 1, 5": lambda split: als(split, 1, 5),
    "ALS 10, 40": lambda split: als(split, 10, 40),
    "ALS 50, 80": lambda split: als(split, 50, 80),
    "BPR .01": lambda split: bpr(split, 0.01),
    "BPR .05": lambda split: bpr(split, 0.05),
}


def evaluate(embeddings: np.ndarray, split: Split) -> dict[str, float]:
    """Return HR@10 and NDCG@10 on the validation targets."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings / np.maximum(norms, 1e-12)
    ranks = []
    for user in np.flatnonzero(split.validation_targets >= 0):
        history, target = split.training[user], split.validation_targets[user]
        weights = DECAY ** np.arange(len(history))[::-1]
        scores = embeddings @ (weights @ embeddings[history])  # (num_items,)
        scores[history] = -np.inf
        ranks.append((scores >= scores[target]).sum())
    ranks = np.array(ranks)
    hits = ranks <= 10
    return {"HR@10": float(hits.mean()), "NDCG@10": float((hits / np.log2(ranks + 1)).mean())}


def main(arguments: argparse.Namespace) -> None:
    """Measure every way on every data set and write the result.

    Args:
        arguments: The command line.
    """
    begun = time.perf_counter()
    results = {}
    for folder in arguments.folders:
        split = split_data(read_data(folder))
        rows = results[Path(folder).name] = {}
        for name, way in WAYS.items():
            start = time.perf_counter()
            embeddings = way(split)
            fitted = time.perf_counter() - start
            rows[name] = {
                key: round(value, 4) for key, value in evaluate(embeddings, split).items()
            }
            rows[name]["seconds"] = round(fitted, 1)
            print(Path(folder).name, name, rows[name], flush=True)
    write_result("collaborative", SEED, time.perf_counter() - begun, {"validation": results})


if __name__ == "__main__":
    main(ARGUMENTS)
