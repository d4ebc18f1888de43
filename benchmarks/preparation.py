"""Time everything that comes before tuning, at three sizes of a generated log.

python -m benchmarks.preparation [--users 10000 100000 1000000]

Every size runs in a process of its own; every stage there has its seconds and its peak of memory.
"""

import numpy as np

from recipes.data.tables import Catalogue, Data

ITEMS = {10_000: 5_000, 100_000: 50_000, 1_000_000: 200_000}
LENGTH, PER_TOPIC, TOPICS_OF_USER, COMPANIONS, FOLLOW = 10, 50, 3, 3, 0.4
WORDS = 3000


def generate(num_users: int, num_items: int, seed: int = 0) -> Data:
    """Return a log of `LENGTH` interactions a user, and a catalogue with texts.

    A user has a few topics and takes an item of one of them, popular ones more often (Zipf), or a
    companion of the item before.

    Args:
        num_users: Number of users.
        num_items: Number of items; every topic has `PER_TOPIC`.
        seed: The same seed gives the same log.
    """
    draw = np.random.default_rng(seed)
    num_topics = num_items // PER_TOPIC
    weights = 1 / np.arange(1, PER_TOPIC + 1) ** 0.8
    places = draw.choice(PER_TOPIC, (num_users, LENGTH), p=weights / weights.sum())
    popular = 1 / np.arange(1, num_topics + 1) ** 0.5
    topics = draw.choice(num_topics, (num_users, TOPICS_OF_USER), p=popular / popular.sum())
    chosen = draw.integers(TOPICS_OF_USER, size=(num_users, LENGTH))
    items = np.take_along_axis(topics, chosen, 1) * PER_TOPIC + places  # (num_users, LENGTH)
    companions = draw.integers(num_items, size=(num_items, COMPANIONS))
    follows = draw.random((num_users, LENGTH)) < FOLLOW
    which = draw.integers(COMPANIONS, size=(num_users, LENGTH))
    for step in range(1, LENGTH):
        after = companions[items[:, step - 1], which[:, step]]
        items[:, step] = np.where(follows[:, step], after, items[:, step])
    days = np.sort(draw.integers(0, 1000, (num_users, LENGTH)), axis=1) * 86400.0
    return Data(
        _catalogue(num_items, draw),
        [f"user-{user:07}" for user in range(num_users)],
        list(items),
        list(days),
    )


def _catalogue(num_items: int, draw: np.random.Generator) -> Catalogue:
    words = np.array([f"w{word:04}" for word in range(WORDS)])
    topic = np.arange(num_items) // PER_TOPIC
    own = draw.integers(WORDS, size=(num_items, 4))
    of_topic = draw.integers(WORDS, size=(topic[-1] + 1, 4))[topic]
    both = words[np.concatenate([own, of_topic], 1)]
    fields = {
        "title": [" ".join(row) for row in both[:, 2:6].tolist()],
        "brand": [f"brand {number}" for number in (topic % 500).tolist()],
        "categories": [f"shelf {number % 40} > {number}" for number in topic.tolist()],
        "description": [" ".join(row) for row in both.tolist()],
        "price": [""] * num_items,
    }
    return Catalogue([f"item-{row:07}" for row in range(num_items)], fields)
