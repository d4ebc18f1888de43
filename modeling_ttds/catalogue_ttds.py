"""The catalogue of a model: its items by name, and how items join and leave it."""

import copy
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .arguments_ttds import as_item_ids, as_list, unordered
from .cooccurrence_ttds import TTDSCooccurrence
from .entries_ttds import TTDSEntries
from .lock_ttds import asking
from .records_ttds import as_text, item_records, shown
from .sid_ttds import unique_sids
from .text_ttds import encode_by_encoder, encode_with_transformer, item_text, normalised
from .tokenization_ttds import TTDSTable, TTDSTokenizer
from .towers_ttds import evaluating
from .trie_ttds import TTDSTrie

LIKENESS = 0.05  # temperature of the likeness of texts that a new item is placed by
SURENESS = 0.6  # how far its embedding is stretched, 1 is to unit length
MOST_LIKES, MOST_PAIRS, CHUNK = 2**16, 2**27, 512  # known items looked at, products, at once
SHORTEST = 1e-12  # length below which `normalize` gives no unit vector
CATALOGUE_FILE, TOKENIZER_FILE = "catalogue.jsonl", "tokenizer.json"
FIELDS = ("item_id", "title", "brand", "categories")  # what the catalogue keeps of an item


class TTDSCatalogueMixin:
    """What `TTDSForCausalLM` knows of its items, and how items join and leave."""

    @property
    def catalogue(self) -> TTDSEntries:
        """The items in row order: `item_id` and, where known, `title`, `brand`, `categories`."""
        return self._catalogue

    @catalogue.setter
    def catalogue(self, entries: Iterable[Mapping[str, Any]]) -> None:
        if not isinstance(entries, TTDSEntries):
            entries = TTDSEntries(_kept_fields(item_records(entries, "catalogue")))
        if len(entries) != len(self.item_sids):
            raise ValueError(
                f"`catalogue` has {len(entries)} entries for {len(self.item_sids)} items."
            )
        row_of = dict(zip(entries.item_ids(), range(len(entries)), strict=True))
        if len(row_of) < len(entries):
            twice = Counter(entries.item_ids()).most_common(1)[0][0]
            raise ValueError(f"`catalogue` holds the item {shown(twice)} twice.")
        self._catalogue, self.row_of = entries, row_of

    def write_catalogue(self, folder: str | os.PathLike) -> None:
        """Write the catalogue into a folder, by way of a scratch file.

        Args:
            folder: The model's folder.
        """
        file = Path(folder) / CATALOGUE_FILE
        scratch = file.with_suffix(".tmp")
        with scratch.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for line in self.catalogue.lines())
        scratch.replace(file)

    def read_catalogue(self, file: str | os.PathLike) -> None:
        """Take the catalogue from a file that `write_catalogue` wrote.

        Args:
            file: The file.

        Raises:
            ValueError: It is damaged, or not that of this model's items.
        """
        try:
            text = Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is no text in UTF-8 ({error}); copy the file anew from where the model "
                "came from."
            ) from None
        self.catalogue = TTDSEntries(text.removesuffix("\n").split("\n") if text else [])

    @property
    def tokenizer(self) -> TTDSTokenizer:
        """The tokenizer beside the model, loaded from its folder or repository on first need.

        Its SID table is that of the model's catalogue, whatever it was when it was set or saved.
        """
        if not self.has_tokenizer:
            raise ValueError(
                "`tokenizer` is missing, as none was beside the model; set `model.tokenizer`."
            )
        if self._tokenizer is None:
            origin, where = self._origin
            file = Path(origin, where.get("subfolder", ""), TOKENIZER_FILE)
            if file.is_absolute() and not file.is_file():
                raise ValueError(
                    f"`tokenizer` is missing, as {file} is gone; put it back, or set "
                    "`model.tokenizer`."
                )
            self.tokenizer = TTDSTokenizer.from_pretrained(origin, **where)
        if self.catalogue:
            with self.lock.reading():
                self._tokenizer.table = self._made_of(
                    "_table",
                    [self.item_sids, self.row_of],
                    lambda: TTDSTable(list(self.row_of), self.item_sids.clone()),
                )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: TTDSTokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer: one that was set, or one beside the loaded model."""
        return self._tokenizer is not None or self._origin is not None

    def share_sid_table(self) -> None:
        """Tell whoever else holds the tokenizer today's semantic IDs."""
        _ = self.tokenizer  # whoever asks the model for it has them

    @asking
    def embed_texts(self, texts: Iterable[str]) -> Tensor:
        """Return text embeddings as `config.text_encoder` makes them, (num_texts, text_dim).

        Case, accents, spaces and the form of Unicode do not matter.

        Args:
            texts: Plain texts; an empty one gives a zero row.

        Raises:
            ValueError: `texts` is one string, or holds what is no text, or the model's tokenizer is
                needed and missing.
            OSError: The text encoder cannot be loaded.
        """
        texts = [
            as_text(text, "texts", f"Text {number}")
            for number, text in enumerate(as_list(texts, "texts", "texts"))
        ]
        if not texts:
            return self.item_text.new_zeros(0, self.config.item_tower.text_dim)
        if self.config.text_encoder not in ("tokens", "backbone"):
            texts = [normalised(text) for text in texts]
            embeddings = encode_by_encoder(self.config.text_encoder, texts, device=self.device)
            return embeddings.to(self.item_text)
        tokenizer = self.tokenizer
        ids = [tokenizer.encode_words(text) for text in texts]
        if self.config.text_encoder == "tokens":
            return self.token_table.encode(ids).to(self.item_text)
        with evaluating(self):
            embeddings = encode_with_transformer(
                lambda ids, mask: (
                    self.model(
                        inputs_embeds=self.embed(ids), attention_mask=mask, use_cache=False
                    ).last_hidden_state
                ),
                ids,
                pad_token_id=tokenizer.pad_token_id,
                device=self.device,
            )
        return embeddings.to(self.item_text)

    def add_items(
        self,
        items: Iterable[Mapping[str, Any]],
        text_embeddings: Tensor | np.ndarray | Sequence[Sequence[float]] | None = None,
        histories: Iterable[Sequence[str]] = (),
    ) -> None:
        """Give new items unique semantic IDs; no weight changes, no old semantic ID.

        Other threads may recommend meanwhile: they see the catalogue before or after. An item of
        which the model knows no text and no history gets an arbitrary semantic ID, and a warning.

        Args:
            items: Per item `item_id` and any of `title`, `brand`, `categories`, `description`,
                `price`, as records or a table of them; see `item_records`.
            text_embeddings: Their text embeddings, (len(items), text_dim), of any length each; by
                default made from their text by `embed_texts`.
            histories: Histories that hold new items, as item ids, if there are any yet: a new
                item's collaborative embedding is the mean of the known items' beside it; without
                any, of those with like texts.

        Raises:
            ValueError: An item id is missing, known or there twice, a field holds no text, an
                embedding does not fit, a history holds an unknown item, or the semantic IDs are
                used up.
            OSError: The text encoder cannot be loaded.
        """
        records = item_records(items)
        # The tables outlive the call: they are to be plain ones, whatever mode the caller is in.
        whole = torch.autocast(self.device.type, enabled=False)
        with self.lock.one_writer, torch.inference_mode(False), torch.no_grad(), whole:
            new = {}
            for number, record in enumerate(records):
                if record["item_id"] in self.row_of or record["item_id"] in new:
                    raise ValueError(
                        f"`item_id` {shown(record['item_id'])} of item {number} is there already."
                    )
                new[record["item_id"]] = number
            collaborative = self._neighbours_embedding(new, histories)
            if not records:
                return
            text = self._text_of_new(records, text_embeddings)
            for number in (~(text.any(1) | collaborative.any(1))).nonzero().flatten().tolist():
                name = shown(records[number]["item_id"])
                warnings.warn(
                    f"Item {number} ({name}) has no text that the model knows and no history: its "
                    "semantic ID is arbitrary. Give it a title, `text_embeddings` or `histories`.",
                    stacklevel=2,
                )
            alone = ~collaborative.any(1)
            collaborative[alone] = self.collaborative_of_texts(text[alone])
            sids = self.sids_of_new(text, collaborative, taken=self.item_sids)
            rows = {"item_sids": sids, "item_text": text, "item_collaborative": collaborative}
            tables = {
                name: self._rooms[name].appended(getattr(self, name), more)
                for name, more in rows.items()
            }
            first = len(self.row_of)
            row_of = self.row_of | {item: first + number for item, number in new.items()}
            entries = self.catalogue.extended(_kept_fields(records))
            trie, moved = self.trie.extended(sids)
            made = {"_trie": self._kept([tables["item_sids"]], trie)}
            if "_node_table" in self.__dict__:
                embeddings = tables["item_text"], tables["item_collaborative"]
                table = self.node_table.extended(trie, moved, embeddings)
                parts = [trie, *embeddings, self.vector_projection]
                made["_node_table"] = self._kept(parts, table)
            known = torch.arange(first, device=self.device)
            rows = F.pad(known, (0, len(records)), value=-1)
            self._swap(
                tables, entries, row_of, rows, lambda memory: memory.extend(len(records)), made
            )

    def sids_of_new(self, text: Tensor, collaborative: Tensor, taken: Tensor) -> Tensor:
        """Return unique semantic IDs for items that join, (num_new, num_levels).

        Args:
            text: Their text embeddings, (num_new, text_dim).
            collaborative: Their collaborative embeddings, (num_new, collaborative_dim).
            taken: Semantic IDs of the others, (num_taken, num_levels).
        """
        with evaluating(self.item_tower), torch.no_grad():
            latents = self.item_tower.encode(text, collaborative).mean
        nearest = self.item_tower.quantise(latents).codes
        return unique_sids(latents, self.item_tower.vectors, nearest, taken=taken)

    @torch.no_grad()
    def collaborative_of_texts(self, text: Tensor, known: Tensor | None = None) -> Tensor:
        """Return what collaborative embeddings items of these texts may have, from their likes.

        Each is the mean over the known items, weighted by exp(cosine of texts / `LIKENESS`)
        (Nadaraya-Watson regression); a text that nothing is known of gets a zero row. A mean is
        shorter than an item's own embedding, the more the likes differ. At its own length new items
        are hardly ever recommended, at unit length too often; `SURENESS` lies between.

        Args:
            text: Text embeddings, (num_new, text_dim).
            known: Rows of the items to learn from; by default all that have an embedding.
        """
        # What is learnt from ten thousands of items is learnt from every so-manieth of a million.
        most = max(1, min(MOST_LIKES, MOST_PAIRS // max(len(text), 1)))
        step = -(-len(self.item_collaborative) // most) or 1
        rows = slice(None, None, step)  # views of the tables, no copies
        some = self.item_collaborative[rows].any(1)
        if known is None and step > 1 and 2 * int(some.sum()) < most:  # few have one: look at all
            known = self.item_collaborative.any(1).nonzero()[:, 0]
        if known is not None:
            rows = known[:: -(-len(known) // most) or 1]
            some = self.item_collaborative[rows].any(1)
        others, embeddings = self.item_text[rows], self.item_collaborative[rows]
        means = self.item_collaborative.new_zeros(len(text), self.item_collaborative.shape[1])
        if not some.any():
            return means
        for part in torch.arange(len(text), device=text.device).split(CHUNK):
            cosines = F.normalize(text[part], dim=-1) @ others.T
            weights = (cosines / LIKENESS).masked_fill(~some, -torch.inf).softmax(1)
            means[part] = weights.to(means.dtype) @ embeddings
        length = means.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return means / length**SURENESS * text.any(1, keepdim=True)

    def _text_of_new(self, records: list[dict[str, str]], given: Any) -> Tensor:
        if given is None:
            return self.embed_texts(item_text(record) for record in records)
        expected = (len(records), self.config.item_tower.text_dim)
        try:
            # What is read only, as of a pandas frame, is copied: torch warns of writing into it.
            table = given if isinstance(given, Tensor) else np.require(given, requirements="W")
            text = torch.as_tensor(table)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`text_embeddings` is no table of numbers ({error}); give one row per item."
            ) from None
        if text.layout != torch.strided or text.is_complex():
            raise ValueError(
                f"`text_embeddings` is no table of real numbers but of {text.dtype} as "
                f"{text.layout}; give one row per item."
            )
        if text.shape != expected:
            raise ValueError(
                f"`text_embeddings` must be finite and of shape {expected}; they have the shape "
                f"{tuple(text.shape)}."
            )
        # As the table keeps them, where large numbers are infinite and the squares of small ones 0.
        text = text.to(self.item_text)
        lengths = text.norm(dim=1)
        wrong = ~lengths.isfinite() | (text.any(1) & (lengths < SHORTEST))
        if wrong.any():
            number = int(wrong.nonzero()[0])
            raise ValueError(
                f"`text_embeddings` must be finite and have lengths that {text.dtype} holds; item "
                f"{number} ({shown(records[number]['item_id'])}) has the length "
                f"{lengths[number]:.3g}: scale it to length 1."
            )
        return F.normalize(text, dim=-1)

    def _neighbours_embedding(
        self, new: dict[str, int], histories: Iterable[Sequence[str]]
    ) -> Tensor:
        sums = self.item_collaborative.new_zeros(len(new), self.config.item_tower.collaborative_dim)
        for number, history in enumerate(as_list(histories, "histories", "histories")):
            history = as_item_ids(history, f"histories[{number}]")
            unknown = [item for item in history if item not in self.row_of and item not in new]
            if unknown:
                raise ValueError(f"History {number} holds the unknown item {shown(unknown[0])}.")
            beside = self.item_collaborative[[self.row_of[i] for i in history if i in self.row_of]]
            for item in set(history) & new.keys():
                sums[new[item]] += beside.sum(0)
        return F.normalize(sums, dim=-1)

    def remove_items(self, item_ids: Iterable[str]) -> None:
        """Take items out of catalogue, SID table and trie; the others keep their semantic IDs.

        The rows of items move up, so users that are attached by rows are no longer.

        Other threads may recommend meanwhile: they see the catalogue before or after.

        Args:
            item_ids: Ids of the items.

        Raises:
            ValueError: `item_ids` is no list of strings, an item is unknown, or none would be left.
        """
        with self.lock.one_writer, torch.inference_mode(False), torch.no_grad():
            gone = set(self.item_rows(unordered(item_ids), "item_ids"))
            keep = torch.ones(len(self.item_sids), dtype=torch.bool, device=self.device)
            keep[list(gone)] = False
            if not keep.any():
                raise ValueError("`remove_items` would leave no item; keep at least one.")
            tables = {
                name: getattr(self, name)[keep]
                for name in ("item_sids", "item_text", "item_collaborative")
            }
            entries = self.catalogue.without(gone)
            row_of = {item: row for row, item in enumerate(entries.item_ids())}
            rows = keep.nonzero()[:, 0]
            trie = TTDSTrie.build(tables["item_sids"])
            made = {"_trie": self._kept([tables["item_sids"]], trie)}
            self._swap(tables, entries, row_of, rows, lambda memory: memory.keep(keep), made)

    def _swap(
        self,
        tables: dict[str, Tensor],
        entries: TTDSEntries,
        row_of: dict[str, int],
        rows: Tensor,
        change: Callable[[TTDSCooccurrence], None],
        made: dict[str, tuple[Sequence[Any], list[int], Any]],
    ) -> None:
        # What was there is replaced and never written into: who holds it keeps a state that is
        # whole, and so does a model that shares it. `rows` says which row an item had before,
        # `made` holds what is made of the new tables, as `_kept` gives it. All that may fail comes
        # before the first part is replaced.
        parts: dict[str, Any] = dict(tables)
        sizes: dict[str, Any] = {"num_items": len(entries)}
        if self.config.has_cooccurrence:
            memory = parts["cooccurrence"] = copy.copy(self.cooccurrence)
            memory._buffers = dict(memory._buffers)
            change(memory)
            sizes["cooccurrence_pairs"] = len(memory.others)
        if self.config.pair_dim:
            pairs = parts["node_pairs"] = copy.deepcopy(self.node_pairs)
            trie = made["_trie"][-1]
            pairs.follow(rows, self.trie, trie)
            sizes["pair_nodes"] = trie.num_nodes()
        tokenizer = self.tokenizer if self.has_tokenizer else None
        table = TTDSTable(list(row_of), tables["item_sids"].clone())
        made["_table"] = self._kept([tables["item_sids"], row_of], table)
        with self.lock.swapping():
            if len(rows) < len(self.item_sids) and hasattr(self, "user_histories"):
                del self.user_histories  # rows of items as they were
            for name, part in parts.items():
                setattr(self, name, part)
            self.__dict__ |= made
            for name, size in sizes.items():
                setattr(self.config, name, size)
            self._catalogue, self.row_of = entries, row_of
            if tokenizer is not None:
                tokenizer.table = table


def _kept_fields(records: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: record[name] for name in FIELDS} for record in records]
