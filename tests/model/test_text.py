"""Text is understood whichever way it is written: embeddings, queries, what a model is tuned on."""

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_ttds.text_ttds import TTDSTokenTable, item_text, normalised
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.data.split import split_data
from recipes.data.toyshop import generate
from recipes.index.embeddings import fit_token_table
from tests.conftest import build_tokenizer, small_options

WORDS = ["copper", "kettle", "steel", "knife", "walnut", "board"]
FORMS = [lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFKD")]
WRITINGS = [
    str.upper, str.lower, str.title, lambda text: f"  {text}\n",
    lambda text: text.replace(" ", "\u00a0 "), *FORMS,
    lambda text: text.translate({c: c + 0xFEE0 for c in range(ord("!"), ord("~"))}),  # full width
    lambda text: text.replace("e", "e\u0301").replace("o", "\u00f6"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" Kettle", "kettle"), ("\uff2b\uff25\uff34", "ket"), ("KE\u0301T", "ket"),
     ("Stra\u00dfe", "strasse"), ("\ufb01sh", "fish"), ("\u0130stanbul", "istanbul"),
     ("Women\u2019s  1.5 l", "women's 1.5 l"), ("steel-clad (kettle)", "steel- clad ( kettle)"),
     ("\u304c", "\u304c"), ("\ud83d\ude00", "\U0001f600"), ("a\ud800", "a\ufffd"), (" \n", "")],
)  # fmt: skip
def test_known_normalised_texts(text, expected):
    assert normalised(text) == expected


@given(st.text(st.characters(blacklist_categories=())))
def test_writing_does_not_matter(text):
    expected = normalised(text)
    assert normalised(expected) == expected
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalised(unicodedata.normalize(form, text)) == expected
    for written in (text.upper(), text.lower(), text.casefold(), f" \t{text}\u2003\n"):
        assert normalised(written) == expected


def byte_level(prepend=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prepend)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet)


def sentence_piece():
    """As Llama 2 and its like write it: a mark before the text and in place of every space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"])


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"])


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>"])


KINDS = {
    "byte level": byte_level, "byte level with a space put before": lambda: byte_level(True),
    "sentence piece": sentence_piece, "metaspace": metaspace, "word piece": word_piece,
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def tokenizer_of_a_backbone(request):
    tokenizer, trainer = KINDS[request.param]()
    written = ["".join(map(chr, range(ord("a"), ord("z") + 1))), *(f"a {word} b" for word in WORDS)]
    if request.param == "sentence piece":  # one word at a time, or a piece would hold a space
        written = [word for text in written for word in text.split()]
    tokenizer.train_from_iterator(written * 3, trainer)
    base = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    return TTDSTokenizer.from_base(base, 2, 4)


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
def test_a_first_word_has_the_tokens_it_has_elsewhere(tokenizer_of_a_backbone, words):
    encode = tokenizer_of_a_backbone.encode_words
    assert encode(" ".join(words)) == [token for word in words for token in encode(word)]
    for write in WRITINGS:
        assert encode(write(" ".join(words))) == encode(" ".join(words))


@given(text=st.text(max_size=30))
def test_any_text_is_encoded_alike_in_any_case(tokenizer_of_a_backbone, text):
    encode = tokenizer_of_a_backbone.encode_words
    assert encode(text.upper()) == encode(f"  {text}") == encode(text)


def test_embeddings_of_a_word_do_not_depend_on_its_writing(built):
    (expected,) = built.embed_texts(["kettle"])
    assert torch.isclose(expected.norm(), torch.tensor(1.0))
    for write in WRITINGS:
        assert torch.equal(built.embed_texts([write("kettle")])[0], expected)
    assert not built.embed_texts(["", "  \n"]).any()
    assert built.embed_texts(["a\ud800"]).isfinite().all()


@given(text=st.text(max_size=30))
def test_embeddings_of_any_text_do_not_depend_on_leading_space_or_case(built, text):
    (plain,) = built.embed_texts([text])
    for written in (text.upper(), text.lower(), f"  {text}"):
        assert torch.equal(built.embed_texts([written])[0], plain)


@pytest.mark.parametrize("encoder", ["tokens", "backbone"])
def test_a_layer_can_be_trained_on_embeddings(model, encoder):
    model.config.text_encoder = encoder
    embeddings = model.embed_texts(["a walnut kettle", ""])
    layer = torch.nn.Linear(embeddings.shape[1], 1)
    layer(embeddings).sum().backward()
    assert torch.equal(layer.weight.grad[0], embeddings.sum(0)) and not embeddings.requires_grad


def test_items_named_by_single_words_get_semantic_ids_of_their_own(model):
    model.add_items([{"item_id": f"new {word}", "title": word} for word in ("kettle", "knife")])
    first, second = model.item_text[-2:]
    assert first.any() and second.any() and not torch.allclose(first, second)
    tower = model.item_tower
    alone = torch.zeros(2, model.config.item_tower.collaborative_dim)
    kettle, knife = tower.semantic_ids(model.item_text[-2:], alone).tolist()
    assert kettle != knife, "they differ without being moved apart"


def test_every_title_word_finds_items_that_hold_it(tmp_path):
    split = split_data(generate().data)
    catalogue = split.data.catalogue
    tokenizer = build_tokenizer(split, small_options(tmp_path, vocab_size=2048), None)
    table = TTDSTokenTable(tokenizer.sid_token_start, 128)
    table.table.copy_(fit_token_table(catalogue.texts(), tokenizer, 128, seed=0))
    items = table.encode([tokenizer.encode_words(text) for text in catalogue.texts()])
    words = sorted({word for title in catalogue.fields["title"] for word in title.split()})
    assert len(words) > 100
    queries = table.encode([tokenizer.encode_words(word) for word in words])
    assert queries.any(1).all(), "no word is lost"
    holders = [{r for r, t in enumerate(catalogue.texts()) if w in t} for w in words]
    nearest = (queries @ items.T).topk(5).indices.tolist()
    hits = [
        len(rows & set(found)) / min(5, len(rows))
        for rows, found in zip(holders, nearest, strict=True)
    ]
    assert sum(hits) / len(hits) > 0.9


def test_queries_are_asked_as_they_are_trained_on(model):
    model.config.prompts = {"query": 'Looking for "{query}":', "search": "<user> <item> {query}:"}
    history = [model.catalogue[row]["item_id"] for row in (3, 9)]
    for past in ([], history):
        lists = [
            model.recommend([past], queries=[query], top_k=5)
            for query in ("walnut kettle", "  WALNUT\u00a0Kettle", "w\u00e0lnut kettl\u00e9")
        ]
        assert lists[0] == lists[1] == lists[2]
    encode = model.tokenizer.encode_prompt
    prompts = [encode("Looking for {q}:", {"q": q}) for q in ("Oak Board", " oak board")]
    assert prompts[0] == prompts[1]


def test_answers_keep_the_writing_of_the_catalogue(tokenizer):
    ids = tokenizer.encode_prompt(" {text}", {"text": "Slate Gooseneck"}, answer=True)
    assert tokenizer.decode(ids) == " Slate Gooseneck"


def test_text_of_an_item_is_what_it_has():
    item = {"title": "A", "brand": "", "categories": "B > C", "price": "12"}
    assert item_text(item) == "A. B > C"
