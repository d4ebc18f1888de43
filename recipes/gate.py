"""Build the memory from training histories and fit the gate on validation targets."""

import math
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm

from modeling_ttds import memory_ttds
from modeling_ttds.generation_ttds import TTDSCandidates, beam_search
from modeling_ttds.memory_ttds import (
    BLEND,
    FEATURES,
    FLOOR,
    MODEL_FEATURES,
    TTDSGate,
    TTDSMemory,
)
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.recommendation_ttds import NUM_CANDIDATES, pad_rows
from recipes.baselines import transition_matrix
from recipes.card import GATE, GENERATED, JOINED
from recipes.data import Split
from recipes.embeddings import cached, hashed
from recipes.metrics import evaluate_run

LONGEST = 50
LATE = 6  # how many of a history's newest items count as late ones, each half as much as the next
HALF_LIFE, YEAR = 120 * 86400, 365 * 86400  # seconds
PRIOR = 3  # interactions of average age that an item's mean age starts from
AT_ONCE = 16  # users whose activations fit the processor's cache, which saves a quarter
OF_NEW = dict.fromkeys(  # what features say of an item that nobody has chosen
    ("counts", "links", "log_popularity", "log_late", "log_recent", "era", "collaborative",
     "last_collaborative", "nearest_collaborative"), 0.0,
) | dict.fromkeys(
    ("log_counts", "log_follow", "log_company", "log_strongest", "log_last_company",
     "log_newest_follow"), math.log(FLOOR),
)  # fmt: skip
CODE = [Path(file).read_text("utf-8") for file in (__file__, memory_ttds.__file__)]


def build_memory(
    histories: list[np.ndarray],
    num_items: int,
    min_count: int = 1,
    stamps: list[np.ndarray] | None = None,
) -> TTDSMemory:
    """Count what follows what, and who buys what together, in one pass over the histories.

    Args:
        histories: Item rows in order, per user; the newest 50 of each count.
        num_items: Size of the catalogue.
        min_count: Least number of users behind a pair; rarer pairs are dropped.
        stamps: When each of the histories' interactions was, in seconds, NaN where unknown; without
            any, what the memory knows of time is zero.
    """
    everything = histories
    histories = [history[-LONGEST:] for history in histories]
    transition = transition_matrix(histories, num_items)
    pairs = [(h[:-1], h[1:]) for h in histories if len(h) > 1]
    before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
    follow = sp.coo_matrix((np.ones(len(before)), (before, after)), shape=transition.shape).tocsr()
    follow = sp.diags(1 / np.sqrt(np.maximum(np.asarray(follow.sum(1)).ravel(), 1))) @ follow
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    bought = sp.csr_matrix(
        (np.ones(len(users)), (users, np.concatenate(histories))),
        shape=(len(histories), num_items),
    )
    popularity = np.asarray(bought.sum(0)).ravel()
    bought.data[:] = 1
    together = (bought.T @ bought).tocsr()
    roots = sp.diags(1 / np.sqrt(np.maximum(together.diagonal(), 1)))
    company = (roots @ together @ roots).tocsr()
    for matrix in (together, company):
        matrix.setdiag(0)
        matrix.eliminate_zeros()
    kept = (together >= min_count).astype(float)
    kept = ((transition != 0) + (follow != 0) + (company != 0)).astype(float).multiply(kept).tocsr()
    kept.sort_indices()
    memory = TTDSMemory(num_items, kept.nnz)
    memory.starts.copy_(torch.from_numpy(kept.indptr))
    memory.others.copy_(torch.from_numpy(kept.indices))
    rows = np.repeat(np.arange(num_items), np.diff(kept.indptr))
    for column, matrix in enumerate((transition, follow, company)):
        values = np.asarray(sp.csr_matrix(matrix)[rows, kept.indices]).ravel()
        memory.values[:, column] = torch.from_numpy(values)
    columns = (popularity, _late(histories, num_items), *_times(everything, num_items, stamps))
    memory.items.copy_(torch.from_numpy(np.stack(columns, axis=1)))
    return memory


def _late(histories: list[np.ndarray], num_items: int) -> np.ndarray:
    newest = [history[::-1][:LATE] for history in histories]
    weights = np.concatenate([0.5 ** np.arange(len(items)) for items in newest])
    return np.bincount(np.concatenate(newest), weights, num_items)


def _times(
    histories: list[np.ndarray], num_items: int, stamps: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each item was chosen of late, and the mean age of its interactions."""
    items = np.concatenate(histories)
    when = np.full(len(items), np.nan) if stamps is None else np.concatenate(stamps).astype(float)
    known = ~np.isnan(when)
    if not known.any():
        return np.zeros(num_items), np.zeros(num_items)
    items, age = items[known], when[known].max() - when[known]
    recent = np.bincount(items, 0.5 ** (age / HALF_LIFE), num_items)
    count = np.bincount(items, minlength=num_items)
    era = -(np.bincount(items, age, num_items) + PRIOR * age.mean()) / (count + PRIOR) / YEAR
    return recent, era


@torch.no_grad()
def gate_data(
    model: TTDSForCausalLM, split: Split, which: str, num_beams: int, batch_size: int = 64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Collect the candidates of every user with a target and their features.

    Args:
        model: A model with a memory.
        split: The split.
        which: `"validation"` or `"test"`.
        num_beams: Beams that join the candidates.
        batch_size: Users per step.

    Returns:
        Item rows, padded with -1, (num_users, num_candidates), features, (num_users,
        num_candidates, num_features), which candidate is the target, or -1, (num_users,), and what
        the language model generates alone, padded with -1, (num_users, num_beams); all on the CPU.
    """
    model.eval()
    users = split.users(which)
    items, features, generated = [], [], []
    for first in tqdm(range(0, len(users), batch_size), desc="gate features", unit="batch"):
        shown = [split.history(u, which).tolist() for u in users[first : first + batch_size]]
        prompts = model.history_prompts(shown, shown)
        excluded = pad_rows(shown, None, model.device)
        candidates = TTDSCandidates(model.trie, None, excluded)
        beams = beam_search(model, *prompts, candidates, num_beams)[0][:, :num_beams]
        forbidden = model.forbidden(excluded, None)
        found = model.gate_features(shown, prompts, beams, forbidden)
        missing = num_beams - beams.shape[1]
        items.append(F.pad(found[0], (0, missing), value=-1).cpu())
        features.append(F.pad(found[1], (0, 0, 0, missing)).cpu())
        generated.append(F.pad(beams, (0, missing), value=-1).cpu())
    items, features = torch.cat(items), torch.cat(features)
    return items, features, _place(items, split, which), torch.cat(generated)


def _place(items: Tensor, split: Split, which: str) -> Tensor:
    """Return which of the candidates is the target, or -1, (num_users,)."""
    match = items == torch.from_numpy(split.targets(which)[split.users(which)])[:, None]
    return torch.where(match.any(1), match.int().argmax(1), -1)


def fit_gate(
    items: Tensor,
    features: Tensor,
    target: Tensor,
    *,
    num_epochs: int = 16,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    new_item_rate: float = 0.0,
    seed: int = 0,
    name: str = "gate",
    folder: Path | None = None,
) -> TTDSGate:
    """Fit a gate by softmax cross-entropy over candidates.

    Args:
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
        target: Which candidate each user chose, -1 where it is none of them, (num_users,).
        num_epochs: Passes over the users.
        batch_size: Users per step.
        learning_rate: Of AdamW.
        new_item_rate: Share of the candidates that each step shows `as_new`.
        seed: Seed of weights, order and dropout.
        name: What the progress bar calls it.
        folder: Keeps the fit when it is finished; the same fit is not made twice.
    """
    torch.manual_seed(seed)
    found = target >= 0
    items, features, target = items[found], features[found], target[found]
    gate = TTDSGate(len(FEATURES))

    def fit() -> Tensor:
        flat = features[items >= 0]
        gate.mean.copy_(flat.mean(0))
        gate.std.copy_(flat.std(0).clamp_min(1e-6))
        optimizer = torch.optim.AdamW(gate.parameters(), lr=learning_rate, weight_decay=1e-2)
        steps = num_epochs * -(-len(features) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        gate.train()
        for _ in tqdm(range(num_epochs), desc=name, unit="pass"):
            for rows in torch.randperm(len(features)).split(batch_size):
                optimizer.zero_grad()
                for part in rows.split(AT_ONCE):
                    shown = features[part]
                    if new_item_rate:
                        hidden = torch.rand(shown.shape[:2]) < new_item_rate
                        new = as_new(items[part], shown)
                        shown = torch.where(hidden[..., None], new, shown)
                    scores = gate(shown).masked_fill(items[part] < 0, -torch.inf)
                    loss = F.cross_entropy(scores, target[part], reduction="sum") / len(rows)
                    loss.backward()
                optimizer.step()
                schedule.step()
        return torch.cat([tensor.flatten() for tensor in gate.state_dict().values()])

    settings = [num_epochs, batch_size, learning_rate, new_item_rate, seed]
    key = {"data": hashed(items, features, target), "settings": settings, "code": CODE}
    state = gate.state_dict().values()
    kept = cached(folder, "gate", key, fit).split([tensor.numel() for tensor in state])
    for tensor, values in zip(state, kept, strict=True):
        tensor.copy_(values.view_as(tensor))
    return gate.eval()


def as_new(items: Tensor, features: Tensor) -> Tensor:
    """Return features as every candidate would have them if nobody had chosen it yet.

    A gate that sees some candidates so while it is fitted learns to judge new items by what is left
    (DropoutNet, Volkovs et al. 2017): text, brand, category, and the language model's first code.
    For whole codes the language model has never seen its log-probability says little, so it is
    that of another candidate, drawn at random.

    Args:
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
    """
    column = dict(zip(FEATURES, features.unbind(-1), strict=True))
    other = (items >= 0).float().multinomial(items.shape[1], replacement=True)
    step = (column["era_step"] - column["era"]) * (column["log_length"] > 0)
    new = {name: torch.full_like(column[name], value) for name, value in OF_NEW.items()}
    new |= {name: column[name].gather(1, other) for name in ("lm", "lm_gap")}
    new["log_blend"] = (BLEND * column["text"] + FLOOR).log()
    # Of the history's mean era only distances are known; its last item's era stands for it.
    new |= {"era_step": step, "era_distance": step.abs(), "history_era_distance": step.abs()}
    return torch.stack(list((column | new).values()), dim=-1)


def cross_fit(
    items: Tensor,
    features: Tensor,
    target: Tensor,
    *,
    num_folds: int = 4,
    seed: int = 0,
    name: str = "gate",
    **fit,
) -> Tensor:
    """Return ranked lists of users whose own targets their gate has not seen, (num_users, 20).

    Args:
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
        target: Which candidate is the target, or -1, (num_users,).
        num_folds: Parts the users are dealt into.
        seed: Seed of the deal and of every fit.
        name: What the progress bars call it.
        **fit: As of `fit_gate`.
    """
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    lists = torch.full((len(items), min(20, items.shape[1])), -1)
    for fold in range(num_folds):
        held = order[fold::num_folds]
        rest = torch.ones(len(items), dtype=torch.bool)
        rest[held] = False
        part = f"{name}, part {fold + 1} of {num_folds}"
        gate = fit_gate(items[rest], features[rest], target[rest], seed=seed, name=part, **fit)
        lists[held] = ranked(gate, items[held], features[held])
    return lists


@torch.no_grad()
def ranked(gate: TTDSGate, items: Tensor, features: Tensor) -> Tensor:
    """Return the best 20 candidates by the gate, padded with -1, (num_users, 20).

    Args:
        gate: The gate.
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
    """
    scores = torch.cat([gate(part) for part in features.split(512)])
    scores = scores.masked_fill(items < 0, -torch.inf)
    return items.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :20]).cpu()


def without_model(items: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates and features as they are where there is no language model.

    Args:
        items: Item rows, padded with -1: what memory and texts propose comes first, then the beams,
            (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
    """
    features = features[:, :NUM_CANDIDATES].clone()
    features[..., [FEATURES.index(name) for name in MODEL_FEATURES]] = 0
    return items[:, :NUM_CANDIDATES], features


def with_model(items: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates and features as they are. Arguments as of `without_model`."""
    return items, features


VIEWS = {GATE: without_model, JOINED: with_model}


def join(
    model: TTDSForCausalLM,
    split: Split,
    *,
    num_beams: int,
    min_count: int,
    new_item_rate: float,
    seed: int,
    folder: Path | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[list[int]]]]:
    """Give the model a memory and a gate, and measure what each part brings.

    Neither the language model nor the memory has seen the validation targets the gate is fitted on.
    Validation metrics are cross-fitted; test metrics come from the gate fitted on all of them.

    Args:
        model: A tuned model with a frozen index.
        split: The split.
        num_beams: Beams that join the candidates.
        min_count: Least number of users behind a pair of items the memory keeps.
        new_item_rate: Share of the candidates shown as if nobody had chosen them.
        seed: Seed of the fits.
        folder: Keeps the finished fits, so that a call after a stop goes on from there.

    Returns:
        Metrics per split and row, and per row the lists of the test users.
    """
    memory = build_memory(split.training, split.num_items, min_count, split.training_stamps)
    model.set_gate(memory.to(model.device), TTDSGate(len(FEATURES)).to(model.device))
    items, features, target, generated = gate_data(model, split, "validation", num_beams)
    lists = {"validation": {GENERATED: generated[:, :20]}, "test": {}}
    gates = {}
    for row, view in VIEWS.items():
        seen, described = view(items, features)
        found = torch.where(target < seen.shape[1], target, -1)
        fit = {
            "new_item_rate": new_item_rate, "seed": seed, "name": f"fit {row}", "folder": folder
        }  # fmt: skip
        lists["validation"][row] = cross_fit(seen, described, found, **fit)
        gates[row] = fit_gate(seen, described, found, **fit)
    recall = (target >= 0).float().mean().item()
    items, features, _, generated = gate_data(model, split, "test", num_beams)
    lists["test"][GENERATED] = generated[:, :20]
    for row, view in VIEWS.items():
        lists["test"][row] = ranked(gates[row], *view(items, features))
    model.set_gate(model.memory, gates[JOINED].to(model.device))
    named = {which: {row: _rows(found) for row, found in rows.items()}
             for which, rows in lists.items()}  # fmt: skip
    rows = {
        which: {row: evaluate_run(split, which, found) for row, found in found_by.items()}
        for which, found_by in named.items()
    }
    rows["validation"][JOINED]["candidate_recall"] = recall
    return rows, named["test"]


def _rows(lists: Tensor) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in lists.tolist()]
