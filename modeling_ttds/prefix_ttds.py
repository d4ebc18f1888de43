"""Prompts run once, and what the language model says behind them of the trie's nodes."""

import copy
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .nodes_ttds import TTDSNodeTable, pair_scores, plain_query
from .priors_ttds import TTDSPriors
from .trie_ttds import TTDSTrie, spread

# transformers calls its keys and values by a new name, and takes the old one until 5.40.
CACHE = (
    "cache"
    if "cache" in {field.name for field in fields(CausalLMOutputWithPast)}
    else "past_key_values"
)
AT_ONCE = 4096  # children whose activations fit a processor's cache: half the time of all at once


def visible_ids(ids: Tensor, mask: Any) -> Tensor:
    """Return ids, and -100 for those that the language model does not see, (batch, length).

    Args:
        ids: Token or placeholder ids, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length). What else a trunk takes for a mask, such
            as one of each pair of places or for each kind of layer, leaves the ids as they are.
    """
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return ids
    return ids.masked_fill(mask == 0, -100)


class TTDSPrefix:
    """Prompts run once; continuations of all beams attend to them without a copy.

    Beams stand side by side in the sequence: each sees its prompt and its own ancestors only.
    """

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor):
        self.model = model
        context = model.context(ids)
        self.lengths = mask.sum(1)  # (batch,)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self.cache = DynamicCache(config=model.config.get_text_config())
        self.carried = model.sid_token_vectors()  # once, not at every step of the search
        outputs = model.model(
            inputs_embeds=model.embed(model.bind(ids), context.items, self.carried),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{CACHE: self.cache},
        )
        last = (self.lengths - 1)[:, None, None].expand(-1, 1, outputs.last_hidden_state.shape[-1])
        self.state = outputs.last_hidden_state.to(ids.device).gather(1, last)  # (batch, 1, hidden)
        slots = context.slots.gather(1, (self.lengths - 1)[:, None])[:, 0]
        rows = torch.arange(len(ids), device=ids.device)
        self.history = context.histories[rows, slots][:, None]  # (batch, 1)
        self.visible = mask.bool()[:, None]  # (batch, beams, cached)
        self.depth = 0

    def branch(self) -> "TTDSPrefix":
        """Return a prefix of the same prompts that is extended on its own."""
        branch, branch.cache = copy.copy(self), copy.copy(self.cache)
        # A layer is given new tensors when it grows, so that both may hold today's.
        branch.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return branch

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append tokens (batch, beams) after their parents; return their states."""
        batch, beams = tokens.shape
        cached = self.visible.shape[2]
        own = torch.eye(beams, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)
        ancestors = self.visible.gather(1, parents[..., None].expand(-1, -1, cached))
        self.visible = torch.cat([ancestors, own], -1)
        embeddings = self.model.embed(tokens, carried=self.carried)
        lowest = torch.finfo(embeddings.dtype).min
        attention = torch.zeros(self.visible.shape, dtype=embeddings.dtype, device=tokens.device)
        attention.masked_fill_(~self.visible, lowest)
        positions = (self.lengths + self.depth)[:, None].expand(-1, beams)
        self.depth += 1
        states = self.model.model(
            inputs_embeds=embeddings,
            attention_mask=attention[:, None],
            position_ids=positions,
            use_cache=True,
            **{CACHE: self.cache},
        ).last_hidden_state
        return states.to(tokens.device)


def child_log_probs(
    model: nn.Module,
    trie: TTDSTrie,
    prefix: TTDSPrefix,
    states: Tensor,
    nodes: Tensor,
    rows: Tensor,
    depth: int,
    priors: TTDSPriors | None,
    joined: Tensor,
    users: TTDSNodeTable | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the children of nodes, laid end to end, and their log-probabilities.

    An only child is certain: where a node has no other, its state does not matter.

    Args:
        model: A `TTDSForCausalLM`.
        trie: The trie.
        prefix: The prompts.
        states: States behind each node, (num_nodes, hidden).
        nodes: The nodes, (num_nodes,).
        rows: The row of the batch that each belongs to, (num_nodes,).
        depth: Their depth.
        priors: As of `search`.
        joined: Which of the nodes the priors are asked about, (num_nodes,).
        users: As of `search`.

    Returns:
        Which node each child is of, the children, their log-probabilities by the language model,
        and those joined with the priors, all (num_children,).
    """
    first, count = trie.ranges(nodes, depth)
    owner, children = spread(first, count)
    log_probs = torch.zeros(len(owner), dtype=torch.float32, device=nodes.device)
    parents = (count > 1).nonzero()[:, 0]
    if not len(parents):
        return owner, children, log_probs, log_probs
    several = (count > 1)[owner]
    first, count, states, rows = first[parents], count[parents], states[parents], rows[parents]
    own, below = spread(first, count)
    history, codes = prefix.history, trie.codes[depth + 1][below]
    kind, table = ("item", model.node_table) if users is None else ("user", users)
    logits = model.level_logits(states, kind, depth).float()[own, codes]
    if users is None:
        query = model.node_head.of_profiles(history.profiles[:, 0], depth)[rows]
        query = query + model.node_head.of_states(states, depth)
    else:
        query = plain_query(history.profiles[:, 0])[rows]
    logits = logits + pair_scores(query, first, count, depth + 1, table)
    if users is None and model.config.pair_dim:
        newest = history.newest[rows, 0][own]
        logits = logits + model.node_pairs(newest, below[:, None], depth + 1)[:, 0]
    said = log_softmax(logits, own, len(parents))
    log_probs[several] = said.to(log_probs.dtype)
    if priors is None:
        return owner, children, log_probs, log_probs
    asked = joined[parents][own]
    own, said = own[asked], said[asked]
    features = priors.of_pairs(said, below[asked], own, nodes[parents], rows, depth)
    both, place = log_probs.clone(), several.nonzero()[:, 0][asked]
    parts = features.split(AT_ONCE if features.device.type == "cpu" else max(len(features), 1))
    logits = torch.cat([model.prior_head(part, depth) for part in parts])
    both[place] = log_softmax(logits, own, len(parents)).to(both.dtype)
    return owner, children, log_probs, both


def log_softmax(logits: Tensor, owner: Tensor, number: int) -> Tensor:
    """Return the log-softmax among the logits of each owner, (num_logits,).

    Args:
        logits: The logits, (num_logits,).
        owner: Whom each belongs to, (num_logits,).
        number: How many owners there are.
    """
    highest = logits.new_full((number,), -torch.inf).scatter_reduce_(0, owner, logits, "amax")
    shifted = logits - highest[owner]
    return shifted - logits.new_zeros(number).index_add_(0, owner, shifted.exp()).log()[owner]


def columns(users: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return each one's place among those of its user, and how many every user has.

    Args:
        users: Rows of the batch, ascending, (n,).
        batch: How many there are.
    """
    counts = users.bincount(minlength=batch)
    place = torch.arange(len(users), device=users.device)
    return place - (counts.cumsum(0) - counts)[users], counts


def states_behind(
    prefix: TTDSPrefix, tokens: Tensor, parents: Tensor, users: Tensor
) -> tuple[Tensor, Tensor]:
    """Append tokens to the prompts of their users; return their states and places, (n, ...).

    Args:
        prefix: The prompts.
        tokens: The tokens, (n,).
        parents: Places of their parents among those appended last, (n,).
        users: Rows of the batch, ascending, (n,).
    """
    column, counts = columns(users, len(prefix.lengths))
    padded = tokens.new_zeros(2, len(counts), int(counts.max()))
    padded[0, users, column], padded[1, users, column] = tokens, parents
    return prefix.extend(*padded)[users, column], column
