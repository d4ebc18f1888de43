"""Recommend to every user of a data set: parquet shards of user, items and scores.

accelerate launch recipes/recommend.py --model outputs/demo --output outputs/lists
accelerate launch recipes/recommend.py --model FOLDER_OR_HUB_ID --dataset_name FOLDER
    --output FOLDER --top_k 20

Any number of processes share the shards; a shard that is there is not made again.
"""

import argparse
import json
import time
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from modeling_ttds import TTDSForCausalLM
from recipes.config import DataOptions
from recipes.data.load import load_data
from recipes.evaluation import report

REQUEST_FILE = "request.json"


def check_request(output: Path, request: dict[str, object]) -> None:
    """Refuse a folder whose shards answer another request; note down ours.

    Args:
        output: Folder of the shards.
        request: What is asked for.
    """
    file = output / REQUEST_FILE
    if file.exists():
        found = json.loads(file.read_text("utf-8"))
        differing = [name for name in request if found.get(name) != request[name]]
        if differing:
            name = differing[0]
            raise SystemExit(
                f"`--output` {output} holds shards made with `{name}` {found.get(name)!r}, not "
                f"{request[name]!r}; name another folder, or empty this one."
            )
    elif output.exists() and any(output.iterdir()):
        raise SystemExit(f"`--output` {output} is not empty and holds no shards; name another.")
    else:
        output.mkdir(parents=True, exist_ok=True)
        report.write_json(file, request)


def main() -> None:
    """Make the shards that are missing and say how fast."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--dataset_name", help="folder or Hub id; the generated data by default")
    parser.add_argument("--output", required=True, type=Path, help="folder of the shards")
    parser.add_argument("--top_k", type=int, default=10)
    parser.add_argument("--shard_size", type=int, default=1024, help="users per shard")
    parser.add_argument("--use_cpu", action="store_true")
    arguments = parser.parse_args()
    for name in ("top_k", "shard_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"`--{name}` is {getattr(arguments, name)}; it must be at least 1.")

    state = PartialState(cpu=arguments.use_cpu)
    data, _ = load_data(DataOptions(dataset_name=arguments.dataset_name))
    model = TTDSForCausalLM.from_pretrained(arguments.model).eval().to(state.device)
    rows = [model.row_of.get(item, -1) for item in data.catalogue.item_ids]
    if -1 in rows:
        item = data.catalogue.item_ids[rows.index(-1)]
        raise SystemExit(f"{arguments.model} does not know item {item!r}; add it by `add_items`.")
    if arguments.top_k > len(model.catalogue):
        raise SystemExit(
            f"`--top_k` is {arguments.top_k}; {arguments.model} has {len(model.catalogue)} items."
        )
    request = {
        "model": arguments.model,
        "data_sha256": data.sha256,
        "top_k": arguments.top_k,
        "shard_size": arguments.shard_size,
    }
    if state.is_main_process:
        check_request(arguments.output, request)
    state.wait_for_everyone()

    names = [entry["item_id"] for entry in model.catalogue]
    firsts = range(0, len(data.user_ids), arguments.shard_size)
    mine = [
        (number, first)
        for number, first in enumerate(firsts)
        if number % state.num_processes == state.process_index
    ]
    begun, users = time.perf_counter(), 0
    for number, first in tqdm(mine, desc="shards", disable=not state.is_main_process):
        shard = arguments.output / f"part-{number:05d}.parquet"
        if shard.exists():
            continue
        last = min(first + arguments.shard_size, len(data.user_ids))
        histories = [[rows[row] for row in data.histories[user]] for user in range(first, last)]
        lists = model.recommend_rows(histories, arguments.top_k)
        scratch = shard.with_suffix(".tmp")
        Dataset.from_dict(
            {
                "user_id": data.user_ids[first:last],
                "item_ids": [[names[row] for row, _ in pairs] for pairs in lists],
                "scores": [[score for _, score in pairs] for pairs in lists],
            }
        ).to_parquet(scratch)
        scratch.replace(shard)
        users += last - first
    state.wait_for_everyone()
    seconds = time.perf_counter() - begun
    if users:
        print(f"Process {state.process_index}: {users:,} users, {users / seconds:,.0f} a second.")
    elif not state.process_index:
        print(f"All shards of process 0 are in {arguments.output} already.")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
