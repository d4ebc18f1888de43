"""Fit what the profiles of histories say of the nodes, before the language model is tuned."""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm

from modeling_ttds import entities_ttds, nodes_ttds, trie_ttds
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.nodes_ttds import TTDSHistory
from recipes.index.embeddings import cached_fit, hashed

MOST_STEPS = 1500  # of a fit: what two epochs of 36,000 users take
LONGEST = 50  # newest items of a history that are read
FILES = (__file__, entities_ttds.__file__, nodes_ttds.__file__, trie_ttds.__file__)
CODE = [Path(file).read_text("utf-8") for file in FILES]


def fit_profiles(
    model: TTDSForCausalLM,
    training: list[np.ndarray],
    *,
    num_epochs: int,
    batch_size: int = 48,
    learning_rate: float = 2e-3,
    pair_learning_rate: float = 1e-2,
    seed: int,
    folder: Path | None = None,
) -> None:
    """Fit the profiles' weights of the node head, and the vectors of pairs, without any state.

    Together with the language model the weights would learn less: it fits the training histories
    first. The profiles' weights are held from then on, the vectors of pairs go on learning.

    Args:
        model: A model with embeddings and SID table; its node head is fitted in place.
        training: Item rows per user, oldest first.
        num_epochs: Epochs over the users, or as many as 1,500 steps allow; none leaves everything
            to the tuning.
        batch_size: Users per step.
        learning_rate: Of Adam for the profiles' weights; it falls to zero as a cosine.
        pair_learning_rate: The same for the vectors of pairs.
        seed: Seed of order and dropout.
        folder: Keeps the finished fit; the same fit is not made twice.
    """
    histories = [history[-LONGEST - 1 :] for history in training if len(history) > 1]
    if not num_epochs or not histories:
        return
    weights = [model.node_head.level(level)[1] for level in range(model.trie.num_levels)]
    pairs = list(model.node_pairs.parameters()) if model.config.pair_dim else []

    def fit() -> None:
        groups = [{"params": weights, "lr": learning_rate}]
        if pairs:
            groups.append({"params": pairs, "lr": pair_learning_rate})
        optimizer = torch.optim.Adam(groups)
        steps = min(num_epochs * -(-len(histories) // batch_size), MOST_STEPS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        epochs = (torch.randperm(len(histories)).split(batch_size) for _ in range(num_epochs))
        batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
        model.train()
        with tqdm(batches, desc="fit profiles", unit="step", total=steps) as progress:
            for users in progress:
                loss = profile_loss(model, [histories[user] for user in users.tolist()])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
        model.zero_grad()

    torch.manual_seed(seed)
    for weight in weights:
        weight.requires_grad_(True)
    config = model.config
    shown = torch.from_numpy(np.concatenate([*histories, [len(h) for h in histories]]))
    key = {
        "data": hashed(*model.state_dict().values(), shown),
        "settings": [num_epochs, batch_size, learning_rate, pair_learning_rate, seed],
        "dropout": [config.item_vector_dropout, config.pair_dropout],
        "code": CODE,
    }
    cached_fit(folder, "profiles", nn.ParameterList([*weights, *pairs]), key, fit, seed)
    for weight in weights:
        weight.requires_grad_(False)


def profile_loss(model: TTDSForCausalLM, histories: list[np.ndarray]) -> Tensor:
    """Return the mean loss of every item but the first, given the profiles of those before it.

    Args:
        model: The model.
        histories: Item rows per user, oldest first.
    """
    rows = [torch.tensor(history, dtype=torch.long) for history in histories]
    items = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    items = items.to(model.device)
    before, targets = items[:, :-1], items[:, 1:]
    profiles = model.profiles_after(before, torch.zeros_like(before))[:, 1:]
    real = targets >= 0
    history, targets = TTDSHistory(profiles[real], before[real]), targets[real]
    states = profiles.new_zeros(len(targets), model.config.backbone_config.hidden_size)
    # A gradient of zero even where every child on the way is an only one.
    loss = sum(weight.sum() for weight in model.node_head.parameters()) * 0
    for level in range(model.trie.num_levels):
        nodes, child = (model.trie.node_of(targets, depth) for depth in (level, level + 1))
        several = model.trie.ranges(nodes, level)[1] > 1  # an only child is certain
        if several.any():
            asked = states[several], history[several], nodes[several], level
            logits, children = model.node_logits(*asked)
            chosen = child[several] - children[:, 0]
            loss = loss + F.cross_entropy(logits, chosen, reduction="sum") / len(targets)
    return loss
