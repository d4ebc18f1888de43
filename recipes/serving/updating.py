"""What an update of a trained model is made of: the catalogue followed, counts fitted anew."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import cached_file

from modeling_ttds import TTDSForCausalLM
from modeling_ttds.priors_ttds import TTDSPriorHead
from modeling_ttds.records_ttds import TEXT_FIELDS
from modeling_ttds.trie_ttds import TTDSTrie
from recipes.config import LEAST_USERS, RerankerOptions
from recipes.data.split import Split
from recipes.data.tables import Data
from recipes.evaluation.report import read_json
from recipes.hub.saved import check_texts
from recipes.ranking.cooccurrence import build_cooccurrence
from recipes.ranking.newcomers import MOST_USERS
from recipes.ranking.reranker import fit_heads, fit_reranker, reranker_data


def saved_facts(name: str) -> dict[str, Any]:
    """Return what metrics.json beside a model says that an update does not change.

    Args:
        name: Folder or Hub id.
    """
    file = cached_file(name, "metrics.json", _raise_exceptions_for_missing_entries=False)
    facts = read_json(file) if file else {}
    measured = ("validation", "test", "model_sha256")
    return {name: part for name, part in facts.items() if name not in measured}


def check_known(model: TTDSForCausalLM, name: str, data: Data) -> None:
    """Refuse data that are no later state of what a model was trained on.

    Args:
        model: The model.
        name: What `--model` names.
        data: The data.

    Raises:
        ValueError: They have few of the model's items, or most of those are other ones.
    """
    known = sum(item in model.row_of for item in data.catalogue.item_ids)
    if 2 * known < len(model.catalogue):
        raise ValueError(
            f"{name} belongs to other data: these have {known:,} of its {len(model.catalogue):,} "
            "items. Name a later state of its own, or train a model on these by recipes/sft.py."
        )
    check_texts(model, name, data)


def reranker_options(
    model: TTDSForCausalLM, known: dict[str, Any], split: Split
) -> RerankerOptions:
    """Return how a model's priors and re-ranker were fitted, which it has if it had them.

    Args:
        model: The model.
        known: As of `saved_facts`.
        split: The split.

    Raises:
        ValueError: Too few users have a validation target.
    """
    config, options = model.config, known.get("options", {})
    users = len(split.users("validation"))
    if config.has_cooccurrence and users < LEAST_USERS:
        raise ValueError(
            f"{users} users have a validation target; priors and re-ranker need {LEAST_USERS}. "
            "Give longer histories."
        )
    dropout = options.get("cold_item_dropout", RerankerOptions.cold_item_dropout)
    return RerankerOptions(
        memory=config.has_cooccurrence,
        reranker=config.has_reranker,
        min_pair_users=config.min_pair_users or options.get("min_pair_users", 1),
        cold_item_dropout=dropout,
    )


def newest_users(split: Split, count: int, seed: int) -> Split:
    """Return a split with the validation targets of so many users, the newest ones.

    Args:
        split: The split.
        count: Number of users; where nothing tells which are newest, they are drawn.
        seed: Seed of the draw.
    """
    users, timestamps = split.users("validation"), split.data.timestamps
    when = np.random.default_rng(seed).permutation(len(users)).astype(float)
    if timestamps is not None:
        when = np.array([timestamps[user][len(split.training[user])] for user in users])
    stay = users[np.argsort(-when, kind="stable")[:count]]
    targets = np.full_like(split.validation_targets, -1)
    targets[stay] = split.validation_targets[stay]
    return replace(split, validation_targets=targets)


@torch.no_grad()
def follow_catalogue(model: TTDSForCausalLM, split: Split, text: Tensor | None) -> tuple[int, int]:
    """Give a model the catalogue of a data set, in its order; old items keep semantic ID and rows.

    Args:
        model: The model.
        split: The split, whose training histories tell where new items belong.
        text: Text embeddings of the data set's items, (num_items, text_dim), or None to make those
            of the new items.

    Returns:
        How many items joined and left.
    """
    catalogue = split.data.catalogue
    gone = [item for item in model.row_of if item not in catalogue.row_of]
    if gone:
        model.remove_items(gone)
    rows = [row for row, item in enumerate(catalogue.item_ids) if item not in model.row_of]
    records = [
        {"item_id": catalogue.item_ids[row]}
        | {name: catalogue.fields[name][row] for name in TEXT_FIELDS}
        for row in rows
    ]
    is_new = np.zeros(len(catalogue), dtype=bool)
    is_new[rows] = True
    around = [
        [catalogue.item_ids[row] for row in history]
        for history in split.training
        if is_new[history].any()
    ]
    model.add_items(records, text_embeddings=None if text is None else text[rows], histories=around)
    order = torch.tensor([model.row_of[item] for item in catalogue.item_ids], device=model.device)
    sids = model.item_sids[order]
    if model.config.pair_dim:
        model.node_pairs.follow(order, model.trie, TTDSTrie.build(sids))
    model.item_sids = sids
    model.item_text, model.item_collaborative = (
        table[order] for table in (model.item_text, model.item_collaborative)
    )
    model.catalogue = catalogue.entries()
    model.share_sid_table()
    return len(rows), len(gone)


def fit_ranking(
    model: TTDSForCausalLM, split: Split, options: RerankerOptions, num_beams: int, seed: int
) -> None:
    """Count the training histories anew; fit priors and re-ranker on the validation targets.

    Args:
        model: The model.
        split: The split.
        options: What is fitted.
        num_beams: Beams that join the candidates.
        seed: Seed of the fits.
    """
    memory = build_cooccurrence(
        split.training, split.num_items, options.min_pair_users, split.training_timestamps
    ).to(model.device)
    model.config.min_pair_users = options.min_pair_users
    model.set_priors(memory, TTDSPriorHead(model.config.item_tower.num_levels).to(model.device))
    rate = options.cold_item_dropout
    head, heads, twin = fit_heads(model, split, rate, seed)
    if options.reranker:
        views = [(model, None)] if twin is None else [(model, None), (twin, MOST_USERS)]
        users = [
            reranker_data(view, split, "validation", num_beams, heads, most=most, alone=False)[0]
            for view, most in views
        ]
        reranker = fit_reranker(*users, cold_item_dropout=rate, seed=seed)
        model.set_reranker(memory, reranker.to(model.device))
    model.prior_head = head.to(model.device)
