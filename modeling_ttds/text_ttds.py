"""Text embeddings that travel with the model: a table over tokens, or a transformer."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .precision_ttds import TTDSFloat32

ACCENTS = re.compile("[\u0300-\u036f]")  # of Latin, Greek and Cyrillic; elsewhere marks are letters
JOINED = re.compile(r"(?<=[^\w\s'])(?=[^\W\d_])")  # a letter behind a hyphen, bracket or the like
ALIKE = str.maketrans({"\u2019": "'", "\u0131": "i"})  # the dotless i is a capital's lower case
# As many tokens as sentence-transformers reads with the MiniLM encoders.
MAX_LENGTH = 256


def item_text(item: dict[str, str]) -> str:
    """Return an item's text: its title, brand, categories and description, those it has."""
    parts = (item.get(name, "") for name in ("title", "brand", "categories", "description"))
    return ". ".join(part for part in parts if part)


def normalised(text: str) -> str:
    """Return a text as it is understood, whichever way it is written; the same for the result.

    Case, accents, the form of Unicode and the kind and number of spaces do not matter, and a word
    behind a hyphen or bracket is a word. This is the one way text goes on its way into embeddings
    and prompts; what a model answers keeps the writing of the catalogue.

    Args:
        text: Any string.
    """
    # Pairs of surrogates become the character they stand for; a lone one is no character.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").translate(ALIKE)
    # Twice: folding case can take characters apart, and taking them apart give capitals.
    for _ in range(2):
        text = unicodedata.normalize("NFKD", text).casefold()
    text = ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return " ".join(JOINED.sub(" ", unicodedata.normalize("NFKC", text)).split())


def query_words(query: str) -> list[str]:
    """Return the words by which a query is known: its long ones, or all where none is long.

    Args:
        query: Any string.
    """
    words = re.findall(r"[^\W_]+", normalised(query))
    return [word for word in words if len(word) > 3] or words


class TTDSTokenTable(TTDSFloat32):
    """Embeds text as a weighted mean of one vector per token, with no other library.

    Args:
        num_tokens: Number of token ids the table covers.
        text_dim: Width of a text embedding.
    """

    def __init__(self, num_tokens: int, text_dim: int):
        super().__init__()
        self.register_buffer("table", torch.zeros(num_tokens, text_dim, dtype=torch.float32))

    def encode(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Return unit embeddings of tokenised texts, (len(token_ids), text_dim).

        A token that occurs n times has weight 1 + log n (the sublinear term frequency of TF-IDF;
        the inverse document frequency is part of the table). No token gives a zero row.

        Args:
            token_ids: Plain-text token ids per text.
        """
        table = self.table.float()
        embeddings = table.new_zeros(len(token_ids), table.shape[1])
        for row, ids in enumerate(token_ids):
            if ids:
                tokens, counts = torch.tensor(ids, device=table.device).unique(return_counts=True)
                embeddings[row] = (1 + counts.float().log()) @ table[tokens]
        return F.normalize(embeddings, dim=-1)


@torch.no_grad()
def encode_with_transformer(
    encode: Callable[[Tensor, Tensor], Tensor],
    token_ids: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    device: torch.device,
    max_length: int = MAX_LENGTH,
    batch_size: int = 32,
) -> Tensor:
    """Return unit, mean-pooled embeddings of tokenised texts, (len(token_ids), hidden).

    Args:
        encode: From ids and attention mask, (batch, length), to states (batch, length, hidden).
        token_ids: Token ids per text; no token gives a zero row.
        pad_token_id: Id to pad with.
        device: Where to run.
        max_length: How many of the first tokens of a text are read.
        batch_size: Texts per step.
    """
    token_ids = [ids[:max_length] for ids in token_ids]
    order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
    embeddings = [None] * len(order)
    steps = range(0, len(order), batch_size)
    for first in tqdm(steps, desc="embed text", unit="batch", disable=len(steps) < 10):
        rows = order[first : first + batch_size]
        lists = [torch.tensor(token_ids[row] or [pad_token_id], device=device) for row in rows]
        ids = nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=pad_token_id)
        lengths = torch.tensor([len(token_ids[row]) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device)[None] < lengths[:, None].clamp_min(1)
        states = encode(ids, mask.long()).float().cpu()
        weights = (mask & (lengths[:, None] > 0))[..., None].cpu()
        for row, pooled in zip(rows, F.normalize((states * weights).sum(1), dim=-1), strict=True):
            embeddings[row] = pooled
    return torch.stack(embeddings)


@lru_cache(maxsize=1)
def _encoder(name: str, device: torch.device) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return an encoder and its tokenizer, which stay for the next texts."""
    try:
        encoder = AutoModel.from_pretrained(name).to(device).eval()
        return AutoTokenizer.from_pretrained(name), encoder
    except (OSError, ValueError) as error:
        raise OSError(
            f"The model's `text_encoder` {name} cannot be loaded, so no text can be embedded "
            f"({str(error).splitlines()[0]}); put it where it was, or pass `text_embeddings`."
        ) from error


def encode_by_encoder(
    name: str,
    texts: Sequence[str],
    *,
    device: torch.device,
    max_length: int = MAX_LENGTH,
    batch_size: int = 32,
) -> Tensor:
    """Return text embeddings from an encoder of the Hub or of a folder, mean-pooled.

    Args:
        name: Hub id or folder.
        texts: What to embed; an empty text gives a zero row.
        device: Where to run.
        max_length: How many of the first tokens of a text are read, markers included; less where
            the encoder has fewer positions.
        batch_size: Texts per step.
    """
    tokenizer, encoder = _encoder(name, device)
    positions = getattr(encoder.config, "max_position_embeddings", max_length)
    longest = min(max_length, positions, tokenizer.model_max_length)
    ids = tokenizer(list(texts), truncation=True, max_length=longest).input_ids
    return encode_with_transformer(
        lambda ids, mask: encoder(input_ids=ids, attention_mask=mask).last_hidden_state,
        [ids if text else [] for ids, text in zip(ids, texts, strict=True)],
        pad_token_id=tokenizer.pad_token_id or 0,
        device=device,
        max_length=longest,
        batch_size=batch_size,
    )
