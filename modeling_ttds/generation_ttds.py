"""The trie of item semantic IDs, beam search over it, and the same constraint for `generate`."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_ttds import KINDS

# transformers calls its keys and values by a new name, and takes the old one until 5.40.
CACHE = (
    "cache"
    if "cache" in {field.name for field in fields(CausalLMOutputWithPast)}
    else "past_key_values"
)


@dataclass
class TTDSTrie:
    """The semantic IDs of the items as a tree, in a few integer tensors.

    Items are sorted by semantic ID, so a node of any depth is a range of sorted items, and its
    children are a range of the nodes one deeper. Items may share a semantic ID; their leaf holds
    all.

    Args:
        order: Item row at each sorted position, (num_items,).
        position: Sorted position of each item row, (num_items,).
        first_item: Per depth, where a node's items begin, (num_nodes + 1,).
        first_child: Per depth but the last, where a node's children begin, (num_nodes + 1,).
        codes: Per depth, the last code on the way to a node, (num_nodes,); depth 0 is the root.
    """

    order: Tensor
    position: Tensor
    first_item: list[Tensor]
    first_child: list[Tensor]
    codes: list[Tensor]

    @classmethod
    def build(cls, sids: Tensor) -> "TTDSTrie":
        """Build the trie of semantic IDs (num_items, num_levels) on their device."""
        num_items, num_levels = sids.shape
        order = torch.arange(num_items, device=sids.device)
        for level in reversed(range(num_levels)):
            order = order[sids[order, level].argsort(stable=True)]
        position = torch.empty_like(order)
        position[order] = torch.arange(num_items, device=sids.device)
        sorted_codes = sids[order]
        begins = torch.zeros(num_items, dtype=torch.bool, device=sids.device)
        begins[:1] = True
        end = torch.tensor([num_items], device=sids.device)
        first_item = [torch.cat([begins.nonzero()[:, 0], end])]
        first_child, node_codes = [], [torch.zeros_like(first_item[0][:-1])]
        for level in range(num_levels):
            begins = begins.clone()
            begins[1:] |= sorted_codes[1:, level] != sorted_codes[:-1, level]
            starts = begins.nonzero()[:, 0]
            first_child.append(torch.searchsorted(starts, first_item[-1]))
            first_item.append(torch.cat([starts, end]))
            node_codes.append(sorted_codes[starts, level])
        return cls(order, position, first_item, first_child, node_codes)

    @property
    def num_levels(self) -> int:
        """Depth of the leaves."""
        return len(self.first_child)

    def num_bytes(self) -> int:
        """Memory of all tensors."""
        parts = [self.order, self.position, *self.first_item, *self.first_child, *self.codes]
        return sum(part.numel() * part.element_size() for part in parts)

    def children(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Return the children of nodes, padded to the most: (..., children) nodes and mask."""
        first = self.first_child[depth][nodes]
        count = self.first_child[depth][nodes + 1] - first
        steps = torch.arange(int(count.max()) if count.numel() else 0, device=nodes.device)
        real = steps < count[..., None]
        return torch.where(real, first[..., None] + steps, first[..., None]), real

    def node_of(self, items: Tensor, depth: int) -> Tensor:
        """Return the node at a depth of the items' semantic IDs, shaped as `items`."""
        return torch.searchsorted(self.first_item[depth], self.position[items], right=True) - 1


class TTDSCandidates:
    """Which items may be recommended to each row of a batch, asked node by node.

    Args:
        trie: The trie.
        allowed: Mask of item rows that may appear at all, (num_items,).
        excluded: Item rows that may not appear in a row, padded with -1, (batch, num_excluded).
    """

    def __init__(self, trie: TTDSTrie, allowed: Tensor | None, excluded: Tensor):
        self.trie = trie
        self.running = None
        if allowed is not None:
            counts = allowed[trie.order].long().cumsum(0)
            self.running = torch.cat([counts.new_zeros(1), counts])  # (num_items + 1,)
        num_items = len(trie.order)
        places = torch.where(excluded >= 0, trie.position[excluded.clamp_min(0)], num_items)
        if allowed is not None:
            places = places.masked_fill(~allowed[excluded.clamp_min(0)], num_items)
        places = places.sort(1).values
        repeated = torch.zeros_like(places, dtype=torch.bool)
        repeated[:, 1:] = places[:, 1:] == places[:, :-1]
        self.places = places.masked_fill(repeated, num_items).sort(1).values.contiguous()

    def count(self, nodes: Tensor, depth: int) -> Tensor:
        """Return how many items below each node may appear, shaped as nodes (batch, ...)."""
        start, end = self.trie.first_item[depth][nodes], self.trie.first_item[depth][nodes + 1]
        total = end - start
        if self.running is not None:
            total = self.running[end] - self.running[start]
        if not self.places.shape[1]:
            return total
        flat_start, flat_end = start.flatten(1).contiguous(), end.flatten(1).contiguous()
        out = torch.searchsorted(self.places, flat_end) - torch.searchsorted(
            self.places, flat_start
        )
        return total - out.view_as(total)

    def may_appear(self, items: Tensor) -> Tensor:
        """Return whether items (batch, n) may appear in their row."""
        places = self.trie.position[items].contiguous()
        index = torch.searchsorted(self.places, places).clamp_max(max(self.places.shape[1] - 1, 0))
        ok = torch.ones_like(items, dtype=torch.bool)
        if self.places.shape[1]:
            ok = self.places.gather(1, index) != places
        if self.running is not None:
            ok &= self.running[places + 1] > self.running[places]
        return ok


class _SharedPrefix:
    """Prompts run once; continuations of all beams attend to them without a copy.

    Beams stand side by side in the sequence: each sees its prompt and its own ancestors only.
    """

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor):
        self.model = model
        self.lengths = mask.sum(1)  # (batch,)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self.cache = DynamicCache(config=model.config.get_text_config())
        outputs = model.model(
            inputs_embeds=model.embed(ids),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{CACHE: self.cache},
        )
        last = (self.lengths - 1)[:, None, None].expand(-1, 1, outputs.last_hidden_state.shape[-1])
        self.state = outputs.last_hidden_state.gather(1, last)  # (batch, 1, hidden)
        self.visible = mask.bool()[:, None]  # (batch, beams, cached)
        self.depth = 0

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append tokens (batch, beams) after their parents; return their states."""
        batch, beams = tokens.shape
        cached = self.visible.shape[2]
        own = torch.eye(beams, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)
        ancestors = self.visible.gather(1, parents[..., None].expand(-1, -1, cached))
        self.visible = torch.cat([ancestors, own], -1)
        embeddings = self.model.embed(tokens)
        lowest = torch.finfo(embeddings.dtype).min
        attention = torch.zeros(self.visible.shape, dtype=embeddings.dtype, device=tokens.device)
        attention.masked_fill_(~self.visible, lowest)
        positions = (self.lengths + self.depth)[:, None].expand(-1, beams)
        self.depth += 1
        return self.model.model(
            inputs_embeds=embeddings,
            attention_mask=attention[:, None],
            position_ids=positions,
            use_cache=True,
            **{CACHE: self.cache},
        ).last_hidden_state


def beam_search(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    candidates: TTDSCandidates,
    num_beams: int,
) -> tuple[Tensor, Tensor]:
    """Return the best items of every prompt and their log-probabilities, best first.

    The score of an item is the sum over levels of the log-probability of its code among the
    level's SID tokens, so it does not depend on what else is in the catalogue. With at least as
    many beams as leaves the search is exhaustive.

    Args:
        model: A `TTDSForCausalLM`.
        ids: Bound prompts, padded on the right, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length).
        candidates: What may appear.
        num_beams: Prefixes kept per level.

    Returns:
        Item rows (batch, n), padded with -1, and scores (batch, n), padded with -inf; n is at
        least `num_beams` where there are as many candidates.
    """
    trie = candidates.trie
    prefix = _SharedPrefix(model, ids, mask)
    start = model.config.sid_token_start
    num_codes = model.config.item_tower.num_codes
    states = prefix.state  # (batch, beams, hidden)
    nodes = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    scores = torch.zeros(len(ids), 1, device=ids.device)
    for depth in range(trie.num_levels):
        log_probs = model.level_logits(states, "item", depth).float().log_softmax(-1)
        children, legal = trie.children(nodes, depth)  # (batch, beams, children)
        codes = trie.codes[depth + 1][children]
        reached = scores[..., None] + log_probs.gather(2, codes)
        legal &= candidates.count(children, depth + 1) > 0
        reached = reached.masked_fill(~legal, -torch.inf).flatten(1)
        width = children.shape[2]
        scores, chosen = reached.topk(min(num_beams, reached.shape[1]), dim=1)
        nodes = children.flatten(1).gather(1, chosen)  # (batch, beams)
        if depth + 1 < trie.num_levels:
            tokens = start + depth * num_codes + codes.flatten(1).gather(1, chosen)
            states = prefix.extend(tokens, chosen // width)
    return _leaf_items(candidates, nodes, scores)


def _leaf_items(
    candidates: TTDSCandidates, leaves: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    trie = candidates.trie
    first = trie.first_item[-1][leaves]
    count = trie.first_item[-1][leaves + 1] - first
    steps = torch.arange(int(count.max()), device=leaves.device)
    places = (first[..., None] + steps).clamp_max(len(trie.order) - 1)
    items = trie.order[places].flatten(1)  # (batch, n)
    scores = scores[..., None].expand(places.shape).flatten(1)
    real = (steps < count[..., None]).flatten(1) & candidates.may_appear(items)
    real &= scores > -torch.inf
    scores = scores.masked_fill(~real, -torch.inf)
    # Equal scores go by item row: sort by row first, then stably by score.
    by_row = items.argsort(dim=1, stable=True)
    items, scores = items.gather(1, by_row), scores.gather(1, by_row)
    scores, by_score = scores.sort(dim=1, descending=True, stable=True)
    longest = int(real.sum(1).max())
    scores, items = scores[:, :longest], items.gather(1, by_score)[:, :longest]
    return items.masked_fill(scores == -torch.inf, -1), scores


def score_items(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    trie: TTDSTrie,
    items: Tensor,
    kind: str = "item",
) -> Tensor:
    """Return the exact log-probabilities of items' semantic IDs after each prompt, per level.

    Args:
        model: A `TTDSForCausalLM`.
        ids: Bound prompts, padded on the right, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length).
        trie: The trie of the items.
        items: Item rows to score, (batch, num_candidates).
        kind: `"item"`, or `"user"` where trie and rows are those of users.

    Returns:
        The log-probability of the semantic ID up to each level, (batch, num_candidates,
        num_levels); the last is that of the item.
    """
    prefix = _SharedPrefix(model, ids, mask)
    num_codes = model.config.item_tower.num_codes
    block = KINDS.index(kind) * trie.num_levels * num_codes
    start = model.config.sid_token_start + block
    states = prefix.state
    slot = torch.zeros_like(items)  # the candidate's node among its row's distinct nodes
    scores = []
    for depth in range(trie.num_levels):
        log_probs = model.level_logits(states, kind, depth).float().log_softmax(-1)
        nodes = trie.node_of(items, depth + 1)
        codes = trie.codes[depth + 1][nodes]
        width = log_probs.shape[-1]
        scores.append(log_probs.flatten(1).gather(1, slot * width + codes))
        if depth + 1 < trie.num_levels:
            parents = slot
            distinct, slot = _distinct(nodes)
            first_slot = torch.zeros_like(distinct).scatter(1, slot, parents)
            tokens = start + depth * num_codes + trie.codes[depth + 1][distinct]
            states = prefix.extend(tokens, first_slot)
    return torch.stack(scores, -1).cumsum(-1)


def _distinct(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's distinct nodes, padded with its last, and where each node stands."""
    ordered, by_node = nodes.sort(1)
    new = torch.zeros_like(ordered)
    new[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    rank = new.cumsum(1)
    slot = torch.zeros_like(rank).scatter(1, by_node, rank)
    distinct = ordered[:, -1:].repeat(1, int(rank.max()) + 1)
    return distinct.scatter(1, rank, ordered), slot


class TTDSConstraint(LogitsProcessor):
    """Keeps `generate` on the trie and scores codes as `recommend` does.

    Use it with `num_beams`, `length_penalty=0`, `eos_token_id=None` and `max_new_tokens` equal to
    the number of levels.

    Args:
        trie: The trie of the items.
        prompt_length: Length of the prompts, padding included.
        sid_token_start: Id of the first SID token.
        num_codes: Number of codes per level.
    """

    def __init__(self, trie: TTDSTrie, prompt_length: int, sid_token_start: int, num_codes: int):
        self.trie = trie
        self.prompt_length = prompt_length
        self.sid_token_start = sid_token_start
        self.num_codes = num_codes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask and renormalise the scores (batch * beams, vocab_size) of the next token."""
        depth = input_ids.shape[1] - self.prompt_length
        nodes = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        for level in range(depth):
            code = (
                input_ids[:, self.prompt_length + level]
                - self.sid_token_start
                - level * self.num_codes
            )
            children, real = self.trie.children(nodes, level)
            match = real & (self.trie.codes[level + 1][children] == code[:, None])
            # A row that `generate` filled up beyond the legal ones may be anywhere.
            nodes = children.gather(1, match.int().argmax(1, keepdim=True))[:, 0]
        children, real = self.trie.children(nodes, depth)
        codes = self.trie.codes[depth + 1][children]
        first = self.sid_token_start + depth * self.num_codes
        level_scores = scores[:, first : first + self.num_codes].float().log_softmax(-1)
        legal = torch.zeros_like(level_scores, dtype=torch.bool).scatter_add(1, codes, real)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, first : first + self.num_codes] = level_scores.masked_fill(~legal, -torch.inf).to(
            scores.dtype
        )
        return masked
