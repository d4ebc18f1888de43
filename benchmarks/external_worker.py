"""Train an external baseline and write its lists; runs where only its package is installed.

python -I benchmarks/external_worker.py METHOD FOLDER CONFIG OUTPUT

FOLDER is what `benchmarks/external_baselines.py` hands over: histories without test targets, and
the items' text embeddings. A list holds item rows from best to worst, none of them in the user's
history.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

LENGTH = 20
EPOCHS, PATIENCE = 5, 4  # of RecTools: epochs between validations, validations without a gain


@dataclass(frozen=True)
class Histories:
    """What an external baseline may know.

    Args:
        num_items: Size of the catalogue.
        training: Per user, item rows from oldest to newest.
        validation_targets: Per user, the item row that follows, or -1 for a user who is not asked.
        text: Text embeddings of the items, (num_items, text_dim).
    """

    num_items: int
    training: list[list[int]]
    validation_targets: list[int]
    text: np.ndarray

    @property
    def users(self) -> list[int]:
        """The users that are asked."""
        return [user for user, target in enumerate(self.validation_targets) if target >= 0]

    def before(self, which: str) -> list[list[int]]:
        """Return the history of every user in training, or up to a target.

        Args:
            which: `"validation"` or `"test"`.
        """
        if which == "validation":
            return self.training
        targets = self.validation_targets
        return [h + [t] * (t >= 0) for h, t in zip(self.training, targets, strict=True)]


def read_histories(folder: Path) -> Histories:
    """Read what `external_baselines.write_histories` wrote."""
    content = json.loads((folder / "histories.json").read_text())
    return Histories(**content, text=np.load(folder / "text.npy"))


def best_unseen(scores: np.ndarray, history: list[int]) -> list[int]:
    """Return the rows of the best scores, those of the history left out.

    Args:
        scores: One score per item, (num_items,); minus infinity means never.
        history: Item rows.
    """
    scores = scores.copy()
    scores[history] = -np.inf
    best = np.argsort(-scores, kind="stable")[:LENGTH]
    return best[np.isfinite(scores[best])].tolist()


def ndcg(lists: list[list[int]], targets: list[int]) -> float:
    """Return NDCG@10, by which a method that has no such measure of its own is stopped."""
    ranks = [
        items.index(target) if target in items[:10] else None
        for items, target in zip(lists, targets, strict=True)
    ]
    return sum(1 / np.log2(rank + 2) for rank in ranks if rank is not None) / len(ranks)


def cornac(method: str, histories: Histories, config: dict) -> dict:
    """Train cornac's TIGER or RPG, its epoch chosen by cornac's own validation.

    Args:
        method: `"tiger"` or `"rpg"`.
        histories: What it may know.
        config: Arguments of the class.

    Returns:
        `"curve"`, cornac's NDCG@10 at every validation, lists per kind of target, and
        `"listing_cpu_seconds"`, what the test's took.
    """
    from cornac.data import FeatureModality
    from cornac.eval_methods import NextItemEvaluation
    from cornac.models import RPG, TIGER

    def sessions(which: str, users: Sequence[int]) -> list[tuple[str, str, str, int]]:
        return [
            (str(user), str(user), str(item), moment)
            for user in users
            for moment, item in enumerate(histories.before(which)[user])
        ]

    names = [str(row) for row in range(histories.num_items)]
    given = NextItemEvaluation.from_splits(
        train_data=sessions("validation", range(len(histories.training))),
        val_data=sessions("test", histories.users),
        # Never evaluated: a session of all items, so that cornac knows the whole catalogue.
        test_data=[("catalogue", "catalogue", name, row) for row, name in enumerate(names)],
        fmt="USIT",
        item_feature=FeatureModality(features=histories.text.copy(), ids=names),
    )
    curve = []

    class Watched({"tiger": TIGER, "rpg": RPG}[method]):
        def _validate(self, *arguments: object) -> float:
            curve.append(super()._validate(*arguments))
            print(f"{time.process_time():.0f} s, validation {curve[-1]:.4f}", flush=True)
            return curve[-1]

    model = Watched(**config).fit(given.train_set, given.val_set)
    own = np.array([given.global_iid_map[name] for name in names])  # our row to theirs
    result = {"curve": curve}
    for which in ("validation", "test"):
        begun, result[which] = time.process_time(), []
        for user in histories.users:
            history = histories.before(which)[user]
            scores = model.score(None, own[history].tolist())[own]
            scores[scores <= -1e10] = -np.inf  # cornac's mark of an item no beam reached
            result[which].append(best_unseen(scores, history))
        result["listing_cpu_seconds"] = time.process_time() - begun
        print(f"{time.process_time():.0f} s, {which} lists", flush=True)
    return result


def rectools(method: str, histories: Histories, config: dict) -> dict:
    """Train RecTools' SASRec until validation has not improved for a while; keep the best lists.

    Args:
        method: `"sasrec"`, or `"esasrec"`, which has LiGR layers (arXiv:2508.06450).
        histories: What it may know.
        config: Arguments of the class; `epochs` at most, `seed` for Lightning.

    Returns:
        `"curve"`, NDCG@10 every `EPOCHS` epochs, lists per kind of target, and
        `"listing_cpu_seconds"`, what the test's took.
    """
    import pandas as pd
    from pytorch_lightning import seed_everything
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.transformers.ligr import LiGRLayers

    def dataset(which: str) -> Dataset:
        rows = [
            (user, item, 1.0, moment)
            for user, history in enumerate(histories.before(which))
            for moment, item in enumerate(history)
        ]
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "datetime"])
        return Dataset.construct(table.assign(datetime=pd.to_datetime(table["datetime"], unit="D")))

    def lists(which: str) -> list[list[int]]:
        table = model.recommend(histories.users, known[which], k=LENGTH, filter_viewed=True)
        found = table.sort_values("rank").groupby("user_id")["item_id"].apply(list).to_dict()
        return [found.get(user, []) for user in histories.users]

    seed_everything(config["seed"])
    known = {which: dataset(which) for which in ("validation", "test")}
    targets = [histories.validation_targets[user] for user in histories.users]
    layers = {"transformer_layers_type": LiGRLayers} if method == "esasrec" else {}
    model = SASRecModel(
        **{name: value for name, value in config.items() if name != "seed"},
        **layers,
        recommend_torch_device="cpu",
    )
    curve, result = [], {}
    while EPOCHS * len(curve) < config["epochs"] and len(curve) - np.argmax([0, *curve]) < PATIENCE:
        model.fit_partial(known["validation"], min_epochs=EPOCHS, max_epochs=EPOCHS)
        found = lists("validation")
        curve.append(ndcg(found, targets))
        print(f"{time.process_time():.0f} s, validation {curve[-1]:.4f}", flush=True)
        if curve[-1] == max(curve):
            begun = time.process_time()
            result = {"validation": found, "test": lists("test")}
            result["listing_cpu_seconds"] = time.process_time() - begun
    return result | {"curve": curve}


def main() -> None:
    """Train, ask every user, and write the lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", metavar="METHOD", help="Whose: tiger, rpg, sasrec or esasrec.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Histories and embeddings.")
    parser.add_argument("config", metavar="CONFIG", type=json.loads, help="Settings, as JSON.")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="File to write.")
    arguments = parser.parse_args()
    method, config, output = arguments.method, arguments.config, arguments.output
    histories = read_histories(arguments.folder)
    package, train = ("rectools", rectools) if "sasrec" in method else ("cornac", cornac)
    begun = time.perf_counter()
    result = train(method, histories, config)
    result |= {
        "package": f"{package} {version(package)}",
        "config": config,
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    scratch = output.with_suffix(".tmp")
    scratch.write_text(json.dumps(result))
    scratch.replace(output)


if __name__ == "__main__":
    main()
