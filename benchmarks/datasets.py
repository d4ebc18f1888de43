"""Count users, items and interactions of a data set, for the tables of what a run costs.

python -m benchmarks.datasets --name toyshop
python -m benchmarks.datasets --name scientific --dataset_name FOLDER
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--dataset_name", help="Folder; the generated data by default.")
    ARGUMENTS = parser.parse_args()

import time

from benchmarks.result import write_result
from recipes.config import DataOptions
from recipes.data.load import load_data
from recipes.hub.card import data_facts


def main(arguments: argparse.Namespace) -> None:
    """Read the data set and write its counts.

    Args:
        arguments: The command line.
    """
    begun = time.perf_counter()
    data, _ = load_data(DataOptions(dataset_name=arguments.dataset_name), seed=0)
    facts = data_facts(arguments.dataset_name, data)
    content = {name: facts[name] for name in ("users", "items", "interactions")}
    content = {"data": arguments.name, "data_sha256": data.sha256} | content
    write_result(f"data-{arguments.name}", 0, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main(ARGUMENTS)
