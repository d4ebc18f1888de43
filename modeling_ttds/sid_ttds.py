"""A unique semantic ID for every item: collisions are resolved with few moves."""

import numpy as np
import torch
from torch import Tensor


def check_room(num_items: int, num_levels: int, num_codes: int) -> None:
    """Refuse more items than there are semantic IDs.

    Args:
        num_items: How many items need one.
        num_levels: Codes of a semantic ID.
        num_codes: Codes of a level.

    Raises:
        ValueError: There are too few.
    """
    if num_items > num_codes**num_levels:
        raise ValueError(
            f"`num_codes` ** `num_levels` is {num_codes**num_levels}, too few for {num_items} "
            "items; raise `num_codes` or `num_levels`."
        )


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
    check_room(len(codes) + len(taken), num_levels, num_codes)
    quantised = sum(codebooks[level][codes[:, level]] for level in range(num_levels))
    distances = (latents - quantised).square().sum(-1).detach().cpu().numpy()
    order = distances.argsort(kind="stable")
    paths, used = codes.cpu().numpy().copy(), taken.cpu().numpy()
    keys = _keys(np.concatenate([used, paths[order]]), num_codes)
    stays = np.zeros(len(paths), dtype=bool)
    stays[order] = _first_and_free(keys[len(used) :], keys[: len(used)])
    movers = order[~stays[order]]
    if len(movers):
        latents, codebooks = latents.float().cpu().numpy(), codebooks.detach().float().cpu().numpy()
        occupancy = _Occupancy(np.concatenate([used, paths[stays]]), num_codes)
        for item in movers:
            paths[item] = occupancy.take_nearest_free(latents[item], codebooks)
    return torch.from_numpy(paths).to(codes)


def _keys(paths: np.ndarray, num_codes: int) -> np.ndarray:
    """Return an integer per path, the same for the same path, (num_paths,)."""
    keys, bound = np.zeros(len(paths), dtype=np.int64), 1
    for codes in paths.T:
        if bound * num_codes > 2**62:  # number those that occur, so that it fits
            keys, bound = np.unique(keys, return_inverse=True)[1], len(keys)
        keys, bound = keys * num_codes + codes, bound * num_codes
    return keys


def _first_and_free(keys: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Return which keys occur for the first time and are not taken, (num_keys,)."""
    different, first = np.unique(keys, return_index=True)
    free = np.ones(len(different), dtype=bool)
    if len(different):  # few are looked up for many taken: those need no order
        place = np.searchsorted(different, taken).clip(max=len(different) - 1)
        free[place[different[place] == taken]] = False
    marked = np.zeros(len(keys), dtype=bool)
    marked[first[free]] = True
    return marked


class _Occupancy:
    """How many semantic IDs are used below each prefix, counted where somebody asks."""

    def __init__(self, paths: np.ndarray, num_codes: int):
        self.num_codes = num_codes
        self.paths = paths.astype(np.min_scalar_type(num_codes - 1))  # narrow ones sort fast
        self.below = {(): np.arange(len(paths))}  # rows of the paths below a prefix
        self.loads: dict[tuple[int, ...], np.ndarray] = {}  # per child of a prefix

    def children(self, prefix: tuple[int, ...]) -> np.ndarray:
        """Return how many semantic IDs are used below each child of a prefix, (num_codes,)."""
        if prefix not in self.loads:
            rows = self.below.pop(prefix, np.arange(0))
            codes = self.paths[rows, len(prefix)]
            loads = self.loads[prefix] = np.bincount(codes, minlength=self.num_codes)
            if len(rows) and len(prefix) < self.paths.shape[1] - 1:
                used = loads.nonzero()[0]
                rows = rows[codes.argsort(kind="stable")]
                parts = np.split(rows, loads[used].cumsum()[:-1])
                self.below |= zip(((*prefix, code) for code in used.tolist()), parts, strict=True)
        return self.loads[prefix]

    def take_nearest_free(self, latent: np.ndarray, codebooks: np.ndarray) -> tuple[int, ...]:
        """Return the free path found first going down to the nearest child with room; use it up."""
        num_levels = len(codebooks)
        prefix, residual = (), latent
        for level, vectors in enumerate(codebooks):
            loads = self.children(prefix)
            distances = ((residual - vectors) ** 2).sum(-1)
            room = loads < self.num_codes ** (num_levels - level - 1)
            code = int(np.where(room, distances, np.inf).argmin())
            prefix, residual = (*prefix, code), residual - vectors[code]
        for level, code in enumerate(prefix):
            self.loads[prefix[:level]][code] += 1
        return prefix
