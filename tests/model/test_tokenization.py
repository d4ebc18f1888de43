"""The tokenizer: text stays text, semantic IDs are tokens, and all of it survives a save."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_ttds.configuration_ttds import PLACEHOLDER_START, placeholder_ids
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.index.vocabulary import train_vocabulary

HOSTILE = [
    "<item_0_3><item_1_2>", "<item>", "<user> <user_0_1>", "<eos>", "</s>", "<pad>", "<bos>kettle",
    "<|im_start|>system", "a <item_0_3 > b", "<<item_0_3>>", "[INST] <item_0_3>", "< item_0_3>",
]  # fmt: skip
TEXTS = ["Hello world, it's 12 things\n", "naïve ☕ kettle", "", "  two  spaces", *HOSTILE]


def byte_level():
    return train_vocabulary(["red shoes for running", "hello world it's"] * 5, 350)


def chat_like():
    base = byte_level()
    base.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return base


def unigram():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -3.0)]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz<>/_0123 |[]"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


BASES = {"byte level": byte_level, "chat": chat_like, "unigram": unigram}


@pytest.fixture(params=BASES)
def extended(request):
    return TTDSTokenizer.from_base(BASES[request.param](), num_levels=2, num_codes=4)


def test_sid_tokens_are_one_block_by_kind_level_and_code(extended):
    start = extended.sid_token_start
    assert extended.convert_tokens_to_ids("<item_1_2>") == start + 1 * 4 + 2
    assert extended.convert_tokens_to_ids("<user_0_3>") == start + 2 * 4 + 3
    assert len(extended) == start + 2 * 2 * 4


@pytest.mark.parametrize("text", HOSTILE)
def test_text_never_holds_an_added_token(extended, text):
    ids = extended.encode_text(text)
    special = set(extended.added_tokens_decoder) - {extended.unk_token_id}
    assert ids and not special & set(ids)
    ids = extended.encode_prompt("User <user> likes {text}: <item>", {"text": text}, [[]], [0])
    assert sum(i >= PLACEHOLDER_START for i in ids) == 2, "the user, and nothing from the text"


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_decodes_to_itself(text):
    tokenizer = TTDSTokenizer.from_base(chat_like(), 2, 4)
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_text_is_whole_after_a_call_that_cuts_and_pads(extended, tmp_path):
    text = "red shoes for running around"
    whole = extended.encode_text(text)
    extended.save_pretrained(tmp_path / "before")
    called = TTDSTokenizer.from_pretrained(tmp_path / "before")
    called([text, "red"], truncation=True, max_length=3, padding="max_length")
    called.save_pretrained(tmp_path / "after")
    for tokenizer in (called, TTDSTokenizer.from_pretrained(tmp_path / "after")):
        assert tokenizer.encode_text(text) == whole and len(whole) > 3


@pytest.mark.parametrize("name", BASES)
def test_batches_are_cut_and_padded_as_those_of_the_base(name, tmp_path):
    base = BASES[name]()
    base.padding_side = base.truncation_side = "left"
    base.model_max_length = 4
    base.add_special_tokens({"mask_token": "<mask>", "extra_special_tokens": ["<|turn|>"]})
    if base.pad_token is None:
        base.pad_token = base.eos_token
    extended = TTDSTokenizer.from_base(base, num_levels=2, num_codes=4)
    extended.save_pretrained(tmp_path)
    texts = ["a", "<mask> a walnut kettle for two, and more of them <|turn|>"]
    expected = base(texts, padding=True, truncation=True)
    for tokenizer in (extended, TTDSTokenizer.from_pretrained(tmp_path)):
        assert tokenizer(texts, padding=True, truncation=True) == expected
        assert set(tokenizer.all_special_ids) == set(base.all_special_ids)
        for ids in expected["input_ids"]:
            plain = {"skip_special_tokens": True}
            assert tokenizer.decode(ids, **plain) == base.decode(ids, **plain)


def test_sid_tokens_written_by_a_person_are_sid_tokens(extended):
    ids = extended.encode_prompt("likes <item_0_3><item_1_0>")
    assert ids[-2:] == extended.convert_tokens_to_ids(["<item_0_3>", "<item_1_0>"])


def test_prompt_holds_placeholders_in_order(extended):
    ids = extended.encode_prompt("<user>: <item> then <item>", items=[[5, 6], 7], users=[3])
    entities = [i for i in ids if i >= PLACEHOLDER_START]
    expected = [("user", 3), ("item", 5), ("item", 6), ("item", 7)]
    assert entities == sum([placeholder_ids(kind, row, 2) for kind, row in expected], [])


def test_items_by_name(extended):
    with pytest.raises(ValueError, match="not in the SID table of 0 items"):
        extended.encode_items(["a"])
    extended.set_sid_table(["a", "b"], [[1, 2], [3, 0]])
    ids = extended.encode_items(["b", "a"])
    assert extended.convert_ids_to_tokens(ids) == [
        "<item_0_3>", "<item_1_0>", "<item_0_1>", "<item_1_2>",
    ]  # fmt: skip
    assert extended.decode_items(ids) == ["b", "a"]
    with pytest.raises(ValueError, match="<item_0_3><item_1_2> names no item"):
        extended.decode_items([ids[0], ids[3]])
    with pytest.raises(ValueError, match="names no item"):
        extended.decode_items([ids[1], ids[0]])


def test_what_is_no_list_of_token_ids_is_refused(extended):
    extended.set_sid_table(["a", "b"], torch.tensor([[1, 2], [3, 0]]))
    ids = extended.encode_items(["b", "a"])
    for given in (ids, torch.tensor(ids), np.array(ids), iter(ids)):
        assert extended.decode_items(given) == ["b", "a"]
    for given in (torch.tensor([ids, ids]), [ids], [None], ["ab"], [3.5], np.array([3.0])):
        with pytest.raises(ValueError, match="^`ids` holds .*; give a list of SID token ids"):
            extended.decode_items(given)


@pytest.mark.parametrize(
    ("sids", "message"),
    [([[1]], r"^`sids\[0\]` is \[1\]; give 2 codes from 0 to 3"),
     ([[1, 4]], r"^`sids\[0\]` is \[1, 4\]; give 2 codes"), ([[-1, 0]], r"^`sids\[0\]` is \[-1"),
     (torch.tensor([[1, 2, 3]]), r"^`sids\[0\]` is \[1, 2, 3\]; give 2 codes"),
     ([["a", 1]], r"^`sids\[0\]` holds 'a'; give a list of codes"),
     (torch.tensor([[1.0, 2.0]]), r"^`sids\[0\]` holds 1.0; give a list of codes"),
     ([None], r"^`sids\[0\]` is None; give a list"), (None, "^`sids` is None; give a list of sem"),
     ([[1, 2], [1, 3]], "^There are 1 item ids for 2 semantic IDs")],
)  # fmt: skip
def test_what_is_no_semantic_id_is_refused(extended, sids, message):
    with pytest.raises(ValueError, match=message):
        extended.set_sid_table(["a"], sids)
    assert extended.sid_table == {}


def test_save_and_load_keep_every_id(extended, tmp_path):
    extended.set_sid_table(["a"], [[1, 2]])
    extended.save_pretrained(tmp_path / "tok")
    script = (
        "import sys, json; from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained('tok', trust_remote_code=True)\n"
        "texts = json.load(open('texts.json'))\n"
        "t.save_pretrained('again'); t = AutoTokenizer.from_pretrained('again',"
        " trust_remote_code=True)\n"
        "print(json.dumps([[t(x).input_ids for x in texts], [t.encode_text(x) for x in texts],"
        " t.encode_items(['a']), t.num_levels, t.num_codes, t.sid_token_start]))"
    )
    import json

    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    mine = TTDSTokenizer.from_pretrained(tmp_path / "tok")
    for tokenizer in (extended, mine):
        expected = [
            [tokenizer(text).input_ids for text in TEXTS],
            [tokenizer.encode_text(text) for text in TEXTS],
            tokenizer.encode_items(["a"]), 2, 4, tokenizer.sid_token_start,
        ]  # fmt: skip
        assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_base_without_end_or_with_sid_tokens_is_refused():
    base = byte_level()
    base.eos_token = None
    with pytest.raises(ValueError, match="no `eos_token`"):
        TTDSTokenizer.from_base(base, 2, 4)
    with pytest.raises(ValueError, match="already holds"):
        TTDSTokenizer.from_base(TTDSTokenizer.from_base(byte_level(), 2, 4), 2, 4)
