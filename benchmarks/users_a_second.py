r"""Measure how many users a second a trained model makes lists for, with the hit rate of its lists.

python -m benchmarks.users_a_second --name scientific --model outputs/scientific-0 \
    --dataset_name FOLDER

All test users, batches of 64, seconds of the processor. `benchmarks.external_baselines` measures
others' implementations likewise, each asked as its documentation says.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="Name of the data set in the results.")
    parser.add_argument("--model", required=True, help="Folder of the trained model.")
    parser.add_argument("--dataset_name", help="Its data; the generated data set by default.")
    parser.add_argument("--num_beams", type=int, default=30, help="Prefixes kept per level.")
    ARGUMENTS = parser.parse_args()

import time

from benchmarks.result import write_result
from modeling_ttds import TTDSForCausalLM
from recipes.config import DataOptions
from recipes.data.load import load_data
from recipes.data.split import split_data
from recipes.evaluation.metrics import evaluate_run
from recipes.evaluation.report import recommend_to, rows_of


def main(arguments: argparse.Namespace) -> None:
    """Time each way to make the lists and write one result.

    Args:
        arguments: The command line.
    """
    begun = time.perf_counter()
    model = TTDSForCausalLM.from_pretrained(arguments.model).eval()
    seed = model.config.trained_on["options"]["seed"]
    data, _ = load_data(DataOptions(dataset_name=arguments.dataset_name), seed)
    split = split_data(data)
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
