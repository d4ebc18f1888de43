"""Recommend items to every user of a data set, written as parquet shards.

accelerate launch recipes/recommend.py --model outputs/demo --output outputs/lists
accelerate launch recipes/recommend.py --model FOLDER_OR_HUB_ID --dataset_name FOLDER
    --output FOLDER --top_k 20

Any number of processes share the shards; a shard that is there is not made again.
"""

import time
from pathlib import Path

from recipes.config import add_data_arguments
from recipes.errors import Parser, check_writable, one_sentence

# A hidden file: what reads a folder of parquet as one table passes it over.
REQUEST_FILE = ".request.json"
TOP_K = 10


def check_request(output: Path, request: dict[str, object]) -> None:
    """Refuse a folder whose shards answer another request; note down ours.

    Args:
        output: Folder of the shards.
        request: What is asked for.

    Raises:
        ValueError: The folder holds other shards, or something else.
    """
    from recipes.evaluation.report import read_json, write_json

    file = output / REQUEST_FILE
    if file.exists():
        found = read_json(file)
        differing = [name for name in request if found.get(name) != request[name]]
        if differing == ["model_sha256"]:
            raise ValueError(
                f"`--output` {output} holds shards made with an earlier state of {request['model']}"
                "; name another folder, or empty this one."
            )
        if differing:
            name = differing[0]
            raise ValueError(
                f"`--output` {output} holds shards made with `{name}` {found.get(name)!r}, not "
                f"{request[name]!r}; name another folder, or empty this one."
            )
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"`--output` {output} is not empty and holds no shards; name another.")
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_json(file, request)


def main() -> None:
    """Make the shards that are missing and say how fast."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="Folder of the shards.")
    parser.add_argument(
        "--top_k", type=int, help=f"Length of the lists; by default {TOP_K}, or all items if fewer."
    )
    parser.add_argument("--shard_size", type=int, default=1024, help="Users per shard.")
    parser.add_argument("--use_cpu", action="store_true", help="Stay on the CPU.")
    arguments = parser.parse_args()
    for name in ("top_k", "shard_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name}` is {value}; it must be at least 1.")
    check_writable("--output", arguments.output)

    # They take seconds, which --help and a wrong option need not wait for.
    from accelerate import PartialState
    from datasets import Dataset, disable_progress_bars
    from tqdm.auto import tqdm

    from recipes.hub.files import model_sha256
    from recipes.hub.saved import check_items, load_model, model_folder, read_as_trained

    disable_progress_bars()  # one of every shard's file, which would be drawn below our own
    state = PartialState(cpu=arguments.use_cpu)
    model = load_model(arguments.model).to(state.device)
    # Everybody gets a list, however many interactions it took to be learnt from.
    least = (model.config.trained_on or {}).get("options", {}).get("min_interactions", 1)
    everybody = arguments.min_interactions is None
    if everybody:
        arguments.min_interactions = 1
    data, _, _ = read_as_trained(arguments, model.config)
    rows = check_items(model, arguments.model, data, may_lack=everybody and least > 1)
    if -1 in rows and state.is_main_process:
        print(
            f"{rows.count(-1):,} items that {arguments.model} does not know are left out of the "
            f"histories: it was trained with `min_interactions` {least}."
        )
    num_items = len(model.catalogue)
    top_k = min(TOP_K, num_items) if arguments.top_k is None else arguments.top_k
    if top_k > num_items:
        raise ValueError(f"`--top_k` is {top_k}; {arguments.model} has {num_items} items.")
    exclude_seen = model.config.exclude_seen
    if arguments.exclude_seen is not None:
        exclude_seen = arguments.exclude_seen
    if state.is_main_process:  # it reads the weights once more
        request = {
            "model": arguments.model,
            "model_sha256": model_sha256(model_folder(arguments.model)),
            "data_sha256": data.sha256,
            "top_k": top_k,
            "exclude_seen": exclude_seen,
            "shard_size": arguments.shard_size,
        }
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
        histories = [
            [rows[row] for row in data.histories[user] if rows[row] >= 0]
            for user in range(first, last)
        ]
        lists = model.recommend_rows(histories, top_k, exclude_seen=exclude_seen)
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
    with one_sentence():
        main()
