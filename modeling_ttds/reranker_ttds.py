"""Re-ranker: scores candidates from co-occurrence, text, time and the language model."""

import torch
from torch import Tensor, nn

from .cooccurrence_ttds import TTDSCooccurrence
from .precision_ttds import TTDSFloat32
from .towers_ttds import profile

FEATURES = (
    "counts", "log_counts", "text", "log_text", "log_follow", "log_cooccurrence", "last_text",
    "nearest_text", "collaborative", "last_collaborative", "log_popularity", "brand", "category",
    "log_length", "log_last_total", "log_blend", "nearest_collaborative", "newest_text",
    "log_strongest", "links", "log_last_cooccurrence", "log_newest_follow", "log_late",
    "log_recent", "era", "era_step", "era_distance", "history_era_distance", "lm", "lm_gap",
    "lm_first",
)  # fmt: skip
MODEL_FEATURES = ("lm", "lm_gap", "lm_first")
TEXT_TEMPERATURE = 0.07
BLEND = 0.3
FLOOR = 1e-4
NEWEST, SHOWN = 3, 10  # how many of the newest items some features look at


class TTDSSharedDropout(nn.Module):
    """Dropout with one mask for all candidates of a user: half the time, and no worse.

    Args:
        rate: Share of the numbers left out.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what is left, scaled, (batch, num_candidates, hidden_dim).

        Args:
            hidden: (batch, num_candidates, hidden_dim).
        """
        if not self.training or not self.rate:
            return hidden
        mask = torch.rand(len(hidden), 1, hidden.shape[-1], device=hidden.device) >= self.rate
        return hidden * (mask / (1 - self.rate))


class TTDSReranker(TTDSFloat32):
    """Scores candidates from features of co-occurrence, embeddings and language model.

    Args:
        num_features: Number of features.
        hidden_dim: Width of both hidden layers.
        dropout: Dropout after each.
    """

    def __init__(self, num_features: int, hidden_dim: int = 128, dropout: float = 0.1):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden_dim),
            nn.GELU(),
            TTDSSharedDropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            TTDSSharedDropout(dropout),
            nn.Linear(hidden_dim, 1),
        )
        self.float()  # where a model is made in half precision too

    def forward(self, features: Tensor) -> Tensor:
        """Return a score per candidate, (batch, num_candidates).

        Args:
            features: (batch, num_candidates, num_features).
        """
        return self.layers((features - self.mean) / self.std).squeeze(-1)


class TTDSRecall:
    """What co-occurrence memory and embeddings say of every item after a batch of histories.

    Args:
        cooccurrence: The co-occurrence memory.
        item_text: Text embeddings of the items, (num_items, text_dim).
        item_collaborative: Collaborative embeddings, (num_items, collaborative_dim).
        labels: Brand and category of every item as numbers, -1 for none, (num_items, 2).
        histories: Item rows, newest last, padded with -1, (batch, max_history).
        forbidden: Mask of the items that may not appear; what is said of the others does not
            depend on them, (batch, num_items).
    """

    def __init__(
        self,
        cooccurrence: TTDSCooccurrence,
        item_text: Tensor,
        item_collaborative: Tensor,
        labels: Tensor,
        histories: Tensor,
        forbidden: Tensor,
    ):
        self.memory, self.labels, self.histories = cooccurrence, labels, histories
        self.item_text, self.item_collaborative = item_text, item_collaborative
        statistics = cooccurrence.scores(histories, decays=(0.5, 0.0, 0.8))
        self.last = histories[:, -1]  # (batch,)
        popularity = cooccurrence.popularity / cooccurrence.popularity.max().clamp_min(1)
        counts = (statistics[..., 0] + 1e-6 * popularity).masked_fill(forbidden, 0)
        self.counts = counts / counts.sum(1, keepdim=True).clamp_min(1e-12)
        self.follow, self.cooccurrence = statistics[..., 1], statistics[..., 2]
        newest = cooccurrence.scores(histories[:, -NEWEST:], decays=(0.0, 0.7, 0.0))
        self.newest_follow, self.last_cooccurrence = newest[..., 1], newest[..., 2]
        self.strongest, self.links = cooccurrence.strongest(histories[:, -SHOWN:])
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
            log_probs: The language model's log-probability of each candidate's semantic ID up to
                each level, (batch, num_candidates, num_levels), or None to leave its features at
                zero.
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
        for name in ("follow", "cooccurrence", "newest_follow", "last_cooccurrence", "strongest"):
            columns[f"log_{name}"] = (getattr(self, name).gather(1, items) + FLOOR).log()
        columns["log_blend"] = (columns["counts"] + BLEND * columns["text"] + FLOOR).log()
        return torch.stack([columns[name] for name in FEATURES], dim=-1)


def _nearest(candidates: Tensor, table: Tensor, histories: Tensor) -> Tensor:
    """Return each candidate's highest similarity to an item of the history, (batch, candidates)."""
    similarity = torch.einsum("bcd,bhd->bch", candidates, table[histories.clamp_min(0)])
    return similarity.masked_fill((histories < 0)[:, None], -1).amax(-1)
