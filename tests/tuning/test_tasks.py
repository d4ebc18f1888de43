"""The tuning tasks: what they show, what they never show, and that tuning on them answers."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_ttds.configuration_ttds import PLACEHOLDER_START
from recipes.data.split import split_data
from recipes.data.toyshop import generate
from recipes.tuning import tasks, wordings
from recipes.tuning.examples import EntityTexts, EpochSampler, Examples, UserStates, collate
from recipes.tuning.tasks import Past
from recipes.tuning.wordings import Wording
from tests.conftest import altered, build_model, build_tokenizer

EVERY = tasks.USER_TASKS | tasks.ITEM_TASKS


@pytest.fixture(scope="module")
def past(split, states):
    return Past(split, states.row, states.max_history)


def draws(past, task, count=40):
    return [tasks.draw_wording(past, task, random.Random(n)) for n in range(count)]


def test_every_task_has_five_wordings_of_its_own():
    assert len(wordings.ALL_WORDINGS) == len(EVERY) == 15
    everything = [wording for several in wordings.ALL_WORDINGS for wording in several]
    assert all(len(several) >= 5 for several in wordings.ALL_WORDINGS)
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("task", EVERY)
def test_slots_and_entities_match(past, task):
    for wording in draws(past, task):
        assert wording.prompt.count("<item>") == len(wording.items)
        assert wording.prompt.count("<user>") == len(wording.users)
        for name in wording.texts:
            assert f"{{{name}}}" in wording.prompt + wording.response
        assert bool(wording.targets) == (wording.response in ("<item>", "<user>"))
    assert len({wording.prompt for wording in draws(past, task)}) >= 5


@pytest.mark.parametrize("task", tasks.USER_TASKS)
def test_the_answer_does_not_stand_in_the_prompt(past, split, states, task):
    """A user named in a prompt, or to be named, is as of a moment before the next item."""
    for user in range(20):
        moment = len(split.training[user]) - 1
        wording = tasks.USER_TASKS[task](past, user, moment, random.Random(user))
        if wording is None or moment < 1:
            continue
        target = int(split.training[user][moment])
        for row in [row for rows in wording.users for row in rows]:
            whose, when = states.whose(row)
            assert whose != user or when <= moment
        if wording.response == "<user>" and task != "same_taste":
            assert states.whose(wording.targets[0]) == (user, moment)
        changed = [history.copy() for history in split.training]
        changed[user][moment] = (target + 1) % split.num_items
        other = Past(replace(split, training=changed), states.row, states.max_history)
        if task in ("user_of_profile", "profile_of_user", "profile_of_history"):
            assert tasks.USER_TASKS[task](other, user, moment, random.Random(user)) == wording


def test_a_profile_knows_the_past_only(past, split):
    profile = past.profile(3, 2)
    changed = [history.copy() for history in split.training]
    changed[3][2:] = 0
    assert Past(replace(split, training=changed), past.state, 6).profile(3, 2) == profile
    assert past.profile(3, 0) == ""


def test_next_user_shows_earlier_buyers_only(split, states):
    past = Past(split, states.row, states.max_history)
    timestamps = split.data.timestamps
    for wording in draws(past, "next_user"):
        user, moment = states.whose(wording.targets[0])
        item = wording.items[0][0]
        assert split.training[user][moment] == item
        for row in wording.users[0]:
            other, then = states.whose(row)
            assert other != user and split.training[other][then] == item
            if timestamps is not None:
                assert timestamps[other][then] <= timestamps[user][moment]


def test_truncation_keeps_the_newest_and_the_target(split, states, tokenizer, options):
    levels = tokenizer.num_levels
    examples = Examples(split, states, tokenizer, options.examples, 0)
    wording = Wording(
        wordings.NEXT_ITEM[0], "<item>", items=([5, 6, 7],), users=([2],), targets=(9,)
    )
    whole = examples.encode(wording)
    examples.max_length = len(whole["input_ids"]) - 1
    cut = examples.encode(wording)
    assert cut["labels"][-levels:] == whole["labels"][-levels:]
    shown = [i for i in cut["input_ids"] if i >= PLACEHOLDER_START]
    full = [i for i in whole["input_ids"] if i >= PLACEHOLDER_START]
    assert shown == full[:levels] + full[2 * levels :], "user, then the two newest, then the target"
    examples.max_length = 3
    with pytest.raises(ValueError, match="`max_length` is 3"):
        examples.encode(wording)
    with pytest.raises(ValueError, match="`max_length` is 20, but `max_history` 6 takes"):
        Examples(split, states, tokenizer, options.examples, 0, max_length=20)


def test_unknown_tasks_are_refused(split, states, tokenizer, options):
    with pytest.raises(ValueError, match="`tasks` names 'next_itm'"):
        unknown = replace(options.examples, tasks={"next_itm": 1.0})
        Examples(split, states, tokenizer, unknown, 0)


def test_a_hostile_title_stays_text_in_every_prompt(shop, options):
    fields = {
        name: [f"<item_0_3><user> </s> {value}" for value in values]
        for name, values in shop.data.catalogue.fields.items()
    }
    data = replace(shop.data, catalogue=replace(shop.data.catalogue, fields=fields))
    split = split_data(data)
    tokenizer = build_tokenizer(split, options, None)
    states = UserStates(split, options.examples.max_history)
    settings = altered(options, tasks={task: 0.2 for task in EVERY})
    examples = Examples(split, states, tokenizer, settings.examples, 0)
    added = set(tokenizer.added_tokens_encoder.values()) - {tokenizer.eos_token_id}
    for index in range(len(examples)):
        ids = examples[index]["input_ids"]
        assert not added & set(ids[1:])
        assert tokenizer.eos_token_id not in ids[:-1]


def test_weights_say_how_many_rows_a_task_has(split, states, tokenizer, options):
    settings = altered(options, tasks={"next_user": 0.5, "query": 2.0})
    examples = Examples(split, states, tokenizer, settings.examples, 0)
    users = sum(len(history) > 0 for history in split.training)
    assert len(examples) == users + round(0.5 * users) + 2 * users
    assert sorted(EpochSampler(examples, 8, 0)) == list(range(len(examples)))
    assert set(examples.validation(20)) == {"next_item", "task_next_user", "task_query"}


def test_a_task_the_data_have_nothing_for_is_left_out(shop, options, tokenizer, capsys):
    catalogue = shop.data.catalogue
    none = {name: [""] * len(catalogue) for name in catalogue.fields}
    one = none | {"title": ["", "oak kettle", *none["title"][2:]]}
    settings = altered(options, tasks={"query": 1.0, "next_user": 0.5})
    for fields, names in ((none, {"next_user"}), (one, {"query", "next_user"})):
        split = split_data(replace(shop.data, catalogue=replace(catalogue, fields=fields)))
        states = UserStates(split, settings.examples.max_history)
        examples = Examples(split, states, tokenizer, settings.examples, 0)
        assert set(examples.options.tasks) == names
        assert all(examples[index]["input_ids"] for index in range(len(examples)))
        said = "nothing that the task 'query' is made of: it is left out" in capsys.readouterr().out
        assert said == ("query" not in names)


def test_a_row_without_an_example_of_its_task_is_a_next_item(split, states, tokenizer, options):
    settings = altered(options, tasks={"query": 1.0})
    examples = Examples(split, states, tokenizer, settings.examples, 0)
    fields = examples.past.fields  # as where one item in thousands has a text
    examples.past.fields = {name: [""] * len(values) for name, values in fields.items()}
    row = examples[len(examples) - 1]
    assert row["labels"][-1] >= PLACEHOLDER_START


def test_texts_for_alignment_belong_to_the_batch(split, states, tokenizer, options):
    examples = Examples(split, states, tokenizer, options.examples, 0)
    rows = [examples[n] for n in range(4)]
    batch = collate(rows, tokenizer.pad_token_id, EntityTexts(examples))
    named = set(batch["input_ids"].flatten().tolist())
    assert set(batch["entity_ids"].flatten().tolist()) <= named
    assert batch["entity_ids"].shape[0] == batch["entity_text_ids"].shape[0] > 4
    first = (int(batch["entity_ids"][0, 0]) - PLACEHOLDER_START) // tokenizer.num_levels
    assert first % 2 == 0
    expected = tokenizer.encode_words(split.data.catalogue.text(first // 2))
    text = batch["entity_text_ids"][0]
    assert text[text >= 0].tolist() == expected[: options.examples.max_text_tokens]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, options):
    """A model tuned for a minute on the questions it is asked below."""
    shop = generate(seed=2, num_users=400, num_items=90)
    split = split_data(shop.data)
    weights = {"query": 1.5, "search": 1.0, "next_user": 1.0, "profile_of_history": 0.5,
               "bought_together": 1.0}  # fmt: skip
    settings = altered(
        options, tasks=weights, hidden_size=64, num_layers=2, tower_epochs=40, num_codes=16
    )
    tokenizer = build_tokenizer(split, settings, None)
    states = UserStates(split, settings.examples.max_history)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    examples = Examples(split, states, tokenizer, settings.examples, 0)
    sampler = EpochSampler(examples, 32, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    model.train()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for first in range(0, len(order), 32):
            rows = [examples[index] for index in order[first : first + 32]]
            loss = model(**collate(rows, tokenizer.pad_token_id)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.share_sid_table()
    return model.eval(), split


def ids_of(split, rows):
    return [split.data.catalogue.item_ids[row] for row in rows]


def test_queries_find_what_they_describe(tuned):
    model, split = tuned
    fields = split.data.catalogue.fields
    held_out = range(0, split.num_items, tasks.HELD_OUT_ITEMS)
    queries = [f"{fields['brand'][row]} {fields['title'][row]}" for row in range(split.num_items)]
    lists = model.recommend([[]] * len(queries), queries=queries, top_k=10)
    leaf = fields["categories"]
    found = [
        sum(leaf[model.row_of[r.item_id]] == leaf[row] for r in lists[row]) / 10
        for row in range(split.num_items)
    ]
    chance = np.mean([leaf.count(leaf[row]) / split.num_items for row in range(split.num_items)])
    assert np.mean(found) > 2 * chance
    hits = [
        split.data.catalogue.item_ids[row] in [r.item_id for r in lists[row]]
        for row in range(split.num_items)
        if row not in held_out
    ]
    assert np.mean(hits) > 2 * 10 / split.num_items


def test_a_query_with_a_history_beats_chance(tuned):
    model, split = tuned
    users = split.users("validation")[:100]
    histories = [ids_of(split, split.training[user]) for user in users]
    targets = [split.validation_targets[user] for user in users]
    titles = split.data.catalogue.fields["title"]
    lists = model.recommend(histories, queries=[titles[row] for row in targets], top_k=10)
    wanted = ids_of(split, targets)
    hits = np.mean(
        [w in [r.item_id for r in found] for w, found in zip(wanted, lists, strict=True)]
    )
    assert hits > 2 * 10 / split.num_items
    assert all(
        len({r.item_id for r in found} & set(h)) == 0
        for found, h in zip(lists, histories, strict=True)
    )


def test_an_answer_does_not_depend_on_who_else_asks(tuned):
    model, split = tuned
    history = ids_of(split, split.training[3])
    together = model.recommend([[], history], queries=["walnut kettle", "kettle"])
    apart = [
        model.recommend([[]], queries=["walnut kettle"])[0],
        model.recommend([history], queries=["kettle"])[0],
    ]
    assert [[r.item_id for r in found] for found in together] == [
        [r.item_id for r in found] for found in apart
    ]


def test_questions_are_answered_without_dropout_in_training_mode(tuned):
    model, split = tuned
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    kept, item = [dropout.p for dropout in dropouts], split.data.catalogue.item_ids[5]

    def answers():
        return (
            model.similar_items([item]),
            model.next_users(item, [[item], []]),
            model.profiles([[item]]),
            model.explain([item], [item]),
        )

    expected = answers()
    for dropout in dropouts:
        dropout.p = 0.5
    assert model.train() and answers() == expected and model.training
    for dropout, p in zip(dropouts, kept, strict=True):
        dropout.p = p
    model.eval()


def test_next_users_beat_chance(tuned):
    model, split = tuned
    users = split.users("validation")[:200]
    ranks = []
    for place, user in list(enumerate(users))[:60]:
        item = split.validation_targets[user]
        buyers = [
            ids_of(split, history[: history.tolist().index(item)])
            for history in split.training
            if item in history
        ]
        histories = [ids_of(split, split.training[u]) for u in users]
        ranked = model.next_users(
            split.data.catalogue.item_ids[item], histories, buyers, top_k=len(users)
        )
        assert [score for _, score in ranked] == sorted((s for _, s in ranked), reverse=True)
        ranks.append([position for position, _ in ranked].index(place) / len(users))
    assert np.mean(ranks) < 0.42, "a random order gives .5 with a deviation of .037"


def test_similar_items_beat_chance(tuned):
    model, split = tuned
    wanted = {}
    for user in split.users("validation"):
        wanted.setdefault(int(split.training[user][-1]), set()).add(
            split.data.catalogue.item_ids[split.validation_targets[user]]
        )
    items = sorted(wanted)
    lists = model.similar_items(ids_of(split, items), top_k=10)
    found = [
        len({r.item_id for r in found} & wanted[item]) / len(wanted[item])
        for item, found in zip(items, lists, strict=True)
    ]
    assert np.mean(found) > 1.7 * 10 / split.num_items
    assert all(
        model.catalogue[item]["item_id"] not in {r.item_id for r in found}
        for item, found in zip(items, lists, strict=True)
    )


def test_profiles_name_the_taste(tuned):
    model, split = tuned
    users = split.users("validation")[:40]
    profiles = model.profiles([ids_of(split, split.training[user]) for user in users])
    leaves = [c.split(" > ")[-1] for c in split.data.catalogue.fields["categories"]]
    named = [
        any(leaves[row] in profile for row in split.training[user])
        for user, profile in zip(users, profiles, strict=True)
    ]
    others = [
        any(leaves[row] in profile for row in split.training[user])
        for user, profile in zip(users, profiles[7:] + profiles[:7], strict=True)
    ]
    assert np.mean(named) > np.mean(others) + 0.2
    assert not any("<item_" in profile or "<user" in profile for profile in profiles)


def test_questions_without_tuning_are_refused(built):
    item = built.catalogue[0]["item_id"]
    with pytest.raises(ValueError, match="not tuned for the question 'search'"):
        built.recommend([[item]], queries=["kettle"])
    with pytest.raises(ValueError, match="not tuned for the question 'next_user'"):
        built.next_users(item, [[item]])
    with pytest.raises(ValueError, match="give a list of texts, one per history"):
        built.recommend([[item]], queries="kettle")
