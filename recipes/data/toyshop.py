"""The generated data set: a shop whose true next-item probabilities are known.

A user has tastes over product types and favourite brands; an item has a popularity with a long tail
and companions that people buy after it. Some items are new: nobody has bought them.
"""

from dataclasses import dataclass

import numpy as np

from recipes.data.tables import Catalogue, Data

FOLLOW_SHARE = 0.35
NEW_SHARE = 0.06
DEPARTMENTS = {
    "Kitchen": {
        "Kettles": ("gooseneck kettle", "stovetop kettle", "electric kettle"),
        "Coffee": ("pour-over dripper", "paper filters", "hand grinder"),
        "Knives": ("chef's knife", "paring knife", "bread knife"),
        "Boards": ("cutting board", "serving board", "magnetic knife rack"),
    },
    "Garden": {
        "Planters": ("terracotta pot", "hanging basket", "raised bed"),
        "Soil": ("potting mix", "worm compost", "bark mulch"),
        "Seeds": ("tomato seeds", "wildflower mix", "herb seed set"),
        "Watering": ("watering can", "drip line kit", "hose nozzle"),
    },
    "Desk": {
        "Pens": ("fountain pen", "gel pen set", "brush pen"),
        "Inks": ("bottled ink", "ink cartridges", "ink sampler"),
        "Paper": ("dotted notebook", "letter pad", "sketchbook"),
        "Lamps": ("clamp lamp", "reading lamp", "light bar"),
    },
    "Outdoors": {
        "Tents": ("two-person tent", "tarp shelter", "bivy sack"),
        "Sleeping": ("down sleeping bag", "foam mat", "inflatable pillow"),
        "Stoves": ("canister stove", "wood stove", "windscreen"),
        "Packs": ("trail pack", "dry bag", "hip belt pouch"),
    },
    "Play": {
        "Board games": ("tile-laying game", "trick-taking game", "dungeon crawler"),
        "Puzzles": ("jigsaw puzzle", "wooden puzzle box", "brain teaser"),
        "Building": ("brick set", "marble run", "model ship kit"),
        "Card sleeves": ("matte card sleeves", "deck box", "play mat"),
    },
    "Music": {
        "Strings": ("guitar strings", "ukulele strings", "violin strings"),
        "Picks": ("pick sampler", "thumb picks", "felt picks"),
        "Stands": ("folding stand", "wall hanger", "sheet music stand"),
        "Tuners": ("clip-on tuner", "pitch pipe", "metronome"),
    },
}
BRANDS = (
    "Alder & Finch", "Bramble", "Corvid", "Dunmore", "Elmstead", "Fathom", "Gannet", "Hollow Oak",
    "Isel", "Juniper Row", "Kestrel", "Larkspur", "Mistral", "Norrland", "Osprey Lane", "Pell",
    "Quillon", "Rowan", "Saltmarsh", "Thornbury", "Umber", "Vale & Son", "Wren", "Yarrow",
)  # fmt: skip
QUALITIES = (
    "compact", "classic", "large", "lightweight", "matte black", "walnut", "brass", "everyday",
    "professional", "travel", "recycled", "hand-finished", "beginner's", "extra-strong", "quiet",
    "slim", "deluxe", "vintage", "sea-green", "foldable",
)  # fmt: skip
BRANDS_PER_DEPARTMENT = 4


@dataclass(frozen=True)
class Toyshop:
    """A generated data set and the process behind it.

    Args:
        data: The data set.
        taste: How likely a user picks an item when nothing leads there, (num_users, num_items).
        companions: How likely an item is followed by its companions, (num_items, num_items).
    """

    data: Data
    taste: np.ndarray
    companions: np.ndarray

    def probabilities(self, user: int, history: np.ndarray) -> np.ndarray:
        """Return the true distribution of a user's next item, (num_items,); nobody buys twice.

        Args:
            user: Position of the user.
            history: Item rows bought so far.
        """
        return _next_item(self.taste[user], self.companions, history)


def generate(seed: int = 0, num_users: int = 2000, num_items: int = 600) -> Toyshop:
    """Make a shop and its sales.

    Args:
        seed: The same seed gives the same shop.
        num_users: Number of users.
        num_items: Number of items.
    """
    rng = np.random.default_rng(seed)
    types = [(d, t, nouns) for d, parts in DEPARTMENTS.items() for t, nouns in parts.items()]
    kind = np.arange(num_items) % len(types)
    rng.shuffle(kind)
    brand = np.empty(num_items, dtype=int)
    for department, name in enumerate(DEPARTMENTS):
        shelf = [k for k, (d, _, _) in enumerate(types) if d == name]
        stocked = np.arange(BRANDS_PER_DEPARTMENT) + department * BRANDS_PER_DEPARTMENT
        here = np.isin(kind, shelf)
        brand[here] = rng.choice(stocked % len(BRANDS), here.sum())
    popularity = rng.pareto(1.2, num_items) + 0.1
    popularity[rng.permutation(num_items)[: int(NEW_SHARE * num_items)]] = 0

    interest = rng.dirichlet(np.full(len(types), 0.12), num_users)
    loyalty = np.ones((num_users, len(BRANDS)))
    for user in range(num_users):
        loyalty[user, rng.choice(len(BRANDS), 6, replace=False)] = 6
    taste = (interest[:, kind] + 0.002) * loyalty[:, brand] * popularity
    taste /= taste.sum(1, keepdims=True)
    companions = _companions(rng, kind, brand, popularity, len(types))

    histories = []
    for user in range(num_users):
        history = np.zeros(0, dtype=np.int64)
        for _ in range(min(4 + rng.geometric(0.2), 25)):
            chances = _next_item(taste[user], companions, history)
            history = np.append(history, rng.choice(num_items, p=chances))
        histories.append(history)
    catalogue = _catalogue(rng, types, kind, brand)
    user_ids = [f"user-{user:05d}" for user in range(num_users)]
    return Toyshop(Data(catalogue, user_ids, histories), taste, companions)


def _next_item(taste: np.ndarray, companions: np.ndarray, history: np.ndarray) -> np.ndarray:
    chances = taste.copy()
    if len(history):
        follow = companions[history[-1]]
        chances = (1 - FOLLOW_SHARE) * chances + FOLLOW_SHARE * follow
        chances[history] = 0
    return chances / chances.sum()


def _companions(
    rng: np.random.Generator,
    kind: np.ndarray,
    brand: np.ndarray,
    popularity: np.ndarray,
    num_types: int,
) -> np.ndarray:
    """Give every item three companions of the next type on the shelf, the same brand if it can."""
    shelf = num_types // len(DEPARTMENTS)
    matrix = np.zeros((len(kind), len(kind)))
    for item in range(len(kind)):
        following = kind[item] // shelf * shelf + (kind[item] + 1) % shelf
        weights = (kind == following) * (popularity > 0) * np.where(brand == brand[item], 8.0, 1.0)
        if not weights.any():
            matrix[item] = popularity / popularity.sum()
            continue
        count = min(3, int((weights > 0).sum()))
        chosen = rng.choice(len(kind), count, replace=False, p=weights / weights.sum())
        matrix[item, chosen] = np.array([0.6, 0.3, 0.1])[:count] / sum([0.6, 0.3, 0.1][:count])
    return matrix


def _catalogue(
    rng: np.random.Generator, types: list, kind: np.ndarray, brand: np.ndarray
) -> Catalogue:
    fields = {name: [] for name in ("title", "brand", "categories", "description", "price")}
    for item in range(len(kind)):
        department, name, nouns = types[kind[item]]
        noun = nouns[rng.integers(len(nouns))]
        first, second = rng.choice(QUALITIES, 2, replace=False)
        maker = BRANDS[brand[item]]
        fields["title"].append(f"{maker} {first} {noun}, no. {rng.integers(10, 99)}")
        fields["brand"].append(maker)
        fields["categories"].append(f"{department} > {name}")
        fields["description"].append(
            f"A {first}, {second} {noun} by {maker} for the {department.lower()} shelf."
        )
        fields["price"].append(f"{rng.integers(4, 120)}.{rng.integers(100):02d}")
    order = rng.permutation(len(kind))
    return Catalogue([f"item-{number:04d}" for number in order], fields)
