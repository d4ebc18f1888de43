"""Co-occurrence memory: what was chosen with and after what in training histories."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .precision_ttds import TTDSFloat32
from .trie_ttds import spread

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
        self.register_buffer("others", torch.zeros(num_pairs, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(num_pairs, len(STATISTICS)))
        self.register_buffer("items", torch.zeros(num_items, len(ITEM_STATISTICS)))
        self.float()  # where a model is made in half precision too

    @property
    def popularity(self) -> Tensor:
        """How often each item occurs in training, (num_items,)."""
        return self.items[:, 0]

    def neighbours(self, histories: Tensor, decays: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Sum each statistic over a history's items, for the items that have any with one of them.

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
            decays: Per statistic, the weight of an item per step into the past.

        Returns:
            Item rows, padded with -1, (batch, num_neighbours), and sums, 0 where padded, (batch,
            num_neighbours, num_statistics).
        """
        found = TTDSNeighbours(self, histories)
        return found.items, found.rows_of(found.sums(decays))

    def totals(self, items: Tensor) -> Tensor:
        """Return the summed transition weight out of each item, (num_items,).

        Args:
            items: Item rows, (num_items,).
        """
        owner, pair = spread(self.starts[items], self.starts[items + 1] - self.starts[items])
        sums = self.values.new_zeros(len(items))
        return sums.index_add_(0, owner, self.values[pair, 0])

    def popular(self, number: int) -> Tensor:
        """Return the items chosen most often, best first, (number,) or all of a smaller catalogue.

        Args:
            number: How many.
        """
        # Written into it is another table; one made in `torch.inference_mode` does not count that.
        version = 0 if self.items.is_inference() else self.items._version
        made_of, then, order = self.__dict__.get("_popular", (None, 0, ()))
        same = made_of is self.items and then == version
        if not same or len(order) < min(number, len(self.items)):
            order = self.popularity.topk(min(max(number, 1024), len(self.items))).indices
            self.__dict__["_popular"] = self.items, version, order
        return order[:number]

    def extend(self, num_new: int) -> None:
        """Add items that nothing is known of.

        Args:
            num_new: How many.
        """
        self.starts = torch.cat([self.starts, self.starts[-1:].expand(num_new)])
        self.items = F.pad(self.items, (0, 0, 0, num_new))

    def forget(self, items: Tensor) -> None:
        """Know no more of some items than of new ones; they keep their rows.

        Args:
            items: Mask of these items, (num_items,).
        """
        first = torch.repeat_interleave(self.starts.diff())
        stays = ~(items[first] | items[self.others])
        counts = torch.bincount(first[stays], minlength=len(items))
        self.starts = F.pad(counts.cumsum(0), (1, 0))
        self.others, self.values = self.others[stays], self.values[stays]
        self.items = self.items * ~items[:, None]

    def keep(self, items: Tensor) -> None:
        """Remove all items but those marked.

        Args:
            items: Mask of the items that stay, (num_items,).
        """
        self.forget(~items)
        row = items.long().cumsum(0) - 1
        self.starts = F.pad(self.starts.diff()[items].cumsum(0), (1, 0))
        self.others, self.items = row[self.others].int(), self.items[items]


class TTDSNeighbours:
    """The items that have a pair with one of a history's, for a batch of histories.

    Args:
        memory: The co-occurrence memory.
        histories: Item rows, newest last, padded with -1 on the left, (batch, max_history).
    """

    def __init__(self, memory: TTDSCooccurrence, histories: Tensor):
        self.values, self.num_items = memory.values, max(len(memory.items), 1)
        real = histories >= 0
        steps_back = real.flip(1).cumsum(1).flip(1) - 1
        user, place = real.nonzero(as_tuple=True)
        items = histories[user, place]
        count = memory.starts[items + 1] - memory.starts[items]
        entry, self.pair = spread(memory.starts[items], count)
        self.steps_back = steps_back[user, place][entry]
        keys = user[entry] * self.num_items + memory.others[self.pair]
        # Distinct neighbours of all users, end to end, and which of them each pair leads to.
        self.keys, self.place = keys.unique(return_inverse=True)
        self.users = self.keys // self.num_items
        counts = self.users.bincount(minlength=len(histories))
        order = torch.arange(len(self.keys), device=keys.device)
        self.column = order - (counts.cumsum(0) - counts)[self.users]
        self.shape = (len(histories), int(counts.max()) if len(self.keys) else 0)
        self.items = histories.new_full(self.shape, -1)
        self.items[self.users, self.column] = self.keys - self.users * self.num_items

    def sums(self, decays: tuple[float, ...], newest: int | None = None) -> Tensor:
        """Sum each statistic over a history's items, (num_keys, num_statistics).

        Args:
            decays: Per statistic, the weight of an item per step into the past.
            newest: How many of the newest items count; None for all.
        """
        decays = torch.tensor(decays, dtype=torch.float32, device=self.keys.device)
        weights = decays.pow(self.steps_back[:, None])
        if newest is not None:
            weights = weights * (self.steps_back < newest)[:, None]
        sums = self.values.new_zeros(len(self.keys), len(STATISTICS))
        return sums.index_add_(0, self.place, self.values[self.pair] * weights)

    def strongest(self, newest: int) -> Tensor:
        """Return each neighbour's strongest transition, and from how many items, (num_keys, 2).

        Args:
            newest: How many of the newest items count.
        """
        transition = self.values[self.pair, 0] * (self.steps_back < newest)
        found = self.values.new_zeros(2, len(self.keys))
        found[0].scatter_reduce_(0, self.place, transition, "amax")
        found[1].index_add_(0, self.place, (transition > 0).to(found.dtype))
        return found.T

    def rows_of(self, values: Tensor) -> Tensor:
        """Return values of the neighbours, a row per user, (batch, num_neighbours, num_columns).

        Args:
            values: (num_keys, num_columns).
        """
        rows = values.new_zeros(*self.shape, values.shape[1])
        rows[self.users, self.column] = values
        return rows

    def at(self, items: Tensor, values: Tensor) -> Tensor:
        """Return values of items, 0 for those that are no neighbours, (batch, n, num_columns).

        Args:
            items: Item rows, (batch, n).
            values: (num_keys, num_columns).
        """
        if not len(self.keys):
            return values.new_zeros(*items.shape, values.shape[1])
        wanted = torch.arange(len(items), device=items.device)[:, None] * self.num_items + items
        place = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        return values[place] * (self.keys[place] == wanted)[..., None]
