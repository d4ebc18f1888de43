"""A query in words gets what has the words, then its like; nothing where nobody knows them."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from modeling_ttds.text_ttds import query_words

PROMPTS = {"query": "Query: {query}, item: ", "search": "<user>,<item>,{query}: "}


@pytest.fixture
def asked(model):
    """A model that can be asked; its language model has learnt nothing."""
    model.config.prompts = dict(PROMPTS)
    return model


def titles(found):
    return [best.title for best in found]


@pytest.mark.parametrize("query", ["", "  \n", "?!", "\u200b", "--"])
def test_a_query_without_a_word_is_refused(asked, query):
    with pytest.raises(ValueError, match="^Query 1 is .* holds no word"):
        asked.recommend([[], []], queries=["kettle", query])


def test_words_that_no_item_has_get_an_empty_list(asked):
    past = asked.catalogue[3]["item_id"]
    queries = ["zugzwang", "kettle", "zugzwang xyzzy for a", "kettle zugzwang", "KETTLES"]
    found = asked.recommend([[], [], [past], [past], []], queries=queries, top_k=3)
    assert [len(answer) for answer in found] == [0, 3, 0, 3, 3]
    assert asked.knows_words(queries) == [False, True, False, True, True]


def test_every_word_of_a_title_is_known(asked):
    words = sorted({word for item in asked.catalogue for word in query_words(item["title"])})
    assert all(asked.knows_words(words)) and all(asked.knows_words([w.upper() for w in words]))


def test_a_word_is_known_whatever_may_appear(asked):
    wanted = next(item for item in asked.catalogue if "kettle" in item["title"])
    other = next(item for item in asked.catalogue if "kettle" not in item["title"])
    found = asked.recommend([[]], queries=["kettle"], allowed=[other["item_id"]])[0]
    assert titles(found) == [other["title"]]
    found = asked.recommend([[wanted["item_id"]]], queries=["kettle"], allowed=[wanted["item_id"]])
    assert found == [[]], "what was seen is left out"


def test_behind_what_has_the_words_comes_its_like(asked):
    query = asked.embed_texts(["kettle"])[0]
    directions = torch.linalg.qr(torch.cat([query[:, None], torch.eye(len(query))], 1))[0].T
    first, like, far = directions[1:4]
    texts = far.repeat(len(asked.catalogue), 1)
    texts[7], texts[9] = F.normalize(query + first, dim=0), first  # the second has no word of it
    texts[11] = like
    asked.item_text = texts
    found = asked.recommend([[]], queries=["kettle"], top_k=len(texts))[0]
    assert [best.item_id for best in found[:2]] == [asked.catalogue[r]["item_id"] for r in (7, 9)]
