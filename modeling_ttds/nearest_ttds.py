"""The texts nearest to a query: of a small catalogue by one product, of a large one by its trie."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .nodes_ttds import TTDSNodeTable, pair_scores
from .trie_ttds import TTDSCandidates, spread

SMALL = 32768  # items of which all are compared
NODES = 16  # nodes that a step down the trie goes on from
COMPARED = 4096  # items that are compared at the end of it


def nearest_texts(
    query: Tensor,
    item_text: Tensor,
    candidates: TTDSCandidates,
    number: int,
    table: TTDSNodeTable,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the items nearest to queries, and the log of the summed exp(q x) over all items.

    A large catalogue is searched down its trie, from the nodes whose items are nearest by mean and
    variance; those passed over count in the sum by the same estimate.

    Args:
        query: Queries q, (batch, text_dim).
        item_text: Text embeddings x of the items, (num_items, text_dim).
        candidates: What may appear, and counts.
        number: How many items per query.
        table: What lies below the trie's nodes.

    Returns:
        Item rows, padded with -1, (batch, number) or all of fewer, logs, (batch,), and q x of every
        item, (batch, num_items), or None where not all were compared.
    """
    few = None  # the items in question, where they are few enough
    if candidates.allowed is not None:
        few = candidates.allowed.nonzero()[:, 0]
    elif len(item_text) <= SMALL:
        few = torch.arange(len(item_text), device=query.device)
    if few is not None and len(few) <= SMALL:
        every = query @ (item_text if candidates.allowed is None else item_text[few]).T
        scores = every
        place = torch.searchsorted(few, candidates.excluded).clamp_max(max(len(few) - 1, 0))
        if len(few):
            hit = few[place] == candidates.excluded
            gone = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool)
            gone = gone.to(scores.device).scatter_(1, torch.where(hit, place, len(few)), True)
            scores = scores.masked_fill(gone[:, :-1], -torch.inf)
        best, found = scores.topk(min(number, scores.shape[1]), dim=1)
        near = few[found].masked_fill(best == -torch.inf, -1)
        return near, scores.logsumexp(1), every if candidates.allowed is None else None
    return *_down_the_trie(query, item_text, candidates, number, table), None


def _down_the_trie(
    query: Tensor,
    item_text: Tensor,
    candidates: TTDSCandidates,
    number: int,
    table: TTDSNodeTable,
) -> tuple[Tensor, Tensor]:
    trie, batch = candidates.trie, len(query)
    whole = F.pad(query, (0, table.embeddings[1].shape[1]))
    whole = whole @ table.projection if table.projection.numel() else whole
    users = torch.arange(batch, device=query.device)
    nodes, rest = torch.zeros_like(users), query.new_full((batch,), -torch.inf)
    for depth in range(trie.num_levels):
        first, count = trie.ranges(nodes, depth)
        owner, children = spread(first, count)
        scores = pair_scores(whole[users], first, count, depth + 1, table)
        users, allowed = users[owner], candidates.count(children, depth + 1, users[owner])
        # Only the items that may appear count in the sum; nearness does not depend on how many.
        near = scores - table.log_counts[depth + 1][children]
        last = depth + 1 == trie.num_levels or len(trie.order) < COMPARED // NODES * len(
            trie.codes[depth + 1]
        )
        counts = users.bincount(minlength=batch)
        column = torch.arange(len(users), device=users.device)
        column = column - (counts.cumsum(0) - counts)[users]
        padded = near.new_full((batch, int(counts.max())), -torch.inf)
        padded[users, column] = near.masked_fill(allowed == 0, -torch.inf)
        order = padded.argsort(dim=1, descending=True)
        sizes = torch.zeros_like(order)
        sizes[users, column] = trie.num_items_below(children, depth + 1)
        sizes = sizes.gather(1, order)
        # As many of the nearest as make up the number of items to compare, or nodes to go on from.
        kept = sizes.cumsum(1) - sizes < COMPARED
        if not last:
            kept = torch.arange(order.shape[1], device=order.device).expand_as(order) < NODES
        kept = torch.zeros_like(kept).scatter(1, order, kept)[users, column]
        mass = (near + allowed.float().log()).masked_fill(kept, -torch.inf)
        padded = padded.fill_(-torch.inf)
        padded[users, column] = mass
        rest = torch.logaddexp(rest, padded.logsumexp(1))
        kept &= allowed > 0
        users, nodes = users[kept], children[kept]
        if last:
            break
    found, totals = [], []
    first = trie.first_item[depth + 1]
    for user in range(batch):
        mine = nodes[users == user]
        items = trie.order[spread(first[mine], first[mine + 1] - first[mine])[1]]
        items = items[candidates.may_appear(items, torch.full_like(items, user))]
        scores = F.embedding(items, item_text) @ query[user]
        best = items[scores.topk(min(number, len(items))).indices]
        found.append(F.pad(best, (0, number - len(best)), value=-1))
        totals.append(scores.logsumexp(0))
    return torch.stack(found), torch.logaddexp(rest, torch.stack(totals))
