"""The entries of a catalogue and the tables of its items: read when asked for, grown in place."""

import json
import threading
from collections.abc import Iterable, Sequence
from json.decoder import scanstring

import numpy as np
import torch
from torch import Tensor

from .records_ttds import shown

FIRST, LAST = '{"item_id": "', '"}'  # how a line of a catalogue's file begins and ends
ROOM = 16  # a table that grows gets room for a sixteenth more
UNREAD = -2  # label of an item whose entry nobody has asked for


def _read(line: str) -> dict[str, str]:
    reason = "it has no `item_id`"
    try:
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("item_id"), str):
            return entry
    except ValueError as error:
        reason = str(error)
    raise ValueError(
        f"`catalogue.jsonl` holds the line {shown(line)}, which is no item ({reason}); copy the "
        "file anew from where the model came from."
    )


class TTDSEntries(Sequence):
    """The items of a catalogue in row order; a line of a file is read when it is asked for.

    Args:
        items: Entries, or lines of JSON that hold one each.
    """

    def __init__(self, items: Iterable[dict[str, str] | str]):
        self._items = list(items)
        self.labels = TTDSLabels(self)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        entry = self._items[index]
        if isinstance(entry, str):
            entry = self._items[index] = _read(entry)
        return entry

    def __setitem__(self, row: int, entry: dict[str, str]) -> None:
        self._items[row] = entry

    def __eq__(self, other: object) -> bool:
        # Two saved models bring the code, and so this class, twice.
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"TTDSEntries of {len(self)} items"

    def item_ids(self) -> Iterable[str]:
        """Yield the ids in row order."""
        for entry in self._items:
            if not isinstance(entry, str):
                yield entry["item_id"]
            elif entry.startswith(FIRST) and entry.endswith(LAST):
                yield scanstring(entry, len(FIRST))[0]
            else:
                yield _read(entry)["item_id"]

    def lines(self) -> Iterable[str]:
        """Yield a line of JSON per entry."""
        for entry in self._items:
            yield entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)

    def extended(self, entries: list[dict[str, str]]) -> "TTDSEntries":
        """Return these entries and more.

        Args:
            entries: The others.
        """
        more = TTDSEntries(self._items)
        more._items += entries
        more.labels = self.labels.extended(more)
        return more

    def without(self, rows: set[int]) -> "TTDSEntries":
        """Return these entries but some.

        Args:
            rows: The rows that go.
        """
        return TTDSEntries(entry for row, entry in enumerate(self._items) if row not in rows)


class TTDSLabels:
    """Brand and categories of items as numbers, -1 for none; indexed by a tensor of rows.

    Args:
        entries: The catalogue's entries.
    """

    def __init__(self, entries: TTDSEntries):
        # No tensor: one that was made in `torch.inference_mode` could be written into there only.
        self.entries, self.table = entries, np.full((len(entries), 2), UNREAD, dtype=np.int32)
        self.numbers = {}  # of values, by what they were first seen at

    def __getitem__(self, items: Tensor) -> Tensor:
        rows = items.cpu().numpy()
        labels = self.table[rows]
        unread = np.unique(rows[labels[..., 0] == UNREAD])
        if len(unread):
            self.table[unread] = [self._numbers(row) for row in unread.tolist()]
            labels = self.table[rows]
        return torch.from_numpy(labels).to(items.device)

    def _numbers(self, row: int) -> list[int]:
        entry, numbers = self.entries[row], []
        for column, name in enumerate(("brand", "categories")):
            value = entry.get(name, "")
            # No other value has that number, whichever threads ask at once.
            number = self.numbers.setdefault((name, value), 2 * row + column)
            numbers.append(number if value else -1)
        return numbers

    def extended(self, entries: TTDSEntries) -> "TTDSLabels":
        """Return the labels of these entries and more.

        Args:
            entries: All of them.
        """
        more = TTDSLabels(entries)
        more.table[: len(self.table)] = self.table
        more.numbers = self.numbers
        return more


class TTDSRoom:
    """Memory of a table that grows by rows: what is there is neither copied nor written into.

    Models that share a table share its room; the first to add rows has them behind the table, a
    later one copies it.
    """

    def __init__(self):
        self.lock, self.memory, self.used = threading.Lock(), torch.empty(0), 0

    def __reduce__(self):  # a copy of a model has tables of its own
        return TTDSRoom, ()

    def appended(self, table: Tensor, rows: Tensor) -> Tensor:
        """Return a table with more rows, whose first ones lie where they lay if there is room.

        Args:
            table: The table, (num_rows, dim).
            rows: What comes behind it, (num_new, dim).
        """
        with self.lock:
            first, end = len(table), len(table) + len(rows)
            same = self.memory.data_ptr() == table.data_ptr() and self.memory.dtype == table.dtype
            if not same or self.used != first or len(self.memory) < end:
                self.memory = table.new_empty(end + end // ROOM + ROOM, *table.shape[1:])
                self.memory[:first] = table
            # Not through autograd's counter: it would say that the first rows have changed.
            self.memory.data[first:end] = rows
            self.used = end
            return self.memory.data[:end]
