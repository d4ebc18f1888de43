"""Hold a tenth of the items out of training, add them afterwards, and recommend them.

python -m benchmarks.cold_start --name toyshop
python -m benchmarks.cold_start --name scientific --config recipes/sparse.yaml
    --dataset_name FOLDER

Users whose test target is a held-out item are asked; what follows is handed to the recipe.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--dataset_name", help="Folder; the generated data by default.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn at random.")
    ARGUMENTS, RECIPE = parser.parse_known_args()

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

from benchmarks.result import TEXT_FILE, write_result
from modeling_ttds import TTDSForCausalLM
from recipes.data import toyshop
from recipes.data.split import split_data
from recipes.data.tables import Catalogue, Data, read_data, write_data
from recipes.evaluation.metrics import rank_metrics
from recipes.evaluation.report import GENERATED, LM_ONLY, TTDS

ROOT = Path(__file__).resolve().parents[1]

HELD_OUT = 0.1


def without(data: Data, gone: np.ndarray) -> Data:
    """Return the data set as if some items had never been there.

    Args:
        data: The data set.
        gone: Item rows.
    """
    stays = np.ones(len(data.catalogue), dtype=bool)
    stays[gone] = False
    new_row = stays.cumsum() - 1
    kept = np.flatnonzero(stays)
    catalogue = Catalogue(
        [data.catalogue.item_ids[row] for row in kept],
        {name: [values[row] for row in kept] for name, values in data.catalogue.fields.items()},
    )
    histories = [new_row[history[stays[history]]] for history in data.histories]
    users = [user for user, history in enumerate(histories) if len(history)]
    return Data(
        catalogue, [data.user_ids[user] for user in users], [histories[user] for user in users]
    )


def main(arguments: argparse.Namespace, recipe: list[str]) -> None:
    """Train without the held-out items, add them, ask, and write one result.

    Args:
        arguments: The command line.
        recipe: What of it is handed to the recipe.
    """
    begun = time.perf_counter()
    folder = arguments.dataset_name
    data = read_data(folder) if folder else toyshop.generate().data
    split = split_data(data)
    gone = np.sort(
        np.random.default_rng(arguments.seed).choice(
            split.num_items, int(HELD_OUT * split.num_items), replace=False
        )
    )
    output = ROOT / "outputs" / f"cold-start-{arguments.name}-{arguments.seed}"
    text = None
    with tempfile.TemporaryDirectory() as warm:
        write_data(without(data, gone), warm)
        if folder and (Path(folder) / TEXT_FILE).exists():
            text = load_file(Path(folder) / TEXT_FILE)["text"]
            stays = np.setdiff1d(np.arange(split.num_items), gone)
            save_file({"text": text[stays].contiguous()}, Path(warm) / TEXT_FILE)
        command = [
            sys.executable, "recipes/sft.py", *recipe, "--dataset_name", warm, "--seed",
            str(arguments.seed), "--output_dir", str(output), "--overwrite_output_dir", "true",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)

    model = TTDSForCausalLM.from_pretrained(output).eval()
    fields = data.catalogue.fields
    new = [
        {"item_id": data.catalogue.item_ids[row], **{n: fields[n][row] for n in fields}}
        for row in gone
    ]
    given = None if text is None or model.config.text_encoder == "tokens" else text[gone]
    adding = time.perf_counter()
    model.add_items(new, given)
    adding = time.perf_counter() - adding
    rows = torch.tensor([model.row_of[item] for item in data.catalogue.item_ids])
    users = [user for user in split.users("test") if split.test_targets[user] in set(gone)]
    targets = split.test_targets[users]
    histories = [split.history(user, "test") for user in users]
    theirs = [[data.catalogue.item_ids[row] for row in history] for history in histories]

    def recommended(row: str, allowed: list[str] | None = None) -> list[list[int]]:
        parts = {"rerank": row == TTDS, "memory": row != LM_ONLY}
        lists = model.recommend(theirs, top_k=10, allowed=allowed, **parts)
        return [[data.catalogue.row_of[best.item_id] for best in found] for found in lists]

    # The data set's text embeddings are the stronger ones, where there are some.
    similarity = model.item_text[rows] if text is None else text.float()
    similarity = F.normalize(similarity, dim=-1)
    profiles = torch.stack([similarity[history].mean(0) for history in histories])
    nearest = (profiles @ similarity.T).numpy()
    random = np.random.default_rng(0).random(nearest.shape)
    every = np.arange(split.num_items)
    lists = {}
    for scope, allowed in (("all items", every), ("new items", gone)):
        mask = ~np.isin(every, allowed)
        names = None if scope == "all items" else [data.catalogue.item_ids[row] for row in allowed]
        for row in (LM_ONLY, GENERATED, TTDS):
            lists[f"{row} ({scope})"] = recommended(row, names)
        for method, scores in (("nearest text", nearest), ("random", random)):
            lists[f"{method} ({scope})"] = [
                np.argsort(-np.where(mask | np.isin(every, history), -np.inf, own))[:10].tolist()
                for own, history in zip(scores, histories, strict=True)
            ]
    content = {
        "cold_start": arguments.name,
        "users": len(users),
        "new_items": len(gone),
        "seconds_to_add": round(adding, 2),
        "rows": {
            name: {key: metrics[key] for key in ("HR@10", "NDCG@10")}
            for name, metrics in ((n, rank_metrics(found, targets)) for n, found in lists.items())
        },
    }
    write_result(
        f"cold-start-{arguments.name}-seed{arguments.seed}",
        arguments.seed, time.perf_counter() - begun, content,
    )  # fmt: skip
    print(content)


if __name__ == "__main__":
    main(ARGUMENTS, RECIPE)
