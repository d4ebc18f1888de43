"""What a run ends with: metrics beside baselines, ranked lists, a table, examples."""

import json
import os
import platform
import re
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import LIST_LENGTH
from recipes.data.split import Split
from recipes.data.toyshop import Toyshop
from recipes.evaluation.baselines.markov import markov_chain
from recipes.evaluation.baselines.neighbours import item_knn
from recipes.evaluation.baselines.oracle import oracle
from recipes.evaluation.baselines.popularity import popularity
from recipes.evaluation.metrics import evaluate_run

# Names of rows, in every table, plot and card.
TTDS, GENERATED, LM_ONLY = "TTDS", "TTDS, generated", "TTDS, language model only"
RERANKER_ONLY = "re-ranker only"
# What joins the language model's beam search in each row that `recommend` can give.
MODES = {
    LM_ONLY: {"memory": False, "rerank": False},
    GENERATED: {"memory": True, "rerank": False},
    TTDS: {"memory": True, "rerank": True},
}
COLUMNS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10", "coverage@10")
BASELINES = {
    "popularity": popularity,
    "Markov chain": markov_chain,
    "item-kNN": item_knn,
}


@torch.no_grad()
def recommend_to(
    model: TTDSForCausalLM,
    split: Split,
    which: str,
    num_beams: int,
    num_users: int | None = None,
    row: str = LM_ONLY,
) -> list[list[int]]:
    """Return the top 20 item rows of the users that have a target.

    Args:
        model: The model to ask.
        split: The split.
        which: `"validation"` or `"test"`.
        num_beams: Prefixes kept per level.
        num_users: Ask for the first so many users only.
        row: A row of `MODES`.
    """
    histories = [split.history(user, which) for user in split.users(which)[:num_users]]
    top_k, allowed = min(LIST_LENGTH, split.num_items), None
    if len(model.item_sids) > split.num_items:  # items that came later are no part of the data
        allowed = torch.arange(len(model.item_sids), device=model.device) < split.num_items
    lists = model.recommend_rows(
        histories,
        top_k,
        exclude_seen=split.exclude_seen,
        allowed=allowed,
        num_beams=num_beams,
        **MODES[row],
    )
    return [[row for row, _ in pairs] for pairs in lists]


def evaluate_model(
    model: TTDSForCausalLM, split: Split, which: str, num_beams: int, row: str
) -> tuple[dict[str, float], list[list[int]]]:
    """Rank the whole catalogue for every user with a target; return metrics and lists.

    Args:
        model: The model to evaluate.
        split: The split.
        which: `"validation"` or `"test"`.
        num_beams: Prefixes kept per level.
        row: A row of `MODES`.
    """
    lists = recommend_to(model, split, which, num_beams, row=row)
    return evaluate_run(split, which, lists), lists


def rows_of(model: TTDSForCausalLM) -> list[str]:
    """Return the rows of `MODES` that a model can give."""
    has = {LM_ONLY: True, GENERATED: model.config.has_priors, TTDS: model.config.has_reranker}
    return [row for row in MODES if has[row]]


def unique_sids(model: TTDSForCausalLM) -> float:
    """Return the share of a model's items that have a semantic ID of their own.

    Args:
        model: The model.
    """
    return len(model.item_sids.unique(dim=0)) / len(model.item_sids)


def baseline_rows(split: Split, which: str, shop: Toyshop | None) -> dict[str, dict[str, float]]:
    """Return the metrics of the baselines and, for the generated data, of the oracle.

    Args:
        split: The split.
        which: `"validation"` or `"test"`.
        shop: The generated data set, if `split` is its split.
    """
    rankers = dict(BASELINES)
    if shop is not None:
        rankers["oracle"] = partial(oracle, shop)
    top_k = min(LIST_LENGTH, split.num_items)
    return {
        name: evaluate_run(split, which, ranker(split, which, top_k).tolist())
        for name, ranker in rankers.items()
    }


def add_comparisons(
    rows: dict[str, dict[str, dict[str, float]]],
    model: TTDSForCausalLM,
    split: Split,
    shop: Toyshop | None,
) -> None:
    """Add the share of unique semantic IDs and the baselines to the rows of a run.

    Args:
        rows: Metrics per split and row; they are added to.
        model: The model.
        split: The split.
        shop: The generated data set, if `split` is its split.
    """
    rows["test"][LM_ONLY]["unique_sids"] = unique_sids(model)
    for which in rows:
        rows[which] |= baseline_rows(split.view(which), which, shop)


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return rows of metrics as a Markdown table.

    Args:
        rows: Per method, its metrics.
    """
    columns = [*COLUMNS, "unique_sids"]
    width = max(len(name) for name in rows)
    lines = [
        f"| {'':{width}} | " + " | ".join(f"{name:>6}" for name in columns) + " |",
        f"|-{'-' * width}-|" + "|".join(f"-{'-' * max(6, len(c))}:" for c in columns) + "|",
    ]
    for name, metrics in rows.items():
        cells = (
            f"{metrics[c]:{max(6, len(c))}.4f}" if c in metrics else " " * max(6, len(c))
            for c in columns
        )  # fmt: skip
        lines.append(f"| {name:{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print a stage of a run when it has ended, with its time; of several processes the first does.

    Args:
        name: What is done.
    """
    begun = time.perf_counter()
    yield
    if os.environ.get("RANK", "0") == "0":
        print(f"{name:<60} {time.perf_counter() - begun:10.1f} s", flush=True)


def hardware() -> str:
    """Return the processor, the cores in use and the GPU if there is one."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(": ")[1] if lines else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"


def read_json(file: str | Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Args:
        file: The file.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return json.loads(Path(file).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); copy it again, or delete it.") from None


def write_json(file: str | Path, content: object) -> None:
    """Write JSON by way of a scratch file, so that no half of it is ever left.

    Args:
        file: Where to.
        content: What json can hold.
    """
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_run(file: str | Path, split: Split, which: str, lists: Sequence[Sequence[int]]) -> None:
    """Write ranked lists, one user per line, as the referee reads them.

    Args:
        file: Where to; its folder is made.
        split: The split.
        which: `"validation"` or `"test"`.
        lists: Item rows per user with a target, padded with -1.
    """
    item_ids, user_ids = split.data.catalogue.item_ids, split.data.user_ids
    lines = [
        json.dumps(
            {"user_id": user_ids[user], "items": [item_ids[row] for row in rows if row >= 0]}
        )
        for user, rows in zip(split.users(which), lists, strict=True)
    ]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "\n".join(lines) + "\n")


def lists_folder(folder: str | Path) -> Path:
    """Return where the lists by user id of a model lie: beside its folder, never in it.

    Args:
        folder: The model's folder.
    """
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}-lists")


def slug(method: str) -> str:
    """Return the name of a method as it stands in file names.

    Args:
        method: E.g. `"TTDS, language model only"`.
    """
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


def run_file(row: str, rows: Container[str]) -> str:
    """Return the name of the file with the lists of a row.

    Args:
        row: The row.
        rows: All rows there are lists of; those of the model as `recommend` answers by default
            stand in `run.jsonl`.
    """
    main = [mode for mode in MODES if mode in rows][-1]
    return "run.jsonl" if row == main else f"run-{slug(row)}.jsonl"


def write_text(file: str | Path, text: str) -> None:
    """Write a text by way of a scratch file, so that no half of it is ever left.

    Args:
        file: Where to.
        text: What it holds.
    """
    scratch = Path(file).with_suffix(".tmp")
    scratch.write_text(text, "utf-8")
    scratch.replace(file)


def examples(model: TTDSForCausalLM, split: Split, num_users: int = 3) -> str:
    """Return a few users with their history and recommended titles.

    Args:
        model: The model to ask.
        split: The split.
        num_users: How many users.
    """
    titles = [entry["title"] or entry["item_id"] for entry in model.catalogue]
    lines = []
    for user in split.users("test")[:num_users]:
        history = split.history(user, "test").tolist()
        lines.append(f"\nA user chose {'; '.join(titles[row] for row in history[-5:])}")
        for row, score in model.recommend_rows([history], min(5, split.num_items))[0]:
            lines.append(f"  {score:7.2f}  {titles[row]}")
    return "\n".join(lines)
