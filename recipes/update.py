"""Bring a trained model up to today's data: new items, counts and re-ranker; no weight changes.

python recipes/update.py --model outputs/demo --dataset_name FOLDER --output_dir outputs/today

The data set is the whole log as it is now: what the model was trained on, and what came since.
Measure the result by `recipes/evaluate.py --model outputs/today --dataset_name FOLDER`.
"""

import shlex
import tempfile
import time
from pathlib import Path

from recipes.config import LEAST_USERS, LIST_LENGTH, READING, add_data_arguments
from recipes.errors import Parser, check_writable, one_sentence

FIT_USERS = 5_000


def main() -> None:
    """Read, check, add and drop items, fit what counts, save."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument(
        "--output_dir", required=True, type=Path, help="Folder to write to, which is not there yet."
    )
    parser.add_argument(
        "--text_embeddings", help="File of text embeddings; by default they are made."
    )
    parser.add_argument(
        "--fit_users",
        type=int,
        default=FIT_USERS,
        help="How many users priors and re-ranker are fitted on, those of the newest targets.",
    )
    parser.add_argument("--num_beams", type=int, default=50, help="Prefixes kept per level.")
    arguments = parser.parse_args()
    output = arguments.output_dir
    if output.exists():
        raise ValueError(f"`--output_dir` {output} is there already; name another.")
    check_writable("--output_dir", output)
    for name, least in (("fit_users", LEAST_USERS), ("num_beams", LIST_LENGTH)):
        value = getattr(arguments, name)
        if value < least:
            raise ValueError(f"`--{name}` is {value}; it must be at least {least}.")

    # They take seconds, which --help and a wrong option need not wait for.
    from recipes.config import DataOptions, IndexOptions
    from recipes.data.origin import data_identity
    from recipes.data.split import check_split, split_data
    from recipes.evaluation import report
    from recipes.hub import card
    from recipes.hub.saved import load_model, read_as_trained
    from recipes.index.embeddings import given_text_embeddings
    from recipes.serving.updating import (
        check_known,
        fit_ranking,
        follow_catalogue,
        newest_users,
        reranker_options,
        saved_facts,
    )

    begun = time.perf_counter()
    model = load_model(arguments.model)
    config, known = model.config, saved_facts(arguments.model)
    trained = config.trained_on
    if not trained:
        raise ValueError(
            f"{arguments.model} does not say what it was trained on, as models of before version "
            "0.2 do not; train it anew by recipes/sft.py."
        )
    if trained["options"].get("split") == "timeline":
        raise ValueError(
            f"{arguments.model} was trained on `split` 'timeline', so it may have learnt what an "
            "update fits the re-ranker on; train with --split leave_one_out what is to be updated."
        )
    data, _, _ = read_as_trained(arguments, config)
    check_known(model, arguments.model, data)
    exclude_seen = arguments.exclude_seen
    split = split_data(data, config.exclude_seen if exclude_seen is None else exclude_seen)
    check_split(split)
    options = reranker_options(model, known, split)
    index = IndexOptions(
        text_encoder=config.text_encoder, text_embeddings=arguments.text_embeddings
    )
    text = given_text_embeddings(index, arguments.dataset_name, split.num_items)

    new, gone = follow_catalogue(model, split, text)
    print(f"Items: {split.num_items:,}, of them {new:,} new; {gone:,} have gone.")
    seed = trained["options"]["seed"]
    if options.memory:
        newest = newest_users(split, arguments.fit_users, seed)
        fit_ranking(model, newest, options, arguments.num_beams, seed)
    said = [name for name in READING if getattr(arguments, name) is not None]
    read = DataOptions(**{name: getattr(arguments, name) for name in said})
    chosen = trained["options"] | {name: getattr(read, name) for name in said}
    identity = data_identity(data)
    # What towers and language model know stays what they once learnt.
    before = trained.get("learnt_from") or {name: trained[name] for name in identity}
    config.trained_on = trained | identity | {"options": chosen, "learnt_from": before}
    config.exclude_seen = split.exclude_seen
    seconds = round(time.perf_counter() - begun, 1)
    facts = known | {
        "dataset": arguments.dataset_name or card.GENERATED_DATA,
        "data": card.data_facts(arguments.dataset_name, data),
        "data_sha256": data.sha256,
        "options": known.get("options", {}) | {"dataset_name": arguments.dataset_name},
        "updated": {"seconds": seconds, "new_items": new, "learnt_from": before},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        made = Path(scratch, output.name)
        model.save_pretrained(made)
        report.write_json(made / "metrics.json", facts)
        made.replace(output)
    measured = ["python", "recipes/evaluate.py", "--model", str(output)]
    measured += ["--dataset_name", arguments.dataset_name] if arguments.dataset_name else []
    print(
        f"{output} is up to date after {seconds:,.0f} s. Measure it:\n\n    {shlex.join(measured)}"
    )


if __name__ == "__main__":
    with one_sentence():
        main()
