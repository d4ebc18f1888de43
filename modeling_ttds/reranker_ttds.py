"""Re-ranker: scores candidates from co-occurrence, text, time and the language model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .cooccurrence_ttds import TTDSCooccurrence, TTDSNeighbours
from .entries_ttds import TTDSLabels
from .nearest_ttds import nearest_texts
from .nodes_ttds import TTDSNodeTable
from .precision_ttds import TTDSFloat32
from .towers_ttds import profile
from .trie_ttds import TTDSCandidates

FEATURES = (
    "counts", "log_counts", "text", "log_text", "log_follow", "log_cooccurrence", "last_text",
    "nearest_text", "collaborative", "last_collaborative", "log_popularity", "brand", "category",
    "log_length", "log_last_total", "log_blend", "nearest_collaborative", "newest_text",
    "log_strongest", "links", "log_last_cooccurrence", "log_newest_follow", "log_late",
    "log_recent", "era", "era_step", "era_distance", "history_era_distance", "lm", "lm_gap",
    "lm_first", "generated", "generated_gap",
)  # fmt: skip
MODEL_FEATURES = ("lm", "lm_gap", "lm_first", "generated", "generated_gap")
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
    """What co-occurrence memory and embeddings say of items after a batch of histories.

    Nothing here is as long as the catalogue but one product with the texts of a small one.

    Args:
        cooccurrence: The co-occurrence memory.
        item_text: Text embeddings of the items, (num_items, text_dim).
        item_collaborative: Collaborative embeddings, (num_items, collaborative_dim).
        labels: Brand and category of items as numbers, -1 for none, indexed by rows.
        histories: Item rows, newest last, padded with -1, (batch, max_history).
        allowed: What may appear; what is said of it does not depend on the rest.
        table: What lies below the nodes of the items' trie.
        number: How many candidates are proposed.
    """

    def __init__(
        self,
        cooccurrence: TTDSCooccurrence,
        item_text: Tensor,
        item_collaborative: Tensor,
        labels: TTDSLabels,
        histories: Tensor,
        allowed: TTDSCandidates,
        table: TTDSNodeTable,
        number: int,
    ):
        self.memory, self.labels, self.histories = cooccurrence, labels, histories
        self.item_text, self.item_collaborative = item_text, item_collaborative
        self.allowed, self.number = allowed, min(number, len(item_text))
        self.last = histories[:, -1]  # (batch,)
        self.found = TTDSNeighbours(cooccurrence, histories)
        sums = self.found.sums(decays=(0.5, 0.0, 0.8))
        newest = self.found.sums(decays=(0.0, 0.7, 0.0), newest=NEWEST)[:, 1:]
        self.statistics = torch.cat([sums, newest, self.found.strongest(SHOWN)], 1)
        self.query = profile(item_text, histories, 0.6) / TEXT_TEMPERATURE
        self.profile = profile(item_collaborative, histories, 0.6)
        self.most = cooccurrence.popularity[cooccurrence.popular(1)].sum().clamp_min(1)
        items = self.found.keys - self.found.users * self.found.num_items
        transition = sums[:, 0] * allowed.may_appear(items, self.found.users)
        self.transition = self.found.rows_of(transition[:, None])[..., 0]
        self.total = self.transition.sum(1, keepdim=True) + self._rarely(self._popularity())
        self.nearest, self.log_total, self.similarity = nearest_texts(
            self.query, item_text, allowed, self.number, table
        )

    def _popularity(self) -> Tensor:
        """Return the summed popularity of what may appear, (batch, 1)."""
        popularity, allowed, trie = self.memory.popularity, self.allowed.allowed, self.allowed.trie
        every = popularity.sum() if allowed is None else popularity[allowed].sum()
        gone = self.allowed.places < len(trie.order)
        items = trie.order[self.allowed.places.clamp_max(len(trie.order) - 1)]
        return every - (popularity[items] * gone).sum(1, keepdim=True)

    def _rarely(self, popularity: Tensor) -> Tensor:
        # What popularity adds to counts, so that there is an order where nothing was counted.
        return 1e-6 * popularity / self.most

    def _may_appear(self, items: Tensor) -> Tensor:
        rows = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        return self.allowed.may_appear(items, rows)

    def counts(self, items: Tensor) -> Tensor:
        """Return the share of items in the transitions from the history, (batch, num_candidates).

        Args:
            items: Item rows, (batch, num_candidates).
        """
        transition = self.found.at(items, self.statistics[:, :1])[..., 0]
        counts = transition + self._rarely(self.memory.popularity[items])
        return counts * self._may_appear(items) / self.total.clamp_min(1e-12)

    def text(self, items: Tensor) -> Tensor:
        """Return the softmax over the catalogue of likeness of text, (batch, num_candidates).

        Args:
            items: Item rows, (batch, num_candidates).
        """
        if self.similarity is not None:
            similarity = self.similarity.gather(1, items)
        else:
            text = F.embedding(items, self.item_text)
            similarity = torch.einsum("bcd,bd->bc", text, self.query)
        return (similarity - self.log_total[:, None]).exp() * self._may_appear(items)

    def candidates(self) -> Tensor:
        """Return the items best by the blend of counts and text, padded with -1, (batch, number).

        They are sought among the best neighbours of the history, the nearest texts and the most
        popular items.
        """
        width = min(self.number, self.transition.shape[1])
        best = self.transition.topk(width, dim=1).indices
        sought = [self.found.items.gather(1, best), self.nearest]
        popular = self.memory.popular(self.number + self.allowed.places.shape[1])
        if self.allowed.allowed is not None:
            popularity = self.memory.popularity.masked_fill(~self.allowed.allowed, -1)
            popular = popularity.topk(len(popular)).indices
        sought.append(popular.expand(len(best), -1))
        items = torch.cat(sought, 1).sort(1).values
        real = (items >= 0) & self._may_appear(items.clamp_min(0))
        real[:, 1:] &= items[:, 1:] != items[:, :-1]
        known = items.clamp_min(0)
        blend = (self.counts(known) + BLEND * self.text(known)).masked_fill(~real, -1)
        best, place = blend.topk(self.number, dim=1)
        return items.gather(1, place).masked_fill(best < 0, -1)

    def features(self, items: Tensor, log_probs: Tensor | None, generated: Tensor | None) -> Tensor:
        """Return the features of candidates, (batch, num_candidates, num_features).

        Args:
            items: Item rows, (batch, num_candidates).
            log_probs: The language model's log-probability of each candidate's semantic ID up to
                each level, (batch, num_candidates, num_levels), or None to leave its features at
                zero.
            generated: The log-probability of each candidate by language model and priors, as
                `generated_scores` gives it, or None to leave its features at zero.
        """
        histories, last = self.histories, self.last.clamp_min(0)
        some = (self.last >= 0)[:, None]
        shown = histories[:, -SHOWN:]
        text = F.embedding(items, self.item_text)
        collaborative = F.embedding(items, self.item_collaborative)
        real = histories >= 0
        length = real.sum(1, keepdim=True).float()
        _, late, recent, era = self.memory.items.unbind(1)
        past_era = (era[histories.clamp_min(0)] * real).sum(1, keepdim=True) / length.clamp_min(1)
        era_step = (era[items] - era[last][:, None]) * some
        labels = self.labels[items]
        same = (labels == self.labels[last][:, None]) & (labels >= 0)
        zero = torch.zeros(items.shape, dtype=torch.float32, device=items.device)
        lm = zero if log_probs is None else log_probs[..., -1]
        generated = zero if generated is None else generated
        names = (
            "transition",
            "follow",
            "cooccurrence",
            "newest_follow",
            "last_cooccurrence",
            "strongest",
        )
        statistics = self.found.at(items, self.statistics).unbind(-1)
        columns = {
            "counts": self.counts(items),
            "text": self.text(items),
            "last_text": torch.einsum("bcd,bd->bc", text, self.item_text[last]) * some,
            "nearest_text": _nearest(text, self.item_text, shown),
            "newest_text": torch.einsum(
                "bcd,bd->bc", text, profile(self.item_text, histories[:, -NEWEST:], 1.0)
            ),
            "nearest_collaborative": _nearest(collaborative, self.item_collaborative, shown),
            "collaborative": torch.einsum("bcd,bd->bc", collaborative, self.profile),
            "last_collaborative": torch.einsum(
                "bcd,bd->bc", collaborative, self.item_collaborative[last]
            )
            * some,
            "log_popularity": self.memory.popularity[items].log1p(),
            "brand": (same[..., 0] & some).float(),
            "category": (same[..., 1] & some).float(),
            "log_length": length.log1p().expand_as(zero),
            "log_last_total": (self.memory.totals(last)[:, None] * some).log1p().expand_as(zero),
            "links": statistics[-1],
            "log_late": late[items].log1p(),
            "log_recent": recent[items].log1p(),
            "era": era[items],
            "era_step": era_step,
            "era_distance": era_step.abs(),
            "history_era_distance": (era[items] - past_era).abs() * some,
            "lm": lm,
            "lm_gap": lm - lm.amax(1, keepdim=True),
            "lm_first": zero if log_probs is None else log_probs[..., 0],
            "generated": generated,
            "generated_gap": generated - generated.amax(1, keepdim=True),
        }
        columns["log_counts"] = (columns["counts"] + FLOOR).log()
        columns["log_text"] = (columns["text"] + FLOOR).log()
        for name, values in zip(names[1:], statistics[1:-1], strict=True):
            columns[f"log_{name}"] = (values + FLOOR).log()
        columns["log_blend"] = (columns["counts"] + BLEND * columns["text"] + FLOOR).log()
        return torch.stack([columns[name] for name in FEATURES], dim=-1)


def generated_scores(items: Tensor, beams: Tensor, scores: Tensor) -> Tensor:
    """Return the log-probability that candidates were generated with, (batch, num_candidates).

    What is not among the beams gets a nat less than the last of them: it cannot have had more.

    Args:
        items: Item rows, padded with -1, (batch, num_candidates).
        beams: Item rows found by the search, padded with -1, (batch, num_beams).
        scores: Their log-probabilities, (batch, num_beams).
    """
    if not beams.shape[1]:
        return scores.new_zeros(items.shape)
    least = scores.masked_fill(beams < 0, torch.inf).amin(1, keepdim=True) - 1
    beams, order = beams.sort(1)
    place = torch.searchsorted(beams, items).clamp_max(beams.shape[1] - 1)
    found = (beams.gather(1, place) == items) & (items >= 0)
    scores = scores.gather(1, order).gather(1, place)
    return torch.where(found, scores, least.nan_to_num(posinf=0))


def _nearest(candidates: Tensor, table: Tensor, histories: Tensor) -> Tensor:
    """Return each candidate's highest similarity to an item of the history, (batch, candidates)."""
    similarity = torch.einsum("bcd,bhd->bch", candidates, table[histories.clamp_min(0)])
    return similarity.masked_fill((histories < 0)[:, None], -1).amax(-1)
