"""Priors: what co-occurrence says of items, as numbers on the nodes of the trie.

A probability over items sums up the trie: the mass of a node is that of the items below it. So one
beam search generates from language model and co-occurrence memory together, new items included.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init

from .cooccurrence_ttds import STATISTICS, TTDSCooccurrence
from .precision_ttds import TTDSFloat32
from .trie_ttds import TTDSTrie

DECAYS = (0.5, 0.0, 0.8)  # of each statistic, per step into the past
UNIFORM = 0.05  # share of every prior that is spread over the catalogue
ITEM_FEATURES = ("popularity", "recent", "era", "era_gap", "era_distance", "new")
CONTEXT = ("length", *STATISTICS)  # how long the history is; how much each prior knows below a node
FEATURES = ("lm", *STATISTICS, "items", *ITEM_FEATURES, *CONTEXT)


class TTDSPriorHead(TTDSFloat32):
    """Corrects the language model's logits of a node's children by what the priors say of them.

    A small network per level over standardised features of a child; the last layer starts from
    zero, so that at first the language model is all there is.

    Args:
        num_levels: Number of levels.
        hidden_dim: Width of the hidden layers.
        dropout: Dropout after each.
    """

    def __init__(self, num_levels: int, hidden_dim: int = 64, dropout: float = 0.1):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_levels, len(FEATURES)))
        self.register_buffer("std", torch.ones(num_levels, len(FEATURES)))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(len(FEATURES), hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, 1),
            )
            for _ in range(num_levels)
        )
        self.float()  # where a model is made in half precision too

    @torch.no_grad()
    def reset(self) -> None:
        """Start from the language model alone."""
        init.zeros_(self.mean)
        init.ones_(self.std)
        for layers in self.layers:
            init.zeros_(layers[-1].weight)
            init.zeros_(layers[-1].bias)

    def forward(self, features: Tensor, level: int) -> Tensor:
        """Return logits of children, (..., num_children).

        Args:
            features: Their features, (..., num_children, num_features).
            level: The level of their codes.
        """
        scaled = (features - self.mean[level]) / self.std[level]
        return features[..., 0] + self.layers[level](scaled).squeeze(-1)


@dataclass(frozen=True)
class TTDSNodeStatistics:
    """What the memory knows of the items below every node, whoever asks.

    Args:
        log_shares: Per depth, the log of the share of popularity and recent popularity below a
            node among those of its parent, (num_nodes, 2).
        eras: Per depth, the mean era of the items below a node, (num_nodes,).
        new: Per depth, the share of the items below a node that nobody chose yet, (num_nodes,).
    """

    log_shares: list[Tensor]
    eras: list[Tensor]
    new: list[Tensor]

    @classmethod
    def build(cls, trie: TTDSTrie, memory: TTDSCooccurrence) -> "TTDSNodeStatistics":
        """Build the statistics of a trie's nodes.

        Args:
            trie: The trie.
            memory: The co-occurrence memory of its items.
        """
        items = memory.items[trie.order].double()
        popularity, _, recent, era = items.unbind(1)
        # An item that nobody chose yet counts as an average one: it is new, not bad.
        known = popularity > 0
        counts = [
            torch.where(known, c, c.sum() / known.sum().clamp_min(1)) for c in (popularity, recent)
        ]
        columns = torch.stack([counts[0] + 0.25, counts[1] + 1e-6, era, (~known).double()], 1)
        running = F.pad(columns.cumsum(0), (0, 0, 1, 0))
        log_shares, eras, new, above = [], [], [], None
        for depth, first in enumerate(trie.first_item):
            sums = running[first[1:]] - running[first[:-1]]
            means = (sums[:, 2:] / first.diff()[:, None]).float()
            eras.append(means[:, 0])
            new.append(means[:, 1])
            if depth == 0:
                log_shares.append(torch.zeros(1, 2, dtype=torch.float32, device=first.device))
            else:
                parents = torch.repeat_interleave(trie.first_child[depth - 1].diff())
                log_shares.append((sums[:, :2] / above[parents]).log().float())
            above = sums[:, :2]
        return cls(log_shares, eras, new)


class TTDSPriors:
    """The priors of a batch of histories on the nodes of a trie.

    Args:
        memory: The co-occurrence memory.
        trie: The trie of its items.
        statistics: What it knows of the trie's nodes.
        histories: Item rows, newest last, padded with -1, (batch, max_history).
        excluded: Item rows that have no mass, padded with -1, (batch, num_excluded).
    """

    def __init__(
        self,
        memory: TTDSCooccurrence,
        trie: TTDSTrie,
        statistics: TTDSNodeStatistics,
        histories: Tensor,
        excluded: Tensor,
    ):
        self.trie, self.statistics = trie, statistics
        items, mass = memory.neighbours(histories, DECAYS)  # (batch, n), (batch, n, statistics)
        if excluded.shape[1]:
            seen = (items[..., None] == excluded[:, None]).any(-1)
            mass = mass * ~seen[..., None]
        num_items = len(trie.order)
        places = torch.where(items >= 0, trie.position[items.clamp_min(0)], num_items)
        self.places, order = places.sort(1)
        mass = mass.gather(1, order[..., None].expand_as(mass)).double()
        mass = mass / mass.sum(1, keepdim=True).clamp_min(1e-12)
        self.running = F.pad(mass.cumsum(1), (0, 0, 1, 0))  # (batch, 1 + n, statistics)
        # All users in one ascending line, so that a position of any user is looked up at once.
        self.step = num_items + 1
        users = torch.arange(len(histories), device=histories.device)[:, None]
        self.line = (self.places + users * self.step).flatten()
        real = histories >= 0
        self.length = real.sum(1).float().log1p()  # (batch,)
        era = memory.items[:, 3][histories.clamp_min(0)] * real
        self.era = era.sum(1) / real.sum(1).clamp_min(1)
        self.some = real.any(1)

    def _mass(self, begin: Tensor, end: Tensor, users: Tensor) -> Tensor:
        """Return the mass between sorted positions of users, (n, num_statistics)."""
        running = self.running.flatten(0, 1)
        # A user's row of sums is one longer than that of its places.
        last, first = (
            running[torch.searchsorted(self.line, position + users * self.step) + users]
            for position in (end, begin)
        )
        below = last - first
        share = (end - begin).double()[:, None] / max(len(self.trie.order), 1)
        return (1 - UNIFORM) * below.clamp_min(0) + UNIFORM * share

    def features(self, log_probs: Tensor, children: Tensor, nodes: Tensor, level: int) -> Tensor:
        """Return the features of nodes' children, (batch, ..., num_children, num_features).

        Args:
            log_probs: What the language model says, (batch, ..., num_children).
            children: The children, (batch, ..., num_children).
            nodes: Their parents, (batch, ...).
            level: The level of the children's codes.
        """
        users = torch.arange(len(nodes), device=nodes.device)
        users = users.view(-1, *[1] * (nodes.ndim - 1)).expand_as(nodes).flatten()
        owner = torch.arange(nodes.numel(), device=nodes.device)
        owner = owner.repeat_interleave(children.shape[-1])
        flat = log_probs.flatten(), children.flatten(), owner, nodes.flatten(), users
        return self.of_pairs(*flat, level).view(*children.shape, -1)

    def of_pairs(
        self,
        log_probs: Tensor,
        children: Tensor,
        owner: Tensor,
        nodes: Tensor,
        users: Tensor,
        level: int,
    ) -> Tensor:
        """Return the features of children of any nodes, (num_children, num_features).

        Args:
            log_probs: What the language model says, (num_children,).
            children: The children, (num_children,).
            owner: Which of the nodes each belongs to, (num_children,).
            nodes: The nodes, (num_nodes,).
            users: The row of the batch that asks for each, (num_nodes,).
            level: The level of the children's codes.
        """
        first, above = self.trie.first_item[level + 1], self.trie.first_item[level]
        mass = self._mass(first[children], first[children + 1], users[owner])
        parent = self._mass(above[nodes], above[nodes + 1], users)
        sizes = self.trie.num_items_below(children, level + 1)
        total = self.trie.num_items_below(nodes, level)
        era = self.statistics.eras[level + 1][children]
        gap = (era - self.era[users][owner]) * self.some[users][owner]
        columns = [
            log_probs.clamp_min(-30)[:, None],
            (mass / parent[owner]).clamp_min(1e-12).log(),
            (sizes.float() / total[owner]).log()[:, None],
            self.statistics.log_shares[level + 1][children],
            torch.stack([era, gap, gap.abs(), self.statistics.new[level + 1][children]], -1),
            self.length[users][owner][:, None],
            parent[owner],
        ]
        return torch.cat([column.float() for column in columns], -1)
