"""Build the memory from training histories and fit the gate on validation targets."""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from modeling_ttds.memory_ttds import FEATURES, TTDSGate, TTDSMemory
from recipes.baselines import transition_matrix

LONGEST = 50


def build_memory(histories: list[np.ndarray], num_items: int, min_count: int = 1) -> TTDSMemory:
    """Count what follows what, and who buys what together, in one pass over the histories.

    Args:
        histories: Item rows in order, per user; the newest 50 of each count.
        num_items: Size of the catalogue.
        min_count: Least number of users behind a pair; rarer pairs are dropped.
    """
    histories = [history[-LONGEST:] for history in histories]
    transition = transition_matrix(histories, num_items)
    pairs = [(h[:-1], h[1:]) for h in histories if len(h) > 1]
    before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
    follow = sp.coo_matrix((np.ones(len(before)), (before, after)), shape=transition.shape).tocsr()
    follow = sp.diags(1 / np.sqrt(np.maximum(np.asarray(follow.sum(1)).ravel(), 1))) @ follow
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    bought = sp.csr_matrix(
        (np.ones(len(users)), (users, np.concatenate(histories))),
        shape=(len(histories), num_items),
    )
    popularity = np.asarray(bought.sum(0)).ravel()
    bought.data[:] = 1
    together = (bought.T @ bought).tocsr()
    roots = sp.diags(1 / np.sqrt(np.maximum(together.diagonal(), 1)))
    company = (roots @ together @ roots).tocsr()
    for matrix in (together, company):
        matrix.setdiag(0)
        matrix.eliminate_zeros()
    kept = (together >= min_count).astype(float)
    kept = ((transition != 0) + (follow != 0) + (company != 0)).astype(float).multiply(kept).tocsr()
    kept.sort_indices()
    memory = TTDSMemory(num_items, kept.nnz)
    memory.starts.copy_(torch.from_numpy(kept.indptr))
    memory.others.copy_(torch.from_numpy(kept.indices))
    rows = np.repeat(np.arange(num_items), np.diff(kept.indptr))
    for column, matrix in enumerate((transition, follow, company)):
        values = np.asarray(sp.csr_matrix(matrix)[rows, kept.indices]).ravel()
        memory.values[:, column] = torch.from_numpy(values)
    memory.popularity.copy_(torch.from_numpy(popularity))
    return memory


def fit_gate(
    features: Tensor,
    target: Tensor,
    *,
    num_epochs: int = 40,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> TTDSGate:
    """Fit a gate by softmax cross-entropy over candidates.

    Args:
        features: (num_users, num_candidates, num_features).
        target: Which candidate each user chose, -1 where it is none of them, (num_users,).
        num_epochs: Passes over the users.
        batch_size: Users per step.
        learning_rate: Of AdamW.
        seed: Seed of weights, order and dropout.
    """
    torch.manual_seed(seed)
    features, target = features[target >= 0], target[target >= 0]
    gate = TTDSGate(len(FEATURES))
    flat = features.flatten(0, 1)
    gate.mean.copy_(flat.mean(0))
    gate.std.copy_(flat.std(0).clamp_min(1e-6))
    optimizer = torch.optim.AdamW(gate.parameters(), lr=learning_rate, weight_decay=1e-2)
    steps = num_epochs * -(-len(features) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gate.train()
    for _ in range(num_epochs):
        for rows in torch.randperm(len(features)).split(batch_size):
            loss = F.cross_entropy(gate(features[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return gate.eval()
