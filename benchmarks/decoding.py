"""Time `recommend`'s search beside `generate` under the same constraint.

python -m benchmarks.decoding
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.parse_args()

import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LogitsProcessorList

from benchmarks.result import write_result
from modeling_ttds.configuration_ttds import TTDSConfig
from modeling_ttds.generation_ttds import (
    TTDSCandidates,
    TTDSConstraint,
    TTDSTrie,
    beam_search,
)
from modeling_ttds.modeling_ttds import TTDSForCausalLM

START, LEVELS, CODES, BEAMS = 2048, 4, 256, 20


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
    draw = torch.randint(0, CODES**LEVELS, (2 * num_items,)).unique()
    draw = draw[torch.randperm(len(draw))[:num_items]]
    for level in range(LEVELS):
        model.item_sids[:, level] = draw // CODES**level % CODES
    return model


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
    begun = time.perf_counter()
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
