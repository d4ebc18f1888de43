"""Beam search over the trie of semantic IDs, and `generate` on the same trie."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .configuration_ttds import KINDS
from .lock_ttds import reading
from .nodes_ttds import TTDSNodeTable
from .prefix_ttds import TTDSPrefix, child_log_probs, columns, states_behind, visible_ids
from .priors_ttds import TTDSPriors
from .records_ttds import shown
from .trie_ttds import TTDSCandidates, TTDSTrie


@dataclass(frozen=True)
class TTDSFound:
    """What a search down the trie found.

    Args:
        items: Item rows, best first, padded with -1, (batch, n); n is at least the number of beams
            where there are as many candidates.
        scores: Their log-probabilities, padded with -inf, (batch, n).
        log_probs: The language model's own log-probability of each one's semantic ID up to each
            level, (batch, n, num_levels).
        also: The same of the items that were asked about, (batch, num_also, num_levels).
    """

    items: Tensor
    scores: Tensor
    log_probs: Tensor
    also: Tensor


def search(
    model: nn.Module,
    prefix: TTDSPrefix,
    candidates: TTDSCandidates,
    num_beams: int,
    priors: TTDSPriors | None = None,
    also: Tensor | None = None,
    users: TTDSNodeTable | None = None,
) -> TTDSFound:
    """Search the best items of every prompt, and score others on the way.

    The score of an item is the sum over levels of the log-probability of its code among the
    children of the node reached, whether they may appear or not: a probability over the whole
    catalogue. With at least as many beams as leaves the search is exhaustive.

    Args:
        model: A `TTDSForCausalLM`.
        prefix: The prompts.
        candidates: The trie, and what may appear.
        num_beams: Prefixes kept per level; 0 leaves the search out.
        priors: What the co-occurrence memory says; None for the language model alone.
        also: Item rows to score by the language model, (batch, num_also).
        users: Where trie and rows are those of users, what lies below its nodes: a user's code is
            then taken among the children too, by its SID token and by how alike the user is to
            the items of the prompt.
    """
    trie, walk, batch = candidates.trie, prefix.branch(), len(prefix.lengths)
    num_codes = model.config.item_tower.num_codes
    start = model.config.sid_token_start + (0 if users is None else trie.num_levels * num_codes)
    row = every = torch.arange(batch, device=prefix.state.device)
    also = every[:, None][:, :0] if also is None else also
    # The distinct nodes reached, of all rows end to end, where each one's token stands behind its
    # prompt, and at which of them the beams and the other items are.
    nodes, places, states = torch.zeros_like(row), torch.zeros_like(row), prefix.state[:, 0]
    beams, at = row if num_beams else row[:0], every[:, None].expand_as(also)
    scores = torch.zeros(len(beams), dtype=torch.float32, device=row.device)
    own, others = scores[:, None][:, :0], []
    for depth in range(trie.num_levels):
        beam_at = torch.full_like(nodes, -1)
        beam_at[beams] = torch.arange(len(beams), device=beams.device)
        owner, children, said, joined = child_log_probs(
            model, trie, prefix, states, nodes, row, depth, priors, beam_at >= 0, users
        )
        first, count = trie.ranges(nodes, depth)
        reached = trie.node_of(also, depth + 1)
        others.append(said[(count.cumsum(0) - count - first)[at] + reached])

        open_ = (beam_at[owner] >= 0) & (candidates.count(children, depth + 1, row[owner]) > 0)
        parent, children, said = beam_at[owner[open_]], children[open_], said[open_]
        column, counts = columns(row[owner[open_]], batch)
        table = scores.new_full((batch, int(counts.max())), -torch.inf)
        table[row[owner[open_]], column] = scores[parent] + joined[open_]
        best, chosen = table.topk(min(num_beams, table.shape[1]), dim=1)
        whose, beam = (best > -torch.inf).nonzero(as_tuple=True)
        chosen = (counts.cumsum(0) - counts)[whose] + chosen[whose, beam]
        parent, below, scores = parent[chosen], children[chosen], best[whose, beam]
        own = torch.cat([own[parent], said[chosen][:, None]], 1)
        if depth + 1 == trie.num_levels:
            break
        number = len(trie.codes[depth + 1])
        wanted = whose * number + below, (every[:, None] * number + reached).flatten()
        keys, place = torch.cat(wanted).unique(return_inverse=True)
        parents = torch.cat([beams[parent], at.flatten()])
        parents = torch.zeros_like(keys).scatter_(0, place, parents)
        beams, at = place[: len(whose)], place[len(whose) :].view_as(at)
        row, nodes = keys // number, keys % number
        places, states = places[parents], states[parents]
        # A node with one item below it needs no state: the rest of the way is certain.
        open_ = (trie.num_items_below(nodes, depth + 1) > 1).nonzero()[:, 0]
        if len(open_):
            tokens = start + depth * num_codes + trie.codes[depth + 1][nodes[open_]]
            states[open_], places[open_] = states_behind(walk, tokens, places[open_], row[open_])
    others = torch.stack(others, -1).cumsum(-1)
    if not num_beams:
        nothing = scores.new_zeros(batch, 0)
        return TTDSFound(nothing.long(), nothing, nothing[..., None].expand(-1, -1, 1), others)
    column, counts = columns(whose, batch)
    leaves = below.new_zeros(batch, int(counts.max()))
    padded = scores.new_full(leaves.shape, -torch.inf)
    log_probs = own.new_zeros(*leaves.shape, trie.num_levels)
    leaves[whose, column], padded[whose, column] = below, scores
    log_probs[whose, column] = own.cumsum(1)
    return TTDSFound(*_leaf_items(candidates, leaves, padded, log_probs), others)


def beam_search(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    candidates: TTDSCandidates,
    num_beams: int,
    priors: TTDSPriors | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the best items of every prompt and their log-probabilities, best first.

    Args:
        model: A `TTDSForCausalLM`.
        ids: Prompts, whose users are bound, padded on the right, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length).
        candidates: What may appear.
        num_beams: Prefixes kept per level.
        priors: What the co-occurrence memory says; None for the language model alone.

    Returns:
        Items and scores of `TTDSFound`.
    """
    found = search(model, TTDSPrefix(model, ids, mask), candidates, num_beams, priors)
    return found.items, found.scores


def _leaf_items(
    candidates: TTDSCandidates, leaves: Tensor, scores: Tensor, log_probs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not leaves.shape[1]:
        return leaves, scores, log_probs
    trie = candidates.trie
    first, count = trie.first_item[-1][leaves], trie.num_items_below(leaves, trie.num_levels)
    steps = torch.arange(int(count.max()), device=leaves.device)
    places = (first[..., None] + steps).clamp_max(len(trie.order) - 1)
    items = trie.order[places].flatten(1)  # (batch, n)
    scores = scores[..., None].expand(places.shape).flatten(1)
    rows = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
    real = (steps < count[..., None]).flatten(1) & candidates.may_appear(items, rows)
    real &= scores > -torch.inf
    scores = scores.masked_fill(~real, -torch.inf)
    # Equal scores go by item row: sort by row first, then stably by score.
    order = items.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order[:, : int(real.sum(1).max())]
    items, scores = items.gather(1, order), scores.gather(1, order)
    leaf = (order // len(steps))[..., None].expand(-1, -1, log_probs.shape[-1])
    return items.masked_fill(scores == -torch.inf, -1), scores, log_probs.gather(1, leaf)


def score_items(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    trie: TTDSTrie,
    items: Tensor,
    users: TTDSNodeTable | None = None,
) -> Tensor:
    """Return the exact log-probabilities of items' semantic IDs after each prompt, per level.

    Args:
        model: A `TTDSForCausalLM`.
        ids: Bound prompts, padded on the right, (batch, length).
        mask: 1 for tokens, 0 for padding, (batch, length).
        trie: The trie of the items.
        items: Item rows to score, (batch, num_candidates).
        users: As of `search`.

    Returns:
        The log-probability of the semantic ID up to each level, (batch, num_candidates,
        num_levels); the last is that of the item.
    """
    candidates = TTDSCandidates(trie, None, items[:, :0])
    prefix = TTDSPrefix(model, ids, mask)
    return search(model, prefix, candidates, 0, also=items, users=users).also


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
        pad_token_id: What stands behind a whole item while other prompts go on.

    Raises:
        ValueError: No item may appear after a prompt.
    """

    def __init__(
        self,
        trie: TTDSTrie,
        prompt_length: int,
        sid_token_start: int,
        num_codes: int,
        candidates: TTDSCandidates | None = None,
        prompts: Tensor | None = None,
        pad_token_id: int = 0,
    ):
        self.trie = trie
        self.prompt_length = prompt_length
        self.sid_token_start = sid_token_start
        self.num_codes = num_codes
        self.candidates = candidates
        self.prompts = prompts
        self.pad_token_id = pad_token_id
        if candidates is not None:
            _check_enough(candidates, prompts, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask and renormalise the scores (batch * beams, vocab_size) of the next token.

        Raises:
            ValueError: The catalogue is empty, all levels have their code, or another logits
                processor leaves no code.
        """
        depth = input_ids.shape[1] - self.prompt_length
        if depth >= self.trie.num_levels:
            if self.prompts is not None:
                # Who is done waits for the others; drafts of an assistant end here too.
                done = torch.full_like(scores, -torch.inf)
                done[:, self.pad_token_id] = 0
                return self._of_prompts(done, scores)
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
            nodes = self.trie.walk(sids)[-1]
        # A row that `generate` filled up beyond the legal ones, or drafted, may be anywhere.
        children, real = self.trie.children(nodes.clamp_min(0), depth)
        may_follow = real & (nodes >= 0)[:, None]
        codes = self.trie.codes[depth + 1][children]
        tokens = self.sid_token_start + depth * self.num_codes + codes
        found = scores.gather(1, tokens).float().masked_fill(~real, -torch.inf).log_softmax(-1)
        if self.candidates is not None:
            # As in `beam_search`: what may not appear keeps its share of the probability.
            num_prompts = len(self.candidates.places)
            prompt = torch.arange(num_prompts, device=children.device)
            prompt = prompt.repeat_interleave(children.numel() // num_prompts)
            count = self.candidates.count(children.flatten(), depth + 1, prompt)
            none = (count == 0).view_as(children)
            found, may_follow = found.masked_fill(none, -torch.inf), may_follow & ~none
        found = found.masked_fill(found.isnan(), -torch.inf)  # where all were -inf before
        self._check_goes_on(found > -torch.inf, may_follow)
        # What pads a row of children repeats its first: the real one stays.
        masked = torch.full_like(scores, -torch.inf)
        masked = masked.scatter_reduce(1, tokens, found.to(scores.dtype), "amax")
        return self._of_prompts(masked, scores)

    def _of_prompts(self, masked: Tensor, scores: Tensor) -> Tensor:
        """Return the first for prompts that an item answers, the second for the others."""
        if self.prompts is None:
            return masked
        prompts = self.prompts.repeat_interleave(len(scores) // len(self.prompts))
        return torch.where(prompts[:, None], masked, scores)

    def _check_goes_on(self, found: Tensor, may_follow: Tensor) -> None:
        # One of a prompt's beams is enough. Where nothing is possible, any token would be taken.
        prompts = self.prompts
        if prompts is None:
            number = 1 if self.candidates is None else len(self.candidates.places)
            prompts = torch.ones(number, dtype=torch.bool, device=found.device)
        found, may_follow = (
            codes.view(len(prompts), -1).any(1) for codes in (found & may_follow, may_follow)
        )
        stuck = prompts & may_follow & ~found
        if stuck.any():
            raise ValueError(
                f"No item can be generated after prompt {int(stuck.nonzero()[0])}: another logits "
                "processor, as of `suppress_tokens`, `no_repeat_ngram_size` or "
                "`prefix_allowed_tokens_fn`, forbids all codes that lead to one; leave it out, and "
                "narrow by `allowed`."
            )


def _check_enough(candidates: TTDSCandidates, prompts: Tensor | None, returned: int) -> None:
    # Beams beyond the items that may appear would say some of them again.
    rows = torch.arange(len(candidates.places), device=candidates.places.device)
    counts = candidates.count(torch.zeros_like(rows), 0, rows)
    short = counts < returned
    if prompts is not None:
        short &= prompts
    if not short.any():
        return
    row = int(short.nonzero()[0])
    if not counts[row]:
        raise ValueError(
            f"No item may appear after prompt {row}: `allowed` and the items not seen yet have "
            "none in common; allow more."
        )
    raise ValueError(
        f"`num_return_sequences` is {returned}, but of all items {counts[row]} may appear after "
        f"prompt {row}; ask for no more."
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

    @reading
    def generate(
        self,
        inputs: Tensor | None = None,
        *args,
        allowed: Iterable[str] | None = None,
        **kwargs,
    ) -> Any:
        """Generate as `GenerationMixin.generate` does; after a next-item prompt, an item.

        With `num_return_sequences=num_beams` and `length_penalty=0` the lists are those of
        `recommend(rerank=False, memory=False)` with as many beams. What is returned has SID tokens
        for placeholders, and padding at the beginning. Prompts of any other wording, and prompts
        given as embeddings, keep the whole vocabulary.

        Args:
            inputs: Token ids, (batch, length), if not given as `input_ids`.
            *args: As of `GenerationMixin.generate`.
            allowed: Item ids that may appear; all by default. Items of the history may not where
                `config.exclude_seen` says so.
            **kwargs: As of `GenerationMixin.generate`.

        Raises:
            ValueError: No item may appear after a prompt, or fewer than its beams are to return, an
                item is unknown, there are items `allowed` and no next-item prompt, the ids are no
                tensor of two dimensions, or another logits processor leaves no code.
        """
        name = "inputs"
        if inputs is None:
            name, inputs = "input_ids", kwargs.pop("input_ids", None)
        if inputs is not None and not (isinstance(inputs, Tensor) and inputs.ndim == 2):
            raise ValueError(
                f"`{name}` is {shown(inputs)}; give a tensor of token ids of shape (batch, length)."
            )
        mask, prompts = self.allowed_mask(allowed), None
        padding = kwargs.get("attention_mask")
        if inputs is not None and inputs.shape[1]:
            if len(self.trie.codes[-1]) == len(self.item_sids):
                # Penalties and drafts know no placeholders; where items share a semantic ID, these
                # say which it is.
                inputs = self.bind(inputs)
            prompts = self.next_item_prompts(inputs, padding)
        if prompts is None or not prompts.any():
            if mask is not None:
                raise ValueError(
                    "`allowed` names items, but no prompt asks for the next item in the words of "
                    "`config.prompt_ids`."
                )
            return super().generate(inputs, *args, **kwargs)
        if padding is not None and not {"inputs_embeds", "position_ids"} & kwargs.keys():
            # What is generated follows the last place, so padding goes to the beginning.
            order = padding.long().argsort(dim=1, stable=True)
            inputs = inputs.gather(1, order)
            padding = kwargs["attention_mask"] = padding.gather(1, order)
        trie, tower = self.trie, self.config.item_tower
        seen = self.context(visible_ids(inputs, padding)).items
        if not self.config.exclude_seen:
            seen = torch.full_like(seen, -1)
        candidates = TTDSCandidates(trie, mask, seen)
        bound = signature(super().generate).bind(inputs, *args, **kwargs)
        configs = bound.arguments.get("generation_config"), self.generation_config

        def option(name: str, default: int) -> int:
            values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
            return next((value for value in values if value is not None), default)

        added = {
            "logits_processor": LogitsProcessorList(),
            "stopping_criteria": StoppingCriteriaList(
                [TTDSItemEnd(prompts, inputs.shape[1] + tower.num_levels)]
            ),
        }
        given = bound.arguments.get("logits_processor") or []
        tries = [part.trie for part in given if isinstance(part, TTDSConstraint)]
        # Whoever drafts for another model goes down its trie.
        if all(other is trie for other in tries):
            constraint = TTDSConstraint(
                trie,
                inputs.shape[1],
                self.config.sid_token_start,
                tower.num_codes,
                candidates,
                prompts,
                option("pad_token_id", 0),
            )
            added["logits_processor"].append(constraint)
        if option("num_beams", 1) > 1:
            _check_enough(candidates, prompts, option("num_return_sequences", 1))
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
