"""Epochs of a baseline that is trained: the weights that are best on the validation targets."""

from collections.abc import Callable

from torch import Tensor
from tqdm.auto import tqdm


def best_weights(
    name: str,
    num_epochs: int,
    train: Callable[[], None],
    ndcg: Callable[[], float],
    weights: Callable[[], dict[str, Tensor]],
    patience: int | None = None,
    stop_after: int | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Train epoch by epoch; return the weights of the epoch of the best NDCG, and its number.

    Args:
        name: What the progress bar calls it.
        num_epochs: Most epochs.
        train: Trains for one epoch.
        ndcg: Measures the model as it is.
        weights: Returns its weights.
        patience: Epochs without a better NDCG after which it stops; None never stops early.
        stop_after: The number of the epoch that is taken, where it has been chosen before: nothing
            is measured then.
    """
    if stop_after is not None:
        for _ in tqdm(range(stop_after), desc=name, unit="epoch"):
            train()
        return weights(), stop_after
    best, best_epoch, kept = -1.0, 0, {}
    with tqdm(range(num_epochs), desc=name, unit="epoch") as epochs:
        for epoch in epochs:
            train()
            found = ndcg()
            if found > best:
                best, best_epoch = found, epoch
                kept = {key: value.detach().clone() for key, value in weights().items()}
            epochs.set_postfix(ndcg=f"{found:.4f}", best=f"{best:.4f}", at=best_epoch + 1)
            if patience is not None and epoch - best_epoch >= patience:
                break
    return kept, best_epoch + 1
