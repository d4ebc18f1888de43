r"""Measure how many users a second a trained model makes lists for, with the hit rate of its lists.

python -m benchmarks.users_a_second --name scientific --model outputs/scientific-0 \
    --dataset_name FOLDER

All test users, batches of 64, seconds of the processor. `benchmarks.external_baselines` measures
others' implementations likewise, each asked as its documentation says.
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

import time

from benchmarks.result import write_result
from recipes.evaluation.metrics import evaluate_run
from recipes.evaluation.report import recommend_to, rows_of
from recipes.hub.saved import check_same_data, load_model, read_as_trained, split_as_trained


def main(arguments: argparse.Namespace) -> None:
    """Time each way to make the lists and write one result.

    Args:
        arguments: The command line.
    """
    begun = time.perf_counter()
    model = load_model(arguments.model)
    seed = model.config.trained_on["options"]["seed"]
    data, _, _ = read_as_trained(arguments, model.config)
    check_same_data(model.config, arguments.model, data)
    split = split_as_trained(arguments, model.config, data)
    users, found = len(split.users("test")), {}
    for row in rows_of(model):
        started = time.process_time()
        lists = recommend_to(model, split, "test", arguments.num_beams, row=row)
        seconds = time.process_time() - started
        hits = evaluate_run(split, "test", lists)["HR@10"]
        found[row] = {"users_a_second": round(users / seconds, 1), "HR@10": hits}
        print(row, found[row], flush=True)
    content = {
        "speed": arguments.name,
        "data_sha256": data.sha256,
        "users": users,
        "num_beams": arguments.num_beams,
        "rows": found,
    }
    name = f"users-a-second-{arguments.name}-seed{seed}"
    write_result(name, seed, time.perf_counter() - begun, content)


if __name__ == "__main__":
    main(ARGUMENTS)
