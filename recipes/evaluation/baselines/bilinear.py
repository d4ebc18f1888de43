"""A bilinear similarity: a matrix that says whose embeddings come after whose."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from modeling_ttds.recommendation_ttds import pad_rows
from modeling_ttds.towers_ttds import profile
from recipes.data.split import Split
from recipes.evaluation.baselines.fit import best_weights
from recipes.evaluation.baselines.rank import rank
from recipes.evaluation.metrics import rank_metrics

DECAYS = (0.9, 0.6, 0.0)


@dataclass(frozen=True)
class BilinearSettings:
    """Settings of a bilinear similarity.

    Args:
        scale: Weight of the plain cosine similarity it starts from.
        learning_rate: Of Adam at the start; it falls to zero as a cosine.
        num_epochs: Epochs over the training positions.
        batch_size: Positions per step.
        max_history: How many of the newest items are read.
    """

    scale: float = 5.0
    learning_rate: float = 2e-3
    num_epochs: int = 4
    batch_size: int = 256
    max_history: int = 50


class BilinearSimilarity:
    """Scores items by `profiles @ weight @ items.T`, a profile being a mean of a history's items.

    A history has a profile per decay, the weight of an item per step into the past; the last is its
    newest item alone. The weight starts as identities: the mean of their cosine similarities.

    Args:
        tables: Embeddings of the items, each (num_items, dim) with unit or zero rows.
        settings: Its settings.
    """

    def __init__(self, tables: list[Tensor], settings: BilinearSettings):
        self.tables, self.settings = tables, settings
        self.items = torch.cat(tables, 1)  # (num_items, width of all tables)
        start = torch.eye(self.items.shape[1]) * settings.scale / len(DECAYS)
        self.weight = start.repeat(len(DECAYS), 1).requires_grad_()

    def over(self, tables: list[Tensor]) -> "BilinearSimilarity":
        """Return the same similarity over other items, of embeddings of the same widths."""
        other = BilinearSimilarity(tables, self.settings)
        other.weight = self.weight
        return other

    def logits(self, histories: list[np.ndarray]) -> Tensor:
        """Score the catalogue, (batch, num_items).

        Args:
            histories: Item rows per user, newest last, none empty.
        """
        newest = [history[-self.settings.max_history :] for history in histories]
        rows = pad_rows(newest, None, self.items.device)
        profiles = [profile(table, rows, decay) for decay in DECAYS for table in self.tables]
        return torch.cat(profiles, 1) @ self.weight @ self.items.T


def fit_bilinear(
    split: Split,
    tables: list[Tensor],
    settings: BilinearSettings,
    seed: int,
    stop_after: int | None = None,
) -> tuple[BilinearSimilarity, int]:
    """Fit a similarity on the training positions, as of its best epoch on the validation targets.

    Args:
        split: The split.
        tables: As of `BilinearSimilarity`.
        settings: Settings of model and training.
        seed: Seed of the order.
        stop_after: As of `best_weights`.

    Returns:
        The similarity and the number of its epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    model = BilinearSimilarity(tables, settings)
    shown = [history[:end] for history in split.training for end in range(1, len(history))]
    targets = torch.from_numpy(np.concatenate([history[1:] for history in split.training]))
    optimizer = torch.optim.Adam([model.weight], settings.learning_rate)
    steps = settings.num_epochs * -(-len(shown) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    chosen = split.validation_targets[split.users("validation")]

    def train() -> None:
        for batch in torch.randperm(len(shown), generator=generator).split(settings.batch_size):
            logits = model.logits([shown[i] for i in batch.tolist()])
            loss = F.cross_entropy(logits, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def ndcg() -> float:
        lists = rank_bilinear(model, split, "validation", 10)
        return rank_metrics(lists.tolist(), chosen)["NDCG@10"]

    best, epoch = best_weights(
        "similarity",
        settings.num_epochs,
        train,
        ndcg,
        lambda: {"weight": model.weight},
        stop_after=stop_after,
    )
    model.weight = best["weight"]
    return model, epoch


def rank_bilinear(model: BilinearSimilarity, split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank the catalogue for every user with a target.

    Args:
        model: A fitted similarity.
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.

    Returns:
        Item rows, (num_users_with_target, top_k); items of the history are left out.
    """

    @torch.no_grad()
    def scores(users: np.ndarray) -> np.ndarray:
        return model.logits([split.history(user, which) for user in users]).numpy()

    return rank(split, which, top_k, scores)
