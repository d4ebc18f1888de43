"""Dense text: an encoder tuned so that a history's texts lie near the text of what comes next.

After TASTE (Liu et al. 2023, arXiv:2308.14029): one encoder for both sides, an inner product, the
other items of a batch as negatives. No item has weights of its own, so new items need none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, AutoTokenizer

from recipes.data.split import Split
from recipes.evaluation.baselines.fit import best_weights
from recipes.evaluation.baselines.rank import rank
from recipes.evaluation.metrics import rank_metrics


@dataclass(frozen=True)
class DenseTextSettings:
    """Settings of a dense text retriever.

    Args:
        max_history: How many of the newest items' texts are read, the newest first.
        history_tokens: How many tokens of them.
        item_tokens: How many tokens of an item's text.
        temperature: Divides the cosine similarities.
        learning_rate: Of AdamW at the start; it falls to zero in a line.
        batch_size: Positions per step.
        num_epochs: Epochs; one draws a position of every user.
    """

    max_history: int = 5
    history_tokens: int = 96
    item_tokens: int = 32
    temperature: float = 0.05
    learning_rate: float = 1e-4
    batch_size: int = 64
    num_epochs: int = 4


class DenseText(nn.Module):
    """An encoder of histories and items by their texts, mean-pooled to unit length.

    Args:
        encoder: Folder or Hub id of the encoder it starts from.
        settings: Its settings.
    """

    def __init__(self, encoder: str, settings: DenseTextSettings):
        super().__init__()
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        self.encoder = AutoModel.from_pretrained(encoder)

    def forward(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Return unit embeddings, (num_texts, hidden_size).

        Args:
            texts: What to embed.
            max_length: How many of the first tokens are read.
        """
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        ).to(self.encoder.device)
        states = self.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        real = batch.attention_mask[..., None].to(states.dtype)
        return F.normalize((states * real).sum(1) / real.sum(1), dim=-1)

    def of_items(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of items by their texts. Arguments as of `forward`."""
        return self(texts, self.settings.item_tokens)

    def of_histories(self, texts: Sequence[str], histories: Sequence[np.ndarray]) -> Tensor:
        """Return the embeddings of histories.

        Args:
            texts: Of the whole catalogue.
            histories: Item rows, newest last.
        """
        newest = [history[::-1][: self.settings.max_history] for history in histories]
        joined = [". ".join(texts[row] for row in rows) for rows in newest]
        return self(joined, self.settings.history_tokens)

    def loss(
        self, texts: Sequence[str], histories: Sequence[np.ndarray], targets: Sequence[int]
    ) -> Tensor:
        """Return the mean cross-entropy of the targets among those of the batch.

        Args:
            texts: Of the whole catalogue.
            histories: Item rows, newest last.
            targets: Per history, what came next.
        """
        items, places = np.unique(targets, return_inverse=True)  # a target is no negative of itself
        embedded = self.of_items([texts[row] for row in items])
        logits = self.of_histories(texts, histories) @ embedded.T / self.settings.temperature
        return F.cross_entropy(logits, torch.from_numpy(places).to(logits.device))


def fit_dense_text(
    split: Split,
    encoder: str,
    settings: DenseTextSettings,
    seed: int,
    stop_after: int | None = None,
) -> tuple[DenseText, int]:
    """Tune an encoder on training positions, as of its best epoch on the validation targets.

    Args:
        split: The split.
        encoder: As of `DenseText`.
        settings: Settings of model and training.
        seed: Seed of positions, order and dropout.
        stop_after: As of `best_weights`.

    Returns:
        The retriever and the number of its epoch.
    """
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    model = DenseText(encoder, settings).to("cuda" if torch.cuda.is_available() else "cpu")
    texts = split.data.catalogue.texts()
    histories = [history for history in split.training if len(history) > 1]
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.01)
    steps = settings.num_epochs * -(-len(histories) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    chosen = split.validation_targets[split.users("validation")]

    def train() -> None:
        model.train()
        order = draw.permutation(len(histories))
        for first in range(0, len(order), settings.batch_size):
            part = [histories[i] for i in order[first : first + settings.batch_size]]
            places = [int(draw.integers(1, len(history))) for history in part]
            pairs = list(zip(part, places, strict=True))
            shown, targets = [h[:place] for h, place in pairs], [h[place] for h, place in pairs]
            optimizer.zero_grad()
            model.loss(texts, shown, targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    def ndcg() -> float:
        lists = rank_dense_text(model, split, "validation", 10)
        return rank_metrics(lists.tolist(), chosen)["NDCG@10"]

    best, epoch = best_weights(
        "dense text", settings.num_epochs, train, ndcg, model.state_dict, stop_after=stop_after
    )
    model.load_state_dict(best)
    return model.eval(), epoch


@torch.no_grad()
def rank_dense_text(model: DenseText, split: Split, which: str, top_k: int) -> np.ndarray:
    """Rank the catalogue for every user with a target.

    Args:
        model: A fitted retriever.
        split: The split.
        which: `"validation"` or `"test"`.
        top_k: Length of the lists.

    Returns:
        Item rows, (num_users_with_target, top_k); items of the history are left out.
    """
    model.eval()
    texts, step = split.data.catalogue.texts(), model.settings.batch_size
    items = torch.cat(
        [model.of_items(texts[first : first + step]) for first in range(0, len(texts), step)]
    )

    def scores(users: np.ndarray) -> np.ndarray:
        histories = [split.history(user, which) for user in users]
        parts = [histories[first : first + step] for first in range(0, len(histories), step)]
        found = torch.cat([model.of_histories(texts, part) for part in parts])
        return (found @ items.T).cpu().numpy()

    return rank(split, which, top_k, scores)
