"""From histories to training examples: user states, the examples of an epoch, the collator."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_ttds.configuration_ttds import PLACEHOLDER_START
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from modeling_ttds.users_ttds import TTDSUserHistories
from recipes.config import ExampleOptions
from recipes.data.split import Split
from recipes.tuning import tasks, wordings
from recipes.tuning.tasks import Past
from recipes.tuning.wordings import Wording

VALIDATION_ROWS = 256


class UserStates:
    """Users as of moments: row r is a user who has seen the first t items of the training history.

    A training example that predicts item t may name the state (user, t) or an earlier one.

    Args:
        split: The split.
        max_history: How many of the newest items a state keeps.
    """

    def __init__(self, split: Split, max_history: int):
        self.training = split.training
        self.max_history = max_history
        lengths = np.array([len(history) + 1 for history in split.training])
        self.first = np.concatenate([[0], lengths.cumsum()])

    def __len__(self) -> int:
        return int(self.first[-1])

    def row(self, user: int, moment: int) -> int:
        """Return the row of a user who has seen `moment` items."""
        return int(self.first[user] + moment)

    def whose(self, row: int) -> tuple[int, int]:
        """Return the user and the moment of a row."""
        user = int(np.searchsorted(self.first, row, side="right")) - 1
        return user, row - int(self.first[user])

    def latest(self) -> np.ndarray:
        """Return the row of every user's last state."""
        return self.first[1:] - 1

    def on_demand(self) -> TTDSUserHistories:
        """Return what makes the histories of states when a batch asks for them."""
        newest = np.full(len(self), -1, dtype=np.int32)
        seen = np.ones(len(self), dtype=bool)
        seen[self.first[:-1]] = False
        newest[seen] = np.concatenate(self.training)
        return TTDSUserHistories(torch.from_numpy(newest), self.max_history)

    def histories(self) -> Tensor:
        """Return the item rows of all states, padded left with -1, (num_states, max_history)."""
        return self.on_demand()[torch.arange(len(self))]


class Examples:
    """The training examples of an epoch: the next-item task, and the other tasks in their shares.

    The next-item task has packed sequences: per user one row with a loss at every item from a
    random cut on. With `sliding_windows` it has a row for every position of every history and a
    loss at its last item. Every other task has as many rows as its weight times the number of
    users, drawn anew each epoch; a task that the data have nothing for is left out, with a word.
    What a row draws depends on seed, epoch and position only.

    Args:
        split: The split.
        states: The user states.
        tokenizer: Builds the prompts.
        options: Form, tasks and limits.
        seed: Seed of the draws.
        max_length: Most tokens of a row.

    Raises:
        ValueError: A task is unknown, or `max_length` does not hold a history.
    """

    def __init__(
        self,
        split: Split,
        states: UserStates,
        tokenizer: TTDSTokenizer,
        options: ExampleOptions,
        seed: int,
        max_length: int = 1024,
    ):
        self.split, self.states, self.tokenizer, self.options = split, states, tokenizer, options
        self.seed, self.epoch, self.max_length = seed, 0, max_length
        self.past = Past(split, states.row, states.max_history)
        self.max_history = states.max_history
        self.next_item = next_item_wording(options)
        longest = len(self.encode(Wording(self.next_item, "", items=([],), users=([],))))
        longest += (self.max_history + 2) * tokenizer.num_levels
        if longest > max_length:
            raise ValueError(
                f"`max_length` is {max_length}, but `max_history` {self.max_history} takes "
                f"{longest} tokens; raise the one or lower the other."
            )
        unknown = set(options.tasks or {}) - set(tasks.USER_TASKS | tasks.ITEM_TASKS)
        if unknown:
            raise ValueError(
                f"`tasks` names {min(unknown)!r}; known are "
                f"{', '.join(tasks.USER_TASKS | tasks.ITEM_TASKS)}."
            )
        found = {}
        for task, weight in (options.tasks or {}).items():
            if tasks.draw_wording(self.past, task, random.Random(f"{seed}-{task}")):
                found[task] = weight
            else:
                print(f"The data have nothing that the task {task!r} is made of: it is left out.")
        self.options = replace(options, tasks=found)
        lengths = np.diff(states.first) - 1
        # Of a row its user and, with sliding windows, its target: arrays, since users are many.
        self.users, self.targets = np.flatnonzero(lengths).astype(np.int32), None
        num_users = len(self.users)
        if options.sliding_windows:
            lengths = lengths[self.users]
            self.users = np.repeat(self.users, lengths)
            starts = np.repeat(lengths.cumsum() - lengths, lengths)
            self.targets = (np.arange(len(self.users)) - starts).astype(np.int32)
        counts = [round(weight * num_users) for weight in found.values()]
        self.task_ends = len(self.users) + np.cumsum(counts, dtype=np.int64)

    def as_dataset(self) -> datasets.Dataset:
        """Return a data set that makes its examples when they are asked for."""

        def make(batch: dict[str, list]) -> dict[str, list]:
            examples = [self[index] for index in batch["index"]]
            return {key: [example[key] for example in examples] for key in examples[0]}

        return datasets.Dataset.from_dict({"index": range(len(self))}).with_transform(make)

    def validation(self, count: int = VALIDATION_ROWS) -> dict[str, datasets.Dataset]:
        """Return, per task, examples as of the moment before the validation target.

        Args:
            count: How many of a task at most.
        """
        past = Past(self.split, self.states.row, self.max_history, held_out=True)
        users = self.split.users("validation")[:count].tolist()
        found = {
            "next_item": [
                self.encode_next_item(past.histories[u], u, 0, len(past.histories[u]) - 1)
                for u in users
            ]
        }
        for task in self.options.tasks or {}:
            wordings = tasks.validation_wordings(past, task, count)
            found[f"task_{task}"] = [self.encode(wording) for wording in wordings]
        return {
            name: datasets.Dataset.from_list(examples)
            for name, examples in found.items()
            if examples
        }

    def lengths(self) -> list[int]:
        """Return about how many items each row shows; rows of other tasks count as long ones."""
        if self.targets is None:
            shown = np.diff(self.states.first)[self.users] - 1
        else:
            shown = self.targets + 1
        next_item = np.minimum(shown, self.max_history + 1).tolist()
        return next_item + [self.max_history] * (len(self) - len(self.users))

    def __len__(self) -> int:
        return int(self.task_ends[-1]) if len(self.task_ends) else len(self.users)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        draw = random.Random(f"{self.seed}-{self.epoch}-{index}")
        if index >= len(self.users):
            task = list(self.options.tasks)[np.searchsorted(self.task_ends, index, side="right")]
            wording = tasks.draw_wording(self.past, task, draw)
            if wording is not None:
                return self.encode(wording)
            index = draw.randrange(len(self.users))  # so rarely can it be made: a next item instead
        user = int(self.users[index])
        history = self.past.histories[user]
        if self.targets is not None:
            return self.encode_next_item(history, user, 0, int(self.targets[index]))
        end = draw.randint(min(len(history), self.max_history + 1), len(history))
        begin = max(0, end - self.max_history - 1)
        cut = draw.randrange(begin, end)
        return self.encode_next_item(history, user, begin, cut, end, draw)

    def encode_next_item(
        self,
        history: np.ndarray,
        user: int,
        begin: int,
        cut: int,
        end: int | None = None,
        draw: random.Random | None = None,
    ) -> dict[str, list[int]]:
        """Return a row that shows `history[begin:cut]` and learns `history[cut:end]`.

        Args:
            history: Item rows.
            user: Whose history it is.
            begin: First position shown; the newest `max_history` before the cut are.
            cut: First position learnt.
            end: Position behind the last one learnt; one is learnt by default.
            draw: Leaves out a share `item_dropout` of the items, but for one that is learnt.
        """
        begin, end = max(begin, cut - self.max_history), end or cut + 1
        shown, learnt = history[begin:cut].tolist(), history[cut:end].tolist()
        if draw is not None and self.options.item_dropout:
            stays = draw.randrange(len(learnt))
            keep = [draw.random() >= self.options.item_dropout for _ in range(end - begin)]
            keep[len(shown) + stays] = True
            shown, learnt = (
                [row for row, kept in zip(rows, part, strict=True) if kept]
                for rows, part in ((shown, keep[: len(shown)]), (learnt, keep[len(shown) :]))
            )
        return self.encode(
            Wording(
                self.next_item, "<item>",
                items=(shown,), users=([self.states.row(user, cut)],), targets=tuple(learnt),
            )
        )  # fmt: skip

    def encode(self, wording: Wording) -> dict[str, list[int]]:
        """Return `input_ids` and `labels`; the loss stands on the response only.

        A row that is too long loses the oldest items of its longest list; never its response.

        Args:
            wording: Prompt and response.

        Raises:
            ValueError: Without any history it is still too long.
        """
        encode, longest = self.tokenizer.encode_prompt, self.options.max_text_tokens
        slots = {"items": [wording.targets], "users": [wording.targets]}
        response = encode(
            wording.response, wording.texts, **slots, longest_text=longest, answer=True
        )
        if wording.response not in ("<item>", "<user>", ""):
            response = [*response, self.tokenizer.eos_token_id]
        items = [list(rows) for rows in wording.items]
        users = [list(rows) for rows in wording.users]
        while True:
            prompt = encode(
                wording.prompt, wording.texts, items=items, users=users, longest_text=longest
            )
            excess = len(prompt) + len(response) - self.max_length
            if excess <= 0:
                return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}
            lists = max([*items, *users], key=len, default=[])
            if len(lists) < 2:
                raise ValueError(
                    f"`max_length` is {self.max_length}; the prompt {wording.prompt!r} takes "
                    f"{excess} more. Raise it or lower `max_text_tokens`."
                )
            del lists[: min(len(lists) - 1, -(-excess // self.tokenizer.num_levels))]


def next_item_wording(options: ExampleOptions) -> str:
    """Return how the next item is asked for; the history's SID tokens end the prompt.

    Args:
        options: Says whether the user has SID tokens.
    """
    return wordings.NEXT_ITEM[0] if options.user_tokens else "Chosen: <item>"


def question_wordings(options: ExampleOptions) -> dict[str, str]:
    """Return the wordings of the questions a model tuned on these tasks can answer.

    Args:
        options: Names the tasks.
    """
    asked = {
        "next_user": wordings.NEXT_USER, "search": tasks.SEARCH, "query": tasks.QUERY,
        "profile_of_history": wordings.PROFILE_OF_HISTORY, "bought_together": tasks.BOUGHT_TOGETHER,
    }  # fmt: skip
    return {name: asked[name][0] for name in options.tasks or {} if name in asked}


class EntityTexts:
    """The texts of the entities of a batch, for token alignment.

    Args:
        examples: Give catalogue, user states and tokenizer.
        count: How many entities of a batch are aligned at most.
    """

    def __init__(self, examples: Examples, count: int = 32):
        self.examples, self.count = examples, count
        self.ids = lru_cache(maxsize=100_000)(self._ids)

    def _ids(self, kind: int, row: int) -> tuple[int, ...]:
        examples = self.examples
        if kind:
            text = examples.past.profile(*examples.states.whose(row))
        else:
            text = examples.split.data.catalogue.text(row)
        return tuple(examples.tokenizer.encode_words(text)[: examples.options.max_text_tokens])

    def __call__(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return `entity_ids` and `entity_text_ids` of entities that the batch names.

        Args:
            input_ids: Token or placeholder ids, (batch, length).
        """
        levels = self.examples.tokenizer.num_levels
        named = (input_ids[input_ids >= PLACEHOLDER_START] - PLACEHOLDER_START) // levels
        named = named.unique()
        named = named[:: max(1, len(named) // self.count)][: self.count]
        texts = {entity: self.ids(entity % 2, entity // 2) for entity in named.tolist()}
        texts = {entity: torch.tensor(ids) for entity, ids in texts.items() if ids}
        if len(texts) < 2:
            return {}
        first = PLACEHOLDER_START + torch.tensor(list(texts))[:, None] * levels
        padded = torch.nn.utils.rnn.pad_sequence(list(texts.values()), True, -100)
        return {"entity_ids": first + torch.arange(levels), "entity_text_ids": padded}


class EpochSampler(torch.utils.data.Sampler):
    """Shuffles rows anew each epoch, rows of like length together; a resumed epoch is the same.

    Args:
        examples: The training examples; they are told the epoch too.
        batch_size: Rows per batch.
        seed: Seed of the order.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.lengths = examples.lengths()

    def set_epoch(self, epoch: int) -> None:
        """Draw another order and other cuts; the data loader calls it."""
        self.examples.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.examples.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        # The longest batch comes first out of the grouping; batches go in any order.
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]


def collate(
    examples: Sequence[dict[str, list[int]]], pad_token_id: int, texts: EntityTexts | None = None
) -> dict[str, Tensor]:
    """Pad examples on the right into `input_ids`, `attention_mask` and `labels`.

    Args:
        examples: `input_ids` and `labels` of each.
        pad_token_id: Id to pad `input_ids` with.
        texts: Adds the texts of the batch's entities, for token alignment.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    batch = {
        "input_ids": torch.full((len(examples), longest), pad_token_id),
        "attention_mask": torch.zeros(len(examples), longest, dtype=torch.long),
        "labels": torch.full((len(examples), longest), -100),
    }
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        batch["input_ids"][row, :length] = torch.tensor(example["input_ids"])
        batch["labels"][row, :length] = torch.tensor(example["labels"])
        batch["attention_mask"][row, :length] = 1
    return batch if texts is None else batch | texts(batch["input_ids"])
