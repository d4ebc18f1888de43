"""Parts that the ablation switches off."""

import pytest
import torch

from benchmarks.without import PARTS


@pytest.fixture(params=[(), ("node_logits",), ("item_vectors",), tuple(PARTS)], ids="+".join)
def parts(request, monkeypatch):
    for part in request.param:
        for owner, name, replacement in PARTS[part]:
            assert hasattr(owner, name)
            monkeypatch.setattr(owner, name, replacement)
    return request.param


@pytest.fixture
def drawn(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in (model.item_reader.weight, *model.node_head.parameters()):
            weight.normal_()
    return model


def change(model, rows):
    """Give items the embeddings of one another."""
    for table in (model.item_text, model.item_collaborative):
        table[rows] = table[rows.roll(1)]


@torch.no_grad()
def test_without_node_logits_the_embeddings_of_what_may_come_say_nothing(parts, drawn):
    ids = [entry["item_id"] for entry in drawn.catalogue]

    def scores():
        found = drawn.recommend([ids[:3]], len(ids), rerank=False, memory=False, num_beams=200)
        return torch.tensor([found.score for found in sorted(found[0], key=lambda x: x.item_id)])

    before = scores()
    change(drawn, torch.arange(3, len(ids)))
    assert torch.allclose(scores(), before, atol=1e-5) == ("node_logits" in parts)


@torch.no_grad()
def test_without_both_parts_the_embeddings_of_a_history_say_nothing(parts, drawn):
    ids = [entry["item_id"] for entry in drawn.catalogue]
    prompt = torch.tensor([drawn.tokenizer.encode_items(ids[:3])])
    before = drawn(input_ids=prompt).logits
    change(drawn, torch.arange(3))
    assert torch.allclose(drawn(input_ids=prompt).logits, before) == (set(parts) == set(PARTS))
