"""The nearest texts: by one product exactly, down the trie nearly."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from modeling_ttds import nearest_ttds
from modeling_ttds.nearest_ttds import nearest_texts
from modeling_ttds.nodes_ttds import TTDSNodeTable
from modeling_ttds.trie_ttds import TTDSCandidates, TTDSTrie

GROUPS, PARTS, EACH, DIM, NUMBER = 30, 12, 20, 16, 25
ITEMS = GROUPS * PARTS * EACH


@pytest.fixture(scope="module")
def shop():
    """Texts in groups of groups, and the trie that says so."""
    draw = torch.Generator().manual_seed(0)
    group = torch.randn(GROUPS, 1, 1, DIM, generator=draw)
    part = torch.randn(GROUPS, PARTS, 1, DIM, generator=draw) / 2
    item = torch.randn(GROUPS, PARTS, EACH, DIM, generator=draw) / 4
    text = F.normalize((group + part + item).flatten(0, 2), dim=-1)
    rows = torch.arange(ITEMS)
    sids = torch.stack([rows // (PARTS * EACH), rows // EACH % PARTS, rows % EACH], 1)
    trie = TTDSTrie.build(sids)
    other = torch.randn(ITEMS, 3, generator=draw)
    query = text[torch.randint(0, ITEMS, (8,), generator=draw)] / 0.07
    return text, trie, TTDSNodeTable.build(trie, (text, other), torch.zeros(0, 0)), query


@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("restricted", [False, True])
def test_nearest_texts_and_the_sum_over_all(shop, monkeypatch, small, restricted):
    monkeypatch.setattr(nearest_ttds, "SMALL", small)
    monkeypatch.setattr(nearest_ttds, "COMPARED", 600)
    text, trie, table, query = shop
    excluded = (query @ text.T).topk(2, dim=1).indices
    allowed = torch.arange(ITEMS) % 3 > 0 if restricted else None
    candidates = TTDSCandidates(trie, allowed, excluded)
    found, total, every = nearest_texts(query, text, candidates, NUMBER, table)
    assert (every is None) == (not small or restricted), "all are compared in a small catalogue"
    if every is not None:
        torch.testing.assert_close(every, query @ text.T)
    scores = (query @ text.T).scatter(1, excluded, -torch.inf)
    if restricted:
        scores = scores.masked_fill(~allowed, -torch.inf)
    expected = scores.topk(NUMBER, dim=1).indices
    shared = (found[..., None] == expected[:, None]).any(-1).float().mean()
    assert shared == 1 if small else shared > 0.9
    assert scores.gather(1, found).isfinite().all(), "what may not appear does not"
    torch.testing.assert_close(total, scores.logsumexp(1), atol=1e-4 if small else 0.1, rtol=0)


def test_fewer_than_wanted_are_padded(shop, monkeypatch):
    text, trie, table, query = shop
    allowed = torch.zeros(ITEMS, dtype=torch.bool)
    allowed[[3, 7, 900]] = True
    for small in (0, 10**6):
        monkeypatch.setattr(nearest_ttds, "SMALL", small)
        candidates = TTDSCandidates(trie, allowed, torch.full((8, 1), 7))
        found, total, _ = nearest_texts(query, text, candidates, NUMBER, table)
        assert all(set(row) - {-1} == {3, 900} for row in found.tolist())
        expected = (query @ text[[3, 900]].T).logsumexp(1)
        torch.testing.assert_close(total, expected, atol=1e-3, rtol=1e-3)
