"""Node logits: what state, history and the items below it say of each child of a node."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init

from .configuration_ttds import TTDSConfig
from .offload_ttds import at_hand
from .trie_ttds import TTDSTrie, spread

# Weight of a history's item per step into the past, of each profile; 0 leaves its newest alone.
PROFILE_DECAYS = (0.9, 0.6, 0.0)
DENSE = 65536  # up to so many nodes of a depth, every one has a row of the table
CHUNK, NODES = 16384, 4096  # items and nodes summed at once
# A product for each range of nodes pays where its queries ask for so many pairs; below that, so
# many pairs at once, few enough for a processor's cache.
PAIRS, STEP = {"cpu": 32, "cuda": 8192}, {"cpu": 512, "cuda": 65536}
PROFILE_SCALE = 5.0  # weight of the plain cosine similarity that the profiles start from


@dataclass(frozen=True)
class TTDSNodeTable:
    """What lies below the nodes of every depth of a trie.

    A depth of many nodes keeps rows of those nodes alone that have several items below them; what
    lies below the others is the vector of their only item.

    Args:
        centroids: Per depth, the mean vector of the items below a node, (num_rows, dim); the root
            has none.
        variances: Per depth, their variance, (num_rows, dim); the root and the leaves have none.
        log_counts: Per depth, the log of their number, (num_nodes,).
        places: Per depth, where a node's row is, or -1 minus its only item, (num_nodes,); None
            where every node has its row.
        embeddings: Text and collaborative embeddings of the items, each (num_items, its dim).
        projection: From both to vectors, empty where both are taken whole.
    """

    centroids: list[Tensor | None]
    variances: list[Tensor | None]
    log_counts: list[Tensor]
    places: list[Tensor | None]
    embeddings: tuple[Tensor, Tensor]
    projection: Tensor

    @classmethod
    def build(
        cls, trie: TTDSTrie, embeddings: tuple[Tensor, Tensor], projection: Tensor
    ) -> "TTDSNodeTable":
        """Build the table of a trie.

        Args:
            trie: The trie.
            embeddings: Text and collaborative embeddings of the items, each (num_items, its dim).
            projection: From both to vectors, empty where both are taken whole.
        """
        table = cls([None], [None], [], [None], embeddings, projection)
        for depth, first in enumerate(trie.first_item):
            counts = first.diff()
            table.log_counts.append(counts.float().log())
            if depth:
                table._add_depth(trie, depth)
        return table

    def _add_depth(self, trie: TTDSTrie, depth: int) -> None:
        first = trie.first_item[depth]
        counts = first.diff()
        nodes, places = torch.arange(len(counts), device=counts.device), None
        if len(counts) > DENSE:
            nodes = (counts > 1).nonzero()[:, 0]
            places = -1 - trie.order[first[:-1]]
            places[nodes] = torch.arange(len(nodes), device=nodes.device)
        centroids, variances = self.summed(trie, nodes, depth)
        self.places.append(places)
        self.centroids.append(centroids)
        self.variances.append(None if depth == trie.num_levels else variances)

    def extended(
        self, trie: TTDSTrie, numbers: list[Tensor], embeddings: tuple[Tensor, Tensor]
    ) -> "TTDSNodeTable":
        """Return the table of a trie that more items have joined.

        Args:
            trie: The new trie.
            numbers: As of `TTDSTrie.extended`.
            embeddings: Of all items, the new ones last.
        """
        table = TTDSNodeTable([None], [None], [], [None], embeddings, self.projection)
        num_old = len(self.embeddings[0])
        new = torch.arange(num_old, len(embeddings[0]), device=trie.order.device)
        for depth, first in enumerate(trie.first_item):
            counts = first.diff()
            table.log_counts.append(counts.float().log())
            if depth == 0:
                continue
            moved, touched = numbers[depth], trie.node_of(new, depth).unique()
            if self.places[depth] is None and len(counts) > DENSE:
                table._add_depth(trie, depth)
                continue
            places, changed = None, touched
            if self.places[depth] is not None:
                places = torch.empty_like(counts)
                places[moved] = self.places[depth]
                places[touched] = -1 - trie.order[first[touched]]
                changed = touched[counts[touched] > 1]
                rows = torch.arange(len(changed), device=moved.device)
                places[changed] = len(self.centroids[depth]) + rows
            both = table.summed(trie, changed, depth)
            for column, before, values in zip(
                (table.centroids, table.variances),
                (self.centroids[depth], self.variances[depth]),
                both,
                strict=True,
            ):
                if before is None:
                    grown = None
                elif places is not None:
                    grown = torch.cat([before, values])
                elif len(before) == len(counts):  # no node is new, and a copy is faster
                    grown = before.index_copy(0, changed, values)
                else:
                    grown = before.new_empty(len(counts), before.shape[1])
                    grown[moved], grown[changed] = before, values
                column.append(grown)
            table.places.append(places)
        return table

    def summed(self, trie: TTDSTrie, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the vectors below nodes, both (num_nodes, dim).

        Half precision: a table of a million items should not fill the memory.

        Args:
            trie: The trie.
            nodes: Nodes of the depth, (num_nodes,).
            depth: Their depth.
        """
        dim = self.projection.shape[1] or sum(table.shape[1] for table in self.embeddings)
        mean, variance = (
            torch.empty(len(nodes), dim, dtype=torch.float16, device=nodes.device) for _ in range(2)
        )
        for at in torch.arange(len(nodes), device=nodes.device).split(NODES):
            first = trie.first_item[depth][nodes[at]]
            counts = trie.num_items_below(nodes[at], depth)
            owner, positions = spread(first, counts)
            sums, squares = self.embeddings[0].new_zeros(2, len(at), dim, dtype=torch.float32)
            for part, places in zip(owner.split(CHUNK), positions.split(CHUNK), strict=True):
                vectors = self.vectors(trie.order[places])
                sums.index_add_(0, part, vectors)
                squares.index_add_(0, part, vectors.square_())
            mean[at] = sums.div_(counts[:, None]).half()
            squares.div_(counts[:, None]).sub_(sums.square_()).clamp_min_(0)
            variance[at] = squares.half()
        return mean, variance

    def vectors(self, items: Tensor) -> Tensor:
        """Return the vectors of items, (..., dim).

        Args:
            items: Item rows, (...).
        """
        return item_vectors(self.embeddings, self.projection, items)

    def rows_from(self, first: int, count: int, depth: int) -> tuple[Tensor, Tensor | None]:
        """Return mean and variance of what lies below neighbouring nodes, as `rows` does.

        Args:
            first: The first of them.
            count: How many.
            depth: Their depth.
        """
        if self.places[depth] is not None:
            nodes = torch.arange(first, first + count, device=self.places[depth].device)
            return self.rows(nodes, depth)
        mean, variance = (
            None if part[depth] is None else part[depth][first : first + count].float()
            for part in (self.centroids, self.variances)
        )
        return mean, variance

    def rows(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor | None]:
        """Return mean and variance of what lies below nodes, both (num_nodes, dim) in float32.

        Args:
            nodes: Nodes of the depth, (num_nodes,).
            depth: Their depth.
        """
        centroids, variances = self.centroids[depth], self.variances[depth]
        if self.places[depth] is None:
            variance = None if variances is None else F.embedding(nodes, variances).float()
            return F.embedding(nodes, centroids).float(), variance
        places = self.places[depth][nodes]
        mean = self.vectors((-1 - places).clamp_min(0))
        several = (places >= 0).nonzero()[:, 0]
        mean[several] = F.embedding(places[several], centroids).float()
        if variances is None:
            return mean, None
        variance = torch.zeros_like(mean)
        variance[several] = F.embedding(places[several], variances).float()
        return mean, variance


def item_vectors(embeddings: tuple[Tensor, Tensor], projection: Tensor, items: Tensor) -> Tensor:
    """Return the vectors of items, (..., dim).

    Args:
        embeddings: Text and collaborative embeddings of the items, each (num_items, its dim).
        projection: From both to vectors, empty where both are taken whole.
        items: Item rows, (...).
    """
    # `embedding` copies rows in half the time that an index takes.
    whole = torch.cat([F.embedding(items, table) for table in embeddings], -1).float()
    return whole @ projection.float() if projection.numel() else whole


@dataclass(frozen=True)
class TTDSHistory:
    """What node logits know of a history, beside the language model's state.

    Args:
        profiles: Its profiles, (..., num_profiles, vector_dim).
        newest: Row of its newest item, -1 for none, (...).
    """

    profiles: Tensor
    newest: Tensor

    def __getitem__(self, index) -> "TTDSHistory":
        return TTDSHistory(self.profiles[index], self.newest[index])


@dataclass(frozen=True)
class TTDSContext:
    """What a sequence of ids says at each of its positions, beside its tokens.

    Args:
        items: Row of the item whose SID ends here, -1 elsewhere, (batch, length).
        depth: How many codes of an unfinished item precede the next token, (batch, length).
        nodes: The node of that depth they lead to, (batch, length).
        slots: Which of the row's histories is the one so far, (batch, length).
        histories: Before the first and after each item of a row, (batch, num_slots).
    """

    items: Tensor
    depth: Tensor
    nodes: Tensor
    slots: Tensor
    histories: TTDSHistory

    def at(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, TTDSHistory]:
        """Return depth, node and history of positions, each (n,).

        Args:
            rows: Their batch rows, (n,).
            columns: Their places in the rows, (n,).
        """
        slots = self.slots[rows, columns]
        return self.depth[rows, columns], self.nodes[rows, columns], self.histories[rows, slots]


class TTDSNodeHead(nn.Module):
    """Scores the children of a node by a query against the items below them.

    At every level the query q joins the language model's state with the history's profiles, which
    are unit means of the embeddings of its items. A child with n items of mean m and variance v
    below it gets log n + q m + q^2 v / 2: the log of the summed exp(q x) over its items x, up to
    the second order. The profiles' part is a bilinear similarity; it starts as the plain one.

    Args:
        config: Gives levels and widths.
    """

    def __init__(self, config: TTDSConfig):
        super().__init__()
        dim, hidden = config.vector_dim, config.backbone_config.hidden_size
        self.num_levels = config.item_tower.num_levels
        # One parameter a level: the gradient of a slice is as large as the whole. They are the
        # module's own, since transformers takes a module without any for one that is initialised.
        shapes = {"state": (hidden, dim), "profile": (len(PROFILE_DECAYS) * dim, dim)}
        for name, shape in shapes.items():
            for level in range(self.num_levels):
                self.register_parameter(f"{name}_{level}", nn.Parameter(torch.empty(shape)))

    @torch.no_grad()
    def reset(self) -> None:
        """Start from plain similarity: nothing of the state, profiles by their cosine."""
        for level in range(self.num_levels):
            for weight in self.level(level):
                init.zeros_(weight)

    def level(self, level: int) -> tuple[Tensor, Tensor]:
        """Return the weights of a level: of states, and of profiles beyond plain similarity.

        Args:
            level: The level.
        """
        return tuple(at_hand(self, f"{name}_{level}") for name in ("state", "profile"))

    def of_states(self, states: Tensor, level: int) -> Tensor:
        """Return what states add to the query of a level, (..., dim).

        Args:
            states: States of the language model, (..., hidden).
            level: The level.
        """
        state, _ = self.level(level)
        return states.to(state.dtype) @ state

    def of_profiles(self, profiles: Tensor, level: int) -> Tensor:
        """Return what profiles add to the query of a level, (..., dim).

        Args:
            profiles: Profiles of the histories, (..., num_profiles, dim).
            level: The level.
        """
        _, profile = self.level(level)
        profiles = profiles.to(profile.dtype)
        return profiles.flatten(-2) @ profile + plain_query(profiles)

    def forward(
        self,
        states: Tensor,
        profiles: Tensor,
        children: Tensor,
        depth: int,
        table: TTDSNodeTable,
    ) -> Tensor:
        """Return what the items below children add to their logits, (..., num_children).

        Args:
            states: States of the language model, (..., hidden).
            profiles: Profiles of the histories, (..., num_profiles, dim).
            children: Nodes of the depth, (..., num_children) or, the same for all queries,
                (num_children,).
            depth: Depth of the children.
            table: The table of the trie.
        """
        query = self.of_states(states, depth - 1) + self.of_profiles(profiles, depth - 1)
        return node_scores(query, children, depth, table)


def node_scores(query: Tensor, children: Tensor, depth: int, table: TTDSNodeTable) -> Tensor:
    """Return log n + q m + q^2 v / 2 of nodes, (..., num_children).

    Args:
        query: Queries q, (..., dim).
        children: Nodes of the depth as `TTDSTrie.children` gives them, (..., num_children), or, the
            same for all queries, (num_children,). What pads them gets any score.
        depth: Depth of the children.
        table: What lies below the trie's nodes: their number n, mean m and variance v.
    """
    query = query.to(torch.promote_types(query.dtype, torch.float32))
    if children.ndim == 1:
        return _scores(query, *table.rows(children, depth)) + table.log_counts[depth][children]
    if not torch.compiler.is_compiling():  # then a shape may depend on how many are real
        first = children[..., 0].flatten()
        count = 1 + (children > children[..., :1]).sum(-1)
        scores = pair_scores(query.flatten(0, -2), first, count.flatten(), depth, table)
        real = torch.arange(children.shape[-1], device=children.device) < count[..., None]
        return query.new_zeros(children.shape).masked_scatter(real, scores)
    mean, variance = (
        None if rows is None else rows.view(*children.shape, -1).to(query.dtype)
        for rows in table.rows(children.flatten(), depth)
    )
    scores = torch.einsum("...d,...cd->...c", query, mean)
    if variance is not None:
        scores = scores + torch.einsum("...d,...cd->...c", query.square(), variance) / 2
    return scores + table.log_counts[depth][children]


def _scores(query: Tensor, mean: Tensor, variance: Tensor | None) -> Tensor:
    scores = query @ mean.to(query.dtype).T
    if variance is not None:
        scores = scores + query.square() @ variance.to(query.dtype).T / 2
    return scores


def pair_scores(
    query: Tensor, first: Tensor, count: Tensor, depth: int, table: TTDSNodeTable
) -> Tensor:
    """Return log n + q m + q^2 v / 2 of ranges of nodes, one range per query, end to end.

    Queries of the same range go together: one product scores them all. Ranges too small for that
    are scored pair by pair.

    Args:
        query: Queries q, (num_queries, dim).
        first: The first node of each range, (num_queries,).
        count: How many nodes each has, (num_queries,).
        depth: Depth of the nodes.
        table: What lies below the trie's nodes.

    Returns:
        Scores, (count.sum(),).
    """
    query = query.to(torch.promote_types(query.dtype, torch.float32))
    owner, nodes = spread(first, count)
    firsts, order = first.sort()
    ranges, times = firsts.unique_consecutive(return_counts=True)
    enough, step = (kind.get(query.device.type, kind["cuda"]) for kind in (PAIRS, STEP))
    if len(nodes) <= enough * len(ranges):
        parts = [
            _pairs(query, queries, below, depth, table)
            for queries, below in zip(owner.split(step), nodes.split(step), strict=True)
        ]
        scores = torch.cat(parts)
    else:
        sizes = count[order[times.cumsum(0) - times]]
        products = [
            _scores(queries, *table.rows_from(start, size, depth)).flatten()
            for queries, start, size in zip(
                query[order].split(times.tolist()), ranges.tolist(), sizes.tolist(), strict=True
            )
        ]
        begins = torch.empty_like(count)
        begins[order] = count[order].cumsum(0) - count[order]
        scores = torch.cat(products)[spread(begins, count)[1]]
    return scores + table.log_counts[depth][nodes]


def _pairs(
    query: Tensor, queries: Tensor, nodes: Tensor, depth: int, table: TTDSNodeTable
) -> Tensor:
    """Return q m + q^2 v / 2 of pairs of query and node, (num_pairs,)."""
    query = query[queries]
    if table.places[depth] is None:
        return _paired(query, *table.rows(nodes, depth))
    places = table.places[depth][nodes]
    scores = _paired(query, table.vectors((-1 - places).clamp_min(0)))
    several = (places >= 0).nonzero()[:, 0]  # few: the others have one item, and no variance
    scores[several] = _paired(query[several], *table.rows(nodes[several], depth))
    return scores


def _paired(query: Tensor, mean: Tensor, variance: Tensor | None = None) -> Tensor:
    scores = torch.linalg.vecdot(query, mean.to(query.dtype))
    if variance is not None:
        scores = scores + torch.linalg.vecdot(query.square(), variance.to(query.dtype)) / 2
    return scores


def plain_query(profiles: Tensor) -> Tensor:
    """Return the query that scores by the cosine similarity to profiles, (..., dim).

    Args:
        profiles: Profiles of histories, (..., num_profiles, dim).
    """
    return profiles.sum(-2) * (PROFILE_SCALE / len(PROFILE_DECAYS))


def history_profiles(embeddings: tuple[Tensor, Tensor], items: Tensor, segments: Tensor) -> Tensor:
    """Return the profiles of a sequence's history after each of its items, and before the first.

    A profile is, per modality, the unit mean of the items' embeddings with a decay per step back.

    Args:
        embeddings: Text and collaborative embeddings of the catalogue, each (num_items, its dim).
        items: Item rows in order, padded with -1, (batch, length).
        segments: Which history of a packed row each item belongs to, (batch, length).

    Returns:
        Profiles, (batch, 1 + length, num_profiles, text_dim + collaborative_dim).
    """
    length = items.shape[1]
    seen = torch.arange(1 + length, device=items.device)
    back = seen[:, None] - 1 - seen[None, :-1]  # (1 + length, length)
    decays = torch.tensor(PROFILE_DECAYS, dtype=torch.float32, device=items.device)[:, None, None]
    weights = (decays ** back.clamp_min(0)) * (back >= 0)  # (num_profiles, 1 + length, length)
    weights = weights * (items >= 0)[:, None, None]
    if length:
        current = segments[:, (seen - 1).clamp_min(0)]  # (batch, 1 + length)
        weights = weights * (current[..., None] == segments[:, None])[:, None]
    parts = []
    for table in embeddings:
        rows = table[items.clamp_min(0)].float()  # (batch, length, dim)
        means = torch.einsum("bpsl,bld->bspd", weights, rows)
        # In half precision, as under `autocast`, an empty history would be divided by zero.
        parts.append(F.normalize(means.float(), dim=-1))
    return torch.cat(parts, -1)
