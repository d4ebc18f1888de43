"""Node logits: what state, history and the items below it say of each child of a node."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init

from .configuration_ttds import TTDSConfig
from .offload_ttds import at_hand
from .trie_ttds import TTDSTrie

# Weight of a history's item per step into the past, of each profile; 0 leaves its newest alone.
PROFILE_DECAYS = (0.9, 0.6, 0.0)
# A product with all nodes of a depth is faster than gathering those in question, up to so many
# times as many.
SMALL = 32
PROFILE_SCALE = 5.0  # weight of the plain cosine similarity that the profiles start from


@dataclass(frozen=True)
class TTDSNodeTable:
    """What lies below the nodes of every depth of a trie.

    Args:
        centroids: Per depth, the mean vector of the items below a node, (num_nodes, dim); the root
            has none.
        variances: Per depth, their variance, (num_nodes, dim); the root and the leaves have none.
        log_counts: Per depth, the log of their number, (num_nodes,).
    """

    centroids: list[Tensor | None]
    variances: list[Tensor | None]
    log_counts: list[Tensor]

    @classmethod
    def build(cls, trie: TTDSTrie, vectors: Tensor) -> "TTDSNodeTable":
        """Build the table of a trie.

        Args:
            trie: The trie.
            vectors: Item vectors, (num_items, dim); the table keeps their type.
        """
        ordered = vectors[trie.order].float()
        centroids, variances, log_counts = [], [], []
        for depth, first in enumerate(trie.first_item):
            counts = first.diff()
            log_counts.append(counts.log().to(torch.float32))
            if depth == 0:
                centroids.append(None)
                variances.append(None)
                continue
            nodes = torch.repeat_interleave(counts)
            sums = ordered.new_zeros(len(counts), ordered.shape[1])
            mean = sums.index_add(0, nodes, ordered) / counts[:, None]
            centroids.append(mean.to(vectors.dtype))
            if depth == trie.num_levels:
                variances.append(None)
                continue
            squares = sums.index_add(0, nodes, ordered.square()) / counts[:, None]
            variances.append((squares - mean.square()).clamp_min(0).to(vectors.dtype))
        return cls(centroids, variances, log_counts)


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


class TTDSNodePairs(nn.Module):
    """Which nodes follow which item: a vector per item times a vector per node of every depth.

    A factorised Markov chain (FPMC, Rendle et al. 2010) over the trie: it learns pairs, where
    embeddings know neighbourhoods; a node or an item that joins later has zeros.

    Args:
        config: Gives the number of items, of nodes per depth, and `pair_dim`.
    """

    def __init__(self, config: TTDSConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.pair_dropout)
        self.source = nn.Parameter(torch.empty(config.num_items, config.pair_dim))
        self.targets = nn.ParameterList(
            nn.Parameter(torch.empty(count, config.pair_dim)) for count in config.pair_nodes
        )

    @torch.no_grad()
    def reset(self) -> None:
        """Start from nothing known of any pair."""
        init.normal_(self.source, std=self.source.shape[1] ** -0.5)
        for target in self.targets:
            init.zeros_(target)

    def forward(self, newest: Tensor, children: Tensor, depth: int) -> Tensor:
        """Return what an item says of the nodes that may follow it, (..., num_children).

        Args:
            newest: Item rows, -1 for none, (...).
            children: Nodes of the depth, (..., num_children) or (num_children,).
            depth: Their depth.
        """
        source = self.source[newest.clamp_min(0)] * (newest >= 0)[..., None]
        source, target = self.dropout(source), at_hand(self.targets, str(depth - 1))[children]
        if children.ndim == 1:
            return source @ target.T
        return torch.einsum("...d,...cd->...c", source, target)

    @torch.no_grad()
    def follow(self, items: Tensor, before: TTDSTrie, after: TTDSTrie) -> None:
        """Move to another trie: nodes of the same codes keep their vectors, others get zeros.

        Args:
            items: Per item of the new trie its row in the old one, -1 for new ones, (num_items,).
            before: The old trie.
            after: The new trie.
        """
        self.source = nn.Parameter(self.source[items.clamp_min(0)] * (items >= 0)[:, None])
        for depth in range(1, after.num_levels + 1):
            old = before.walk(after.paths(depth))[-1]
            target = self.targets[depth - 1]
            self.targets[depth - 1] = nn.Parameter(target[old.clamp_min(0)] * (old >= 0)[:, None])


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
        return tuple(getattr(self, f"{name}_{level}") for name in ("state", "profile"))

    def _query(self, states: Tensor, profiles: Tensor, level: int) -> Tensor:
        state, profile = self.level(level)
        profiles = profiles.to(profile.dtype)
        learnt = states.to(profile.dtype) @ state + profiles.flatten(-2) @ profile
        return learnt + plain_query(profiles)

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
        return node_scores(self._query(states, profiles, depth - 1), children, depth, table)


def node_scores(query: Tensor, children: Tensor, depth: int, table: TTDSNodeTable) -> Tensor:
    """Return log n + q m + q^2 v / 2 of nodes, (..., num_children).

    Args:
        query: Queries q, (..., dim).
        children: Nodes of the depth, (..., num_children) or, the same for all queries,
            (num_children,).
        depth: Depth of the children.
        table: What lies below the trie's nodes: their number n, mean m and variance v.
    """
    query = query.to(torch.promote_types(query.dtype, torch.float32))
    scores = _product(query, table.centroids[depth], children)
    if table.variances[depth] is not None:
        scores = scores + _product(query.square(), table.variances[depth], children) / 2
    return scores + table.log_counts[depth][children]


def _product(query: Tensor, rows: Tensor, children: Tensor) -> Tensor:
    if children.ndim == 1:
        return query @ rows[children].to(query.dtype).T
    if len(rows) <= SMALL * children.shape[-1]:
        return (query @ rows.to(query.dtype).T).gather(-1, children)
    return torch.einsum("...d,...cd->...c", query, rows[children].to(query.dtype))


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
    decays = torch.tensor(PROFILE_DECAYS, device=items.device)[:, None, None]
    weights = (decays ** back.clamp_min(0)) * (back >= 0)  # (num_profiles, 1 + length, length)
    weights = weights * (items >= 0)[:, None, None]
    if length:
        current = segments[:, (seen - 1).clamp_min(0)]  # (batch, 1 + length)
        weights = weights * (current[..., None] == segments[:, None])[:, None]
    parts = []
    for table in embeddings:
        rows = table[items.clamp_min(0)].float()  # (batch, length, dim)
        parts.append(F.normalize(torch.einsum("bpsl,bld->bspd", weights, rows), dim=-1))
    return torch.cat(parts, -1)
