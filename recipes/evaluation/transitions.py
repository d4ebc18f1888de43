"""Whether a target repeats a transition of training or composes several: MemGen's categories."""

from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from recipes.data.split import Split

LONGEST = 4  # steps between two items that count as linked


@lru_cache(maxsize=4)
def transitions(split: Split, which: str) -> dict[str, np.ndarray]:
    """Return what a right answer takes, a boolean per user of `split.users(which)`.

    As of Ding et al. 2026 (arXiv:2603.19809) and their code. Two items are linked where one follows
    the other within as many steps of a training history as the user's history has items, four at
    most.

    Args:
        split: The split the targets come from.
        which: `"validation"` or `"test"`.

    Returns:
        `memorised` (the target follows the history's last item in training, at once),
        `generalised` (it does not, and is linked with one of the last four items, in either
        direction, or both are with a third one) and `novel` (neither).
    """
    users = split.users(which)
    targets = split.targets(which)[users]
    newest = [split.history(user, which)[-LONGEST:] for user in users]
    lengths = np.array([len(history) for history in newest])
    follows, memorised = _follows(split, 1), np.zeros(len(users), dtype=bool)
    some = np.flatnonzero(lengths)
    last = [newest[i][-1] for i in some]
    memorised[some] = np.asarray(follows[last, targets[some]]).ravel() > 0
    linked = np.zeros(len(users), dtype=bool)
    for steps in range(1, LONGEST + 1):
        members = np.flatnonzero(lengths == steps)
        if not len(members):
            continue
        links = _follows(split, steps)
        links = (links + links.T).tocsr()
        rows = np.repeat(np.arange(len(members)), steps)
        items = np.concatenate([newest[i] for i in members])
        ones = np.ones(len(rows), dtype=np.float32)
        shape = (len(members), split.num_items)
        near = sp.csr_matrix((ones, (rows, items)), shape=shape) @ links
        at_once = np.asarray(near[np.arange(len(members)), targets[members]]).ravel() > 0
        by_another = np.asarray(near.multiply(links[targets[members]]).sum(1)).ravel() > 0
        linked[members] = at_once | by_another
    return {
        "memorised": memorised,
        "generalised": linked & ~memorised,
        "novel": ~linked & ~memorised,
    }


def _follows(split: Split, steps: int) -> sp.csr_matrix:
    """Return ones where an item follows another within so many steps in training."""
    pairs = [
        (history[:-lag], history[lag:])
        for lag in range(1, steps + 1)
        for history in split.training
        if len(history) > lag
    ]
    shape = (split.num_items, split.num_items)
    if not pairs:
        return sp.csr_matrix(shape, dtype=np.float32)
    before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
    matrix = sp.csr_matrix((np.ones(len(before), dtype=np.float32), (before, after)), shape=shape)
    matrix.data[:] = 1
    return matrix
