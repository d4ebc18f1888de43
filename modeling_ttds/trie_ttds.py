"""The trie of semantic IDs, and which items below its nodes may appear."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


def spread(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return ranges laid end to end: which range each number is of, and the numbers.

    Args:
        first: First number of each range, (num_ranges,).
        count: How many it has, (num_ranges,).

    Returns:
        Two tensors (count.sum(),).
    """
    owner = torch.repeat_interleave(count)
    before = count.cumsum(0) - count
    numbers = torch.arange(len(owner), device=count.device) + (first - before)[owner]
    return owner, numbers


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
    # Per depth but the last, how many children a node has at most.
    _most_children: list[int] = field(init=False, repr=False)
    # Per depth but the root's, parent and code of every node as one ascending number.
    _edges: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self):
        # At once and not on first need: what is traced cannot make it.
        self._most_children, self._edges = [], []
        for first, codes in zip(self.first_child, self.codes[1:], strict=True):
            counts = first.diff()
            self._most_children.append(int(counts.max()) if len(counts) else 0)
            self._edges.append((torch.repeat_interleave(counts) << 32) + codes)

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

    def extended(self, sids: Tensor) -> tuple["TTDSTrie", list[Tensor]]:
        """Return the trie with more items, which join where their semantic IDs say.

        Nothing is sorted anew: a million items take a tenth of the time of `build`.

        Args:
            sids: Semantic IDs of the new items, whose rows follow the old ones, (num_new,
                num_levels).

        Returns:
            The trie, and per depth the new number of every old node, (num_nodes,).
        """
        num_old, num_new = len(self.order), len(sids)
        rows = torch.arange(num_new, device=sids.device)
        for level in reversed(range(self.num_levels)):
            rows = rows[sids[rows, level].argsort(stable=True)]
        sids = sids[rows]
        # Per depth: the first old node that comes after each item's own, and the first items of the
        # nodes that are new.
        known, after, begins = torch.zeros_like(rows), torch.ones_like(rows), []
        afters, other = [after], torch.zeros(num_new, dtype=torch.bool, device=sids.device)
        other[:1] = True
        for level, codes in enumerate(sids.unbind(1)):
            edges = self._edges[level]
            place = torch.searchsorted(edges, (known.clamp_min(0) << 32) + codes)
            place = torch.where(known >= 0, place, self.first_child[level][after])
            wanted = (known.clamp_min(0) << 32) + codes
            hit = (known >= 0) & (edges[place.clamp_max(len(edges) - 1)] == wanted)
            known, after = torch.where(hit, place, -1), place + hit
            afters.append(after)
            other = other.clone()
            other[1:] |= codes[1:] != codes[:-1]
            begins.append((other & ~hit).nonzero()[:, 0])
        position = self.first_item[-1][after]  # old items before each new one
        moved = [_moved(afters[d + 1][new], len(self.codes[d + 1])) for d, new in enumerate(begins)]
        moved_items = _moved(position, num_old)
        own = [afters[d + 1][new] + _count(new) for d, new in enumerate(begins)]
        place = position + _count(rows)
        first_item, first_child, codes = [], [], []
        nothing = rows[:0]
        for depth in range(self.num_levels + 1):
            new, old_to_new, mine = nothing, torch.arange(2, device=sids.device), nothing
            if depth:
                new, old_to_new, mine = begins[depth - 1], moved[depth - 1], own[depth - 1]
            starts = self.first_item[depth] + _before(afters[depth], len(self.first_item[depth]))
            first_item.append(_merged(starts, old_to_new, place[new], mine))
            values = sids[new, depth - 1] if depth else nothing
            codes.append(_merged(self.codes[depth], old_to_new[:-1], values, mine))
            if depth == self.num_levels:
                break
            below, children = begins[depth], own[depth]
            starts = self.first_child[depth]
            starts = starts + _before(afters[depth][below], len(starts))
            mine_below = children[torch.searchsorted(below, new)]
            first_child.append(_merged(starts, old_to_new, mine_below, mine))
        order = _merged(self.order, moved_items[:-1], num_old + rows, place)
        at = torch.empty_like(order)
        at[:num_old], at[num_old + rows] = moved_items[self.position], place
        numbers = [torch.zeros(1, dtype=torch.long, device=sids.device)]
        numbers += [numbered[:-1] for numbered in moved]
        return TTDSTrie(order, at, first_item, first_child, codes), numbers

    @property
    def num_levels(self) -> int:
        """Depth of the leaves."""
        return len(self.first_child)

    def num_nodes(self) -> list[int]:
        """Return how many nodes each depth below the root has."""
        return [len(codes) for codes in self.codes[1:]]

    def num_bytes(self) -> int:
        """Memory of all tensors."""
        parts = [self.order, self.position, *self.first_item, *self.first_child, *self.codes]
        return sum(part.numel() * part.element_size() for part in parts)

    def children(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Return the children of nodes, padded to the most: (..., children) nodes and mask."""
        first = self.first_child[depth][nodes]
        count = self.first_child[depth][nodes + 1] - first
        if torch.compiler.is_compiling():  # a shape may not depend on the nodes
            most = self._most_children[depth]
        else:
            most = int(count.max()) if count.numel() else 0
        steps = torch.arange(most, device=nodes.device)
        real = steps < count[..., None]
        return torch.where(real, first[..., None] + steps, first[..., None]), real

    def ranges(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Return the first child of nodes and the number of their children, shaped as nodes."""
        first = self.first_child[depth][nodes]
        return first, self.first_child[depth][nodes + 1] - first

    def num_items_below(self, nodes: Tensor, depth: int) -> Tensor:
        """Return how many items lie below nodes, shaped as nodes."""
        return self.first_item[depth][nodes + 1] - self.first_item[depth][nodes]

    def child(self, nodes: Tensor, codes: Tensor, depth: int) -> Tensor:
        """Return the children that codes lead to, shaped as nodes; -1 where there is none.

        Args:
            nodes: Nodes of the depth, (...,).
            codes: The next code of each, (...,).
            depth: Their depth.
        """
        edges, wanted = self._edges[depth], (nodes << 32) + codes
        found = torch.searchsorted(edges, wanted.contiguous()).clamp_max(len(edges) - 1)
        return torch.where(edges[found] == wanted, found, -1)

    def paths(self, depth: int) -> Tensor:
        """Return the codes on the way to every node of a depth, (num_nodes, depth)."""
        codes = [self.codes[depth]]
        parents = torch.arange(len(self.codes[depth]), device=self.order.device)
        for above in reversed(range(1, depth)):
            parents = torch.repeat_interleave(self.first_child[above].diff())[parents]
            codes.append(self.codes[above][parents])
        return torch.stack(codes[::-1], -1)

    def walk(self, sids: Tensor) -> list[Tensor]:
        """Return the nodes of every depth on the way down semantic IDs, -1 off the trie.

        Args:
            sids: Codes, (..., num_levels) or the first levels only.

        Returns:
            Per depth from the root's on, nodes (...,).
        """
        nodes = [torch.zeros_like(sids[..., 0])]
        for level, codes in enumerate(sids.unbind(-1)):
            child = self.child(nodes[-1].clamp_min(0), codes, level)
            nodes.append(torch.where(nodes[-1] >= 0, child, -1))
        return nodes

    def node_of(self, items: Tensor, depth: int) -> Tensor:
        """Return the node at a depth of the items' semantic IDs, shaped as `items`."""
        return torch.searchsorted(self.first_item[depth], self.position[items], right=True) - 1


def _count(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)


def _before(places: Tensor, number: int) -> Tensor:
    """Return how many places are at most each number, (number,)."""
    return places.bincount(minlength=number).cumsum(0)


def _moved(places: Tensor, number: int) -> Tensor:
    """Return where old ones stand once new ones have come in before places, (number + 1,)."""
    return torch.arange(number + 1, device=places.device) + _before(places, number + 1)


def _merged(old: Tensor, moved: Tensor, new: Tensor, places: Tensor) -> Tensor:
    """Return old values where they have moved to, and new ones at their places."""
    merged = old.new_empty(len(old) + len(new))
    merged[moved], merged[places] = old, new
    return merged


class TTDSCandidates:
    """Which items may be recommended to each row of a batch, asked node by node.

    Args:
        trie: The trie.
        allowed: Mask of item rows that may appear at all, (num_items,).
        excluded: Item rows that may not appear in a row, padded with -1, (batch, num_excluded).
    """

    def __init__(self, trie: TTDSTrie, allowed: Tensor | None, excluded: Tensor):
        self.trie, self.allowed, self.excluded = trie, allowed, excluded
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
        # All rows in one ascending line, so that a place of any row is looked up at once.
        self.step = num_items + 1
        rows = torch.arange(len(places), device=places.device)[:, None]
        self.line = (self.places + rows * self.step).flatten()

    def count(self, nodes: Tensor, depth: int, rows: Tensor) -> Tensor:
        """Return how many items below nodes may appear, (num_nodes,).

        Args:
            nodes: Nodes, (num_nodes,).
            depth: Their depth.
            rows: The row of the batch that asks for each, (num_nodes,).
        """
        start, end = self.trie.first_item[depth][nodes], self.trie.first_item[depth][nodes + 1]
        total = end - start
        if self.running is not None:
            total = self.running[end] - self.running[start]
        if not len(self.line):
            return total
        begin = rows * self.step
        out = torch.searchsorted(self.line, end + begin)
        return total - (out - torch.searchsorted(self.line, start + begin))

    def may_appear(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return whether items may appear in rows of the batch, shaped as both.

        Args:
            items: Item rows.
            rows: Rows of the batch.
        """
        places = self.trie.position[items]
        ok = torch.ones_like(items, dtype=torch.bool)
        if len(self.line):
            wanted = places + rows * self.step
            found = torch.searchsorted(self.line, wanted).clamp_max(len(self.line) - 1)
            ok = self.line[found] != wanted
        if self.running is not None:
            ok &= self.running[places + 1] > self.running[places]
        return ok
