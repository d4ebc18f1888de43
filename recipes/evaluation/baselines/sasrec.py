"""SASRec (Kang & McAuley 2018) with cross-entropy over the whole catalogue."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from recipes.data.split import Split
from recipes.evaluation.baselines.fit import best_weights
from recipes.evaluation.baselines.rank import CHUNK, rank

POOL = 16  # batches whose histories are sorted by length together


@dataclass(frozen=True)
class SASRecSettings:
    """Settings of a SASRec.

    Args:
        hidden_size: Width of items and layers.
        num_layers: Layers.
        num_heads: Heads of a layer.
        dropout: Dropout of embeddings and layers.
        max_history: How many of the newest items are read.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        batch_size: Users per step.
        max_epochs: Most epochs over the users.
        patience: Epochs without a better validation NDCG@10 after which it stops.
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.5
    max_history: int = 50
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 128
    max_epochs: int = 100
    patience: int = 5


class SASRec(nn.Module):
    """A causal transformer over item embeddings that scores the next item by the same embeddings.

    Args:
        num_items: Size of the catalogue.
        settings: Its settings.
    """

    def __init__(self, num_items: int, settings: SASRecSettings):
        super().__init__()
        self.settings = settings
        width = settings.hidden_size
        self.items = nn.Embedding(num_items, width)
        self.positions = nn.Embedding(settings.max_history, width)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                settings.num_heads,
                dim_feedforward=width,
                dropout=settings.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        """Return what is known after each item, (batch, length, hidden_size).

        Args:
            items: Item rows, oldest first, padded right, (batch, length). No padding mask is
                needed: a position sees what precedes it only.
        """
        length = items.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        hidden = self.items(items) * self.settings.hidden_size**0.5
        hidden = self.dropout(hidden + self.positions.weight[:length])
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the catalogue, (..., num_items).

        Args:
            hidden: Of `forward`, (..., hidden_size).
        """
        return hidden @ self.items.weight.T

    def loss(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean cross-entropy of every next item among all items.

        Args:
            items: Item rows, oldest first, padded right, (batch, length).
            lengths: How many are real, (batch,).
        """
        real = torch.arange(1, items.shape[1], device=items.device) < lengths[:, None]
        hidden = self(items[:, :-1])[real]  # (positions, hidden_size)
        return F.cross_entropy(self.logits(hidden), items[:, 1:][real])


def fit_sasrec(
    split: Split, settings: SASRecSettings, seed: int, stop_after: int | None = None
) -> tuple[SASRec, int]:
    """Fit a SASRec on the training histories, as of its best epoch on the validation targets.

    Args:
        split: The split.
        settings: Settings of model and training.
        seed: Seed of weights, order and dropout.
        stop_after: As of `best_weights`.

    Returns:
        The model and the number of its epoch.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    model = SASRec(split.num_items, settings)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    histories = [h[-settings.max_history - 1 :] for h in split.training if len(h) > 1]

    def train() -> None:
        model.train()
        for batch in _batches(histories, settings.batch_size, order):
            loss = model.loss(*_padded(batch, model.items.weight.device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    best, epoch = best_weights(
        "SASRec",
        settings.max_epochs,
        train,
        lambda: _validation_ndcg(model, split),
        model.state_dict,
        settings.patience,
        stop_after,
    )
    model.load_state_dict(best)
    return model.eval(), epoch


def rank_sasrec(model: SASRec, split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank the catalogue for every user with a target; items that came after the fit are left out.

    Args:
        model: A fitted model.
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.

    Returns:
        Item rows, (num_users_with_target, top_k); items of the history are left out.
    """
    model.eval()
    return rank(split, which, top_k, lambda users: _scores(model, split, which, users).numpy())


@torch.no_grad()
def _scores(model: SASRec, split: Split, which: str, users: np.ndarray) -> Tensor:
    """Return the scores of the whole catalogue on the CPU, (num_users, num_items)."""
    fitted = model.items.num_embeddings
    histories = [split.history(user, which) for user in users]
    histories = [h[h < fitted][-model.settings.max_history :] for h in histories]
    order = np.argsort([len(history) for history in histories])
    known = []
    for part in np.array_split(order, min(POOL, len(order))):  # little is padding
        shown = [histories[i] if len(histories[i]) else np.zeros(1, dtype=int) for i in part]
        items, lengths = _padded(shown, model.items.weight.device)
        known.append(model(items)[torch.arange(len(part), device=items.device), lengths - 1])
    known = torch.cat(known)[np.argsort(order)]
    known[[not len(history) for history in histories]] = 0  # nothing is known: no item is better
    scores = model.logits(known).cpu()
    return F.pad(scores, (0, split.num_items - fitted), value=-torch.inf)


def _validation_ndcg(model: SASRec, split: Split) -> float:
    """Return NDCG@10 of `rank_sasrec` by counting what beats the target: nothing is sorted."""
    model.eval()
    total, users = 0.0, split.users("validation")
    for part in np.array_split(users, -(-len(users) // CHUNK)):
        scores = _scores(model, split, "validation", part)
        targets = torch.from_numpy(split.targets("validation")[part])[:, None]
        own = scores.gather(1, targets)
        rows = np.repeat(np.arange(len(part)), [len(split.training[user]) for user in part])
        scores[rows, np.concatenate([split.training[user] for user in part])] = -torch.inf
        ranks = (scores > own).sum(1) + 1
        ranks[scores.gather(1, targets)[:, 0] == -torch.inf] = 11  # a target of the history
        total += float(((ranks <= 10) / (ranks + 1).log2()).sum())
    return total / len(users)


def _batches(
    histories: Sequence[np.ndarray], batch_size: int, order: np.random.Generator
) -> Iterator[list[np.ndarray]]:
    """Deal all histories into batches of similar lengths, so that little of them is padding."""
    dealt = order.permutation(len(histories))
    batches = []
    for first in range(0, len(dealt), POOL * batch_size):
        pool = sorted(dealt[first : first + POOL * batch_size], key=lambda i: len(histories[i]))
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    for position in order.permutation(len(batches)):
        yield [histories[i] for i in batches[position]]


def _padded(histories: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return item rows padded right with 0, (batch, length), and lengths, (batch,)."""
    rows = [torch.tensor(history) for history in histories]
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), lengths.to(device)
