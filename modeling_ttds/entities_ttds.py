"""Entities in a sequence of ids: bound to SID tokens, embedded, and followed down the trie."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .configuration_ttds import KINDS, PLACEHOLDER_START
from .nodes_ttds import (
    TTDSContext,
    TTDSHistory,
    TTDSNodeTable,
    history_profiles,
    item_vectors,
)
from .offload_ttds import at_hand
from .pairs_ttds import TTDSNodePairs
from .towers_ttds import profile
from .trie_ttds import TTDSTrie
from .users_ttds import TTDSUserHistories, held

USERS = 4096  # users that get semantic IDs at once


class TTDSEntitiesMixin:
    """What `TTDSForCausalLM` knows of the entities that ids name."""

    # Entities and their semantic IDs

    def bind(self, ids: Tensor, user_sids: Tensor | None = None) -> Tensor:
        """Replace placeholder ids by today's SID tokens; other ids stay as they are.

        Args:
            ids: Token ids, placeholder ids or -100, of any shape.
            user_sids: Semantic IDs of the users that the ids name, (num_users, num_levels); by
                default those of the attached users.

        Raises:
            ValueError: A user is named, but no user states are attached.
        """
        # No branch on the ids: they may be on another device, or traced.
        kind, row, level, mask = self._placeholders(ids)
        codes = torch.zeros_like(ids)
        if len(self.item_sids):
            codes = self.item_sids[torch.where(mask & (kind == 0), row, 0), level]
        is_user = mask & (kind == 1)
        users, compiling = torch.where(is_user, row, 0), torch.compiler.is_compiling()
        attached = len(getattr(self, "user_histories", ())) > 0
        if user_sids is None and attached and (compiling or is_user.any()):
            if compiling:  # no shape may depend on the ids
                rows, users = users.flatten(), torch.arange(users.numel(), device=users.device)
                users = users.view_as(row)
            else:
                rows, users = users.unique(return_inverse=True)
            user_sids = self.sids_of_rows(rows)
        if user_sids is not None and len(user_sids):
            codes = torch.where(is_user, user_sids[users, level], codes)
        elif not compiling and is_user.any():
            raise ValueError(
                "The prompt names a user by row, but no user states are attached; "
                "call `attach_users` first or write the user's SID tokens."
            )
        tower = self.config.item_tower
        block = (kind * tower.num_levels + level) * tower.num_codes
        return torch.where(mask, self.config.sid_token_start + block + codes, ids)

    def sid_tokens(self, sids: Tensor, kind: str = "item") -> Tensor:
        """Return the SID token ids of entities, shaped as `sids`.

        Args:
            sids: Their semantic IDs, (..., num_levels).
            kind: `"item"` or `"user"`.
        """
        tower = self.config.item_tower
        levels = torch.arange(tower.num_levels, device=sids.device)
        levels = levels + KINDS.index(kind) * tower.num_levels
        return self.config.sid_token_start + levels * tower.num_codes + sids

    def _placeholders(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        offset = ids - PLACEHOLDER_START
        mask = offset >= 0
        offset = offset.clamp_min(0)
        num_levels = self.config.item_tower.num_levels
        entity = offset // num_levels
        return entity % len(KINDS), entity // len(KINDS), offset % num_levels, mask

    def user_embeddings(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text and the collaborative embedding of users, seen through their histories.

        Both are means over the history's items, weighted by `recency_decay` per step back.

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
        """
        decay = self.config.recency_decay
        tables = self.item_text, self.item_collaborative
        return tuple(profile(table, histories, decay) for table in tables)

    def sids_of_users(self, histories: Tensor) -> Tensor:
        """Return the semantic IDs of users as of the end of their histories, (batch, num_levels).

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
        """
        return self.user_tower.semantic_ids(*self.user_embeddings(histories))

    def attach_users(self, histories: Tensor | TTDSUserHistories) -> None:
        """Give user rows a meaning while tuning: row r is the user with the r-th history.

        Histories and semantic IDs are not saved with the model: they are private.

        Args:
            histories: Item rows, newest last, padded with -1, (num_users, max_history), or what
                makes those of a row when they are asked for.
        """
        if hasattr(self, "user_histories"):
            del self.user_histories
        if isinstance(histories, Tensor):
            self.register_buffer("user_histories", histories.to(self.device), persistent=False)
        else:
            self.user_histories = histories.to(self.device)
        self.refresh_users()

    def refresh_users(self) -> None:
        """Give the attached users the semantic IDs that today's tower and embeddings make.

        They keep them until the next call, while the tower moves on: a copy of it is held, and a
        user's are made when a batch names it.
        """
        self.refreshed_tower = held(self.user_tower)

    @property
    def user_sids(self) -> Tensor:
        """The semantic IDs of all attached users, (num_users, num_levels); made at every call."""
        return self.sids_of_rows(torch.arange(len(self.user_histories), device=self.device))

    @torch.no_grad()
    def sids_of_rows(self, rows: Tensor) -> Tensor:
        """Return the semantic IDs of attached users as of the last refresh, (num_rows, num_levels).

        Args:
            rows: Their rows, (num_rows,).
        """
        with torch.autocast(rows.device.type, enabled=False):
            parts = [self.user_embeddings(self.user_histories[p]) for p in rows.split(USERS)]
            return torch.cat([self.refreshed_tower.semantic_ids(*part) for part in parts])

    # The trie and what lies below its nodes

    @property
    def trie(self) -> TTDSTrie:
        """The trie of today's item semantic IDs."""
        return self._made_of("_trie", [self.item_sids], lambda: TTDSTrie.build(self.item_sids))

    def _made_of(self, name: str, parts: Sequence[Any], make: Callable[[], Any]) -> Any:
        # Made anew when a part is another one or was written into. The parts are held: another one
        # could come to lie where one lay that is gone.
        held, versions, made = self.__dict__.get(name, ((), (), None))
        if torch.compiler.is_compiling():
            # Tensors are others while they are traced.
            both = zip(held, parts, strict=made is not None)
            if made is None or any(a is not b for a, b in both if not isinstance(b, Tensor)):
                raise RuntimeError(
                    "The trie of today's catalogue is not built yet; call `prepare_tracing` before "
                    "the model is exported or compiled."
                )
            return made
        same = versions == _versions(parts)
        if not same or any(a is not b for a, b in zip(held, parts, strict=True)):
            made = make()
            self.__dict__[name] = self._kept(parts, made)
        return made

    def _kept(self, parts: Sequence[Any], made: Any) -> tuple[Sequence[Any], list[int], Any]:
        return parts, _versions(parts), made

    @property
    def node_table(self) -> TTDSNodeTable:
        """Centroids of the trie's nodes, made anew when trie or embeddings have changed."""
        trie = self.trie

        def make() -> TTDSNodeTable:
            with torch.autocast(self.device.type, enabled=False):
                embeddings = (self.item_text, self.item_collaborative)
                return TTDSNodeTable.build(trie, embeddings, self.vector_projection)

        parts = [trie, self.item_text, self.item_collaborative, self.vector_projection]
        return self._made_of("_node_table", parts, make)

    def prepare_tracing(self) -> None:
        """Build all that `torch.export` and `torch.compile` find no way to build.

        `from_pretrained` does so. What is exported keeps the catalogue of that moment.
        """
        if len(self.item_sids):
            self.node_table  # noqa: B018

    def make_node_pairs(self) -> None:
        """Give the nodes of today's trie vectors that know of no pair yet, if the model has any."""
        if self.config.pair_dim:
            self.config.pair_nodes = self.trie.num_nodes()
            pairs = TTDSNodePairs(self.config).to(self.device)
            pairs.reset()
            self.node_pairs = pairs

    def item_vectors(self, items: Tensor) -> Tensor:
        """Return the vectors of items, (..., vector_dim).

        Args:
            items: Item rows, (...).
        """
        embeddings = (self.item_text, self.item_collaborative)
        return item_vectors(embeddings, self.vector_projection, items)

    def _project(self, embeddings: Tensor) -> Tensor:
        projection = self.vector_projection
        return embeddings @ projection.float() if projection.numel() else embeddings

    def context(self, ids: Tensor, position_ids: Tensor | None = None) -> TTDSContext:
        """Follow the items that ids name, placeholders or SID tokens, down the trie.

        Args:
            ids: Token or placeholder ids, (batch, length).
            position_ids: Where they start anew from 0, another history begins: a packed row.
        """
        tower, trie = self.config.item_tower, self.trie
        offset = self.bind(ids) - self.config.sid_token_start
        is_item = (offset >= 0) & (offset < tower.num_levels * tower.num_codes)
        level = torch.where(is_item, offset // tower.num_codes, -1)
        code = offset % tower.num_codes
        depth, nodes = torch.zeros_like(ids), torch.zeros_like(ids)
        inside = torch.ones_like(level, dtype=torch.bool)
        if position_ids is not None:  # no item goes on from another history
            inside = (position_ids != 0).expand_as(ids)
        for before in range(tower.num_levels):
            parents = F.pad(nodes, (1, -1))
            goes_on = inside & (F.pad(depth, (1, -1)) == before)
            here = (level == before) & (goes_on | (before == 0))
            child = trie.child(parents if before else torch.zeros_like(parents), code, before)
            here = here & (child >= 0)
            nodes = torch.where(here, child, nodes)
            depth = torch.where(here, before + 1, depth)
        whole = depth == tower.num_levels
        items = torch.full_like(ids, -1)
        if len(trie.order):
            items = torch.where(whole, trie.order[trie.first_item[-1][nodes * whole]], items)
        # While the table moves, items may share a semantic ID: a placeholder says which it is.
        kind, row, last, mask = self._placeholders(ids)
        named = mask & (kind == 0) & (last == tower.num_levels - 1)
        items = torch.where(named, row, items)
        depth, nodes = depth * ~whole, nodes * ~whole
        return TTDSContext(items, depth, nodes, *self._histories(items, position_ids))

    def profiles_after(self, items: Tensor, segments: Tensor) -> Tensor:
        """Return the profiles before the first and after each item of sequences.

        Args:
            items: As of `history_profiles`.
            segments: As of `history_profiles`.

        Returns:
            Profiles, (batch, 1 + length, num_profiles, vector_dim).
        """
        tables = (self.item_text, self.item_collaborative)
        return self._project(history_profiles(tables, items, segments))

    def _histories(self, items: Tensor, position_ids: Tensor | None) -> tuple[Tensor, TTDSHistory]:
        done = items >= 0
        count = done.cumsum(1)
        segments = torch.zeros_like(items)
        if position_ids is not None:
            segments = (position_ids == 0).expand_as(items).cumsum(1)
        longest = items.shape[1]
        if count.numel() and not torch.compiler.is_compiling():
            longest = int(count.max())  # a traced shape may not depend on the ids
        place = torch.where(done, count - 1, longest)
        empty = items.new_full((len(items), longest + 1), -1)
        history = empty.scatter(1, place, items)[:, :longest]
        whose = empty.scatter(1, place, segments)[:, :longest]
        profiles = self.profiles_after(history, whose)
        # Behind the start of another history and before its first item there is none.
        newest = F.pad(whose, (1, 0), value=-1).gather(1, count)
        slots = torch.where(newest == segments, count, 0)
        return slots, TTDSHistory(profiles, F.pad(history, (1, 0), value=-1))

    # Embeddings and logits

    def _scaled(self, values: Tensor) -> Tensor:
        """Return values of the towers, their gradient multiplied by `tower_grad_scale`."""
        factor = self.config.tower_grad_scale
        return values.detach() if not factor else factor * values + (1 - factor) * values.detach()

    def sid_token_vectors(self) -> Tensor:
        """Return the projected codebook vector of every SID token, (num_sid_tokens, hidden)."""
        towers = (self.item_tower, self.user_tower)
        codebooks = torch.stack([tower.vectors.to(self.device) for tower in towers])
        codebooks = self._scaled(codebooks)
        projections = at_hand(self.codebook_projections, "weight").to(codebooks)
        return torch.einsum("klcd,kldh->klch", codebooks, projections).flatten(0, 2)

    def embed(
        self, ids: Tensor, items: Tensor | None = None, carried: Tensor | None = None
    ) -> Tensor:
        """Return the input embeddings of bound token ids, (*ids.shape, hidden).

        The last SID token of an item also carries a projection of the item's vector, which says
        what quantisation left out.

        Args:
            ids: Token ids.
            items: Row of the item whose SID ends at a token, -1 elsewhere, shaped as `ids`.
            carried: What `sid_token_vectors` returns, where it is known.
        """
        return self.with_codes(self.model.get_input_embeddings()(ids), ids, items, carried)

    def with_codes(
        self,
        embeddings: Tensor,
        ids: Tensor,
        items: Tensor | None = None,
        carried: Tensor | None = None,
    ) -> Tensor:
        """Add to rows of the embedding matrix what SID tokens carry beside their own row.

        Args:
            embeddings: The rows, (*ids.shape, hidden).
            ids: Token ids.
            items: As of `embed`.
            carried: As of `embed`.
        """
        code = ids - self.config.sid_token_start
        vectors = self.sid_token_vectors() if carried is None else carried
        is_code = (code >= 0) & (code < len(vectors))
        added = F.embedding(torch.where(is_code, code, 0), vectors) * is_code[..., None]
        embeddings = embeddings + added.to(embeddings)
        if items is None:
            return embeddings
        if torch.compiler.is_compiling():
            if not len(self.item_sids):
                return embeddings
            vectors = self.item_reader(self.item_vectors(items.clamp_min(0)))
            return embeddings + (vectors * (items >= 0)[..., None]).to(embeddings)
        place = (items >= 0).nonzero(as_tuple=True)
        vectors = self.item_reader(self.item_vectors(items[place]))
        return embeddings.index_put(place, vectors.to(embeddings), accumulate=True)

    @torch.no_grad()
    def ids_of(self, embeddings: Tensor) -> Tensor:
        """Return which SID token's row of the embedding matrix vectors are, -100 where none's.

        Args:
            embeddings: Vectors, (..., hidden).
        """
        start, tower = self.config.sid_token_start, self.config.item_tower
        count = len(KINDS) * tower.num_levels * tower.num_codes
        tokens = torch.arange(start, start + count, device=embeddings.device)
        # Rows that are looked up are copies: equal bits, and so equal sums of them.
        known, order = _bits(self.model.get_input_embeddings()(tokens)).sort()
        wanted = _bits(embeddings)
        place = torch.searchsorted(known, wanted).clamp_max(count - 1)
        return torch.where(known[place] == wanted, tokens[order[place]], -100)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary, (..., vocab_size)."""
        logits = self.lm_head(hidden).to(hidden.device)
        level_logits = F.linear(hidden, self.sid_token_vectors().to(hidden))
        start = self.config.sid_token_start
        end = start + level_logits.shape[-1]
        return logits + F.pad(level_logits, (start, logits.shape[-1] - end))

    def level_logits(self, hidden: Tensor, kind: str, level: int) -> Tensor:
        """Return the logits of one level's SID tokens, (..., num_codes)."""
        k, tower = KINDS.index(kind), self.config.item_tower
        codebook = self._scaled((self.item_tower, self.user_tower)[k].vectors[level])
        first = self.config.sid_token_start + (k * tower.num_levels + level) * tower.num_codes
        projections = at_hand(self.codebook_projections, "weight")[k, level].to(codebook)
        projected = (codebook @ projections).to(hidden)
        if type(self.lm_head) is not nn.Linear:  # an adapter holds some of the rows
            logits = self.lm_head(hidden)[..., first : first + tower.num_codes]
            return logits + F.linear(hidden, projected)
        rows = at_hand(self.lm_head, "weight")[first : first + tower.num_codes]
        return F.linear(hidden, rows.to(hidden.device) + projected)

    def node_logits(
        self, states: Tensor, history: TTDSHistory, nodes: Tensor, level: int
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of nodes' children, padded with -inf, and the children.

        A child's logit is that of its SID token plus what the items below it say.

        Args:
            states: States of the language model, (..., hidden).
            history: The histories, (...).
            nodes: The nodes, (...); at level 0 the root.
            level: Their depth, and so the level of the next code.

        Returns:
            Logits, (..., num_children), and nodes, (..., num_children).
        """
        children, real = self.trie.children(nodes, level)
        codes = self.trie.codes[level + 1][children]
        logits = self.level_logits(states, "item", level).gather(-1, codes)
        logits = self._below(states, history, children, level) + logits  # at least float32
        return logits.masked_fill(~real, -torch.inf), children

    def _below(self, states: Tensor, history: TTDSHistory, children: Tensor, level: int) -> Tensor:
        if level == 0 and children.numel():  # all have the root's children
            children = children.flatten(0, -2)[0]
        scores = self.node_head(states, history.profiles, children, level + 1, self.node_table)
        scores = scores.to(states.device)
        if self.config.pair_dim:
            pairs = self.node_pairs(history.newest, children, level + 1)
            scores = scores + pairs.to(states.device)
        return scores

    def with_nodes(
        self, logits: Tensor, states: Tensor, context: TTDSContext, places: Tensor
    ) -> Tensor:
        """Add to the logits of SID tokens what the items below the nodes they lead to say.

        Args:
            logits: Logits of the whole vocabulary, (batch, kept, vocab_size).
            states: The states they come from, (batch, kept, hidden).
            context: Of the whole sequence.
            places: Which of its positions are kept, (kept,).
        """
        tower = self.config.item_tower
        if not len(self.item_sids):
            return logits
        for level in range(tower.num_levels):
            if torch.compiler.is_compiling():
                logits = self._with_nodes_of_level(logits, states, context, places, level)
                continue
            rows, columns = (context.depth[:, places] == level).nonzero(as_tuple=True)
            if not len(rows):
                continue
            _, nodes, history = context.at(rows, places[columns])
            children, real = self.trie.children(nodes, level)
            added = self._below(states[rows, columns], history, children, level) * real
            first = self.config.sid_token_start + level * tower.num_codes
            tokens = first + self.trie.codes[level + 1][children]
            index = (rows[:, None], columns[:, None], tokens)
            logits = logits.index_put(index, added.to(logits.dtype), accumulate=True)
        return logits

    def _with_nodes_of_level(
        self, logits: Tensor, states: Tensor, context: TTDSContext, places: Tensor, level: int
    ) -> Tensor:
        # For tracing: all positions, those of other levels masked.
        tower = self.config.item_tower
        here = context.depth[:, places] == level  # (batch, kept)
        nodes = context.nodes[:, places] * here
        slots = context.slots[:, places]
        profiles = context.histories.profiles
        index = slots[..., None, None].expand(*slots.shape, *profiles.shape[2:])
        history = TTDSHistory(profiles.gather(1, index), context.histories.newest.gather(1, slots))
        children, real = self.trie.children(nodes, level)
        added = self._below(states, history, children, level) * (real & here[..., None])
        first = self.config.sid_token_start + level * tower.num_codes
        tokens = first + self.trie.codes[level + 1][children]
        return logits.scatter_add(-1, tokens, added.to(logits.dtype))


def _versions(parts: Sequence[Any]) -> list[int]:
    """Return how often each part was written into; 0 for what does not count it."""
    # A tensor made in `torch.inference_mode` counts nothing.
    counting = [isinstance(part, Tensor) and not part.is_inference() for part in parts]
    return [part._version if counts else 0 for part, counts in zip(parts, counting, strict=True)]


def _bits(vectors: Tensor) -> Tensor:
    """Return a number per vector, (...): other ones for vectors that differ in any bit."""
    bits = vectors.float().contiguous().view(torch.int32).long()
    draw = torch.Generator().manual_seed(0)
    # As the generator is, wherever torch puts what has no device of its own.
    weights = torch.randint(1, 2**62, bits.shape[-1:], generator=draw, device="cpu")
    return (bits * weights.to(bits.device)).sum(-1)
