"""Co-occurrence memory: what was chosen with and after what in training histories."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .precision_ttds import TTDSFloat32

STATISTICS = ("transition", "follow", "cooccurrence")
ITEM_STATISTICS = ("popularity", "late", "recent", "era")


class TTDSCooccurrence(TTDSFloat32):
    """Item-to-item statistics of training interactions as a sparse matrix in buffers.

    Per pair of items it keeps a weighted transition count over lags, the count of the second
    following the first at once, each divided by the root of the first item's sum, and the cosine of
    the two items' users. Per item it keeps its popularity, the same with every history's newest
    items counted most (late), the same with interactions counted less the older their timestamps
    are (recent), and the mean age of its interactions in years, negative (era): 0 is the newest
    day, and so where a new item stands.

    Args:
        num_items: Number of items.
        num_pairs: Number of pairs kept.
    """

    def __init__(self, num_items: int, num_pairs: int):
        super().__init__()
        self.register_buffer("starts", torch.zeros(num_items + 1, dtype=torch.long))
        self.register_buffer("others", torch.zeros(num_pairs, dtype=torch.long))
        self.register_buffer("values", torch.zeros(num_pairs, len(STATISTICS)))
        self.register_buffer("items", torch.zeros(num_items, len(ITEM_STATISTICS)))
        self.float()  # where a model is made in half precision too

    @property
    def popularity(self) -> Tensor:
        """How often each item occurs in training, (num_items,)."""
        return self.items[:, 0]

    def scores(self, histories: Tensor, decays: tuple[float, ...]) -> Tensor:
        """Sum each statistic over a history's items, (batch, num_items, num_statistics).

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
            decays: Per statistic, the weight of an item per step into the past.
        """
        batch, num_items = len(histories), len(self.items)
        user, steps_back, pair = self._pairs(histories)
        weights = torch.tensor(decays, device=histories.device).pow(steps_back[:, None])
        flat = self.values.new_zeros(batch * num_items, len(STATISTICS))
        flat.index_add_(0, user * num_items + self.others[pair], self.values[pair] * weights)
        return flat.view(batch, num_items, -1)

    def neighbours(self, histories: Tensor, decays: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Sum each statistic over a history's items, for the items that have any with one of them.

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
            decays: Per statistic, the weight of an item per step into the past.

        Returns:
            Item rows, padded with -1, (batch, num_neighbours), and sums, 0 where padded, (batch,
            num_neighbours, num_statistics).
        """
        user, steps_back, pair = self._pairs(histories)
        weights = torch.tensor(decays, device=histories.device).pow(steps_back[:, None])
        keys, place = (user * len(self.items) + self.others[pair]).unique(return_inverse=True)
        sums = self.values.new_zeros(len(keys), len(STATISTICS))
        sums.index_add_(0, place, self.values[pair] * weights)
        users = keys // max(len(self.items), 1)
        counts = users.bincount(minlength=len(histories))
        column = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[users]
        shape = (len(histories), int(counts.max()) if len(keys) else 0)
        items = histories.new_full(shape, -1)
        items[users, column] = keys - users * len(self.items)
        values = self.values.new_zeros(*shape, len(STATISTICS))
        values[users, column] = sums
        return items, values

    def strongest(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Return each item's strongest transition from the history, and from how many there is one.

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).

        Returns:
            Two tensors (batch, num_items).
        """
        batch, num_items = len(histories), len(self.items)
        user, _, pair = self._pairs(histories)
        transition = self.values[pair, 0]
        place = user * num_items + self.others[pair]
        flat = self.values.new_zeros(2, batch * num_items)
        flat[0].scatter_reduce_(0, place, transition, "amax")
        flat[1].index_add_(0, place, (transition > 0).to(flat.dtype))
        return tuple(flat.view(2, batch, num_items))

    def _pairs(self, histories: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return batch row, steps back of the first item, and number of every pair that counts."""
        real = histories >= 0
        steps_back = real.flip(1).cumsum(1).flip(1) - 1
        user, place = real.nonzero(as_tuple=True)
        items = histories[user, place]
        count = self.starts[items + 1] - self.starts[items]
        entry = torch.repeat_interleave(torch.arange(len(items), device=items.device), count)
        offset = torch.arange(len(entry), device=items.device)
        offset = offset - (count.cumsum(0) - count)[entry]
        return user[entry], steps_back[user, place][entry], self.starts[items][entry] + offset

    def totals(self, items: Tensor) -> Tensor:
        """Return the summed transition weight out of each item, shaped as `items`."""
        running = F.pad(self.values[:, 0].cumsum(0), (1, 0))
        return running[self.starts[items + 1]] - running[self.starts[items]]

    def extend(self, num_new: int) -> None:
        """Add items that nothing is known of.

        Args:
            num_new: How many.
        """
        self.starts = torch.cat([self.starts, self.starts[-1:].expand(num_new)])
        self.items = F.pad(self.items, (0, 0, 0, num_new))

    def keep(self, items: Tensor) -> None:
        """Forget all items but those marked.

        Args:
            items: Mask of the items that stay, (num_items,).
        """
        counts = self.starts.diff()
        first = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        stays = items[first] & items[self.others]
        row = items.long().cumsum(0) - 1
        counts = torch.bincount(row[first[stays]], minlength=int(items.sum()))
        self.starts = F.pad(counts.cumsum(0), (1, 0))
        self.others, self.values = row[self.others[stays]], self.values[stays]
        self.items = self.items[items]
