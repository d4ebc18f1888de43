"""The tuning tasks: one function each, in several wordings.

python -m recipes.tuning.tasks --show

A task turns a moment in a user's history, or an item, into a `Wording`. Loss stands on the response
only. The first wording of a question that `recommend` also answers is the one it is asked in.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipes.errors import Parser, one_sentence

    with one_sentence():
        parser = Parser(prog="python -m recipes.tuning.tasks", description=__doc__.splitlines()[0])
        parser.add_argument(
            "--show",
            action="store_true",
            required=True,
            help="Print an example of every task on the generated data.",
        )
        parser.parse_args()

import random
import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from recipes.data.split import Split, split_data
from recipes.data.toyshop import generate
from recipes.tuning.buyers import Buyers
from recipes.tuning.wordings import (
    BETWEEN,
    BOUGHT_TOGETHER,
    ITEM_OF_TEXT,
    ITEM_OF_TITLES,
    NEXT_DESCRIPTION,
    NEXT_ITEM,
    NEXT_TITLE,
    NEXT_USER,
    PROFILE_OF_HISTORY,
    PROFILE_OF_USER,
    QUERY,
    SAME_TASTE,
    SEARCH,
    TEXT_OF_ITEM,
    USER_OF_PROFILE,
    Wording,
)

TITLES_SHOWN, BUYERS_SHOWN = 5, 10


class Past:
    """What tasks may know: histories as of a moment, the catalogue's texts, who bought what before.

    Args:
        split: The split; held-out targets stay out of sight.
        state_row: Row of a user who has seen so many items.
        max_history: How many of the newest items a prompt shows.
        held_out: Let moment `len(training)` have the validation target as its next item: for the
            validation loss.
    """

    def __init__(
        self,
        split: Split,
        state_row: Callable[[int, int], int],
        max_history: int,
        held_out: bool = False,
    ):
        self.split, self.state, self.max_history = split, state_row, max_history
        self.fields = split.data.catalogue.fields
        self.histories = split.training
        if held_out:
            self.histories = [
                np.append(history, target) if target >= 0 else history
                for history, target in zip(split.training, split.validation_targets, strict=True)
            ]
        self.buyers = Buyers(split)

    def shown(self, user: int, moment: int) -> list[int]:
        """Return the newest item rows before a moment."""
        return self.histories[user][max(0, moment - self.max_history) : moment].tolist()

    def next(self, user: int, moment: int) -> int:
        """Return the item row chosen at a moment."""
        return int(self.histories[user][moment])

    def text(self, item: int, *names: str) -> str:
        """Return those of an item's text fields that are there, as one string."""
        return ". ".join(value for name in names if (value := self.fields[name][item]))

    def query(self, item: int, draw: random.Random) -> str:
        """Return what somebody may type who wants an item: some words of its text, in order."""
        text = f"{self.text(item, 'brand')} {self.text(item, 'title')}"
        words = re.findall(r"[^\W\d_]{3,}", text) or self.text(item, "categories").split()
        chosen = sorted(draw.sample(range(len(words)), min(len(words), draw.randint(1, 4))))
        return " ".join(words[place] for place in chosen)

    def profile(self, user: int, moment: int) -> str:
        """Return a user's taste in a line, made of what was chosen before a moment."""
        return profile_text([self._entry(row) for row in self.shown(user, moment)])

    def _entry(self, row: int) -> dict[str, str]:
        return {name: self.fields[name][row] for name in ("title", "brand", "categories")}


def profile_text(items: list[dict[str, str]]) -> str:
    """Return a user's taste in a line: categories, brands, the newest titles.

    Args:
        items: `title`, `brand` and `categories` of a history's items, newest last.
    """
    leaves = Counter(item["categories"].split(" > ")[-1] for item in items if item["categories"])
    brands = Counter(item["brand"] for item in items if item["brand"])
    parts = [", ".join(name for name, _ in names.most_common(2)) for names in (leaves, brands)]
    newest = [" ".join(item["title"].split()[:4]) for item in items[-2:] if item["title"]]
    return "; ".join(part for part in [*parts, ", ".join(reversed(newest))] if part)


def next_item(past: Past, user: int, moment: int, draw: random.Random) -> Wording:
    """The next item of a user.

    User <user> chose: <item><item> -> <item>
    """
    return Wording(
        draw.choice(NEXT_ITEM), "<item>",
        items=(past.shown(user, moment),), users=([past.state(user, moment)],),
        targets=(past.next(user, moment),),
    )  # fmt: skip


def next_user(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The next user of an item.

    Item <item> was chosen by <user><user>, then by -> <user>
    """
    item = past.next(user, moment)
    buyers = past.buyers[item]
    before = buyers[: buyers.index((user, moment))] if (user, moment) in buyers else buyers
    earlier = [past.state(*who) for who in before if who[0] != user][-BUYERS_SHOWN:]
    if not earlier:
        return None
    return Wording(
        draw.choice(NEXT_USER), "<user>",
        items=([item],), users=(earlier,), targets=(past.state(user, moment),),
    )  # fmt: skip


def user_of_profile(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The user a profile describes.

    Whose taste is this: "Kettles; Bramble; oak kettle"? -> <user>
    """
    profile = past.profile(user, moment)
    if not profile:
        return None
    return Wording(
        draw.choice(USER_OF_PROFILE), "<user>", {"profile": profile},
        targets=(past.state(user, moment),),
    )  # fmt: skip


def profile_of_user(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The profile of a user.

    Taste of user <user>: -> Kettles; Bramble; oak kettle
    """
    profile = past.profile(user, moment)
    if not profile:
        return None
    return Wording(
        draw.choice(PROFILE_OF_USER), " {profile}", {"profile": profile},
        users=([past.state(user, moment)],),
    )  # fmt: skip


def item_of_text(past: Past, item: int, draw: random.Random) -> Wording | None:
    """The item a text describes.

    The item called "Slate gooseneck kettle" is -> <item>
    """
    names = draw.choice([("title",), ("title", "brand"), ("title", "categories"), ("description",)])
    text = past.text(item, *names) or past.text(item, "title")
    if not text:
        return None
    return Wording(draw.choice(ITEM_OF_TEXT), "<item>", {"text": text}, targets=(item,))


def text_of_item(past: Past, item: int, draw: random.Random) -> Wording | None:
    """The text of an item.

    Item <item> is called -> Slate gooseneck kettle. Bramble
    """
    text = past.text(item, "title", "brand")
    if not text:
        return None
    return Wording(draw.choice(TEXT_OF_ITEM), " {text}", {"text": text}, items=([item],))


def next_title(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The title of the next item.

    User <user> chose <item><item>. Title of the next: -> Oak serving board
    """
    return _words_of_next(past, user, moment, draw.choice(NEXT_TITLE), ("title",))


def next_description(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The description of the next item.

    User <user> chose <item><item>. What is the next one like? -> Kitchen > Boards. Bramble
    """
    wording = draw.choice(NEXT_DESCRIPTION)
    return _words_of_next(
        past, user, moment, wording, ("description",)
    ) or _words_of_next(past, user, moment, wording, ("categories", "brand"))  # fmt: skip


def _words_of_next(
    past: Past, user: int, moment: int, wording: str, names: tuple[str, ...]
) -> Wording | None:
    text = past.text(past.next(user, moment), *names)
    if not text:
        return None
    return Wording(
        wording, " {text}", {"text": text},
        items=(past.shown(user, moment),), users=([past.state(user, moment)],),
    )  # fmt: skip


def item_of_titles(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The next item, from titles.

    User <user> chose "oak kettle; brush pen". Next: -> <item>
    """
    shown = past.shown(user, moment)[-TITLES_SHOWN:]
    titles = [" ".join(past.text(row, "title").split()[:6]) for row in shown]
    if not any(titles):
        return None
    return Wording(
        draw.choice(ITEM_OF_TITLES), "<item>", {"titles": "; ".join(titles)},
        users=([past.state(user, moment)],), targets=(past.next(user, moment),),
    )  # fmt: skip


def search(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The next item, from a search query and a history.

    User <user> chose <item><item> and now looks for "oak board": -> <item>
    """
    target = past.next(user, moment)
    query = past.query(target, draw)
    if not query:
        return None
    return Wording(
        draw.choice(SEARCH), "<item>", {"query": query},
        items=(past.shown(user, moment),), users=([past.state(user, moment)],), targets=(target,),
    )  # fmt: skip


def query(past: Past, item: int, draw: random.Random) -> Wording | None:
    """An item, from a query alone.

    Looking for "oak board": -> <item>
    """
    words = past.query(item, draw)
    if not words:
        return None
    return Wording(draw.choice(QUERY), "<item>", {"query": words}, targets=(item,))


def profile_of_history(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The taste behind a history.

    Who chose <item><item> likes -> Kettles; Bramble; oak kettle
    """
    shown, profile = past.shown(user, moment), past.profile(user, moment)
    if not profile:
        return None
    wording = draw.choice(PROFILE_OF_HISTORY)
    return Wording(wording, " {profile}", {"profile": profile}, items=(shown,))


def bought_together(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """Items chosen by the same people (item, user, item).

    People who chose <item> also chose -> <item>
    """
    others = [row for row in past.shown(user, moment) if row != past.next(user, moment)]
    if not others:
        return None
    return Wording(
        draw.choice(BOUGHT_TOGETHER), "<item>",
        items=([draw.choice(others)],), targets=(past.next(user, moment),),
    )  # fmt: skip


def same_taste(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """Users with the same taste (user, item, user).

    User <user> shares a taste with -> <user>
    """
    neighbours = [
        (other, then + 1)
        for item in past.shown(user, moment)
        for other, then in past.buyers[item]
        if other != user
    ]
    if not neighbours:
        return None
    return Wording(
        draw.choice(SAME_TASTE), "<user>",
        users=([past.state(user, moment)],), targets=(past.state(*draw.choice(neighbours)),),
    )  # fmt: skip


def between(past: Past, user: int, moment: int, draw: random.Random) -> Wording | None:
    """The item between two others of a history.

    User <user> chose <item>, then something, then <item>. It was -> <item>
    """
    if moment < 2:
        return None
    before, target, after = (past.next(user, moment - back) for back in (2, 1, 0))
    return Wording(
        draw.choice(BETWEEN), "<item>",
        items=([before], [after]), users=([past.state(user, moment - 1)],), targets=(target,),
    )  # fmt: skip


USER_TASKS = {
    task.__name__: task
    for task in (
        next_item, next_user, user_of_profile, profile_of_user, next_title, next_description,
        item_of_titles, search, profile_of_history, bought_together, same_taste, between,
    )
}  # fmt: skip
ITEM_TASKS = {task.__name__: task for task in (item_of_text, text_of_item, query)}


# Every twentieth item is kept out of the item tasks, for their validation loss.
HELD_OUT_ITEMS = 20


def draw_wording(past: Past, task: str, draw: random.Random) -> Wording | None:
    """Return a random example of a task from training histories, None where 1,000 draws find none.

    Args:
        past: What may be known.
        task: Name of the task.
        draw: Source of the draw.
    """
    for _ in range(1000):
        if task in ITEM_TASKS:
            item = draw.randrange(past.split.num_items)
            wording = None
            if item % HELD_OUT_ITEMS:
                wording = ITEM_TASKS[task](past, item, draw)
        else:
            user = draw.randrange(len(past.histories))
            length = len(past.histories[user])
            wording = None
            if length > 1:
                wording = USER_TASKS[task](past, user, draw.randrange(1, length), draw)
        if wording is not None:
            return wording
    return None


def validation_wordings(past: Past, task: str, count: int) -> list[Wording]:
    """Return examples as of the moment before the validation target, or of held-out items.

    Args:
        past: What may be known, with the validation targets.
        task: Name of the task.
        count: How many at most.
    """
    wordings = []
    if task in ITEM_TASKS:
        subjects = [(item,) for item in range(0, past.split.num_items, HELD_OUT_ITEMS)]
        make = ITEM_TASKS[task]
    else:
        users = past.split.users("validation").tolist()
        subjects = [(user, len(past.split.training[user])) for user in users]
        make = USER_TASKS[task]
    for subject in subjects:
        wording = make(past, *subject, random.Random(f"{task}-{subject}"))
        if wording is not None and len(wordings) < count:
            wordings.append(wording)
    return wordings


def show() -> None:
    """Print an example of every task on the generated data."""
    past = Past(split_data(generate().data), lambda user, moment: user, 20)
    for name, task in (USER_TASKS | ITEM_TASKS).items():
        draw = random.Random(name)
        wording = draw_wording(past, name, draw)
        print(f"\n{name}: {task.__doc__.splitlines()[0]}")
        prompt, response = wording.prompt, wording.response
        for items in wording.items:
            titles = "".join(f"[{past.text(item, 'title')}]" for item in items)
            prompt = prompt.replace("<item>", titles, 1)
        for slot, value in wording.texts.items():
            prompt, response = (t.replace(f"{{{slot}}}", value) for t in (prompt, response))
        print(f"  prompt: {prompt}\n  response: {response}")
        if wording.response == "<item>":
            print(f"            = {past.text(wording.targets[0], 'title')}")


if __name__ == "__main__":
    show()
