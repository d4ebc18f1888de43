"""Memory: what followed what in training histories; gate: memory and language model joined."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

STATISTICS = ("transition", "follow", "company")
ITEM_STATISTICS = ("popularity", "late", "recent", "era")
FEATURES = (
    "counts", "log_counts", "text", "log_text", "log_follow", "log_company", "last_text",
    "nearest_text", "collaborative", "last_collaborative", "log_popularity", "brand", "category",
    "log_length", "log_last_total", "log_blend", "nearest_collaborative", "newest_text",
    "log_strongest", "links", "log_last_company", "log_newest_follow", "log_late", "log_recent",
    "era", "era_step", "era_distance", "history_era_distance", "lm", "lm_gap", "lm_first",
)  # fmt: skip
MODEL_FEATURES = ("lm", "lm_gap", "lm_first")
TEXT_TEMPERATURE = 0.07
BLEND = 0.3
FLOOR = 1e-4
NEWEST, SHOWN = 3, 10  # how many of the newest items some features look at


class TTDSMemory(nn.Module):
    """Item-to-item statistics of training interactions as a sparse matrix in buffers.

    Per pair of items it keeps a weighted transition count over lags, the count of the second
    following the first at once, each divided by the root of the first item's sum, and the cosine of
    the two items' users. Per item it keeps its popularity, the same with every history's newest
    items counted most (late), the same with interactions counted less the older their stamps are
    (recent), and the mean age of its interactions in years, negative (era): 0 is the newest day,
    and so where a new item stands.

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


class TTDSGate(nn.Module):
    """Scores candidates from features that memory, embeddings and the language model give.

    Args:
        num_features: Number of features.
        hidden_dim: Width of both hidden layers.
        dropout: Dropout after each.
    """

    def __init__(self, num_features: int, hidden_dim: int = 128, dropout: float = 0.2):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return a score per candidate, (batch, num_candidates).

        Args:
            features: (batch, num_candidates, num_features).
        """
        return self.layers((features - self.mean) / self.std).squeeze(-1)


class TTDSRecall:
    """What memory and embeddings say of every item after a batch of histories.

    Args:
        memory: The memory.
        item_text: Text embeddings of the items, (num_items, text_dim).
        item_collaborative: Collaborative embeddings, (num_items, collaborative_dim).
        labels: Brand and category of every item as numbers, -1 for none, (num_items, 2).
        histories: Item rows, newest last, padded with -1, (batch, max_history).
        forbidden: Mask of the items that may not appear; what is said of the others does not
            depend on them, (batch, num_items).
    """

    def __init__(
        self,
        memory: TTDSMemory,
        item_text: Tensor,
        item_collaborative: Tensor,
        labels: Tensor,
        histories: Tensor,
        forbidden: Tensor,
    ):
        self.memory, self.labels, self.histories = memory, labels, histories
        self.item_text, self.item_collaborative = item_text, item_collaborative
        statistics = memory.scores(histories, decays=(0.5, 0.0, 0.8))
        self.last = histories[:, -1]  # (batch,)
        popularity = memory.popularity / memory.popularity.max().clamp_min(1)
        counts = (statistics[..., 0] + 1e-6 * popularity).masked_fill(forbidden, 0)
        self.counts = counts / counts.sum(1, keepdim=True).clamp_min(1e-12)
        self.follow, self.company = statistics[..., 1], statistics[..., 2]
        newest = memory.scores(histories[:, -NEWEST:], decays=(0.0, 0.7, 0.0))
        self.newest_follow, self.last_company = newest[..., 1], newest[..., 2]
        self.strongest, self.links = memory.strongest(histories[:, -SHOWN:])
        similarity = profile(item_text, histories, 0.6) @ item_text.T / TEXT_TEMPERATURE
        self.text = similarity.masked_fill(forbidden, -torch.inf).softmax(1).nan_to_num(0)
        self.collaborative = profile(item_collaborative, histories, 0.6) @ item_collaborative.T
        self.blend = (self.counts + BLEND * self.text).masked_fill(forbidden, -1)

    def candidates(self, number: int) -> Tensor:
        """Return the items best by the blend of counts and text, padded with -1, (batch, number).

        Args:
            number: How many per user.
        """
        best, items = self.blend.topk(min(number, self.blend.shape[1]), dim=1)
        return items.masked_fill(best < 0, -1)

    def features(self, items: Tensor, log_probs: Tensor | None) -> Tensor:
        """Return the features of candidates, (batch, num_candidates, num_features).

        Args:
            items: Item rows, (batch, num_candidates).
            log_probs: The language model's log-probability of each candidate's codes up to each
                level, (batch, num_candidates, num_levels), or None to leave its features at zero.
        """
        histories, last = self.histories, self.last.clamp_min(0)
        some = (self.last >= 0)[:, None]
        shown = histories[:, -SHOWN:]
        text, collaborative = self.item_text[items], self.item_collaborative[items]
        real = histories >= 0
        length = real.sum(1, keepdim=True).float()
        _, late, recent, era = self.memory.items.unbind(1)
        past_era = (era[histories.clamp_min(0)] * real).sum(1, keepdim=True) / length.clamp_min(1)
        era_step = (era[items] - era[last][:, None]) * some
        same = (self.labels[items] == self.labels[last][:, None]) & (self.labels[items] >= 0)
        zero = torch.zeros(items.shape, device=items.device)
        lm = zero if log_probs is None else log_probs[..., -1]
        columns = {
            "counts": self.counts.gather(1, items),
            "text": self.text.gather(1, items),
            "last_text": torch.einsum("bcd,bd->bc", text, self.item_text[last]) * some,
            "nearest_text": _nearest(text, self.item_text, shown),
            "newest_text": torch.einsum(
                "bcd,bd->bc", text, profile(self.item_text, histories[:, -NEWEST:], 1.0)
            ),
            "nearest_collaborative": _nearest(collaborative, self.item_collaborative, shown),
            "collaborative": self.collaborative.gather(1, items),
            "last_collaborative": torch.einsum(
                "bcd,bd->bc", collaborative, self.item_collaborative[last]
            )
            * some,
            "log_popularity": self.memory.popularity[items].log1p(),
            "brand": (same[..., 0] & some).float(),
            "category": (same[..., 1] & some).float(),
            "log_length": length.log1p().expand_as(zero),
            "log_last_total": (self.memory.totals(last)[:, None] * some).log1p().expand_as(zero),
            "links": self.links.gather(1, items),
            "log_late": late[items].log1p(),
            "log_recent": recent[items].log1p(),
            "era": era[items],
            "era_step": era_step,
            "era_distance": era_step.abs(),
            "history_era_distance": (era[items] - past_era).abs() * some,
            "lm": lm,
            "lm_gap": lm - lm.amax(1, keepdim=True),
            "lm_first": zero if log_probs is None else log_probs[..., 0],
        }
        columns["log_counts"] = (columns["counts"] + FLOOR).log()
        columns["log_text"] = (columns["text"] + FLOOR).log()
        for name in ("follow", "company", "newest_follow", "last_company", "strongest"):
            columns[f"log_{name}"] = (getattr(self, name).gather(1, items) + FLOOR).log()
        columns["log_blend"] = (columns["counts"] + BLEND * columns["text"] + FLOOR).log()
        return torch.stack([columns[name] for name in FEATURES], dim=-1)


def _nearest(candidates: Tensor, table: Tensor, histories: Tensor) -> Tensor:
    """Return each candidate's highest similarity to an item of the history, (batch, candidates)."""
    similarity = torch.einsum("bcd,bhd->bch", candidates, table[histories.clamp_min(0)])
    return similarity.masked_fill((histories < 0)[:, None], -1).amax(-1)


def profile(table: Tensor, histories: Tensor, decay: float) -> Tensor:
    """Return the unit recency-weighted mean of the history's embeddings, (batch, dim).

    Args:
        table: Embeddings of the items, (num_items, dim).
        histories: Item rows, newest last, padded with -1, (batch, max_history).
        decay: Weight of an item per step into the past.
    """
    real = histories >= 0
    steps_back = real.flip(1).cumsum(1).flip(1) - 1
    weights = decay**steps_back * real
    mean = torch.einsum("bh,bhd->bd", weights.to(table.dtype), table[histories.clamp_min(0)])
    return F.normalize(mean, dim=-1)
