"""Time `recommend` at three sizes of catalogue, and its search beside `generate`.

python -m benchmarks.decoding

Every size has a process of its own; what it saves is loaded by another one, whose memory is that of
the model and its requests alone. Times are medians: by the clock and, since others may share the
processor, in seconds of it.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", type=int, help="Save one size in --folder; by default all.")
    parser.add_argument("--folder", help="Load from there; none by default.")
    arguments = parser.parse_args()

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import psutil
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LogitsProcessorList

from benchmarks.result import write_result
from modeling_ttds.configuration_ttds import TTDSConfig
from modeling_ttds.entries_ttds import TTDSEntries
from modeling_ttds.generation_ttds import (
    TTDSCandidates,
    TTDSConstraint,
    TTDSTrie,
    beam_search,
)
from modeling_ttds.modeling_ttds import TTDSForCausalLM

START, LEVELS, CODES, BEAMS = 2048, 4, 256, 20
SIZES = (12_000, 100_000, 1_000_000)
TEXT, COLLABORATIVE, PAIRS, SHOWN = 384, 128, 30, 10  # numbers and pairs an item; items a history
WAYS = {
    "default": {},
    "without re-ranker": {"rerank": False},
    "language model only": {"rerank": False, "memory": False},
}
CHUNK = 50_000


def make_recommender(num_items: int) -> TTDSForCausalLM:
    """Return a model as `recipes/sft.py` makes them, of random numbers.

    A decoder of width 128, 4 levels of 256 codes, 384 + 128 numbers and 30 pairs an item.
    """
    torch.manual_seed(0)
    backbone = LlamaConfig(
        vocab_size=START + 2 * LEVELS * CODES, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=512,
    )  # fmt: skip
    tower = dict(text_dim=TEXT, collaborative_dim=COLLABORATIVE, num_levels=LEVELS,
                 num_codes=CODES, code_dim=64)  # fmt: skip
    config = TTDSConfig(
        backbone_config=backbone, item_tower=tower, user_tower=tower, num_items=num_items,
        sid_token_start=START, prompt_ids=[5, 3, 6, 2, 7], item_placeholder_id=2,
        user_placeholder_id=3, has_priors=True, has_reranker=True,
        cooccurrence_pairs=PAIRS * num_items,
    )  # fmt: skip
    model = TTDSForCausalLM(config).eval()
    draw_sids(model)
    for table in (model.item_text, model.item_collaborative):
        for part in table.split(CHUNK):
            F.normalize(part.normal_(), dim=-1, out=part)
    memory = model.cooccurrence
    torch.arange(0, PAIRS * num_items + 1, PAIRS, out=memory.starts)
    memory.others.random_(0, num_items)
    memory.values.uniform_()
    memory.items.exponential_()
    for head in (model.prior_head, model.reranker):
        for parameter in head.parameters():
            parameter.normal_(std=0.1)
    model.catalogue = TTDSEntries(
        json.dumps(entry(f"item-{row}", row), ensure_ascii=False) for row in range(num_items)
    )
    return model


def entry(item_id: str, row: int) -> dict[str, str]:
    """Return what the catalogue says of an item."""
    title = f"A kettle of oak and steel, number {row}, with a lid"
    return {"item_id": item_id, "title": title, "brand": f"brand {row % 997}",
            "categories": f"kitchen > kettles > {row % 89}"}  # fmt: skip


def medians(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a run, by the clock and of the processor."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    clock, processor = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return {"milliseconds": round(clock, 2), "processor_milliseconds": round(processor, 2)}


def peak_mb() -> int:
    """Return the peak memory of this process."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def once(run: Callable[[], object]) -> float:
    """Return the processor's seconds of one run."""
    start = time.process_time()
    run()
    return round(time.process_time() - start, 3)


@torch.no_grad()
def measure_size(num_items: int, folder: str) -> dict:
    """Time a catalogue's requests and growth, and save it for `measure_load`."""
    model = make_recommender(num_items)
    draw = torch.Generator().manual_seed(1)

    def histories(batch: int) -> list[list[str]]:
        rows = torch.randint(0, num_items, (batch, SHOWN), generator=draw)
        return [[f"item-{row}" for row in history] for history in rows.tolist()]

    result = {"num_items": num_items, "first_request_seconds": once(
        lambda: model.recommend(histories(1)))}  # fmt: skip
    for batch, repeats in ((1, 15), (64, 5)):
        for name, options in WAYS.items():
            found = medians(lambda b=batch, o=options: model.recommend(histories(b), **o), repeats)
            result[f"{name}, batch {batch}"] = {k: round(v / batch, 2) for k, v in found.items()}
    model.save_pretrained(folder)

    def add(number: int, name: str) -> None:
        items = [entry(f"{name}-{row}", row) for row in range(number)]
        model.add_items(items, F.normalize(torch.randn(number, TEXT, generator=draw), dim=-1))

    result["add_first_item_seconds"] = once(lambda: add(1, "first"))
    result["add_item_seconds"] = statistics.median(
        once(lambda n=n: add(1, f"next-{n}")) for n in range(5)
    )
    result["request_after_it_seconds"] = once(lambda: model.recommend(histories(1)))
    result["add_10000_items_seconds"] = once(lambda: add(10_000, "many"))
    result["request_after_them_seconds"] = once(lambda: model.recommend(histories(1)))
    return result


def measure_load(folder: str) -> dict:
    """Time opening a folder, and its first request; say what memory it and a batch take."""
    start = time.perf_counter()
    models = []
    seconds = once(lambda: models.append(TTDSForCausalLM.from_pretrained(folder).eval()))
    (model,) = models
    found = {"load_seconds": seconds, "load_clock_seconds": round(time.perf_counter() - start, 2)}
    found["loaded_request_seconds"] = once(lambda: model.recommend([["item-3"]]))
    model.recommend([[f"item-{64 * row + user}" for row in range(SHOWN)] for user in range(64)])
    # The pages of the weights' file count in the peak, though the system may take them back.
    mapped = round(psutil.Process().memory_info().shared / 2**20)
    return found | {"load_peak_memory_mb": peak_mb(), "load_mapped_memory_mb": mapped}


def in_a_process(*arguments: str) -> dict:
    """Return what this file measures in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.decoding", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def sizes() -> list[dict]:
    """Measure every size of catalogue."""
    rows = []
    for num_items in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            row = in_a_process("--size", str(num_items), "--folder", folder)
            row |= in_a_process("--folder", folder)
        row["load_average"] = round(os.getloadavg()[0], 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def make_model(num_items: int) -> TTDSForCausalLM:
    """Return a randomly initialised decoder over items with random unique semantic IDs."""
    torch.manual_seed(0)
    backbone = LlamaConfig(
        vocab_size=START + 2 * LEVELS * CODES, hidden_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=1024,
    )  # fmt: skip
    tower = dict(text_dim=4, collaborative_dim=4, num_levels=LEVELS, num_codes=CODES, code_dim=32)
    config = TTDSConfig(
        backbone_config=backbone, item_tower=tower, user_tower=tower, num_items=num_items,
        sid_token_start=START,
    )  # fmt: skip
    model = TTDSForCausalLM(config).eval()
    draw_sids(model)
    return model


def draw_sids(model: TTDSForCausalLM) -> None:
    """Give a model's items random unique semantic IDs."""
    num_items = len(model.item_sids)
    draw = torch.randint(0, CODES**LEVELS, (2 * num_items,)).unique()
    draw = draw[torch.randperm(len(draw))[:num_items]]
    for level in range(LEVELS):
        model.item_sids[:, level] = draw // CODES**level % CODES


def ours(model: TTDSForCausalLM, ids: torch.Tensor) -> list[list[int]]:
    """Search with the shared prefix."""
    nothing = torch.empty(len(ids), 0, dtype=torch.long)
    candidates = TTDSCandidates(model.trie, None, nothing)
    return beam_search(model, ids, torch.ones_like(ids), candidates, BEAMS)[0].tolist()


def generate(model: TTDSForCausalLM, ids: torch.Tensor, **constraint) -> list[list[int]]:
    """Search with `generate`; returns item rows per prompt."""
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=BEAMS,
        num_return_sequences=BEAMS, max_new_tokens=LEVELS, length_penalty=0.0, do_sample=False,
        eos_token_id=None, pad_token_id=0, **constraint,
    )[:, ids.shape[1] :]  # fmt: skip
    codes = out - START - torch.arange(LEVELS) * CODES
    row_of = {tuple(path): row for row, path in enumerate(model.item_sids.tolist())}
    rows = [row_of[tuple(path)] for path in codes.tolist()]
    return [rows[i : i + BEAMS] for i in range(0, len(rows), BEAMS)]


def prefix_function(model: TTDSForCausalLM, length: int) -> dict:
    """Return the constraint as a dictionary behind `prefix_allowed_tokens_fn`."""
    allowed = {}
    for path in model.item_sids.tolist():
        tokens = [START + level * CODES + code for level, code in enumerate(path)]
        for depth in range(LEVELS):
            allowed.setdefault(tuple(tokens[:depth]), set()).add(tokens[depth])
    allowed = {prefix: sorted(tokens) for prefix, tokens in allowed.items()}
    return {
        "prefix_allowed_tokens_fn": lambda _, ids: allowed.get(tuple(ids[length:].tolist()), [0])
    }


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the best wall time of a few runs after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    if arguments.size:
        return print(json.dumps(measure_size(arguments.size, arguments.folder)))
    if arguments.folder:
        return print(json.dumps(measure_load(arguments.folder)))
    begun = time.perf_counter()
    by_size = sizes()
    model = make_model(12_000)
    compiled = make_model(12_000)
    compiled.model.compile(dynamic=True)
    rows = []
    for length in (64, 256):
        for batch in (1, 32):
            ids = torch.randint(3, START, (batch, length))
            processor = TTDSConstraint(model.trie, length, START, CODES)
            function = prefix_function(model, length)
            ways = {
                "recommend": lambda ids=ids: ours(model, ids),
                "recommend, trunk compiled": lambda ids=ids: ours(compiled, ids),
                "generate + prefix_allowed_tokens_fn": lambda ids=ids, f=function: generate(
                    model, ids, **f
                ),
                "generate + logits processor": lambda ids=ids, p=processor: generate(
                    model, ids, logits_processor=LogitsProcessorList([p])
                ),
            }
            lists = {name: way() for name, way in ways.items()}
            assert lists["recommend"] == lists["generate + logits processor"], "lists differ"
            # The prefix function scores over the whole vocabulary, so orders may differ.
            shared = sum(
                len(set(a) & set(b))
                for a, b in zip(
                    lists["recommend"], lists["generate + prefix_allowed_tokens_fn"], strict=True
                )
            )
            row = {"prompt": length, "batch": batch, "shared_items": shared / (batch * BEAMS)}
            for name, way in ways.items():
                best = seconds(way, 5 if name.startswith("recommend") else 1)
                row[name] = round(1000 * best / batch, 2)
            row["speedup"] = round(row["generate + prefix_allowed_tokens_fn"] / row["recommend"], 1)
            rows.append(row)
            print(row, flush=True)

    million = make_model(1_000_000)
    start = time.perf_counter()
    trie = TTDSTrie.build(million.item_sids)
    build = time.perf_counter() - start
    ids = torch.randint(3, START, (1, 64))
    small = seconds(lambda: ours(model, ids), 10)
    large = seconds(lambda: ours(million, ids), 10)
    content = {
        "num_items": 12_000, "num_beams": BEAMS, "milliseconds_per_request": rows,
        "sizes": by_size,
        "million_items": {
            "trie_mb": round(trie.num_bytes() / 1e6, 1), "build_seconds": round(build, 2),
            "milliseconds_12000": round(1000 * small, 2), "milliseconds": round(1000 * large, 2),
            "ratio": round(large / small, 2),
        },
    }  # fmt: skip
    print(content["million_items"])
    write_result("decoding", 0, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main()
