"""Time `recommend` of a trained model as it is, and with its trunk compiled.

python -m benchmarks.compiled --model outputs/demo

Histories are drawn from the catalogue, of one length and of many, since another length may be
compiled anew. Times are medians without the first calls, in milliseconds of the processor, which
others may share.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="Folder of the model.")
    parser.add_argument("--requests", type=int, default=20, help="Requests timed of each kind.")
    ARGUMENTS = parser.parse_args()

import os
import random
import statistics
import time

import torch

from benchmarks.result import write_result
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.hub.saved import load_model

WAYS = {"default": {}, "without re-ranker": {"rerank": False}}
BATCHES = (1, 32)
LONGEST = 20


def histories(items: list[str], batch: int, draw: random.Random) -> list[list[str]]:
    """Return histories of one to `LONGEST` items.

    Args:
        items: Item ids.
        batch: How many histories.
        draw: Draws them.
    """
    return [draw.sample(items, draw.randint(1, LONGEST)) for _ in range(batch)]


def timed(models: dict[str, TTDSForCausalLM], requests: int) -> tuple[list[dict], dict]:
    """Time every way at every size of batch; return milliseconds a request, and the first lists.

    The models answer by turns, so that what else the machine does falls on all alike.

    Args:
        models: The models by name.
        requests: How many batches are timed, after as many to warm up.
    """
    items = [entry["item_id"] for entry in next(iter(models.values())).catalogue]
    rows, lists = [], {name: [] for name in models}
    for batch in BATCHES:
        row = {"batch": batch}
        for way, options in WAYS.items():
            draw, times = random.Random(0), {name: [] for name in models}
            for number in range(2 * requests):
                shown = histories(items, batch, draw)
                for name, model in models.items():
                    start = time.process_time()
                    found = model.recommend(shown, **options)
                    times[name].append(time.process_time() - start)
                    if number == 0:
                        lists[name].append(found)
            for name, seconds in times.items():
                median = statistics.median(seconds[requests:])
                row[f"{way}, {name}"] = round(1000 * median / batch, 2)
        rows.append(row)
        print(row, flush=True)
    return rows, lists


def agreement(lists: list, others: list) -> float:
    """Return the share of recommendations that both have at the same place."""
    pairs = [
        (one.item_id, other.item_id)
        for several, of_others in zip(lists, others, strict=True)
        for found, of_other in zip(several, of_others, strict=True)
        for one, other in zip(found, of_other, strict=True)
    ]
    return sum(one == other for one, other in pairs) / len(pairs)


def main() -> None:
    """Measure and write the result."""
    begun = time.perf_counter()
    torch.set_num_threads(1)
    models = {name: load_model(ARGUMENTS.model) for name in ("eager", "compiled")}
    models["compiled"].model.compile(dynamic=True)
    rows, lists = timed(models, ARGUMENTS.requests)
    content = {
        "num_items": len(models["eager"].catalogue),
        "same_at_its_place": agreement(*lists.values()),
        "load_average": round(os.getloadavg()[0], 1),
        "milliseconds_of_demo": rows,
    }
    write_result("compiled", 0, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main()
