"""Time everything that comes before tuning, at three sizes of a generated log.

python -m benchmarks.preparation [--users 10000 100000 1000000]

Every size runs in a process of its own; every stage there has its seconds, those of the processor
(another process may share the machine) and its peak of memory, which Linux tells. All is what a run
does by default.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    sizes = [10_000, 100_000, 1_000_000]
    parser.add_argument(
        "--users", nargs="+", type=int, choices=sizes, default=sizes, help="Sizes to measure."
    )
    ARGUMENTS = parser.parse_args()

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.result import write_result
from recipes.config import (
    DataOptions,
    ExampleOptions,
    IndexOptions,
    LanguageModelOptions,
)
from recipes.data.load import load_data
from recipes.data.split import split_data
from recipes.data.tables import Catalogue, Data, write_data
from recipes.index.embeddings import collaborative_embeddings, fit_token_table
from recipes.index.refresh import build_sid_table, refresh_sids
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.tuning.build import build_model, build_tokenizer
from recipes.tuning.examples import Examples, UserStates
from recipes.tuning.profiles import fit_profiles

ITEMS = {10_000: 5_000, 100_000: 50_000, 1_000_000: 200_000}
LENGTH, PER_TOPIC, TOPICS_OF_USER, COMPANIONS, FOLLOW = 10, 50, 3, 3, 0.4
WORDS = 3000
NUM_CODES, BATCH, SEED = 256, 256, 0


def generate(num_users: int, num_items: int, seed: int = 0) -> Data:
    """Return a log of `LENGTH` interactions a user, and a catalogue with texts.

    A user has a few topics and takes an item of one of them, popular ones more often (Zipf), or a
    companion of the item before.

    Args:
        num_users: Number of users.
        num_items: Number of items; every topic has `PER_TOPIC`.
        seed: The same seed gives the same log.
    """
    draw = np.random.default_rng(seed)
    num_topics = num_items // PER_TOPIC
    weights = 1 / np.arange(1, PER_TOPIC + 1) ** 0.8
    places = draw.choice(PER_TOPIC, (num_users, LENGTH), p=weights / weights.sum())
    popular = 1 / np.arange(1, num_topics + 1) ** 0.5
    topics = draw.choice(num_topics, (num_users, TOPICS_OF_USER), p=popular / popular.sum())
    chosen = draw.integers(TOPICS_OF_USER, size=(num_users, LENGTH))
    items = np.take_along_axis(topics, chosen, 1) * PER_TOPIC + places  # (num_users, LENGTH)
    companions = draw.integers(num_items, size=(num_items, COMPANIONS))
    follows = draw.random((num_users, LENGTH)) < FOLLOW
    which = draw.integers(COMPANIONS, size=(num_users, LENGTH))
    for step in range(1, LENGTH):
        after = companions[items[:, step - 1], which[:, step]]
        items[:, step] = np.where(follows[:, step], after, items[:, step])
    days = np.sort(draw.integers(0, 1000, (num_users, LENGTH)), axis=1) * 86400.0
    return Data(
        _catalogue(num_items, draw),
        [f"user-{user:07}" for user in range(num_users)],
        list(items),
        list(days),
    )


def _catalogue(num_items: int, draw: np.random.Generator) -> Catalogue:
    words = np.array([f"w{word:04}" for word in range(WORDS)])
    topic = np.arange(num_items) // PER_TOPIC
    own = draw.integers(WORDS, size=(num_items, 4))
    of_topic = draw.integers(WORDS, size=(topic[-1] + 1, 4))[topic]
    both = words[np.concatenate([own, of_topic], 1)]
    fields = {
        "title": [" ".join(row) for row in both[:, 2:6].tolist()],
        "brand": [f"brand {number}" for number in (topic % 500).tolist()],
        "categories": [f"shelf {number % 40} > {number}" for number in topic.tolist()],
        "description": [" ".join(row) for row in both.tolist()],
        "price": [""] * num_items,
    }
    return Catalogue([f"item-{row:07}" for row in range(num_items)], fields)


class Stages:
    """What each stage took, by its name."""

    def __init__(self):
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs below; its peak of memory is counted anew."""
        Path("/proc/self/clear_refs").write_text("5")
        begun, processor = time.perf_counter(), time.process_time()
        yield
        row = {
            "seconds": round(time.perf_counter() - begun, 2),
            "processor_seconds": round(time.process_time() - processor, 2),
            "peak_memory_mb": _memory("VmHWM"),
            "held_memory_mb": _memory("VmRSS"),
        }
        self.rows[name] = row
        print(name, row, flush=True)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024)


def measure(num_users: int) -> dict[str, object]:
    """Return what every stage takes for a log of so many users.

    Args:
        num_users: One of `ITEMS`.
    """
    stage, num_items = Stages(), ITEMS[num_users]
    torch.set_num_threads(1)
    index = IndexOptions(num_codes=NUM_CODES)
    shapes = index, LanguageModelOptions(), ExampleOptions()
    with tempfile.TemporaryDirectory() as folder:
        write_data(generate(num_users, num_items, SEED), folder)
        with stage("read and clean"):
            data, _ = load_data(DataOptions(dataset_name=folder))
    with stage("split"):
        split = split_data(data)
    with stage("vocabulary"):
        tokenizer = build_tokenizer(split, *shapes, None)
    with stage("user states and examples"):
        states = UserStates(split, shapes[-1].max_history)
        examples = Examples(split, states, tokenizer, shapes[-1], SEED)
    with stage("untrained model"):
        model = build_model(split, tokenizer, *shapes, None, None, SEED)
    with stage("text embeddings"):
        texts = split.data.catalogue.texts()
        table = fit_token_table(texts, tokenizer, index.text_dim, SEED)
        model.token_table.table.copy_(table)
        model.item_text.copy_(model.embed_texts(texts))
    with stage("collaborative embeddings"):
        model.item_collaborative.copy_(
            collaborative_embeddings(split.training, num_items, index.collaborative_dim, SEED)
        )
    with stage("towers and SID table"):
        build_sid_table(
            model, states.on_demand(), states.latest(), num_epochs=index.tower_epochs,
            freeze=True, seed=SEED,
        )  # fmt: skip
    rows = torch.arange(0, len(states), max(1, len(states) // BATCH))[:BATCH]
    with stage(f"semantic IDs of {BATCH} users"):
        model.sids_of_rows(rows)
    with stage("refresh"):
        refresh_sids(model)
    with stage("profiles"):
        fit_profiles(model, split.training, num_epochs=shapes[1].profile_epochs, seed=SEED)
    with stage("co-occurrence memory"):
        memory = build_cooccurrence(split.training, num_items, 1, split.training_timestamps)
    total = [sum(row[name] for row in stage.rows.values()) for name in
             ("seconds", "processor_seconds")]  # fmt: skip
    return {
        "users": num_users,
        "items": num_items,
        "interactions": int(sum(map(len, data.histories))),
        "states": len(states),
        "examples": len(examples),
        "pairs": len(memory.others),
        "seconds": round(total[0], 1),
        "processor_seconds": round(total[1], 1),
        "peak_memory_mb": max(row["peak_memory_mb"] for row in stage.rows.values()),
        "stages": stage.rows,
    }


def main(sizes: list[int]) -> None:
    """Measure and write the result.

    Args:
        sizes: Numbers of users, of `ITEMS`.
    """
    begun = time.perf_counter()
    settings = {"num_codes": NUM_CODES, "threads": 1}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = list(pool.map(measure, sizes))
    content = {"config": settings, "sizes": rows}
    write_result("preparation", SEED, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main(ARGUMENTS.users)
