"""The catalogue of a model: its items by name, and how items join and leave it."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .sid_ttds import unique_sids
from .text_ttds import encode_by_encoder, encode_with_transformer, item_text
from .tokenization_ttds import TTDSTokenizer
from .towers_ttds import evaluating

CATALOGUE_FILE = "catalogue.jsonl"


class TTDSCatalogueMixin:
    """What `TTDSForCausalLM` knows of its items, and how items join and leave."""

    @property
    def catalogue(self) -> list[dict[str, str]]:
        """The items in row order: `item_id` and, where known, `title`, `brand`, `categories`."""
        return self._catalogue

    @catalogue.setter
    def catalogue(self, entries: list[dict[str, str]]) -> None:
        if len(entries) != len(self.item_sids):
            raise ValueError(
                f"`catalogue` has {len(entries)} entries for {len(self.item_sids)} items."
            )
        self._catalogue = entries
        self.row_of = {entry["item_id"]: row for row, entry in enumerate(entries)}

    def write_catalogue(self, folder: str | os.PathLike) -> None:
        """Write the catalogue into a folder, by way of a scratch file.

        Args:
            folder: The model's folder.
        """
        file = Path(folder) / CATALOGUE_FILE
        scratch = file.with_suffix(".tmp")
        with scratch.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(e, ensure_ascii=False) + "\n" for e in self.catalogue)
        scratch.replace(file)

    def read_catalogue(self, file: str | os.PathLike) -> None:
        """Take the catalogue from a file that `write_catalogue` wrote.

        Args:
            file: The file.
        """
        with open(file, encoding="utf-8") as lines:
            self.catalogue = [json.loads(line) for line in lines]

    @property
    def tokenizer(self) -> TTDSTokenizer:
        """The tokenizer beside the model, loaded from its folder or repository on first need."""
        if self._tokenizer is None:
            self.tokenizer = TTDSTokenizer.from_pretrained(self.name_or_path, **self._origin)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: TTDSTokenizer) -> None:
        self._tokenizer = tokenizer

    def share_sid_table(self) -> None:
        """Tell the tokenizer today's semantic IDs, for `encode_items` and `decode_items`."""
        item_ids = [entry["item_id"] for entry in self.catalogue]
        self.tokenizer.set_sid_table(item_ids, self.item_sids.tolist())

    @torch.no_grad()
    def embed_texts(self, texts: Iterable[str]) -> Tensor:
        """Return text embeddings as `config.text_encoder` makes them, (num_texts, text_dim).

        Args:
            texts: Plain texts; an empty one gives a zero row.
        """
        texts = list(texts)
        if self.config.text_encoder not in ("tokens", "backbone"):
            return encode_by_encoder(self.config.text_encoder, texts, device=self.device).to(
                self.device
            )
        ids = [self.tokenizer.encode_text(text) for text in texts]
        if self.config.text_encoder == "tokens":
            return self.token_table.encode(ids)
        with evaluating(self):
            embeddings = encode_with_transformer(
                lambda ids, mask: (
                    self.model(
                        inputs_embeds=self.embed(ids), attention_mask=mask, use_cache=False
                    ).last_hidden_state
                ),
                ids,
                pad_token_id=self.tokenizer.pad_token_id,
                device=self.device,
            )
        return embeddings.to(self.device)

    @torch.no_grad()
    def add_items(
        self,
        items: Iterable[dict[str, str]],
        text_embeddings: Tensor | None = None,
        histories: Iterable[Sequence[str]] = (),
    ) -> None:
        """Give new items unique semantic IDs; no weight changes, no old semantic ID.

        Args:
            items: Per item `item_id` and any of `title`, `brand`, `categories`, `description`.
            text_embeddings: Their text embeddings, (len(items), text_dim); by default made from
                their text by `embed_texts`.
            histories: Histories that hold new items, as item ids, if there are any yet: a new
                item's collaborative embedding is the mean of the known items' beside it.

        Raises:
            ValueError: An item id is missing, known or there twice, an embedding does not fit, a
                history holds an unknown item, or the semantic IDs are used up.
        """
        items = list(items)
        known = set(self.row_of)
        for number, item in enumerate(items):
            name = item.get("item_id")
            if not name or not isinstance(name, str):
                raise ValueError(f"Item {number} has no `item_id`; give each a string.")
            if name in known:
                raise ValueError(f"`item_id` {name!r} of item {number} is there already.")
            known.add(name)
        if not items:
            return
        if text_embeddings is None:
            text_embeddings = self.embed_texts(item_text(item) for item in items)
        expected = (len(items), self.config.item_tower.text_dim)
        if text_embeddings.shape != expected or not text_embeddings.isfinite().all():
            raise ValueError(
                f"`text_embeddings` must be finite and of shape {expected}; they have the shape "
                f"{tuple(text_embeddings.shape)}."
            )
        text = text_embeddings.to(self.item_text)
        collaborative = self._neighbours_embedding([item["item_id"] for item in items], histories)
        with evaluating(self.item_tower):
            latents = self.item_tower.encode(text, collaborative).mean
        codebooks = self.item_tower.codebooks
        nearest = self.item_tower.quantise(latents).codes
        sids = unique_sids(latents, codebooks, nearest, taken=self.item_sids)
        before, known = self.trie, torch.arange(len(self.item_sids), device=self.device)
        self.item_sids = torch.cat([self.item_sids, sids])
        self._move_node_pairs(F.pad(known, (0, len(items)), value=-1), before)
        self.item_text = torch.cat([self.item_text, text])
        self.item_collaborative = torch.cat([self.item_collaborative, collaborative])
        if self.config.has_cooccurrence:
            self.cooccurrence.extend(len(items))
        self._catalogue_changed(
            self.catalogue
            + [
                {name: item.get(name) or "" for name in ("item_id", "title", "brand", "categories")}
                for item in items
            ]
        )

    def _neighbours_embedding(
        self, item_ids: list[str], histories: Iterable[Sequence[str]]
    ) -> Tensor:
        new = {item: number for number, item in enumerate(item_ids)}
        sums = self.item_collaborative.new_zeros(
            len(item_ids), self.config.item_tower.collaborative_dim
        )
        for number, history in enumerate(histories):
            unknown = [item for item in history if item not in self.row_of and item not in new]
            if unknown:
                raise ValueError(f"History {number} holds the unknown item {unknown[0]!r}.")
            beside = self.item_collaborative[[self.row_of[i] for i in history if i in self.row_of]]
            for item in set(history) & set(new):
                sums[new[item]] += beside.sum(0)
        return F.normalize(sums, dim=-1)

    def remove_items(self, item_ids: Iterable[str]) -> None:
        """Take items out of catalogue, SID table and trie; the others keep their semantic IDs.

        Args:
            item_ids: Ids of the items.

        Raises:
            ValueError: An item is unknown, or none would be left.
        """
        rows = self.history_rows([list(item_ids)], "error")[0]
        keep = torch.ones(len(self.item_sids), dtype=torch.bool, device=self.device)
        keep[rows] = False
        if not keep.any():
            raise ValueError("`remove_items` would leave no item; keep at least one.")
        before = self.trie
        self.item_sids = self.item_sids[keep]
        self._move_node_pairs(keep.nonzero()[:, 0], before)
        self.item_text = self.item_text[keep]
        self.item_collaborative = self.item_collaborative[keep]
        if self.config.has_cooccurrence:
            self.cooccurrence.keep(keep)
            self.config.cooccurrence_pairs = len(self.cooccurrence.others)
        gone = set(rows)
        self._catalogue_changed([e for r, e in enumerate(self.catalogue) if r not in gone])

    def _catalogue_changed(self, entries: list[dict[str, str]]) -> None:
        self.config.num_items = len(self.item_sids)
        self.catalogue = entries
        self.share_sid_table()
