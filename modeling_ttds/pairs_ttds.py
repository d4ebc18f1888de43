"""Which nodes follow which item: single pairs, learnt as such."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_ttds import TTDSConfig
from .offload_ttds import at_hand
from .trie_ttds import TTDSTrie


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
        learns = self.source.requires_grad
        moved = self.source[items.clamp_min(0)] * (items >= 0)[:, None]
        self.source = nn.Parameter(moved, learns)
        for depth in range(1, after.num_levels + 1):
            old = before.walk(after.paths(depth))[-1]
            target = self.targets[depth - 1]
            moved = target[old.clamp_min(0)] * (old >= 0)[:, None]
            self.targets[depth - 1] = nn.Parameter(moved, learns)
