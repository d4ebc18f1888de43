"""Beam search over the trie of semantic IDs, and `generate` on the same trie."""

import re
from collections.abc import Iterable
from dataclasses import fields
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_ttds import KINDS
from .nodes_ttds import TTDSNodeTable, node_scores, plain_query
from .priors_ttds import TTDSPriors
from .trie_ttds import TTDSCandidates, TTDSTrie

# transformers calls its keys and values by a new name, and takes the old one until 5.40.
CACHE = (
    "cache"
    if "cache" in {field.name for field in fields(CausalLMOutputWithPast)}
    else "past_key_values"
)


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
        outputs = model.model(
            inputs_embeds=model.embed(model.bind(ids), context.items),
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
    prefix: TTDSPrefix,
    states: Tensor,
    nodes: Tensor,
    depth: int,
    priors: TTDSPriors | None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of nodes' children, padded with -inf, and the children.

    Args:
        model: A `TTDSForCausalLM`.
        prefix: The prompts.
        states: States behind each node, (batch, beams, hidden).
        nodes: The nodes, (batch, beams).
        depth: Their depth.
        priors: As of `beam_search`.
    """
    logits, children = model.node_logits(states, prefix.history, nodes, depth)
    log_probs = logits.log_softmax(-1)
    if priors is None:
        return log_probs, children
    features = priors.features(log_probs, children, nodes, depth)
    joined = model.prior_head(features, depth).masked_fill(log_probs == -torch.inf, -torch.inf)
    return joined.log_softmax(-1), children


def beam_search(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    candidates: TTDSCandidates,
    num_beams: int,
    priors: TTDSPriors | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the best items of every prompt and their log-probabilities, best first.

    The score of an item is the sum over levels of the log-probability of its code among the
    children of the node reached, whether they may appear or not: a probability over the whole
    catalogue. With at least as many beams as leaves the search is exhaustive.

    Args:
        model: A `TTDSForCausalLM`.
        ids: Prompts, whose users are bound, padded on the right, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length).
        candidates: What may appear.
        num_beams: Prefixes kept per level.
        priors: What the co-occurrence memory says; None for the language model alone.

    Returns:
        Item rows (batch, n), padded with -1, and scores (batch, n), padded with -inf; n is at
        least `num_beams` where there are as many candidates.
    """
    trie = candidates.trie
    prefix = TTDSPrefix(model, ids, mask)
    start = model.config.sid_token_start
    num_codes = model.config.item_tower.num_codes
    states = prefix.state  # (batch, beams, hidden)
    nodes = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    scores = torch.zeros(len(ids), 1, device=ids.device)
    for depth in range(trie.num_levels):
        log_probs, children = child_log_probs(model, prefix, states, nodes, depth, priors)
        codes = trie.codes[depth + 1][children]  # (batch, beams, children)
        reached = scores[..., None] + log_probs
        legal = log_probs > -torch.inf
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
    priors: TTDSPriors | None = None,
    users: TTDSNodeTable | None = None,
) -> Tensor:
    """Return the exact log-probabilities of items' semantic IDs after each prompt, per level.

    Args:
        model: A `TTDSForCausalLM`.
        ids: Bound prompts, padded on the right, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length).
        trie: The trie of the items.
        items: Item rows to score, (batch, num_candidates).
        priors: As of `beam_search`.
        users: Where trie and rows are those of users, what lies below its nodes: a user's code is
            then taken among the children too, by its SID token and by how alike the user is to
            the items of the prompt.

    Returns:
        The log-probability of the semantic ID up to each level, (batch, num_candidates,
        num_levels); the last is that of the item.
    """
    prefix = TTDSPrefix(model, ids, mask)
    num_codes = model.config.item_tower.num_codes
    block = 0 if users is None else trie.num_levels * num_codes
    start = model.config.sid_token_start + block
    states = prefix.state
    slot = torch.zeros_like(items)  # the candidate's node among its row's distinct nodes
    distinct = torch.zeros_like(items[:, :1])
    scores = []
    for depth in range(trie.num_levels):
        nodes = trie.node_of(items, depth + 1)
        if users is None:
            log_probs, children = child_log_probs(model, prefix, states, distinct, depth, priors)
        else:
            children, real = trie.children(distinct, depth)
            codes = trie.codes[depth + 1][children]
            logits = model.level_logits(states, "user", depth).float().gather(-1, codes)
            query = plain_query(prefix.history.profiles).expand(*distinct.shape, -1)
            logits = logits + node_scores(query, children, depth + 1, users)
            log_probs = logits.masked_fill(~real, -torch.inf).log_softmax(-1)
        chosen = nodes - children[..., 0].gather(1, slot)  # children follow each other
        scores.append(log_probs.flatten(1).gather(1, slot * log_probs.shape[-1] + chosen))
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
    """Keeps `generate` on the trie and scores codes among a node's children, as `recommend` does.

    `TTDSForCausalLM.generate` sets it up for next-item prompts by itself. For other prompts use it
    with `eos_token_id=None`, `length_penalty=0` and `max_new_tokens` equal to the number of levels.

    Args:
        trie: The trie of the items.
        prompt_length: Length of the prompts, padding included.
        sid_token_start: Id of the first SID token.
        num_codes: Number of codes per level.
        candidates: Which items may appear after each prompt; all by default.
        prompts: Which prompts are answered by an item, (batch,), the others being left alone; all
            by default.
    """

    def __init__(
        self,
        trie: TTDSTrie,
        prompt_length: int,
        sid_token_start: int,
        num_codes: int,
        candidates: TTDSCandidates | None = None,
        prompts: Tensor | None = None,
    ):
        self.trie = trie
        self.prompt_length = prompt_length
        self.sid_token_start = sid_token_start
        self.num_codes = num_codes
        self.candidates = candidates
        self.prompts = prompts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask and renormalise the scores (batch * beams, vocab_size) of the next token.

        Raises:
            ValueError: No item may appear, or all levels have their code already.
        """
        depth = input_ids.shape[1] - self.prompt_length
        if depth >= self.trie.num_levels:
            if self.prompts is not None:  # who is done waits for the others
                return scores
            raise ValueError(
                f"`max_new_tokens` goes past the {self.trie.num_levels} levels of a semantic ID; "
                f"generate with `max_new_tokens={self.trie.num_levels}`."
            )
        if not len(self.trie.order):
            raise ValueError("The catalogue is empty, so no item can be generated; add items.")
        levels = torch.arange(depth, device=input_ids.device) * self.num_codes
        sids = input_ids[:, self.prompt_length :] - self.sid_token_start - levels
        nodes = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        if depth:
            # A row that `generate` filled up beyond the legal ones may be anywhere.
            nodes = self.trie.walk(sids)[-1].clamp_min(0)
        children, real = self.trie.children(nodes, depth)
        codes = self.trie.codes[depth + 1][children]
        tokens = self.sid_token_start + depth * self.num_codes + codes
        found = scores.gather(1, tokens).float().masked_fill(~real, -torch.inf).log_softmax(-1)
        if self.candidates is not None:
            # As in `beam_search`: what may not appear keeps its share of the probability.
            batch = len(self.candidates.places)
            by_prompt = children.view(batch, -1, children.shape[1])
            legal = (self.candidates.count(by_prompt, depth + 1) > 0).view_as(children)
            if depth == 0:
                self._check_some(legal & real)
            found = found.masked_fill(~legal, -torch.inf)
        # What pads a row of children repeats its first: the real one stays.
        masked = torch.full_like(scores, -torch.inf)
        masked = masked.scatter_reduce(1, tokens, found.to(scores.dtype), "amax")
        if self.prompts is None:
            return masked
        prompts = self.prompts.repeat_interleave(len(scores) // len(self.prompts))
        return torch.where(prompts[:, None], masked, scores)

    def _check_some(self, legal: Tensor) -> None:
        none = ~legal.any(1)
        if self.prompts is not None:
            none &= self.prompts.repeat_interleave(len(legal) // len(self.prompts))
        if none.any():
            row = int(none.nonzero()[0]) // (len(legal) // len(self.candidates.places))
            raise ValueError(
                f"No item may appear after prompt {row}: `allowed` and the items not seen yet have "
                "none in common; allow more."
            )


class TTDSItemEnd(StoppingCriteria):
    """Ends the answers to next-item prompts where the semantic ID is whole.

    Args:
        prompts: Which prompts are answered by an item, (batch,).
        length: Length of the prompts and of one semantic ID.
    """

    eos_token_id = None  # with such a name `generate` pads what is done while others go on

    def __init__(self, prompts: Tensor, length: int):
        self.prompts = prompts
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        """Return which rows are done, (batch * beams,)."""
        prompts = self.prompts.repeat_interleave(len(input_ids) // len(self.prompts))
        return prompts & (input_ids.shape[1] >= self.length)


class TTDSGenerationMixin(GenerationMixin):
    """`generate`, which answers a next-item prompt by an item of the catalogue."""

    def generate(
        self,
        inputs: Tensor | None = None,
        *args,
        allowed: Iterable[str] | None = None,
        **kwargs,
    ) -> Any:
        """Generate as `GenerationMixin.generate` does; after a next-item prompt, an item.

        With `num_beams` the lists are those of `recommend(rerank=False, memory=False)`. Prompts of
        any other wording, and prompts given as embeddings, keep the whole vocabulary.

        Args:
            inputs: Token ids, (batch, length), if not given as `input_ids`.
            *args: As of `GenerationMixin.generate`.
            allowed: Item ids that may appear; all by default. Items of the history may not where
                `config.exclude_seen` says so.
            **kwargs: As of `GenerationMixin.generate`.

        Raises:
            ValueError: No item may appear after a prompt, an item is unknown, or there are items
                `allowed` and no next-item prompt.
        """
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        mask = self.allowed_mask(allowed)
        prompts = None
        if ids is not None and ids.ndim == 2 and ids.shape[1]:
            prompts = self.next_item_prompts(ids, kwargs.get("attention_mask"))
        if prompts is None or not prompts.any():
            if mask is not None:
                raise ValueError(
                    "`allowed` names items, but no prompt asks for the next item in the words of "
                    "`config.prompt_ids`."
                )
            return super().generate(inputs, *args, **kwargs)
        with self.lock.reading():
            trie, tower = self.trie, self.config.item_tower
            seen = self.context(ids).items
            if not self.config.exclude_seen:
                seen = torch.full_like(seen, -1)
            constraint = TTDSConstraint(
                trie,
                ids.shape[1],
                self.config.sid_token_start,
                tower.num_codes,
                TTDSCandidates(trie, mask, seen),
                prompts,
            )
            end = TTDSItemEnd(prompts, ids.shape[1] + tower.num_levels)
            added = {
                "logits_processor": LogitsProcessorList([constraint]),
                "stopping_criteria": StoppingCriteriaList([end]),
            }
            bound = signature(super().generate).bind(inputs, *args, **kwargs)
            for name, ours in added.items():
                bound.arguments[name] = type(ours)([*(bound.arguments.get(name) or []), *ours])
            return super().generate(*bound.args, **bound.kwargs)

    def next_item_prompts(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return which prompts ask for the next item in the words of `config.prompt_ids`, (batch,).

        A history is whole items in order, as SID tokens or placeholders; it may be empty.

        Args:
            ids: Token or placeholder ids, (batch, length).
            mask: 1 for tokens, 0 for padding, (batch, length); by default none is padding but the
                padding token at the beginning.
        """
        config = self.config
        if not config.prompt_ids or not len(self.item_sids):
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        wording = self._next_item_wording()
        num_levels, num_codes = config.item_tower.num_levels, config.item_tower.num_codes
        offset = self.bind(ids) - config.sid_token_start
        is_code = (offset >= 0) & (offset < len(KINDS) * num_levels * num_codes)
        level = torch.where(is_code, offset // num_codes, -1)
        if mask is None:
            mask = torch.ones_like(ids)
        asked = []
        for row in zip(ids.tolist(), level.tolist(), mask.tolist(), strict=True):
            signs = [
                f"<{n}>" if n >= 0 else str(i) for i, n, real in zip(*row, strict=True) if real
            ]
            asked.append(wording.fullmatch(" ".join([*signs, ""])) is not None)
        return torch.tensor(asked, device=ids.device)

    def _next_item_wording(self) -> re.Pattern:
        """Return what a next-item prompt looks like: ids, and levels where SID tokens stand."""
        config, num_levels = self.config, self.config.item_tower.num_levels
        levels = [f"<{n}> " for n in range(len(KINDS) * num_levels)]
        item, user = "".join(levels[:num_levels]), "".join(levels[num_levels:])
        slots = {config.item_placeholder_id: f"({item})*", config.user_placeholder_id: user}
        first, *rest = (slots.get(token, f"{token} ") for token in config.prompt_ids)
        if config.prompt_ids[0] == config.get_text_config().bos_token_id:
            first = f"({first})?"  # a caller's tokenizer may leave it out
        return re.compile(f"({self.generation_config.pad_token_id} )*{first}{''.join(rest)}")
