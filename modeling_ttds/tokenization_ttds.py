"""TTDSTokenizer: text, SID tokens and placeholders in one vocabulary."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .arguments_ttds import as_integers, as_item_ids, as_list
from .configuration_ttds import KINDS, placeholder_ids, sid_token
from .records_ttds import shown
from .text_ttds import normalised

INDEX_FILE = "sid_table.json"
SLOT = re.compile(r"(<item>|<user>|\{\w+\})")


class TTDSTable:
    """Item ids and semantic IDs of one moment, looked up either way; never changed.

    Args:
        item_ids: Item ids.
        sids: Semantic ID of each item, one code per level.
    """

    def __init__(self, item_ids: list[str], sids: Tensor | list[Sequence[int]]):
        if len(item_ids) != len(sids):
            raise ValueError(f"There are {len(item_ids)} item ids for {len(sids)} semantic IDs.")
        self.item_ids, self.sids = item_ids, sids

    def __len__(self) -> int:
        return len(self.item_ids)

    # A million items cost a second each: only who looks them up pays.

    @cached_property
    def codes(self) -> dict[str, list[int]]:
        """Item id to semantic ID."""
        sids = self.sids.tolist() if isinstance(self.sids, Tensor) else map(list, self.sids)
        return dict(zip(self.item_ids, sids, strict=True))

    @cached_property
    def items(self) -> dict[tuple[int, ...], str]:
        """Semantic ID to item id."""
        return {tuple(codes): item for item, codes in self.codes.items()}


class TTDSTokenizer(PreTrainedTokenizerFast):
    """Any fast tokenizer with SID tokens and placeholders added to its vocabulary.

    Build it with `from_base`. It carries the SID table of the items (`set_sid_table`), so that
    `encode_items` and `decode_items` translate between item ids and SID tokens.
    """

    # No `__init__`: a fast tokenizer that defines one is rebuilt without its pre-tokenizer on load.
    vocab_files_names = {"tokenizer_file": "tokenizer.json", "sid_table_file": INDEX_FILE}
    model_input_names = ["input_ids", "attention_mask"]  # what the model takes, `generate` too

    @classmethod
    def from_base(
        cls, base: PreTrainedTokenizerFast, num_levels: int, num_codes: int
    ) -> "TTDSTokenizer":
        """Return a copy of a fast tokenizer with placeholders and SID tokens at its end.

        Args:
            base: The tokenizer of the backbone, or one trained on the catalogue.
            num_levels: Number of codes in a semantic ID.
            num_codes: Number of codes per level.

        Raises:
            ValueError: The base has no end-of-text token or already holds a SID token.
        """
        if base.eos_token is None:
            raise ValueError("The base tokenizer has no `eos_token`; set one before `from_base`.")
        names = [f"<{kind}>" for kind in KINDS] + [
            sid_token(kind, level, code)
            for kind in KINDS
            for level in range(num_levels)
            for code in range(num_codes)
        ]
        held = set(names) & set(base.get_vocab())
        if held:
            raise ValueError(f"The base tokenizer already holds {min(held)!r}; use a plain one.")
        tokenizer = cls(
            tokenizer_object=base.backend_tokenizer,
            chat_template=base.chat_template,
            **{"pad_token": base.eos_token} | base.special_tokens_map,
            extra_special_tokens=base.extra_special_tokens,
            padding_side=base.padding_side,
            truncation_side=base.truncation_side,
            model_max_length=base.model_max_length,
            num_levels=num_levels,
            num_codes=num_codes,
        )
        tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
        return tokenizer

    @property
    def num_levels(self) -> int:
        """Number of codes in a semantic ID."""
        return self.init_kwargs["num_levels"]

    @property
    def num_codes(self) -> int:
        """Number of codes per level."""
        return self.init_kwargs["num_codes"]

    @property
    def sid_token_start(self) -> int:
        """Id of the first SID token; the others follow by kind, level and code."""
        return self.convert_tokens_to_ids(sid_token("item", 0, 0))

    # Text and prompts

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of text from a catalogue or a visitor, which never hold an added token.

        Text that looks like a SID token, a placeholder or a chat marker stays plain text.

        Args:
            text: Any string.
        """
        plain, added = self._plain
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = plain.encode(text, add_special_tokens=False).ids
        if added.isdisjoint(ids):
            return ids
        # Some vocabularies hold their markers as pieces; cut in two, a marker has no piece.
        parts = re.split(r"(?<=<)|(?<=\[)", text)
        return [
            token
            for part in parts
            for token in plain.encode(part, add_special_tokens=False).ids
            if token not in added
        ]

    def encode_words(self, text: str) -> list[int]:
        """Return the ids of text that is to be understood, for embeddings and prompts.

        It is `normalised`, and its first word has the token that it has behind another word.

        Args:
            text: Any string.
        """
        words = normalised(text)
        return self.encode_text(self._behind_word + words) if words else []

    @cached_property
    def _plain(self) -> tuple[Tokenizer, frozenset[int]]:
        state = json.loads(self.backend_tokenizer.to_str())
        # The base may have been told to cut and to pad, by a call with `truncation` for one.
        whole = {"added_tokens": [], "truncation": None, "padding": None}
        plain = Tokenizer.from_str(json.dumps(state | whole))
        return plain, frozenset(self.added_tokens_decoder)

    @cached_property
    def _behind_word(self) -> str:
        # Byte-level vocabularies have the space in a word's token, the others bring their own mark.
        first, both = self.encode_text("a"), self.encode_text("a a")
        return " " if both[len(first) :] == self.encode_text(" a") else ""

    def encode_prompt(
        self,
        template: str,
        texts: dict[str, str] | None = None,
        items: Sequence[int | Sequence[int]] = (),
        users: Sequence[int | Sequence[int]] = (),
        longest_text: int | None = None,
        answer: bool = False,
    ) -> list[int]:
        """Return the ids of a prompt, or of its answer, in which entities are placeholder ids.

        The begin-of-text token opens a prompt. Texts of a prompt are normalised, those of an answer
        keep the writing of the catalogue.

        Args:
            template: Our own wording. `{name}` is a slot for plain text, each `<item>` and `<user>`
                a slot for one entity or several; SID tokens written out are SID tokens.
            texts: Text per slot name.
            items: Item rows per `<item>` in order.
            users: User rows per `<user>` in order.
            longest_text: How many of the first tokens of a text are kept; all by default.
            answer: Whether it is the answer to a prompt.
        """
        rows = {"<item>": iter(items), "<user>": iter(users)}
        encode = self.encode_text if answer else self.encode_words
        ids = [] if answer or self.bos_token_id is None else [self.bos_token_id]
        for part in SLOT.split(template):
            if part in rows:
                entities = next(rows[part])
                for row in [entities] if isinstance(entities, int) else entities:
                    ids += placeholder_ids(part[1:-1], int(row), self.num_levels)
            elif SLOT.fullmatch(part):
                ids += encode(texts[part[1:-1]])[:longest_text]
            elif part:
                ids += self(part, add_special_tokens=False).input_ids
        return ids

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of our own wording, with its placeholder tokens left in.

        Args:
            prompt: Wording with `<user>` and `<item>`.
        """
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        return bos + self(prompt, add_special_tokens=False).input_ids

    # Items by name

    @property
    def table(self) -> TTDSTable:
        """The SID table of the items, as last set or loaded."""
        if "_table" not in self.__dict__:
            file = self.init_kwargs.get("sid_table_file")
            try:
                loaded = json.loads(Path(file).read_text("utf-8")) if file else {}
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"The SID table {file} cannot be read ({error}); put the file back, or set the "
                    "table by `set_sid_table`."
                ) from None
            self._table = TTDSTable(list(loaded), list(loaded.values()))
        return self._table

    @table.setter
    def table(self, table: TTDSTable) -> None:
        self._table = table

    @property
    def sid_table(self) -> dict[str, list[int]]:
        """Item id to semantic ID, as last set or loaded."""
        return self.table.codes

    def set_sid_table(
        self, item_ids: Iterable[str], sids: Tensor | Iterable[Sequence[int]]
    ) -> None:
        """Replace the SID table of the items.

        Args:
            item_ids: Item ids.
            sids: Semantic ID of each item, one code per level.

        Raises:
            ValueError: There is not one semantic ID per item, or a code is none of its level's.
        """
        item_ids = as_item_ids(item_ids, "item_ids")
        sids = sids.tolist() if isinstance(sids, Tensor) else sids
        sids = [
            as_integers(codes, f"sids[{number}]", "codes")
            for number, codes in enumerate(as_list(sids, "sids", "semantic IDs"))
        ]
        table = TTDSTable(item_ids, sids)
        for number, codes in enumerate(sids):
            if len(codes) != self.num_levels or not all(0 <= c < self.num_codes for c in codes):
                raise ValueError(
                    f"`sids[{number}]` is {shown(codes)}; give {self.num_levels} codes from 0 to "
                    f"{self.num_codes - 1}."
                )
        self.table = table

    def encode_items(self, item_ids: Iterable[str]) -> list[int]:
        """Return the SID token ids of items, one after the other.

        Args:
            item_ids: Item ids.

        Raises:
            ValueError: An item is not in the SID table.
        """
        ids, codes = [], self.sid_table
        for item in as_item_ids(item_ids, "item_ids"):
            if item not in codes:
                raise ValueError(
                    f"Item {shown(item)} is not in the SID table of {len(codes)} items; "
                    "add it to the model, or set the table by `set_sid_table`."
                )
            for level, code in enumerate(codes[item]):
                ids.append(self.sid_token_start + level * self.num_codes + code)
        return ids

    def decode_items(self, ids: Iterable[int]) -> list[str]:
        """Return the items that a sequence of SID token ids names.

        Args:
            ids: SID token ids, `num_levels` per item; other ids are passed over.

        Raises:
            ValueError: `ids` is no list of integers, or the SID tokens are out of order or name no
                item.
        """
        item_of = self.table.items
        block = self.num_levels * self.num_codes
        ids = as_integers(ids, "ids", "SID token ids, a row of what `generate` returns at a time")
        offsets = [i - self.sid_token_start for i in ids]
        offsets = [offset for offset in offsets if 0 <= offset < block]
        items = []
        for first in range(0, len(offsets), self.num_levels):
            path = offsets[first : first + self.num_levels]
            codes = tuple(offset % self.num_codes for offset in path)
            levels = [offset // self.num_codes for offset in path]
            if levels != list(range(self.num_levels)) or codes not in item_of:
                names = "".join(
                    sid_token("item", level, code)
                    for level, code in zip(levels, codes, strict=True)
                )
                raise ValueError(f"{names} names no item of the SID table.")
            items.append(item_of[codes])
        return items

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        file = Path(save_directory) / INDEX_FILE
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.sid_table), "utf-8")
        scratch.replace(file)
        return (*names, str(file))


TTDSTokenizer.register_for_auto_class("AutoTokenizer")
