"""Unique semantic IDs against a plain reference, and what they cost beside many."""

import time
from collections import Counter

import numpy as np
import pytest
import torch

from modeling_ttds.sid_ttds import unique_sids


def reference(latents, codebooks, codes, taken):
    """The definition, with sets of paths: the nearest stays, the others take the nearest free."""
    num_levels, num_codes, _ = codebooks.shape
    quantised = sum(codebooks[level][codes[:, level]] for level in range(num_levels))
    distances = (latents - quantised).square().sum(-1).tolist()
    paths = [tuple(path) for path in codes.tolist()]
    used = {tuple(path) for path in taken.tolist()}
    movers = []
    for item in sorted(range(len(paths)), key=distances.__getitem__):
        if paths[item] in used:
            movers.append(item)
        used.add(paths[item])
    load = Counter(path[:depth] for path in used for depth in range(num_levels + 1))
    for item in movers:
        prefix, residual = (), latents[item].numpy()
        for level, vectors in enumerate(codebooks.numpy()):
            nearest = ((residual - vectors) ** 2).sum(-1).argsort(kind="stable").tolist()
            room = num_codes ** (num_levels - level - 1)
            code = next(code for code in nearest if load[(*prefix, code)] < room)
            prefix, residual = (*prefix, code), residual - vectors[code]
        load.update(prefix[:depth] for depth in range(num_levels + 1))
        paths[item] = prefix
    return torch.tensor(paths)


def drawn(num_items, num_taken, num_levels, num_codes, seed):
    """Latents in clumps, their nearest codes, and taken paths, half of them among those."""
    random = torch.Generator().manual_seed(seed)
    codebooks = torch.randn(num_levels, num_codes, 3, generator=random)
    latents = torch.randn(num_items, 3, generator=random)
    latents = latents[torch.randint(max(1, num_items // 3), (num_items,), generator=random)]
    latents = latents + 0.05 * torch.randn(num_items, 3, generator=random)
    codes, residual = [], latents
    for codebook in codebooks:
        codes.append(torch.cdist(residual, codebook).argmin(-1))
        residual = residual - codebook[codes[-1]]
    codes = torch.stack(codes, 1)
    taken = torch.randint(num_codes, (num_taken, num_levels), generator=random)
    taken[: num_taken // 2] = codes[: num_taken // 2][: len(taken[: num_taken // 2])]
    return latents, codebooks, codes, taken.unique(dim=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "shape",
    [(40, 20, 3, 4), (64, 0, 3, 4), (30, 30, 2, 8), (1, 9, 2, 4), (20, 20, 11, 64)],
    ids=str,
)
def test_as_the_reference(shape, seed):
    drawing = drawn(*shape, seed)
    found = unique_sids(*drawing)
    assert torch.equal(found, reference(*drawing))
    everything = torch.cat([found, drawing[3]])
    assert len(everything.unique(dim=0)) == len(everything)


def test_the_last_free_ones_are_found_and_one_more_is_refused():
    latents, codebooks, codes, _ = drawn(5, 0, 2, 3, 0)
    taken = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0]])
    found = unique_sids(latents, codebooks, codes, taken)
    assert len(torch.cat([found, taken]).unique(dim=0)) == 9
    with pytest.raises(ValueError, match="is 9, too few for 10 items"):
        unique_sids(latents, codebooks, codes, torch.cat([taken, taken[:1]]))


@pytest.mark.parametrize(("num_new", "seconds"), [(1, 0.5), (10_000, 5)])
def test_new_items_beside_a_million_cost_little(num_new, seconds):
    places = np.random.default_rng(0).choice(64**4, 1_000_000, replace=False)
    taken = torch.from_numpy(np.stack(np.unravel_index(places, (64,) * 4), 1))
    latents, codebooks, codes, _ = drawn(num_new, 0, 4, 64, 0)
    codes[:1] = taken[:1]
    begun = time.process_time()
    found = unique_sids(latents, codebooks, codes, taken)
    assert time.process_time() - begun < seconds
    assert len(torch.cat([found, taken]).unique(dim=0)) == 1_000_000 + num_new
