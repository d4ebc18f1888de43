"""A unique semantic ID for every item: collisions are resolved with few moves."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor


def unique_sids(latents: Tensor, codebooks: Tensor, codes: Tensor, taken: Tensor) -> Tensor:
    """Return semantic IDs that no two items share and that are not taken, moving few items.

    Of the items that share one the nearest to it stays (none, where it is taken);
    the others go to the free one found first by a depth-first walk that tries nearer codebook
    vectors before farther ones, so a move changes the last level wherever it has room.

    Args:
        latents: What the tower's encoder says of the items, (num_items, code_dim).
        codebooks: Codebook vectors, (num_levels, num_codes, code_dim).
        codes: The nearest semantic IDs of the items, (num_items, num_levels).
        taken: Semantic IDs that may not be used, (num_taken, num_levels).

    Raises:
        ValueError: There are more items than semantic IDs.
    """
    num_levels, num_codes, _ = codebooks.shape
    if len(codes) + len(taken) > num_codes**num_levels:
        raise ValueError(
            f"`num_codes` ** `num_levels` is {num_codes**num_levels}, too few for "
            f"{len(codes) + len(taken)} items; raise `num_codes` or `num_levels`."
        )
    quantised = sum(codebooks[level][codes[:, level]] for level in range(num_levels))
    distances = (latents - quantised).square().sum(-1).tolist()
    latents, codebooks = latents.float().cpu().numpy(), codebooks.detach().float().cpu().numpy()
    paths = [tuple(path) for path in codes.tolist()]
    used = {tuple(path) for path in taken.tolist()}
    load = Counter(path[:depth] for path in used for depth in range(1, num_levels))
    movers = []
    for item in sorted(range(len(paths)), key=distances.__getitem__):
        if paths[item] in used:
            movers.append(item)
        else:
            _occupy(paths[item], used, load)
    for item in movers:
        paths[item] = _nearest_free((), latents[item], codebooks, used, load)
        _occupy(paths[item], used, load)
    return torch.tensor(paths, dtype=codes.dtype, device=codes.device).view(codes.shape)


def _occupy(path: tuple[int, ...], used: set, load: Counter) -> None:
    used.add(path)
    load.update(path[:depth] for depth in range(1, len(path)))


def _nearest_free(
    prefix: tuple[int, ...], residual: np.ndarray, codebooks: np.ndarray, used: set, load: Counter
) -> tuple[int, ...]:
    num_levels, num_codes, _ = codebooks.shape
    level = len(prefix)
    vectors = codebooks[level]
    capacity = num_codes ** (num_levels - level - 1)
    for code in ((residual - vectors) ** 2).sum(-1).argsort(kind="stable").tolist():
        path = (*prefix, code)
        if level == num_levels - 1:
            if path not in used:
                return path
        elif load[path] < capacity:
            return _nearest_free(path, residual - vectors[code], codebooks, used, load)
    raise AssertionError("a prefix with room has a free path")
