"""TTDSTokenizer: text, SID tokens and placeholders in one vocabulary."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from .configuration_ttds import KINDS, placeholder_ids, sid_token

INDEX_FILE = "sid_table.json"
SLOT = re.compile(r"(<item>|<user>|\{\w+\})")


class TTDSTokenizer(PreTrainedTokenizerFast):
    """Any fast tokenizer with SID tokens and placeholders added to its vocabulary.

    Build it with `from_base`. It carries the SID table of the items (`set_sid_table`), so that
    `encode_items` and `decode_items` translate between item ids and SID tokens.
    """

    # No `__init__`: a fast tokenizer that defines one is rebuilt without its pre-tokenizer on load.
    vocab_files_names = {"tokenizer_file": "tokenizer.json", "sid_table_file": INDEX_FILE}

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
            bos_token=base.bos_token,
            eos_token=base.eos_token,
            unk_token=base.unk_token,
            pad_token=base.pad_token or base.eos_token,
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
        if "_plain" not in self.__dict__:
            state = json.loads(self.backend_tokenizer.to_str())
            self._plain = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
            self._added = frozenset(self.added_tokens_decoder)
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._added.isdisjoint(ids):
            return ids
        # Some vocabularies hold their markers as pieces; cut in two, a marker has no piece.
        parts = re.split(r"(?<=<)|(?<=\[)", text)
        return [
            token
            for part in parts
            for token in self._plain.encode(part, add_special_tokens=False).ids
            if token not in self._added
        ]

    def encode_prompt(
        self,
        template: str,
        texts: dict[str, str] | None = None,
        items: Sequence[int | Sequence[int]] = (),
        users: Sequence[int | Sequence[int]] = (),
        longest_text: int | None = None,
        begin: bool = True,
    ) -> list[int]:
        """Return the ids of a prompt in which entities are placeholder ids.

        Args:
            template: Our own wording. `{name}` is a slot for plain text, each `<item>` and `<user>`
                a slot for one entity or several; SID tokens written out are SID tokens.
            texts: Text per slot name.
            items: Item rows per `<item>` in order.
            users: User rows per `<user>` in order.
            longest_text: How many of the first tokens of a text are kept; all by default.
            begin: Whether the tokenizer's begin-of-text token comes first.
        """
        rows = {"<item>": iter(items), "<user>": iter(users)}
        ids = [self.bos_token_id] if begin and self.bos_token_id is not None else []
        for part in SLOT.split(template):
            if part in rows:
                entities = next(rows[part])
                for row in [entities] if isinstance(entities, int) else entities:
                    ids += placeholder_ids(part[1:-1], int(row), self.num_levels)
            elif SLOT.fullmatch(part):
                ids += self.encode_text(texts[part[1:-1]])[:longest_text]
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
    def sid_table(self) -> dict[str, list[int]]:
        """Item id to semantic ID, as last set or loaded."""
        if "_sid_table" not in self.__dict__:
            file = self.init_kwargs.get("sid_table_file")
            self._sid_table = json.loads(Path(file).read_text("utf-8")) if file else {}
        return self._sid_table

    def set_sid_table(self, item_ids: Iterable[str], sids: Iterable[Sequence[int]]) -> None:
        """Replace the SID table of the items.

        Args:
            item_ids: Item ids.
            sids: Semantic ID of each item, one code per level.
        """
        self._sid_table = {i: list(c) for i, c in zip(item_ids, sids, strict=True)}
        self.__dict__.pop("_item_of", None)

    def encode_items(self, item_ids: Iterable[str]) -> list[int]:
        """Return the SID token ids of items, one after the other.

        Args:
            item_ids: Item ids.

        Raises:
            ValueError: An item is not in the SID table.
        """
        ids = []
        for item in item_ids:
            if item not in self.sid_table:
                raise ValueError(
                    f"Item {item!r} is not in the SID table of {len(self.sid_table)} items; "
                    "add it to the model, or set the table by `set_sid_table`."
                )
            for level, code in enumerate(self.sid_table[item]):
                ids.append(self.sid_token_start + level * self.num_codes + code)
        return ids

    def decode_items(self, ids: Iterable[int]) -> list[str]:
        """Return the items that a sequence of SID token ids names.

        Args:
            ids: SID token ids, `num_levels` per item; other ids are passed over.

        Raises:
            ValueError: The SID tokens are out of order or name no item.
        """
        if "_item_of" not in self.__dict__:
            self._item_of = {tuple(codes): item for item, codes in self.sid_table.items()}
        block = self.num_levels * self.num_codes
        offsets = [i - self.sid_token_start for i in map(int, ids)]
        offsets = [offset for offset in offsets if 0 <= offset < block]
        items = []
        for first in range(0, len(offsets), self.num_levels):
            path = offsets[first : first + self.num_levels]
            codes = tuple(offset % self.num_codes for offset in path)
            levels = [offset // self.num_codes for offset in path]
            if levels != list(range(self.num_levels)) or codes not in self._item_of:
                names = "".join(
                    sid_token("item", level, code)
                    for level, code in zip(levels, codes, strict=True)
                )
                raise ValueError(f"{names} names no item of the SID table.")
            items.append(self._item_of[codes])
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
