"""The two modalities of the items: text embeddings and collaborative embeddings, cached."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy
import scipy.sparse as sp
import sklearn
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy.sparse.linalg import eigsh
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig

from modeling_ttds import text_ttds, tokenization_ttds
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.config import IndexOptions
from recipes.data.split import Split

# Chosen on the validation targets of two data sets; see benchmarks/collaborative.py.
WINDOW = 10
SHRINKAGE = 10
# Eigenvectors of more items are computed in single precision, to a tolerance that loses nothing:
# benchmarks/collaborative.py compares both.
EXACT_ITEMS, TOLERANCE = 20_000, 1e-2
ENCODER_FILES = {".safetensors", ".bin", ".json", ".txt", ".model"}  # weights, settings, vocabulary
# A change of the code or of a library makes the cached tensors anew.
VERSIONS = [m.__version__ for m in (np, scipy, sklearn, torch, transformers)]
SOURCES = [
    Path(file).read_text("utf-8")
    for file in (__file__, text_ttds.__file__, tokenization_ttds.__file__)
]


def cached(folder: Path | None, name: str, key: dict, compute: Callable[[], Tensor]) -> Tensor:
    """Return a tensor from the cache, or compute and keep it.

    Args:
        folder: The cache; None computes every time.
        name: What the tensor is, the first part of its file name.
        key: All that the tensor depends on; its hash with the versions of code and libraries is
            the second part.
        compute: Makes the tensor.
    """
    if folder is None:
        return compute()
    digest = hashed(json.dumps(key, sort_keys=True), *VERSIONS, *SOURCES)[:16]
    file = folder / f"{name}-{digest}.safetensors"
    if file.exists():
        try:
            with safe_open(file, "pt") as stored:
                tensor = stored.get_tensor(name)
                if hashed(tensor) == stored.metadata()["hash"]:
                    return tensor
            damage = "its content does not match its hash"
        except SafetensorError as error:
            damage = error
        print(f"{file} is damaged ({damage}); it is made anew.")
    tensor = compute().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: tensor}, scratch, metadata={"hash": hashed(tensor)})
    scratch.replace(file)
    return tensor


def cached_fit(
    folder: Path | None, name: str, module: nn.Module, key: dict, fit: Callable[[], None], seed: int
) -> None:
    """Give a module the weights and buffers of its fit from the cache, or fit and keep them.

    What is drawn at random afterwards is the same either way.

    Args:
        folder: As of `cached`.
        name: As of `cached`.
        module: What is fitted; its state is of one type.
        key: As of `cached`.
        fit: Fits the module in place.
        seed: Seed of what follows.
    """

    def compute() -> Tensor:
        fit()
        return torch.cat([tensor.flatten() for tensor in module.state_dict().values()])

    state = module.state_dict().values()
    kept = cached(folder, name, key, compute).split([tensor.numel() for tensor in state])
    for tensor, values in zip(state, kept, strict=True):
        tensor.copy_(values.view_as(tensor))
    module.eval()
    torch.manual_seed(seed)


def hashed(*parts: str | bytes | Tensor) -> str:
    """Return one hash of strings, bytes and tensors, for the key of `cached`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        elif isinstance(part, str):
            part = part.encode()
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def given_text_embeddings(
    options: IndexOptions, dataset_name: str | None, num_items: int
) -> Tensor | None:
    """Read the precomputed text embeddings that `text_embeddings` names, if it names any.

    Args:
        options: Names file and encoder.
        dataset_name: Where a file is looked for that is not there by its name alone.
        num_items: Number of rows expected.

    Raises:
        ValueError: `text_encoder` names no encoder that could have made them.
    """
    if options.text_embeddings is None:
        return None
    if options.text_encoder in ("tokens", "backbone"):
        raise ValueError(
            f"`text_encoder` is {options.text_encoder!r}, which did not make "
            "`text_embeddings`; name the encoder that did, so that new items get embeddings "
            "like the others'."
        )
    file = Path(options.text_embeddings)
    if not file.exists() and dataset_name is not None:
        file = Path(dataset_name) / file
    return read_text_embeddings(file, num_items)


def embed_items(
    model: TTDSForCausalLM, split: Split, options: IndexOptions, text: Tensor | None, seed: int
) -> None:
    """Give a model the text and the collaborative embeddings of its items, and their projection.

    Args:
        model: A model with catalogue and tokenizer.
        split: Gives the texts and the training histories.
        options: Encoder, widths and cache.
        text: Precomputed text embeddings, if there are any.
        seed: Seed of both fits.
    """
    model.item_text.copy_(_text_embeddings(model, split, options, seed) if text is None else text)
    model.item_collaborative.copy_(_collaborative_embeddings(split, options, seed))
    if options.item_vector_dim:
        model.vector_projection.copy_(_projection(model, options.item_vector_dim, seed))


def add_new_items(model: TTDSForCausalLM, split: Split, text: Tensor | None) -> None:
    """Add the items of a split's catalogue that the model does not have yet, from their text.

    Args:
        model: A tuned model with a frozen SID table, of a view of the split.
        split: A later view of the split, or the split itself.
        text: Precomputed text embeddings in the split's order, if there are any.
    """
    first, catalogue = len(model.catalogue), split.data.catalogue
    new = [
        {"item_id": catalogue.item_ids[row], **{n: f[row] for n, f in catalogue.fields.items()}}
        for row in range(first, split.num_items)
    ]
    if new:
        given = None if text is None else text[first : split.num_items].to(model.item_text)
        model.add_items(new, given)


def _projection(model: TTDSForCausalLM, dim: int, seed: int) -> Tensor:
    """Return the main directions of both embeddings, (text_dim + collaborative_dim, dim)."""
    both = torch.cat([model.item_text, model.item_collaborative], 1).cpu().numpy()
    # Inner products are what is to be kept, so nothing is centred.
    return torch.from_numpy(randomized_svd(both, dim, n_iter=6, random_state=seed)[2].T.copy())


def _text_embeddings(
    model: TTDSForCausalLM, split: Split, options: IndexOptions, seed: int
) -> Tensor:
    texts = split.data.catalogue.texts()
    folder = Path(options.cache_dir)
    key = {"texts": hashed(*texts)}
    if options.text_encoder in ("tokens", "backbone"):
        key["tokenizer"] = hashed(model.tokenizer.backend_tokenizer.to_str())
    if options.text_encoder == "tokens":
        tokenizer = model.tokenizer
        key |= {"text_dim": options.text_dim, "seed": seed}
        table = cached(
            folder,
            "token_table",
            key,
            lambda: fit_token_table(texts, tokenizer, options.text_dim, seed),
        )
        model.token_table.table.copy_(table)
        return model.embed_texts(texts)
    if options.text_encoder == "backbone":
        key["encoder"] = hashed(*model.model.state_dict().values())
    else:
        key["encoder"] = encoder_version(options.text_encoder)
    text = cached(folder, "text", key, lambda: model.embed_texts(texts))
    return check_embeddings(text, split.num_items, f"`text_encoder` {options.text_encoder}")


def _collaborative_embeddings(split: Split, options: IndexOptions, seed: int) -> Tensor:
    if options.collaborative_dim == 0:
        return torch.zeros(split.num_items, 1)
    key = {
        "training": hashed(*(history.tobytes() for history in split.training)),
        "num_items": split.num_items,
        "dim": options.collaborative_dim,
        "seed": seed,
    }
    return cached(
        Path(options.cache_dir),
        "collaborative",
        key,
        lambda: collaborative_embeddings(
            split.training, split.num_items, options.collaborative_dim, seed
        ),
    )


def fit_token_table(
    texts: Sequence[str], tokenizer: TTDSTokenizer, text_dim: int, seed: int
) -> Tensor:
    """Fit TF-IDF and a truncated SVD over plain-text tokens; fold both into one table.

    The result, (num_tokens, text_dim), is what `TTDSTokenTable` looks up.

    Args:
        texts: The catalogue.
        tokenizer: Gives the tokens.
        text_dim: Width of a text embedding.
        seed: Seed of the SVD.
    """
    num_tokens = tokenizer.sid_token_start
    ids = [tokenizer.encode_words(text) for text in texts]
    rows = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    columns = np.concatenate([np.asarray(i, dtype=np.int64) for i in ids])
    counts = sp.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(ids), num_tokens))
    weighting = TfidfTransformer(sublinear_tf=True)
    matrix = weighting.fit_transform(counts.tocsr())
    rank = min(text_dim, *matrix.shape)
    with threadpool_limits(1):  # sums of several threads would depend on their number
        _, _, components = randomized_svd(matrix, rank, n_iter=20, random_state=seed)
    table = torch.zeros(num_tokens, text_dim)
    # A token that no text holds says nothing.
    weights = weighting.idf_ * (np.asarray(counts.sum(0)).ravel() > 0)
    table[:, :rank] = torch.from_numpy((components * weights).T.copy())
    return table


def read_text_embeddings(file: str | Path, num_items: int) -> Tensor:
    """Read precomputed text embeddings, one row per item in the order of the catalogue.

    Args:
        file: A safetensors file with the tensor `text`, or a `.npy` file.
        num_items: Number of rows expected.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else; the message says what.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"`text_embeddings` {file} does not exist.")
    npy = Path(file).suffix == ".npy"
    try:
        tensors = {"text": torch.from_numpy(np.load(file))} if npy else load_file(file)
    except (SafetensorError, OSError, EOFError, ValueError, TypeError) as error:
        kind = "`.npy` file of numbers" if npy else "safetensors file"
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`text_embeddings` {file} is no {kind} ({reason}); write it again, as a `.npy` of "
            "numbers or as safetensors."
        ) from None
    if "text" not in tensors:
        raise ValueError(f"{file} holds {sorted(tensors)} but no tensor `text`.")
    return check_embeddings(tensors["text"].float(), num_items, str(file))


def check_embeddings(embeddings: Tensor, num_items: int, source: str) -> Tensor:
    """Return unit rows, or raise a ValueError that names what is wrong with them.

    Args:
        embeddings: One row per item.
        num_items: Number of rows expected.
        source: Where they come from, for the message.
    """
    if embeddings.ndim != 2 or len(embeddings) != num_items:
        raise ValueError(
            f"{source} has the shape {tuple(embeddings.shape)}; the catalogue needs "
            f"({num_items}, text_dim)."
        )
    bad = ~embeddings.isfinite().all(1)
    if bad.any():
        raise ValueError(f"{source} row {int(bad.int().argmax())} holds NaN or infinity.")
    return F.normalize(embeddings, dim=-1)


def encoder_version(name: str) -> str:
    """Return what changes when an encoder does: a hash of its files, or its Hub commit.

    Args:
        name: Folder or Hub id.
    """
    if Path(name).is_dir():
        digests = []
        for path in sorted(Path(name).iterdir()):
            if path.suffix in ENCODER_FILES:
                with path.open("rb") as file:
                    digests += [path.name, hashlib.file_digest(file, "sha256").digest()]
        return hashed(*digests)
    return f"{name}@{AutoConfig.from_pretrained(name)._commit_hash}"


def collaborative_embeddings(
    histories: Sequence[np.ndarray], num_items: int, dim: int, seed: int
) -> Tensor:
    """Embed items by what they co-occur with in training histories, (num_items, dim).

    Counts items within `WINDOW` steps of one another, weighted 0.7 per further step, divides by the
    roots of both items' sums, each raised by `SHRINKAGE` to trust rare items less, and keeps the
    eigenvectors of the largest positive eigenvalues, scaled by them. An item that nobody touched,
    or nobody with another, gets a zero row. Of more than `EXACT_ITEMS` items the eigenvectors are
    found in single precision, to the tolerance `TOLERANCE`.

    Args:
        histories: Item rows in order, per user.
        num_items: Size of the catalogue.
        dim: Width of the embeddings.
        seed: Seed of the solver's start.
    """
    matrix = sp.csr_matrix((num_items, num_items))
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    for lag in range(1, WINDOW + 1):
        same = users[:-lag] == users[lag:]
        pairs = items[:-lag][same], items[lag:][same]
        weights = np.full(len(pairs[0]), 0.7 ** (lag - 1))
        matrix += sp.coo_matrix((weights, pairs), shape=matrix.shape).tocsr()
    matrix = matrix + matrix.T
    total = np.asarray(matrix.sum(1)).ravel()
    touched = total.nonzero()[0]
    embeddings = torch.zeros(num_items, dim)
    rank = min(dim, len(touched) - 1)
    if rank < 1:
        return embeddings
    scale = sp.diags((total[touched] + SHRINKAGE) ** -0.5)
    matrix = scale @ matrix[touched][:, touched] @ scale
    tolerance = 0.0
    if len(touched) > EXACT_ITEMS:
        matrix, tolerance = matrix.astype(np.float32), TOLERANCE
    start = np.random.default_rng(seed).normal(size=len(touched)).astype(matrix.dtype)
    with threadpool_limits(1):  # sums of several threads would depend on their number
        values, vectors = eigsh(matrix, rank, which="LA", v0=start, tol=tolerance)
    vectors = torch.from_numpy(vectors * np.maximum(values, 0)).float()
    embeddings[torch.from_numpy(touched), :rank] = vectors
    return F.normalize(embeddings, dim=-1)
