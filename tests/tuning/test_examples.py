"""Training examples: what they show, and that nothing of a target reaches them."""

from dataclasses import replace

import numpy as np
import torch

from modeling_ttds.configuration_ttds import PLACEHOLDER_START
from recipes.config import ExampleOptions
from recipes.tuning import tasks
from recipes.tuning.examples import EpochSampler, Examples, UserStates, collate

LEVELS = 3


def entities(ids):
    """Return (kind, row) of every entity named in ids, checking that each takes all levels."""
    offsets = [i - PLACEHOLDER_START for i in ids if i >= PLACEHOLDER_START]
    assert len(offsets) % LEVELS == 0
    groups = [offsets[i : i + LEVELS] for i in range(0, len(offsets), LEVELS)]
    assert all([o % LEVELS for o in group] == list(range(LEVELS)) for group in groups)
    return [(group[0] // LEVELS % 2, group[0] // LEVELS // 2) for group in groups]


TASKS = {task: 0.5 for task in tasks.USER_TASKS | tasks.ITEM_TASKS}


def sequences(split, states, tokenizer, seed=0, **options):
    return Examples(split, states, tokenizer, ExampleOptions(**({"tasks": {}} | options)), seed)


def test_a_packed_sequence_continues_the_state_it_names(split, states, tokenizer):
    examples = sequences(split, states, tokenizer)
    cuts = set()
    for index in range(len(examples)):
        example = examples[index]
        (kind, state), *shown = entities(example["input_ids"])
        assert kind == 1 and all(kind == 0 for kind, _ in shown)
        user = int(np.searchsorted(states.first, state, side="right") - 1)
        moment = state - int(states.first[user])
        targets = [row for _, row in entities([i for i in example["labels"] if i != -100])]
        history = split.training[user].tolist()
        assert targets and history[moment : moment + len(targets)] == targets
        before = [row for _, row in shown][: -len(targets)]
        assert before == history[max(0, moment - len(before)) : moment]
        assert len(shown) <= states.max_history + 1
        cuts.add(moment)
    assert 0 in cuts, "a history may be empty when asked"


def test_examples_depend_on_seed_epoch_and_index_only(split, states, tokenizer):
    first, second = sequences(split, states, tokenizer), sequences(split, states, tokenizer)
    second[5]
    assert first[3] == second[3]
    second.epoch = 1
    assert any(first[i] != second[i] for i in range(20))
    assert any(first[i] != sequences(split, states, tokenizer, seed=1)[i] for i in range(20))


def test_sliding_windows_form_has_a_row_sliding_windows(split, states, tokenizer):
    examples = sequences(split, states, tokenizer, sliding_windows=True)
    assert len(examples) == sum(len(history) for history in split.training)
    example = examples[2]
    targets = entities([i for i in example["labels"] if i != -100])
    assert targets == [(0, int(split.training[0][2]))]


def test_no_byte_of_training_depends_on_a_target(split, states, tokenizer):
    rng = np.random.default_rng(0)
    has = split.test_targets >= 0
    changed = replace(
        split,
        validation_targets=np.where(has, rng.integers(0, split.num_items, len(has)), -1),
        test_targets=np.where(has, rng.integers(0, split.num_items, len(has)), -1),
    )
    other_states = UserStates(changed, states.max_history)
    assert torch.equal(states.histories(), other_states.histories())
    ours, theirs = (
        sequences(split, states, tokenizer, tasks=TASKS),
        sequences(changed, other_states, tokenizer, tasks=TASKS),
    )
    assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]
    assert np.array_equal(split.training_counts, changed.training_counts)


def test_a_state_holds_only_what_came_before(split, states):
    histories = states.histories()
    for user in range(10):
        for moment in range(len(split.training[user]) + 1):
            row = histories[states.row(user, moment)]
            expected = split.training[user][max(0, moment - states.max_history) : moment]
            assert row[row >= 0].tolist() == expected.tolist()


def test_sampler_covers_every_row_and_repeats_for_an_epoch(split, states, tokenizer):
    examples = sequences(split, states, tokenizer)
    sampler = EpochSampler(examples, batch_size=8, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(len(examples)))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first and examples.epoch == 1


def test_collate_pads_right():
    batch = collate(
        [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}], 9
    )
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["labels"].tolist() == [[-100, 6], [7, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
