"""Node logits against plain loops over the items below a node."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from modeling_ttds import nodes_ttds
from modeling_ttds.configuration_ttds import placeholder_ids
from modeling_ttds.nodes_ttds import (
    PROFILE_DECAYS,
    PROFILE_SCALE,
    TTDSNodeTable,
    history_profiles,
    pair_scores,
)
from modeling_ttds.trie_ttds import TTDSTrie

LEVELS = 3


@pytest.fixture
def random(model):
    """A model whose heads say something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (*model.node_head.parameters(), *model.node_pairs.targets):
            parameter.normal_(std=0.1)
    return model


def profile(model, history):
    """Return the profiles of a history by plain loops, (num_profiles, dim)."""
    rows = []
    for decay in PROFILE_DECAYS:
        parts = []
        for table in (model.item_text, model.item_collaborative):
            total = torch.zeros(table.shape[1])
            for back, item in enumerate(reversed(history)):
                total += decay**back * table[item]
            parts.append(F.normalize(total, dim=0))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@torch.no_grad()
def test_node_logits_are_second_order_sums_over_the_items_below(random):
    history, level = [4, 9, 30], 1
    node = int(random.trie.node_of(torch.tensor([7]), level))
    state = torch.randn(random.config.backbone_config.hidden_size)
    profiles = profile(random, history)
    of_state, of_profiles = random.node_head.level(level)
    query = state @ of_state + PROFILE_SCALE / len(PROFILE_DECAYS) * profiles.sum(0)
    query = query + profiles.flatten() @ of_profiles
    own = random.level_logits(state, "item", level)
    ids = torch.tensor([[i for row in history for i in placeholder_ids("item", row, LEVELS)]])
    context = random.context(ids)
    known = context.histories[torch.tensor([0]), context.slots[:, -1]]
    logits, children = random.node_logits(state[None], known, torch.tensor([node]), level)
    for logit, child in zip(logits[0], children[0], strict=True):
        if logit == -math.inf:
            continue
        below = [i for i in range(len(random.item_sids))
                 if int(random.trie.node_of(torch.tensor([i]), level + 1)) == child]  # fmt: skip
        vectors = torch.stack([random.item_vectors(torch.tensor(i)) for i in below])
        expected = own[random.item_sids[below[0], level]] + math.log(len(below))
        expected += query @ vectors.mean(0)
        expected += query.square() @ vectors.var(0, unbiased=False) / 2
        pairs = random.node_pairs
        expected += pairs.source[history[-1]] @ pairs.targets[level][child]
        assert logit.item() == pytest.approx(expected.item(), abs=0.02)  # tables in half precision


@torch.no_grad()
def test_the_expansion_is_near_the_log_of_the_sum(random):
    """Of items near each other, the node's logit is what their own would add up to."""
    vectors = F.normalize(torch.randn(1, 40), dim=1) + 0.1 * torch.randn(30, 40)
    query = torch.randn(40)
    exact = (vectors @ query).logsumexp(0)
    found = math.log(30) + vectors.mean(0) @ query
    found = found + vectors.var(0, unbiased=False) @ query.square() / 2
    assert abs(found - exact) < 0.1 * abs(exact)


@torch.no_grad()
@pytest.mark.parametrize("enough", [-1, 10**9], ids=["products", "pairs"])
@pytest.mark.parametrize("dense", [0, 10**9], ids=["only item", "row a node"])
@torch.no_grad()
def test_ranges_of_children_are_scored_as_one_by_one(enough, dense, monkeypatch):
    monkeypatch.setitem(nodes_ttds.PAIRS, "cpu", enough)
    monkeypatch.setitem(nodes_ttds.STEP, "cpu", 7)
    monkeypatch.setattr(nodes_ttds, "DENSE", dense)
    draw = torch.Generator().manual_seed(3)
    sids = torch.randint(0, 3, (60, LEVELS), generator=draw)  # some share a leaf
    embeddings = (torch.randn(60, 5, generator=draw), torch.randn(60, 2, generator=draw))
    trie = TTDSTrie.build(sids)
    table = TTDSNodeTable.build(trie, embeddings, torch.empty(0, 0))
    whole = torch.cat(embeddings, 1)
    for depth in range(LEVELS):
        parents = torch.arange(len(trie.codes[depth])).repeat(2)
        parents = parents[torch.randperm(len(parents), generator=draw)]
        first, count = trie.ranges(parents, depth)
        query = torch.randn(len(parents), 7, generator=draw)
        expected = []
        for q, begin, length in zip(query, first.tolist(), count.tolist(), strict=True):
            for child in range(begin, begin + length):
                start, end = trie.first_item[depth + 1][child : child + 2].tolist()
                below = whole[trie.order[start:end]]
                score = math.log(len(below)) + q @ below.mean(0)
                if depth + 1 < LEVELS:
                    score = score + q.square() @ below.var(0, correction=0) / 2
                expected.append(score)
        scores = pair_scores(query, first, count, depth + 1, table)
        assert torch.allclose(scores, torch.stack(expected), atol=2e-2)  # half precision
    nothing = torch.empty(0, dtype=torch.long)
    assert len(pair_scores(torch.empty(0, 7), nothing, nothing, 1, table)) == 0


def test_a_history_may_be_placeholders_or_sid_tokens_and_starts_anew_in_a_packed_row(random):
    rows = [4, 9, 30]
    placeholders = torch.tensor(
        [[5, *sum((placeholder_ids("item", r, LEVELS) for r in rows), []), 6]]
    )
    spelt = random.bind(placeholders)
    for ids in (placeholders, spelt):
        context = random.context(ids)
        found = context.histories[torch.tensor([0]), context.slots[:, -1]]
        torch.testing.assert_close(found.profiles[0], profile(random, rows))
        assert found.newest.tolist() == [30]
        assert context.items[0].tolist() == [-1, -1, -1, 4, -1, -1, 9, -1, -1, 30, -1]
        assert context.depth[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0]
    packed = torch.cat([spelt, spelt[:, :4]], 1)
    positions = torch.tensor([[*range(11), *range(4)]])
    context = random.context(packed, positions)
    slots = context.slots[0, [10, 11, 13, 14]]
    for slot, history in zip(slots, [rows, [], [], [4]], strict=True):
        torch.testing.assert_close(context.histories.profiles[0, slot], profile(random, history))


def test_no_item_begins_in_one_history_and_ends_in_another(random):
    spelt = random.bind(torch.tensor([placeholder_ids("item", 4, LEVELS)]))
    positions = torch.arange(LEVELS)[None]
    assert random.context(spelt, positions).items[0, -1] == 4
    for cut in range(1, LEVELS):  # one row ends with an item's beginning, the next has its rest
        apart = torch.cat([positions[:, :cut], positions[:, : LEVELS - cut]], 1)
        context = random.context(spelt, apart)
        assert (context.items == -1).all() and not context.depth[0, cut:].any()


@torch.no_grad()
def test_ids_that_are_not_seen_say_nothing(random):
    # Whatever stands under a mask of 0, in one pass, in a cache and while generating.
    item = [placeholder_ids("item", row, LEVELS) for row in (4, 9, 30)]
    ids = torch.tensor([[*item[0], 5, *item[1], 6], [5, 6, 7, 8, *item[1], 6]])
    other = torch.tensor([[*item[2], 5, *item[1], 6], [*item[0], 8, *item[1], 6]])
    mask = torch.ones_like(ids)
    mask[0, :LEVELS] = mask[1, :LEVELS] = 0
    one, two = (random(input_ids=x, attention_mask=mask).logits[:, LEVELS:] for x in (ids, other))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(random(input_ids=ids).logits[:, LEVELS:], one)
    options = {
        "attention_mask": mask, "max_new_tokens": 3, "do_sample": False, "eos_token_id": None,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    for more in ({}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}):
        one, two = (random.generate(input_ids=x, **options, **more).logits for x in (ids, other))
        torch.testing.assert_close(torch.stack(one), torch.stack(two))


def test_profiles_reach_no_item_that_comes_later():
    text, collaborative = torch.randn(9, 4), torch.randn(9, 3)
    items, segments = torch.tensor([[1, 2, 3, -1]]), torch.zeros(1, 4, dtype=torch.long)
    before = history_profiles((text, collaborative), items, segments)
    text[3], collaborative[3] = 7.0, 7.0
    after = history_profiles((text, collaborative), items, segments)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3], before[:, 3])
    assert not before[:, 0].any()


@torch.no_grad()
def test_pairs_follow_their_nodes_when_items_come_and_go(random):
    def logits():
        trie, newest = random.trie, torch.tensor([9])
        found = {}
        for depth in range(1, LEVELS + 1):
            nodes = torch.arange(len(trie.codes[depth]))
            scores = random.node_pairs(newest, nodes, depth)[0]
            paths = map(tuple, trie.paths(depth).tolist())
            found |= dict(zip(paths, scores.tolist(), strict=True))
        return found

    before = logits()
    random.add_items([{"item_id": "new", "title": "kettle"}, {"item_id": "other", "title": "tent"}])
    after = logits()
    assert all(after[path] == score for path, score in before.items())
    assert all(score == 0 for path, score in after.items() if path not in before)
    random.remove_items(["new", "other"])
    assert logits() == before
    assert random.config.pair_nodes == [len(codes) for codes in random.trie.codes[1:]]


def test_gradients_reach_every_part_of_the_heads(random, states):
    random.attach_users(states.histories())
    ids = [*placeholder_ids("user", 3, LEVELS)]
    # A node's only child is certain: the target has a sibling at every level.
    alike = (random.item_sids[:, None, :-1] == random.item_sids[None, :, :-1]).all(2).sum(1)
    target = int((alike > 1).nonzero()[-1])
    ids += [i for row in (1, 2, target) for i in placeholder_ids("item", row, LEVELS)]
    labels = [-100] * 6 + ids[6:]
    random.train()(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
    heads = [*random.node_head.parameters(), random.item_reader.weight]
    for parameter in (*heads, random.node_pairs.source, *random.node_pairs.targets):
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0


def test_a_new_model_starts_from_the_plain_similarity_of_profiles_and_children(built):
    config = type(built.config)(**built.config.to_dict())
    fresh = type(built)(config)
    for level in range(LEVELS):
        assert not any(weight.any() for weight in fresh.node_head.level(level))
    assert fresh.item_reader.weight.std() > 0 and not any(t.any() for t in fresh.node_pairs.targets)


def test_paths_lead_back_to_their_nodes():
    trie = TTDSTrie.build(torch.randint(0, 5, (40, 3), generator=torch.Generator().manual_seed(0)))
    for depth in range(1, 4):
        nodes = trie.walk(trie.paths(depth))[-1]
        assert nodes.tolist() == list(range(len(trie.codes[depth])))
