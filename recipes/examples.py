"""From histories to training examples: user states, the examples of an epoch, the collator."""

import random
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_ttds.configuration_ttds import PLACEHOLDER_START
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.data import Split

# The canonical prompt: `recommend` uses the same wording. The history's codes end it.
NEXT_ITEM = "User <user> chose: <item>"


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

    def latest(self) -> np.ndarray:
        """Return the row of every user's last state."""
        return self.first[1:] - 1

    def histories(self) -> Tensor:
        """Return the item rows of all states, padded left with -1, (num_states, max_history)."""
        padded = np.full((len(self), self.max_history), -1, dtype=np.int64)
        for user, history in enumerate(self.training):
            for moment in range(1, len(history) + 1):
                newest = history[max(0, moment - self.max_history) : moment]
                padded[self.first[user] + moment, -len(newest) :] = newest
        return torch.from_numpy(padded)


class NextItemExamples:
    """The next-item task: per user one row with a loss at every item from a random cut on.

    In the other form, `per_position`, there is one row per position of every history and a loss at
    its last item. Which cut a row gets depends on seed, epoch and position only.

    Args:
        split: The split.
        states: The user states.
        tokenizer: Builds the prompts.
        per_position: Whether to make one row per position.
        seed: Seed of the cuts.
    """

    def __init__(
        self,
        split: Split,
        states: UserStates,
        tokenizer: TTDSTokenizer,
        per_position: bool,
        seed: int,
    ):
        self.states, self.tokenizer, self.seed, self.epoch = states, tokenizer, seed, 0
        self.histories = split.training
        self.max_history = states.max_history
        users = [user for user, history in enumerate(split.training) if len(history)]
        self.rows = [(user, None) for user in users]
        if per_position:
            self.rows = [(u, target) for u in users for target in range(len(split.training[u]))]

    @classmethod
    def validation(
        cls, split: Split, states: UserStates, tokenizer: TTDSTokenizer
    ) -> "NextItemExamples":
        """Return one example per validation target, for the validation loss.

        Args:
            split: The split.
            states: The user states.
            tokenizer: Builds the prompts.
        """
        examples = cls(split, states, tokenizer, per_position=True, seed=0)
        users = split.users("validation").tolist()
        examples.rows = [(user, len(split.training[user])) for user in users]
        examples.histories = [split.history(user, "test") for user in range(len(split.training))]
        return examples

    def as_dataset(self) -> datasets.Dataset:
        """Return a data set that makes its examples when they are asked for."""

        def make(batch: dict[str, list]) -> dict[str, list]:
            examples = [self[index] for index in batch["index"]]
            return {key: [example[key] for example in examples] for key in examples[0]}

        return datasets.Dataset.from_dict({"index": range(len(self))}).with_transform(make)

    def lengths(self) -> list[int]:
        """Return the number of items each row shows."""
        return [
            min(len(self.histories[user]) if target is None else target + 1, self.max_history + 1)
            for user, target in self.rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        user, target = self.rows[index]
        draw = random.Random(f"{self.seed}-{self.epoch}-{index}")
        history = self.histories[user]
        if target is None:
            end = draw.randint(min(len(history), self.max_history + 1), len(history))
            begin = max(0, end - self.max_history - 1)
            cut = draw.randrange(begin, end)
        else:
            begin, cut, end = max(0, target - self.max_history), target, target + 1
        prompt = self.tokenizer.encode_prompt(
            NEXT_ITEM, items=[history[begin:cut].tolist()], users=[self.states.row(user, cut)]
        )
        response = self.tokenizer.encode_prompt("<item>", items=[history[cut:end].tolist()])
        response = [token for token in response if token >= PLACEHOLDER_START]
        return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


class EpochSampler(torch.utils.data.Sampler):
    """Shuffles rows anew each epoch, rows of like length together; a resumed epoch is the same.

    Args:
        examples: The training examples; they are told the epoch too.
        batch_size: Rows per batch.
        seed: Seed of the order.
    """

    def __init__(self, examples: NextItemExamples, batch_size: int, seed: int):
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


def collate(examples: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad examples on the right into `input_ids`, `attention_mask` and `labels`.

    Args:
        examples: `input_ids` and `labels` of each.
        pad_token_id: Id to pad `input_ids` with.
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
    return batch
