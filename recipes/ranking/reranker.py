"""Fit the re-ranker on validation targets, and measure what each part brings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm

from modeling_ttds import reranker_ttds
from modeling_ttds.generation_ttds import TTDSPrefix, search
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.priors_ttds import TTDSPriorHead
from modeling_ttds.recommendation_ttds import pad_rows
from modeling_ttds.reranker_ttds import FEATURES, MODEL_FEATURES, TTDSReranker
from modeling_ttds.trie_ttds import TTDSCandidates
from recipes.config import LEAST_USERS, RerankerOptions
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
from recipes.index.embeddings import add_new_items, cached_fit, hashed
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.ranking.newcomers import MOST_USERS, with_newcomers
from recipes.ranking.priors import cross_fit_priors, node_choices

NUM_FOLDS = 2
AT_ONCE = 16  # users whose activations fit the processor's cache, which saves a quarter
CODE = [Path(file).read_text("utf-8") for file in (__file__, reranker_ttds.__file__)]


@dataclass(frozen=True)
class RankedUsers:
    """Users with what is ranked for them; all on the CPU.

    Args:
        items: Item rows of the candidates, padded with -1, (num_users, num_candidates).
        features: (num_users, num_candidates, num_features).
        target: Which candidate is the target, or -1, (num_users,).
    """

    items: Tensor
    features: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, users: Tensor | slice) -> "RankedUsers":
        return RankedUsers(self.items[users], self.features[users], self.target[users])

    def split(self, size: int) -> list["RankedUsers"]:
        """Return the users in parts.

        Args:
            size: Users per part.
        """
        return [self[first : first + size] for first in range(0, len(self), size)]

    def followed_by(self, others: "RankedUsers") -> "RankedUsers":
        """Return these users and, behind them, others.

        Args:
            others: The others.
        """
        width = max(self.items.shape[1], others.items.shape[1])
        parts = [(part, width - part.items.shape[1]) for part in (self, others)]
        return RankedUsers(
            torch.cat([F.pad(part.items, (0, missing), value=-1) for part, missing in parts]),
            torch.cat([F.pad(part.features, (0, 0, 0, missing)) for part, missing in parts]),
            torch.cat([part.target for part, _ in parts]),
        )


@torch.no_grad()
def reranker_data(
    model: TTDSForCausalLM,
    split: Split,
    which: str,
    num_beams: int,
    heads: Sequence[TTDSPriorHead],
    rerank: bool = True,
    most: int | None = None,
    alone: bool = True,
    batch_size: int = 64,
) -> tuple[RankedUsers | None, dict[str, Tensor]]:
    """Generate for every user with a target; collect candidates of the re-ranker and features.

    Args:
        model: A model with a co-occurrence memory.
        split: The split.
        which: `"validation"` or `"test"`.
        num_beams: Beams that join the candidates.
        heads: The prior heads; the n-th user is searched for with the n-th of them, and so on
            around, so that none has seen its user's target.
        rerank: Whether candidates are wanted.
        most: For how many users; None for all.
        alone: Whether the language model is asked alone, too.
        batch_size: Users per step.

    Returns:
        The users, None without `rerank`, and, per row of a table, what is generated for them,
        padded with -1, (num_users, num_beams), on the CPU.
    """
    model.eval()
    users = split.users(which)[:most]
    folds = torch.arange(len(users)) % len(heads)
    order = folds.argsort(stable=True)
    items, features, generated = [], [], {}
    steps = [p for k in range(len(heads)) for p in order[folds[order] == k].split(batch_size)]
    for places in tqdm(steps, desc="re-ranker features", unit="batch"):
        model.prior_head = heads[int(folds[places[0]])].to(model.device)
        shown = [split.history(user, which).tolist() for user in users[places]]
        prompts = model.history_prompts(shown, shown)
        seen = shown if split.exclude_seen else [[]] * len(shown)
        excluded = pad_rows(seen, None, model.device)
        candidates = TTDSCandidates(model.trie, None, excluded)
        prefix = TTDSPrefix(model, *prompts)
        priors = model.priors(shown, excluded)
        beams = {LM_ONLY: search(model, prefix, candidates, num_beams).items} if alone else {}
        if rerank:
            found = model.reranker_features(
                shown, prefix, candidates, num_beams, priors, model.num_candidates
            )
            beams[GENERATED] = found[2]
            # As many columns in every batch: the beams are the last ones.
            width = found[0].shape[1] - found[2].shape[1] + num_beams
            missing = max(width - found[0].shape[1], 0)
            items.append(F.pad(found[0][:, :width], (0, missing), value=-1).cpu())
            features.append(F.pad(found[1][:, :width], (0, 0, 0, missing)).cpu())
        else:
            beams[GENERATED] = search(model, prefix, candidates, num_beams, priors).items
        for row, lists in beams.items():
            missing = max(num_beams - lists.shape[1], 0)
            lists = F.pad(lists[:, :num_beams], (0, missing), value=-1)
            generated.setdefault(row, []).append(lists.cpu())
    back = order.argsort()
    generated = {row: torch.cat(parts)[back] for row, parts in generated.items()}
    if not rerank:
        return None, generated
    items, features = torch.cat(items)[back], torch.cat(features)[back]
    match = items == torch.from_numpy(split.targets(which)[users])[:, None]
    target = torch.where(match.any(1), match.int().argmax(1), -1)
    return RankedUsers(items, features, target), generated


def fit_reranker(
    users: RankedUsers,
    new: RankedUsers | None = None,
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
        users: What is ranked for each user; users without their target teach nothing.
        new: The same of a model `with_newcomers`, for the first of the users.
        num_epochs: Epochs over the users.
        batch_size: Users per step.
        learning_rate: Of AdamW.
        cold_item_dropout: How often a step shows a user as of `new`.
        seed: Seed of weights, order and dropout.
        name: What the progress bar calls it.
        folder: Keeps the fit when it is finished; the same fit is not made twice.
    """
    torch.manual_seed(seed)
    reranker = TTDSReranker(len(FEATURES))
    num_users, found = len(users), (users.target >= 0).nonzero()[:, 0]
    if not len(found):
        print(f"{name}: no target is among the candidates, so they stay in their order.")
        for parameter in reranker.parameters():
            parameter.detach().zero_()
        return reranker.eval()
    also_new = torch.zeros(num_users, dtype=torch.bool)
    if new and cold_item_dropout:
        also_new[: len(new)] = new.target >= 0
        users = users.followed_by(new)

    def fit() -> None:
        flat = users.features[users.items >= 0]
        reranker.mean.copy_(flat.mean(0))
        reranker.std.copy_(flat.std(0).clamp_min(1e-6))
        optimizer = torch.optim.AdamW(reranker.parameters(), lr=learning_rate, weight_decay=1e-2)
        steps = num_epochs * -(-len(found) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        reranker.train()
        for _ in tqdm(range(num_epochs), desc=name, unit="epoch"):
            for rows in found[torch.randperm(len(found))].split(batch_size):
                shown = also_new[rows] & (torch.rand(len(rows)) < cold_item_dropout)
                optimizer.zero_grad()
                for part in users[rows + num_users * shown].split(AT_ONCE):
                    scores = reranker(part.features).masked_fill(part.items < 0, -torch.inf)
                    loss = F.cross_entropy(scores, part.target, reduction="sum") / len(rows)
                    loss.backward()
                optimizer.step()
                schedule.step()

    settings = [num_epochs, batch_size, learning_rate, cold_item_dropout, seed]
    data = hashed(users.items, users.features, users.target)
    key = {"data": data, "settings": settings, "code": CODE}
    cached_fit(folder, "reranker", reranker, key, fit, seed)
    return reranker


def cross_fit(
    users: RankedUsers,
    new: RankedUsers | None = None,
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    name: str = "reranker",
    **fit,
) -> Tensor:
    """Return ranked lists of users whose own targets their re-ranker has not seen, (num_users, 20).

    Args:
        users: As of `fit_reranker`.
        new: As of `fit_reranker`.
        num_folds: Parts the users are dealt into.
        seed: Seed of the deal and of every fit.
        name: What the progress bars call it.
        **fit: As of `fit_reranker`.
    """
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))
    lists = torch.full((len(users), min(20, users.items.shape[1])), -1)
    for fold in range(num_folds):
        held = order[fold::num_folds]
        rest = torch.ones(len(users), dtype=torch.bool)
        rest[held] = False
        rest = rest.nonzero()[:, 0]
        part = f"{name}, part {fold + 1} of {num_folds}"
        also = new and new[rest[rest < len(new)]]
        lists[held] = ranked(
            fit_reranker(users[rest], also, seed=seed, name=part, **fit), users[held]
        )
    return lists


@torch.no_grad()
def ranked(reranker: TTDSReranker, users: RankedUsers) -> Tensor:
    """Return the best 20 candidates by the re-ranker, padded with -1, (num_users, 20).

    Args:
        reranker: The re-ranker.
        users: What is ranked for each user.
    """
    scores = torch.cat([reranker(part) for part in users.features.split(512)])
    scores = scores.masked_fill(users.items < 0, -torch.inf)
    return users.items.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :20]).cpu()


def without_model(users: RankedUsers, num_beams: int) -> RankedUsers:
    """Return users as they are where there is no language model.

    Args:
        users: Users; what co-occurrence memory and texts propose comes before the beams.
        num_beams: Width of the beams.
    """
    features = users.features[:, :-num_beams].clone()
    features[..., [FEATURES.index(name) for name in MODEL_FEATURES]] = 0
    items = users.items[:, :-num_beams]
    return RankedUsers(items, features, users.target.where(users.target < items.shape[1], -1))


def with_model(users: RankedUsers, num_beams: int) -> RankedUsers:
    """Return users as they are. Arguments as of `without_model`."""
    return users


VIEWS = {RERANKER_ONLY: without_model, TTDS: with_model}


def rank_users(
    chosen: TTDSForCausalLM,
    model: TTDSForCausalLM,
    split: Split,
    shop: Toyshop | None,
    options: RerankerOptions,
    num_beams: int,
    seed: int,
    folder: Path | None = None,
    text: Tensor | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[list[int]]]]:
    """Give the model a re-ranker, if it is to have one, and measure it beside the baselines.

    On a timeline items that appear after a model's training are added when it is measured.

    Args:
        chosen: A tuned model with a frozen SID table, which saw no validation target.
        model: The model to be measured on the test, and to keep: on a timeline one that was tuned
            anew with the validation's interactions, else `chosen`.
        split: The split.
        shop: The generated data set, if `split` is its split.
        options: Whether to fit them, and how.
        num_beams: Prefixes kept per level.
        seed: Seed of the fits.
        folder: As of `join`.
        text: As of `join`.

    Returns:
        As of `join`.
    """
    users = len(split.view("validation").users("validation"))
    if options.memory and users >= LEAST_USERS:
        chosen.config.min_pair_users = model.config.min_pair_users = options.min_pair_users
        rows, lists = join(
            chosen, model, split, options, num_beams=num_beams, seed=seed, folder=folder, text=text
        )
    else:
        if options.memory:
            print(
                f"{users} users have a validation target, priors and re-ranker need "
                f"{LEAST_USERS}: none is fitted."
            )
        rows, lists = {}, {}
        for which, asked in (("validation", chosen), ("test", model)):
            add_new_items(asked, split.view(which), text)
            found = evaluate_model(asked, split.view(which), which, num_beams, LM_ONLY)
            rows[which] = {LM_ONLY: found[0]}
            lists[LM_ONLY] = found[1]
    add_comparisons(rows, model, split, shop)
    return rows, lists


def fit_heads(
    model: TTDSForCausalLM, split: Split, cold_item_dropout: float, seed: int
) -> tuple[TTDSPriorHead, list[TTDSPriorHead], TTDSForCausalLM | None]:
    """Fit prior heads on validation targets, as things are and with newcomers.

    Args:
        model: A model with a co-occurrence memory.
        split: The split.
        cold_item_dropout: As of `fit_priors`; 0 goes without newcomers.
        seed: Seed of the newcomers and of the fits.

    Returns:
        As of `cross_fit_priors`, and the model with newcomers, if there is one.
    """
    twin = with_newcomers(model, seed) if cold_item_dropout else None
    choices = [node_choices(model, split, "validation")]
    if twin is not None:
        choices.append(node_choices(twin, split, "validation", MOST_USERS))
    fit = {"cold_item_dropout": cold_item_dropout, "seed": seed}
    return *cross_fit_priors(*choices, **fit), twin


def join(
    chosen: TTDSForCausalLM,
    model: TTDSForCausalLM,
    split: Split,
    options: RerankerOptions,
    *,
    num_beams: int,
    seed: int,
    folder: Path | None = None,
    text: Tensor | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[list[int]]]]:
    """Give the model a co-occurrence memory, priors and a re-ranker; measure what each brings.

    Neither the language model nor the co-occurrence memory has seen the validation targets that
    priors and re-ranker are fitted on. Validation metrics are cross-fitted, but for the re-ranker
    only, which has none; test metrics come from what was fitted on all of them. On a timeline
    priors and re-ranker are fitted with one model and handed to another, which knows what precedes
    the test; items of a period that a model's training did not know are added to it first.

    A re-ranker that lowers NDCG@10 on validation is left out: the model is given none, and the row
    of both together is that of what is generated, with what the re-ranker would have made of it.

    Args:
        chosen: A tuned model with a frozen SID table, which saw no validation target.
        model: The model to be measured on the test and to get priors and re-ranker; as of
            `rank_users`.
        split: The split.
        options: What is fitted.
        num_beams: Beams that join the candidates.
        seed: Seed of the fits.
        folder: Keeps the finished fits, so that a call after a stop goes on from there.
        text: Precomputed text embeddings in the split's order, if there are any, for new items.

    Returns:
        Metrics per split and row, and per row the lists of the test users.
    """
    head = TTDSPriorHead(chosen.config.item_tower.num_levels).to(chosen.device)

    def count(asked: TTDSForCausalLM, log: Split) -> None:
        memory = build_cooccurrence(
            log.training, len(asked.catalogue), options.min_pair_users, log.training_timestamps
        )
        asked.set_priors(memory.to(asked.device), head)

    then = split.view("validation")
    count(chosen, split.view("training"))
    add_new_items(chosen, then, text)
    rate = options.cold_item_dropout
    head, heads, twin = fit_heads(chosen, then, rate, seed)
    validation = reranker_data(chosen, then, "validation", num_beams, heads, options.reranker)
    new = None
    if options.reranker and twin is not None:
        some = {"most": MOST_USERS, "alone": False}
        new = reranker_data(twin, then, "validation", num_beams, heads, **some)[0]
    if model is not chosen:
        count(model, split.view("refit"))
        add_new_items(model, split, text)
    test = reranker_data(model, split, "test", num_beams, [head], options.reranker)
    lists = {
        which: {row: found[:, :20] for row, found in generated.items()}
        for which, (_, generated) in (("validation", validation), ("test", test))
    }
    if options.reranker:
        users = validation[0]
        recall = (users.target >= 0).float().mean().item()
        for row, view in VIEWS.items():
            seen = [each and view(each, num_beams) for each in (users, new)]
            fit = {"cold_item_dropout": rate, "seed": seed, "folder": folder}
            fit |= {"name": f"fit {row}"}
            if row == TTDS:
                lists["validation"][row] = cross_fit(*seen, **fit)
            reranker = fit_reranker(*seen, **fit)
            lists["test"][row] = ranked(reranker, view(test[0], num_beams))
    named = {which: {row: _rows(found) for row, found in rows.items()}
             for which, rows in lists.items()}  # fmt: skip
    rows = {
        which: {
            row: evaluate_run(split.view(which), which, found) for row, found in found_by.items()
        }
        for which, found_by in named.items()
    }
    if options.reranker:
        with_it, without = (rows["validation"][row]["NDCG@10"] for row in (TTDS, GENERATED))
        if with_it >= without:
            model.set_reranker(model.cooccurrence, reranker.to(model.device))
        else:
            print(
                f"NDCG@10 on validation is {with_it:.4f} with the re-ranker and {without:.4f} "
                "without: it is left out."
            )
            named["test"][TTDS] = named["test"][GENERATED]
            for found in rows.values():
                reranked = {f"reranked_{name}": found[TTDS][name] for name in ("HR@10", "NDCG@10")}
                found[TTDS] = found[GENERATED] | reranked
        rows["validation"][TTDS]["candidate_recall"] = recall
    return rows, named["test"]


def _rows(lists: Tensor) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in lists.tolist()]
