"""Whatever mode torch or the model is in, what is asked and changed is the same."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.towers_ttds import evaluating


@pytest.fixture(scope="module")
def folder(origin, tmp_path_factory):
    """A folder of a model that can also be asked all other questions."""
    folder = tmp_path_factory.mktemp("modes") / "model"
    model = TTDSForCausalLM.from_pretrained(origin).eval()
    model.config.prompts = {"query": "Query: {query}:", "search": "<user> <item> {query}:"}
    model.config.prompts |= {"bought_together": "With <item>:", "next_user": "<item> <user> then"}
    model.save_pretrained(folder)
    return folder


def loaded(folder):
    # A copy: tables lie otherwise in memory than in a file, which may move the last digits.
    return copy.deepcopy(TTDSForCausalLM.from_pretrained(folder)).eval()


def changed(model):
    """Change the catalogue in every way."""
    names = [entry["item_id"] for entry in model.catalogue]
    model.add_items([{"item_id": "new", "title": "A walnut kettle"}])
    model.add_items([{"item_id": "newer", "title": "Oak"}], histories=[[names[3], "newer"]])
    model.remove_items(names[5:7])
    return model


def answers(model):
    names = [entry["item_id"] for entry in model.catalogue]
    asked = [[], names[:3], names[20:40], names[-1:]]
    lists = [model.recommend(asked, rerank=rerank) for rerank in (True, False)]
    return lists + [model.recommend(asked[:2], queries=["walnut kettle", "oak board"])]


def test_a_list_is_the_same_whoever_else_asks(folder):
    model = loaded(folder)
    names = [entry["item_id"] for entry in model.catalogue]
    # Some may be shown three of them, some all: the batch is padded.
    histories, allowed = [names[5:12], [], names[40:42]], names[3:13]
    for options in ({}, {"rerank": False}, {"queries": ["walnut kettle", "board", "oak"]}):
        together = model.recommend(histories, allowed=allowed, **options)
        for user, (history, found) in enumerate(zip(histories, together, strict=True)):
            own = {name: asked and [asked[user]] for name, asked in options.items()}
            (alone,) = model.recommend([history], allowed=allowed, **own)
            assert [entry.item_id for entry in found] == [entry.item_id for entry in alone]
            scores = ([entry.score for entry in entries] for entries in (found, alone))
            torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
    alike = model.similar_items(names, top_k=3)  # more than are sought at once
    for row in (0, len(names) - 1):
        (alone,) = model.similar_items(names[row : row + 1], top_k=3)
        assert [entry.item_id for entry in alike[row]] == [entry.item_id for entry in alone]


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("loading", [False, True])
def test_inference_mode_makes_no_difference(folder, loading, asking, changing):
    expected = answers(changed(loaded(folder)))
    with torch.inference_mode(loading):
        model = loaded(folder)
    with torch.inference_mode(asking):
        answers(model)
        twin = copy.deepcopy(model)
    for asked in (model, twin):
        with torch.inference_mode(changing):
            changed(asked)
        for mode in (asking, not asking):
            with torch.inference_mode(mode):
                assert answers(asked) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_of_others_makes_no_difference(folder, dtype):
    model, other = loaded(folder), loaded(folder)
    expected = answers(model), answers(changed(model))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert answers(other) == expected[0] and answers(changed(other)) == expected[1]
        assert loaded(folder).item_text.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_model_in_double_precision_answers_everything(folder):
    model, double = loaded(folder), loaded(folder).double()
    names = [entry["item_id"] for entry in model.catalogue]
    for lists in zip(answers(model), answers(double), strict=True):
        for ours, theirs in zip(*(sum(found, []) for found in lists), strict=True):
            assert abs(ours.score - theirs.score) < 1e-3
    for asked in (model, double):
        assert asked.similar_items(names[:2]) and asked.next_users(names[0], [names[1:3]])
        assert asked.explain(names[:2], names[5:6])
        assert asked.knows_words(["kettle", "zugzwang"]) == [True, False]
    assert answers(changed(double))
    assert double.item_text.dtype == double.embed_texts(["kettle", ""]).dtype == torch.float64


def test_texts_and_embeddings_are_read_wherever_torch_puts_what_it_makes(folder):
    model = loaded(folder)
    model.config.text_encoder = "backbone"
    start = model.config.sid_token_start
    rows = model.get_input_embeddings().weight[start : start + 5]
    expected = model.embed_texts(["a walnut kettle", ""])
    with torch.device("meta"):
        assert torch.equal(model.embed_texts(["a walnut kettle", ""]), expected)
        assert model.ids_of(rows).tolist() == list(range(start, start + 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_makes_no_difference(folder, dtype):
    model, halved = loaded(folder), loaded(folder)

    def found(model):
        names = [entry["item_id"] for entry in model.catalogue]
        others = model.similar_items(names[:2]), model.explain(names[:3], names[9:])
        return answers(model), *others, model.next_users(names[0], [names[1:3], []])

    expected = found(model), found(changed(model))
    with torch.autocast("cpu", dtype):
        assert (found(halved), found(changed(halved))) == expected
        ids, mask = model.history_prompts([[], [3]], [[], [3]])
        ids = model.bind(ids)
        loss = halved(input_ids=ids, attention_mask=mask, labels=ids).loss
    assert abs(loss - model(input_ids=ids, attention_mask=mask, labels=ids).loss) < 0.05


def test_nothing_asked_is_nothing_answered(folder):
    model = loaded(folder)
    assert model.similar_items([]) == [] == model.recommend([]) == model.recommend([], queries=[])
    assert model.explain([], []) == [] == model.knows_words([])
    assert model.embed_texts([]).shape == (0, model.item_text.shape[1])
    model.add_items([])
    model.remove_items([])


def test_a_model_that_is_trained_answers_many_threads_as_one_that_is_not(folder):
    model, interval = loaded(folder), sys.getswitchinterval()
    histories = [[entry["item_id"] for entry in model.catalogue[n : n + 3]] for n in range(12)]
    expected = [model.recommend([history], top_k=5) for history in histories]
    model.train()
    model.item_tower.eval()  # each module has its own mode again
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    before = [module.training for module in model.modules()]
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                found = pool.map(lambda history: model.recommend([history], top_k=5), histories)
                assert list(found) == expected
    finally:
        sys.setswitchinterval(interval)
    assert [module.training for module in model.modules()] == before


def test_the_mode_comes_back_with_the_last_who_asks(folder):
    model = loaded(folder).train()
    entered, leave = threading.Event(), threading.Event()

    def ask_long():
        with evaluating(model):
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=ask_long)
    thread.start()
    assert entered.wait(5)
    with evaluating(model.item_tower):
        leave.set()
        thread.join(5)
        assert model.training and not any(part.training for part in model.item_tower.modules())
    assert all(module.training for module in model.modules())
