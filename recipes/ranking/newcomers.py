"""A model as it would be if some of its items had just joined."""

import copy

import torch

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.trie_ttds import TTDSTrie

NEW_SHARE = 0.2  # of the items; priors and re-ranker are fitted with a view of them as new
MOST_USERS = 4096  # users that the view is made for


@torch.no_grad()
def with_newcomers(model: TTDSForCausalLM, seed: int) -> TTDSForCausalLM:
    """Return a model that shares all weights, and knows a part of its items from their text alone.

    Drawn items keep their rows and get what `add_items` gives: an embedding made of like texts, a
    semantic ID that nobody has, no pairs, no counts. What is fitted on both models learns to judge
    new items (after DropoutNet, Volkovs et al. 2017).

    Args:
        model: A model with a co-occurrence memory.
        seed: Seed of the draw.
    """
    twin = copy.copy(model)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(twin, name, dict(getattr(model, name)))
    twin.config = copy.deepcopy(model.config)
    generator = torch.Generator().manual_seed(seed)
    new = (torch.rand(len(model.item_sids), generator=generator) < NEW_SHARE).to(model.device)
    known, rows = (~new).nonzero()[:, 0], new.nonzero()[:, 0]

    warm = known[model.item_collaborative[known].any(1)]
    twin.item_collaborative = model.item_collaborative.clone()
    twin.item_collaborative[rows] = model.collaborative_of_texts(model.item_text[rows], warm)
    twin.item_sids = model.item_sids.clone()
    twin.item_sids[rows] = model.sids_of_new(
        model.item_text[rows], twin.item_collaborative[rows], taken=model.item_sids[known]
    )
    memory = twin.cooccurrence = copy.copy(model.cooccurrence)
    memory._buffers = dict(memory._buffers)
    memory.forget(new)
    if model.config.pair_dim:
        pairs = twin.node_pairs = copy.deepcopy(model.node_pairs)
        before = torch.where(new, -1, torch.arange(len(new), device=new.device))
        pairs.follow(before, model.trie, TTDSTrie.build(twin.item_sids))
        twin.config.pair_nodes = [len(target) for target in pairs.targets]
    return twin
