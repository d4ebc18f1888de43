"""Fit the re-ranker on validation targets, and measure what each part brings."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm

from modeling_ttds import reranker_ttds
from modeling_ttds.generation_ttds import beam_search
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.priors_ttds import TTDSPriorHead
from modeling_ttds.recommendation_ttds import NUM_CANDIDATES, pad_rows
from modeling_ttds.reranker_ttds import BLEND, FEATURES, FLOOR, MODEL_FEATURES, TTDSReranker
from modeling_ttds.trie_ttds import TTDSCandidates
from recipes.config import RerankerOptions
from recipes.data.split import Split
from recipes.data.toyshop import Toyshop
from recipes.evaluation.metrics import evaluate_run
from recipes.evaluation.report import (
    GENERATED,
    LM_ONLY,
    RERANKER_ONLY,
    TTDS,
    add_comparisons,
    evaluate_model,
)
from recipes.index.embeddings import cached, hashed
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.ranking.priors import cross_fit_priors, node_choices

NUM_FOLDS = 4
AT_ONCE = 16  # users whose activations fit the processor's cache, which saves a quarter
OF_NEW = dict.fromkeys(  # what features say of an item that nobody has chosen
    ("counts", "links", "log_popularity", "log_late", "log_recent", "era", "collaborative",
     "last_collaborative", "nearest_collaborative"), 0.0,
) | dict.fromkeys(
    ("log_counts", "log_follow", "log_cooccurrence", "log_strongest", "log_last_cooccurrence",
     "log_newest_follow"), math.log(FLOOR),
)  # fmt: skip
CODE = [Path(file).read_text("utf-8") for file in (__file__, reranker_ttds.__file__)]


@torch.no_grad()
def reranker_data(
    model: TTDSForCausalLM,
    split: Split,
    which: str,
    num_beams: int,
    heads: Sequence[TTDSPriorHead],
    batch_size: int = 64,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Collect the candidates of every user with a target and their features.

    Args:
        model: A model with a co-occurrence memory.
        split: The split.
        which: `"validation"` or `"test"`.
        num_beams: Beams that join the candidates.
        heads: The prior heads; the n-th user is searched for with the n-th of them, and so on
            around, so that none has seen its user's target.
        batch_size: Users per step.

    Returns:
        Item rows, padded with -1, (num_users, num_candidates), features, (num_users,
        num_candidates, num_features), which candidate is the target, or -1, (num_users,), and, per
        row of a table, what is generated, padded with -1, (num_users, num_beams); all on the CPU.
    """
    model.eval()
    users = split.users(which)
    folds = torch.arange(len(users)) % len(heads)
    order = folds.argsort(stable=True)
    items, features, generated = [], [], {LM_ONLY: [], GENERATED: []}
    steps = [p for k in range(len(heads)) for p in order[folds[order] == k].split(batch_size)]
    for places in tqdm(steps, desc="re-ranker features", unit="batch"):
        model.prior_head = heads[int(folds[places[0]])].to(model.device)
        shown = [split.history(user, which).tolist() for user in users[places]]
        prompts = model.history_prompts(shown, shown)
        seen = shown if split.exclude_seen else [[]] * len(shown)
        excluded = pad_rows(seen, None, model.device)
        candidates = TTDSCandidates(model.trie, None, excluded)
        for row in generated:
            priors = model.priors(shown, excluded) if row == GENERATED else None
            beams = beam_search(model, *prompts, candidates, num_beams, priors)[0][:, :num_beams]
            missing = num_beams - beams.shape[1]
            generated[row].append(F.pad(beams, (0, missing), value=-1).cpu())
        forbidden = model.forbidden(excluded, None)
        found = model.reranker_features(shown, prompts, beams, forbidden)
        items.append(F.pad(found[0], (0, missing), value=-1).cpu())
        features.append(F.pad(found[1], (0, 0, 0, missing)).cpu())
    back = order.argsort()
    items, features = torch.cat(items)[back], torch.cat(features)[back]
    generated = {row: torch.cat(parts)[back] for row, parts in generated.items()}
    return items, features, _place(items, split, which), generated


def _place(items: Tensor, split: Split, which: str) -> Tensor:
    """Return which of the candidates is the target, or -1, (num_users,)."""
    match = items == torch.from_numpy(split.targets(which)[split.users(which)])[:, None]
    return torch.where(match.any(1), match.int().argmax(1), -1)


def fit_reranker(
    items: Tensor,
    features: Tensor,
    target: Tensor,
    *,
    num_epochs: int = 16,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    cold_item_dropout: float = 0.0,
    seed: int = 0,
    name: str = "reranker",
    folder: Path | None = None,
) -> TTDSReranker:
    """Fit a re-ranker by softmax cross-entropy over candidates.

    Args:
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
        target: Which candidate each user chose, -1 where it is none of them, (num_users,).
        num_epochs: Epochs over the users.
        batch_size: Users per step.
        learning_rate: Of AdamW.
        cold_item_dropout: Share of the candidates that each step shows `as_new`.
        seed: Seed of weights, order and dropout.
        name: What the progress bar calls it.
        folder: Keeps the fit when it is finished; the same fit is not made twice.
    """
    torch.manual_seed(seed)
    found = target >= 0
    items, features, target = items[found], features[found], target[found]
    reranker = TTDSReranker(len(FEATURES))
    if not len(features):
        print(f"{name}: no target is among the candidates, so they stay in their order.")
        for parameter in reranker.parameters():
            parameter.detach().zero_()
        return reranker.eval()

    def fit() -> Tensor:
        flat = features[items >= 0]
        reranker.mean.copy_(flat.mean(0))
        reranker.std.copy_(flat.std(0).clamp_min(1e-6))
        optimizer = torch.optim.AdamW(reranker.parameters(), lr=learning_rate, weight_decay=1e-2)
        steps = num_epochs * -(-len(features) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        reranker.train()
        for _ in tqdm(range(num_epochs), desc=name, unit="epoch"):
            for rows in torch.randperm(len(features)).split(batch_size):
                optimizer.zero_grad()
                for part in rows.split(AT_ONCE):
                    shown = features[part]
                    if cold_item_dropout:
                        hidden = torch.rand(shown.shape[:2]) < cold_item_dropout
                        new = as_new(items[part], shown)
                        shown = torch.where(hidden[..., None], new, shown)
                    scores = reranker(shown).masked_fill(items[part] < 0, -torch.inf)
                    loss = F.cross_entropy(scores, target[part], reduction="sum") / len(rows)
                    loss.backward()
                optimizer.step()
                schedule.step()
        return torch.cat([tensor.flatten() for tensor in reranker.state_dict().values()])

    settings = [num_epochs, batch_size, learning_rate, cold_item_dropout, seed]
    key = {"data": hashed(items, features, target), "settings": settings, "code": CODE}
    state = reranker.state_dict().values()
    kept = cached(folder, "reranker", key, fit).split([tensor.numel() for tensor in state])
    for tensor, values in zip(state, kept, strict=True):
        tensor.copy_(values.view_as(tensor))
    return reranker.eval()


def as_new(items: Tensor, features: Tensor) -> Tensor:
    """Return features as every candidate would have them if nobody had chosen it yet.

    A re-ranker that sees some candidates so while it is fitted learns to judge new items by what is
    left (DropoutNet, Volkovs et al. 2017): text, brand, category, and the language model's first
    code. For whole codes the language model has never seen its log-probability says little, so it
    is that of another candidate, drawn at random.

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
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    name: str = "reranker",
    **fit,
) -> Tensor:
    """Return ranked lists of users whose own targets their re-ranker has not seen, (num_users, 20).

    Args:
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
        target: Which candidate is the target, or -1, (num_users,).
        num_folds: Parts the users are dealt into.
        seed: Seed of the deal and of every fit.
        name: What the progress bars call it.
        **fit: As of `fit_reranker`.
    """
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    lists = torch.full((len(items), min(20, items.shape[1])), -1)
    for fold in range(num_folds):
        held = order[fold::num_folds]
        rest = torch.ones(len(items), dtype=torch.bool)
        rest[held] = False
        part = f"{name}, part {fold + 1} of {num_folds}"
        reranker = fit_reranker(
            items[rest], features[rest], target[rest], seed=seed, name=part, **fit
        )
        lists[held] = ranked(reranker, items[held], features[held])
    return lists


@torch.no_grad()
def ranked(reranker: TTDSReranker, items: Tensor, features: Tensor) -> Tensor:
    """Return the best 20 candidates by the re-ranker, padded with -1, (num_users, 20).

    Args:
        reranker: The re-ranker.
        items: Item rows, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
    """
    scores = torch.cat([reranker(part) for part in features.split(512)])
    scores = scores.masked_fill(items < 0, -torch.inf)
    return items.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :20]).cpu()


def without_model(items: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates and features as they are where there is no language model.

    Args:
        items: Item rows, padded with -1: what co-occurrence memory and texts propose comes first,
            then the beams, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
    """
    features = features[:, :NUM_CANDIDATES].clone()
    features[..., [FEATURES.index(name) for name in MODEL_FEATURES]] = 0
    return items[:, :NUM_CANDIDATES], features


def with_model(items: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates and features as they are. Arguments as of `without_model`."""
    return items, features


VIEWS = {RERANKER_ONLY: without_model, TTDS: with_model}


def rank_users(
    model: TTDSForCausalLM,
    split: Split,
    shop: Toyshop | None,
    options: RerankerOptions,
    num_beams: int,
    seed: int,
    folder: Path | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[list[int]]]]:
    """Give the model a re-ranker, if it is to have one, and measure it beside the baselines.

    Args:
        model: A tuned model with a frozen SID table.
        split: The split.
        shop: The generated data set, if `split` is its split.
        options: Whether to fit them, and how.
        num_beams: Prefixes kept per level.
        seed: Seed of the fits.
        folder: As of `join`.

    Returns:
        As of `join`.
    """
    users, least = len(split.users("validation")), 2 * NUM_FOLDS
    if options.reranker and users >= least:
        rows, lists = join(
            model,
            split,
            num_beams=num_beams,
            min_pair_users=options.min_pair_users,
            cold_item_dropout=options.cold_item_dropout,
            seed=seed,
            folder=folder,
        )
    else:
        if options.reranker:
            print(
                f"{users} users have a validation target, a re-ranker needs {least}: none is "
                "fitted."
            )
        rows, lists = {"validation": {}, "test": {}}, {}
        for which in rows:
            rows[which][LM_ONLY], lists[LM_ONLY] = evaluate_model(
                model, split, which, num_beams, LM_ONLY
            )
    add_comparisons(rows, model, split, shop)
    return rows, lists


def join(
    model: TTDSForCausalLM,
    split: Split,
    *,
    num_beams: int,
    min_pair_users: int,
    cold_item_dropout: float,
    seed: int,
    folder: Path | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[list[int]]]]:
    """Give the model a co-occurrence memory and re-ranker, and measure what each part brings.

    Neither the language model nor the co-occurrence memory has seen the validation targets the
    re-ranker is fitted on. Validation metrics are cross-fitted; test metrics come from the
    re-ranker fitted on all of them.

    Args:
        model: A tuned model with a frozen SID table.
        split: The split.
        num_beams: Beams that join the candidates.
        min_pair_users: Least number of users behind a pair of items the co-occurrence memory keeps.
        cold_item_dropout: Share of the candidates shown as if nobody had chosen them.
        seed: Seed of the fits.
        folder: Keeps the finished fits, so that a call after a stop goes on from there.

    Returns:
        Metrics per split and row, and per row the lists of the test users.
    """
    cooccurrence = build_cooccurrence(
        split.training, split.num_items, min_pair_users, split.training_timestamps
    )
    model.set_reranker(cooccurrence.to(model.device), TTDSReranker(len(FEATURES)).to(model.device))
    model.set_priors(model.cooccurrence, TTDSPriorHead(model.config.item_tower.num_levels))
    head, heads = cross_fit_priors(node_choices(model, split, "validation"), seed=seed)
    data = reranker_data(model, split, "validation", num_beams, heads)
    items, features, target, generated = data
    lists = {"validation": {row: found[:, :20] for row, found in generated.items()}, "test": {}}
    rerankers = {}
    for row, view in VIEWS.items():
        seen, described = view(items, features)
        found = torch.where(target < seen.shape[1], target, -1)
        fit = {
            "cold_item_dropout": cold_item_dropout, "seed": seed, "name": f"fit {row}",
            "folder": folder,
        }  # fmt: skip
        lists["validation"][row] = cross_fit(seen, described, found, **fit)
        rerankers[row] = fit_reranker(seen, described, found, **fit)
    recall = (target >= 0).float().mean().item()
    items, features, _, generated = reranker_data(model, split, "test", num_beams, [head])
    lists["test"] |= {row: found[:, :20] for row, found in generated.items()}
    for row, view in VIEWS.items():
        lists["test"][row] = ranked(rerankers[row], *view(items, features))
    model.set_reranker(model.cooccurrence, rerankers[TTDS].to(model.device))
    named = {which: {row: _rows(found) for row, found in rows.items()}
             for which, rows in lists.items()}  # fmt: skip
    rows = {
        which: {row: evaluate_run(split, which, found) for row, found in found_by.items()}
        for which, found_by in named.items()
    }
    rows["validation"][TTDS]["candidate_recall"] = recall
    return rows, named["test"]


def _rows(lists: Tensor) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in lists.tolist()]
