"""The data of a run: the data set that was named, or the generated one."""

from recipes.config import DataOptions
from recipes.data.tables import Data, read_data
from recipes.data.toyshop import Toyshop, generate


def load_data(options: DataOptions, seed: int = 0) -> tuple[Data, Toyshop | None]:
    """Read the data set that is named, or generate one and return its shop too.

    Args:
        options: What to read, and how.
        seed: Seed of the shuffle of interactions with the same timestamp.
    """
    if options.dataset_name is None:
        shop = generate()
        return shop.data, shop
    data = read_data(
        options.dataset_name,
        column_map=options.column_map,
        min_interactions=options.min_interactions,
        tie_break=options.tie_break,
        timestamp_unit=options.timestamp_unit,
        merge_repeats=options.merge_repeats,
        seed=seed,
    )
    return data, None
