"""Trie, beam search and constraint against exhaustive scoring of a small catalogue."""

import itertools

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LogitsProcessorList, Qwen2Config

from modeling_ttds.configuration_ttds import TTDSConfig, placeholder_ids
from modeling_ttds.generation_ttds import TTDSConstraint, beam_search, score_items
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.trie_ttds import TTDSCandidates, TTDSTrie

START, LEVELS, CODES, ITEMS = 100, 3, 8, 60
SHAPES = {
    "llama untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "qwen2 tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "gpt2": (GPT2Config, {}),
}


def make_model(shape="llama untied", attention="sdpa"):
    torch.manual_seed(0)
    config_class, extra = SHAPES[shape]
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    if config_class is GPT2Config:
        backbone = GPT2Config(vocab_size=192, n_embd=32, n_layer=2, n_head=2, eos_token_id=0)
    else:
        backbone = config_class(
            vocab_size=192, intermediate_size=64, num_key_value_heads=1, **sizes, **extra
        )
    tower = dict(text_dim=6, collaborative_dim=4, num_levels=LEVELS, num_codes=CODES, code_dim=4)
    config = TTDSConfig(
        backbone_config=backbone, item_tower=tower, user_tower=tower, num_items=ITEMS,
        sid_token_start=START, prompt_ids=[5, 3, 6, 2], item_placeholder_id=2,
        user_placeholder_id=3, max_history=4, attn_implementation=attention, pad_token_id=0,
    )  # fmt: skip
    model = TTDSForCausalLM(config).eval()
    with torch.no_grad():
        model.codebook_projections.weight.normal_(std=0.3)
        model.item_text.normal_()
        model.user_tower.codebooks.mul_(0.1)
    paths = torch.tensor(list(itertools.product(range(CODES), repeat=LEVELS)))
    model.item_sids.copy_(paths[torch.randperm(len(paths))[:ITEMS]])
    with torch.no_grad():
        for parameter in model.node_head.parameters():
            parameter.normal_(std=0.1)
        model.item_reader.weight.normal_(std=0.3)
    model.catalogue = [{"item_id": f"i{row}", "title": f"Title {row}"} for row in range(ITEMS)]
    return model


@torch.no_grad()
def exhaustive(model, prompt):
    """Score every item by running it alone behind the prompt."""
    scores = torch.zeros(len(model.item_sids))
    for row, codes in enumerate(model.item_sids):
        tokens = START + torch.arange(LEVELS) * CODES + codes
        logits = model(input_ids=torch.cat([prompt, tokens])[None]).logits[0]
        for level in range(LEVELS):
            # The next code is one of those that items with the same codes before it have.
            alike = model.item_sids[(model.item_sids[:, :level] == codes[:level]).all(1), level]
            children = alike.unique()
            block = logits[len(prompt) - 1 + level, START + level * CODES + children]
            scores[row] += block.log_softmax(-1)[children == codes[level]][0]
    return scores


def spelt(row):
    return (START + torch.arange(LEVELS) * CODES + make_model().item_sids[row]).tolist()


def prompts():
    ids = torch.randint(4, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, 3:] = 0
    ids[0, 2 : 2 + 2 * LEVELS] = torch.tensor([*spelt(3), *spelt(8)])  # a history, as SID tokens
    ids[1, 2 : 2 + LEVELS] = torch.tensor(placeholder_ids("item", 5, LEVELS))  # as placeholders
    return ids, mask


def everything(model, batch=3):
    return TTDSCandidates(model.trie, None, torch.empty(batch, 0, dtype=torch.long))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_wide_beams_are_exhaustive(shape, attention):
    model = make_model(shape, attention)
    ids, mask = prompts()
    items, scores = beam_search(model, ids, mask, everything(model), num_beams=100)
    some = torch.randint(0, ITEMS, (3, 17))
    exact = score_items(model, ids, mask, model.trie, some)
    for row in range(3):
        expected = exhaustive(model, ids[row][mask[row].bool()])
        order = expected.argsort(descending=True, stable=True)
        assert items[row].tolist() == order.tolist()
        torch.testing.assert_close(scores[row], expected[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(exact[row, :, -1], expected[some[row]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_beams", [1, 5, 20])
@torch.no_grad()
def test_generate_with_the_constraint_gives_the_same_lists(num_beams):
    model = make_model()
    ids = prompts()[0][:1]
    items, scores = beam_search(model, ids, torch.ones_like(ids), everything(model, 1), num_beams)
    outputs = model.generate(
        input_ids=ids, num_beams=num_beams, num_return_sequences=num_beams, do_sample=False,
        max_new_tokens=LEVELS, length_penalty=0.0, eos_token_id=None, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
        logits_processor=LogitsProcessorList(
            [TTDSConstraint(model.trie, ids.shape[1], START, CODES)]
        ),
    )  # fmt: skip
    tokens = START + torch.arange(LEVELS) * CODES + model.item_sids[items[0]]
    assert outputs.sequences[:, ids.shape[1] :].tolist() == tokens.tolist()
    if num_beams > 1:
        torch.testing.assert_close(outputs.sequences_scores, scores[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_shared_codes_share_a_score_in_row_order():
    model = make_model()
    model.item_sids[40] = model.item_sids[7]
    ids, mask = prompts()
    items, scores = beam_search(model, ids, mask, everything(model), num_beams=100)
    assert items.shape == (3, ITEMS)
    place = items[0].tolist().index(7)
    assert items[0, place + 1] == 40 and scores[0, place] == scores[0, place + 1]


def test_trie_holds_exactly_the_items():
    codes = torch.tensor([[2, 0], [0, 1], [0, 0], [2, 0]])
    trie = TTDSTrie.build(codes)
    children, real = trie.children(torch.zeros(1, dtype=torch.long), 0)
    assert trie.codes[1][children[real]].tolist() == [0, 2]
    assert trie.order.tolist() == [2, 1, 0, 3]
    assert trie.node_of(torch.arange(4), 2).tolist() == [2, 1, 0, 2]
    assert trie.first_item[2].tolist() == [0, 1, 2, 4]
    walked = trie.walk(torch.tensor([[2, 0], [0, 1], [1, 0], [2, 1]]))
    assert [nodes.tolist() for nodes in walked] == [[0] * 4, [1, 0, -1, 1], [2, 1, -1, -1]]


@torch.no_grad()
def test_allowed_and_seen_items():
    model = make_model()
    full = [r.item_id for r in model.recommend([["i1", "i2"]], top_k=58)[0]]
    assert len(full) == 58 and not {"i1", "i2"} & set(full)
    allowed = [f"i{row}" for row in range(0, 30, 3)]
    found = [r.item_id for r in model.recommend([["i1", "i3"]], top_k=20, allowed=allowed)[0]]
    full = [r.item_id for r in model.recommend([["i1", "i3"]], top_k=60, exclude_seen=False)[0]]
    assert found == [item for item in full if item in allowed and item != "i3"]
    narrow = model.recommend([["i1"]], top_k=3, allowed=allowed, num_beams=3)[0]
    assert len(narrow) == 3 and {r.item_id for r in narrow} <= set(allowed)
    assert model.recommend([["i3"]], allowed=["i3"])[0] == []


@torch.no_grad()
def test_batches_equal_one_by_one_and_keep_order():
    model = make_model()
    histories = [["i1", "i2", "i3"], [], ["i9"], [f"i{n}" for n in range(40)]]
    together = model.recommend(histories, top_k=7, batch_size=3)
    for history, found in zip(histories, together, strict=True):
        alone = model.recommend([history], top_k=7)[0]
        assert [r.item_id for r in found] == [r.item_id for r in alone]
        assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
        assert found[0].title == f"Title {found[0].item_id[1:]}"


@torch.no_grad()
def test_only_the_newest_of_a_long_history_is_read():
    model = make_model()
    long = [f"i{n % 50}" for n in range(5000)]
    options = {"top_k": 5, "exclude_seen": False}
    assert model.recommend([long], **options) == model.recommend([long[-4:]], **options)
    assert len(model.recommend([long], top_k=10)[0]) == 10, "fifty seen items are left out"
    model.item_text[7] = model.item_text[11] = 1.0  # alike
    past = ["i7", "i1", "i2", "i3", "i4"]
    (why,), (newer,) = (model.explain(history, ["i11"]) for history in (past, past[1:]))
    assert why == newer and why.resembles != "i7"
    assert model.explain(past[:4], ["i11"])[0].resembles == "i7"


@torch.no_grad()
def test_user_histories_change_the_user_only():
    model = make_model()
    own = model.recommend([["i1"]], user_histories=[["i1"]], exclude_seen=False)
    assert own == model.recommend([["i1"]], exclude_seen=False)
    other = model.recommend([["i1"]], user_histories=[["i20", "i30"]], exclude_seen=False)
    assert [r.score for r in other[0]] != [r.score for r in own[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"histories": [["i1", "zz"]]}, "History 0 holds the unknown item 'zz'"),
        ({"histories": ["i1"]}, "give a list of histories"),
        ({"histories": [[]], "top_k": 61}, "`top_k` is 61; it must be from 1 to the 60 items"),
        ({"histories": [[]], "top_k": 0}, "`top_k` is 0"),
        ({"histories": [[]], "num_beams": 5}, "`num_beams` is 5; it must be at least `top_k` 10"),
        ({"histories": [[]], "unknown": "drop"}, "`unknown` is 'drop'"),
        ({"histories": [[]], "allowed": ["zz"]}, "unknown item 'zz'"),
        ({"histories": [[]], "user_histories": []}, "`user_histories` has 0 entries for 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model().recommend(**arguments)


def test_unknown_items_can_be_skipped_and_training_mode_stays():
    model = make_model().train()
    found = model.recommend([["i1", "zz"]], unknown="skip", exclude_seen=False)
    assert model.training
    assert found == model.recommend([["i1"]], exclude_seen=False)


def test_a_changed_index_is_a_new_trie():
    model = make_model()
    first = model.trie
    assert model.trie is first
    model.item_sids[0] = torch.tensor([7, 7, 7])
    assert model.trie is not first and model.trie.node_of(torch.tensor([0]), 1) >= 0


def test_no_code_follows_the_last_level():
    model = make_model()
    constraint = TTDSConstraint(model.trie, 2, START, CODES)
    ids = torch.tensor([[5, 6, *spelt(3)]])
    with pytest.raises(ValueError, match=f"past the {LEVELS} levels.*max_new_tokens={LEVELS}"):
        constraint(ids, torch.zeros(1, 192))
