"""`generate` after a next-item prompt: valid items only, and the lists of `recommend`."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from modeling_ttds.generation_ttds import TTDSConstraint
from modeling_ttds.trie_ttds import TTDSCandidates
from tests.model.test_generation import CODES, ITEMS, LEVELS, SHAPES, START, make_model

OPTIONS = {"do_sample": False, "pad_token_id": 0}


def prompts(model, histories):
    """Return the prompts of histories of one length, as `recommend` makes them, as SID tokens."""
    rows = model.history_rows(histories, "error")
    ids, mask = model.history_prompts(rows, rows)
    assert mask.all()
    return model.bind(ids)


def items_of(model, ids):
    sids = ids[:, -LEVELS:] - START - torch.arange(LEVELS) * model.config.item_tower.num_codes
    found = (model.item_sids == sids[:, None]).all(-1)
    assert (found.sum(1) == 1).all(), "every answer is an item"
    return [f"i{row}" for row in found.long().argmax(1).tolist()]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_equal_those_of_recommend(shape, exclude_seen):
    model = make_model(shape)
    model.config.exclude_seen = exclude_seen
    histories = [["i1", "i2"], ["i9", "i30"], ["i4", "i4"]]
    lists = model.recommend(histories, top_k=10, num_beams=20, rerank=False, memory=False)
    out = model.generate(
        prompts(model, histories), num_beams=20, num_return_sequences=10, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True, **OPTIONS,
    )  # fmt: skip
    found = items_of(model, out.sequences)
    assert found == [entry.item_id for entries in lists for entry in entries]
    scores = torch.tensor([entry.score for entries in lists for entry in entries])
    torch.testing.assert_close(out.sequences_scores, scores, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_answer_is_one_item_and_then_ends():
    model = make_model()
    ids = prompts(model, [["i1", "i2"]])
    best = model.recommend([["i1", "i2"]], top_k=1, num_beams=1)[0][0].item_id
    made = model.generate(input_ids=ids, **OPTIONS)
    assert made.shape[1] == ids.shape[1] + LEVELS and items_of(model, made) == [best]
    drawn = model.generate(input_ids=ids, do_sample=True, num_return_sequences=30, pad_token_id=0)
    assert len(set(items_of(model, drawn))) > 3


@torch.no_grad()
def test_left_padding_placeholders_and_a_missing_first_token_change_nothing():
    model = make_model()
    rows = model.history_rows([["i1", "i2"]], "error")
    ids, _ = model.history_prompts(rows, rows)  # items are placeholders
    expected = items_of(model, model.generate(input_ids=model.bind(ids), **OPTIONS))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    made = model.generate(input_ids=padded, attention_mask=mask, **OPTIONS)
    assert items_of(model, made) == expected
    model.config.prompt_ids = [1, *model.config.prompt_ids]
    model.config.backbone_config.bos_token_id = 1
    assert model.next_item_prompts(ids).tolist() == [True]


@torch.no_grad()
def test_other_prompts_keep_the_whole_vocabulary():
    model = make_model()
    asked = prompts(model, [["i1", "i2"]])
    others = [
        torch.cat([asked, torch.tensor([[7]])], 1),  # other words behind the history
        asked[:, 1:],
        asked[:, :-1],  # a part of an item
        torch.randint(4, 90, asked.shape, generator=torch.Generator().manual_seed(3)),
    ]
    for ids in others:
        assert model.next_item_prompts(ids).tolist() == [False]
    text = others[-1]
    wanted = {"max_new_tokens": 6, "eos_token_id": None}
    alone = model.generate(input_ids=text, **OPTIONS, **wanted)
    both = model.generate(input_ids=torch.cat([text, asked]), **OPTIONS, **wanted)
    assert torch.equal(both[:1], alone)
    assert items_of(model, both[1:, : asked.shape[1] + LEVELS])
    assert both[1, asked.shape[1] + LEVELS :].tolist() == [0] * (6 - LEVELS)


@torch.no_grad()
def test_only_allowed_items_and_never_none():
    model = make_model()
    ids = prompts(model, [["i1", "i2"]])
    made = model.generate(input_ids=ids, allowed=["i7", "i1"], **OPTIONS)
    assert items_of(model, made) == ["i7"], "i1 was seen"
    for allowed in ([], ["i1", "i2"]):
        with pytest.raises(ValueError, match="No item may appear after prompt 0"):
            model.generate(input_ids=ids, allowed=allowed, **OPTIONS)
    none = TTDSCandidates(model.trie, torch.zeros(ITEMS, dtype=torch.bool), ids[:, :0])
    with pytest.raises(ValueError, match="No item may appear after prompt 0"):
        TTDSConstraint(model.trie, ids.shape[1], START, CODES, none)
    lists = {"allowed": ["i7", "i1", "i8"], "num_beams": 5, "length_penalty": 0.0, **OPTIONS}
    made = model.generate(input_ids=ids, num_return_sequences=2, **lists)
    assert sorted(items_of(model, made)) == ["i7", "i8"]
    for number in (
        {"num_return_sequences": 3},
        {"generation_config": GenerationConfig(num_beams=5, num_return_sequences=3)},
    ):
        with pytest.raises(ValueError, match="is 3, but of all items 2 may appear after prompt 0"):
            model.generate(input_ids=ids, **lists, **number)
    drawn = {"allowed": ["i7"], "do_sample": True, "num_return_sequences": 3, "pad_token_id": 0}
    assert items_of(model, model.generate(input_ids=ids, **drawn)) == ["i7"] * 3
    with pytest.raises(ValueError, match="unknown item 'zz'"):
        model.generate(input_ids=ids, allowed=["zz"], **OPTIONS)
    with pytest.raises(ValueError, match="no prompt asks for the next item"):
        model.generate(input_ids=torch.tensor([[7, 8]]), allowed=["i7"], **OPTIONS)


@pytest.mark.parametrize("ids", [[[7, 8]], [7, 8], torch.tensor([7, 8]), torch.tensor(7), "7"])
def test_ids_are_a_tensor_of_two_dimensions(ids):
    model = make_model()
    for name, call in (
        ("inputs", lambda: model.generate(ids, **OPTIONS)),
        ("input_ids", lambda: model.generate(input_ids=ids, **OPTIONS)),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` is .*; give a tensor of token ids of sh"):
            call()


@torch.no_grad()
def test_padding_may_stand_on_either_side():
    model = make_model()
    histories = [["i1", "i2", "i3"], ["i9"], []]
    rows = model.history_rows(histories, "error")
    ids, mask = model.history_prompts(rows, rows)  # padded on the right
    assert not mask[:, -1].all()
    scores = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    made = model.generate(
        input_ids=ids.masked_fill(mask == 0, 7),
        attention_mask=mask,
        num_beams=8,
        **scores,
        **OPTIONS,
    )
    lists = model.recommend(histories, top_k=1, num_beams=8, rerank=False, memory=False)
    assert items_of(model, made.sequences) == [best.item_id for (best,) in lists]
    expected = torch.tensor([best.score for (best,) in lists])
    torch.testing.assert_close(made.sequences_scores, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("drafts", ["assistant", "assistant of other items", "prompt lookup"])
def test_drafts_end_where_the_item_does(drafts):
    model = make_model()
    model.config.exclude_seen = False
    histories = [["i1", "i2", "i1"], ["i4", "i4", "i4"], ["i9", "i30", "i9", "i30"]]
    options = {"prompt_lookup_num_tokens": 9}
    if drafts != "prompt lookup":
        options = {"assistant_model": copy.deepcopy(model)}
    if drafts == "assistant of other items":  # what it drafts leads to none of ours
        options["assistant_model"].item_sids.copy_((model.item_sids + 3) % CODES)
    for history in histories:
        rows = model.history_rows([history], "error")
        ids, _ = model.history_prompts(rows, rows)
        for allowed in (None, history, ["i7"]):
            plain = model.generate(input_ids=ids, allowed=allowed, **OPTIONS)
            made = model.generate(input_ids=ids, allowed=allowed, **options, **OPTIONS)
            assert torch.equal(made[:, : plain.shape[1]], plain)
            assert not made[:, plain.shape[1] :].any(), "behind an item is padding"


@torch.no_grad()
def test_penalties_know_the_items_of_placeholders():
    model = make_model()
    rows = model.history_rows([["i1", "i2"]], "error")
    ids, _ = model.history_prompts(rows, rows)
    penalty = {"repetition_penalty": 1e3, "num_beams": 5, "length_penalty": 0.0, **OPTIONS}
    scores = {"return_dict_in_generate": True, "output_scores": True}
    both = [model.generate(input_ids=p, **penalty, **scores) for p in (ids, model.bind(ids))]
    plain = model.generate(input_ids=ids, **penalty | {"repetition_penalty": 1.0}, **scores)
    assert torch.equal(both[0].sequences, both[1].sequences)
    assert torch.equal(both[0].sequences_scores, both[1].sequences_scores)
    assert not torch.equal(both[0].sequences_scores, plain.sequences_scores)


@torch.no_grad()
def test_where_other_processors_leave_no_item_none_is_made_up():
    model = make_model()
    ids = prompts(model, [["i1", "i2"], ["i9", "i30"]])
    first = list(range(START, START + CODES))
    codes = sorted({int(code) for code in model.item_sids[:, 0]})
    for wanted in (
        {"suppress_tokens": first},
        {"suppress_tokens": first, "num_beams": 3},
        {"prefix_allowed_tokens_fn": lambda batch, ids: [7] if batch else first},
    ):
        with pytest.raises(ValueError, match=r"after prompt [01]: another logits processor"):
            model.generate(input_ids=ids, **wanted, **OPTIONS)
    # One branch is enough, and its items keep their order.
    suppressed = {"suppress_tokens": [START + code for code in codes[1:]], "num_beams": 4}
    made = model.generate(input_ids=ids, length_penalty=0.0, **suppressed, **OPTIONS)
    assert (made[:, -LEVELS] == START + codes[0]).all() and items_of(model, made)
