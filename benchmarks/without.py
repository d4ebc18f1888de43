"""Tune a model with parts of it switched off: what the ablation needs and no option offers.

python -m benchmarks.without node_logits --config FILE ...

What follows the parts is handed to `recipes/sft.py`. The model that comes out is to be measured in
this run alone: loaded anew, it has the parts again.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "parts",
        nargs="+",
        choices=("item_vectors", "node_logits"),
        help="What is switched off.",
    )
    ARGUMENTS, OPTIONS = parser.parse_known_args()

import runpy
import sys
from pathlib import Path

import torch
from torch import Tensor

from modeling_ttds import prefix_ttds
from modeling_ttds.modeling_ttds import TTDSItemReader
from modeling_ttds.nodes_ttds import TTDSNodeHead

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "sft.py"


def nothing_of_vectors(reader: TTDSItemReader, vectors: Tensor) -> Tensor:
    """Return zeros for `TTDSItemReader.forward`."""
    return reader.weight.new_zeros(*vectors.shape[:-1], reader.weight.shape[1])


def nothing_of_children(
    head: TTDSNodeHead, states: Tensor, profiles: Tensor, children: Tensor, *_
) -> Tensor:
    """Return zeros for `TTDSNodeHead.forward`."""
    same = children.ndim == 1
    shape = (*states.shape[:-1], len(children)) if same else children.shape
    return states.new_zeros(shape, dtype=torch.float32)


def nothing_of_ranges(query: Tensor, first: Tensor, count: Tensor, *_) -> Tensor:
    """Return zeros for `pair_scores`."""
    return query.new_zeros(int(count.sum()))


# What each part is replaced by: owner, name, replacement.
PARTS = {
    "item_vectors": [(TTDSItemReader, "forward", nothing_of_vectors)],
    "node_logits": [
        (TTDSNodeHead, "forward", nothing_of_children),
        (prefix_ttds, "pair_scores", nothing_of_ranges),
    ],
}


if __name__ == "__main__":
    for part in ARGUMENTS.parts:
        for owner, name, replacement in PARTS[part]:
            setattr(owner, name, replacement)
    sys.argv = [str(RECIPE), *OPTIONS]
    runpy.run_path(str(RECIPE), run_name="__main__")
