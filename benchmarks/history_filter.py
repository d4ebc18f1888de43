"""Measure a trained model where lists may show what the user chose before, and where they may not.

python -m benchmarks.history_filter --name toys --model outputs/toys-0 --dataset_name FOLDER
"""

import argparse

from recipes.config import add_data_arguments
from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    add_data_arguments(parser)
    parser.add_argument("--num_beams", type=int, default=30, help="Prefixes kept per level.")
    parser.set_defaults(split=None, allow_other_data=False)  # the split is the model's
    ARGUMENTS = parser.parse_args()

import json
import time
from pathlib import Path

from benchmarks.result import write_result
from recipes.evaluation.report import TTDS, evaluate_model
from recipes.hub.saved import load_model, read_as_trained, split_as_trained


def main(arguments: argparse.Namespace) -> None:
    """Rank for all test users with the history's items among the rest and write one result.

    Without them the run has measured already.

    Args:
        arguments: The command line.
    """
    begun = time.perf_counter()
    model = load_model(arguments.model)
    seed = model.config.trained_on["options"]["seed"]
    data, _, _ = read_as_trained(arguments, model.config)
    known = json.loads(Path(arguments.model, "metrics.json").read_text("utf-8"))
    if known["data_sha256"] != data.sha256:
        raise SystemExit(f"{arguments.model} was measured on other data; name its own.")
    arguments.exclude_seen = False
    split = split_as_trained(arguments, model.config, data)
    among, _ = evaluate_model(model, split, "test", arguments.num_beams, TTDS)
    both = {"left out": known["test"][TTDS], "among them": among}
    both = {
        seen: {metric: found[metric] for metric in ("HR@10", "NDCG@10")}
        for seen, found in both.items()
    }
    name = f"history-filter-{arguments.name}-seed{seed}"
    content = {"history_filter": arguments.name, "data_sha256": data.sha256, "rows": {TTDS: both}}
    write_result(name, seed, time.perf_counter() - begun, content)
    print(content)


if __name__ == "__main__":
    main(ARGUMENTS)
