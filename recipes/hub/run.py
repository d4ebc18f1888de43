"""The folder of a training run: make room for it, write what the run made."""

import shutil
from pathlib import Path
from typing import Any

from trl import SFTConfig

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import OutputOptions, TTDSArguments
from recipes.data.split import Split
from recipes.data.tables import Data
from recipes.evaluation import report
from recipes.hub import card
from recipes.hub.files import write_card


def clear_output(training: SFTConfig, output: OutputOptions) -> None:
    """Refuse to overwrite an earlier run unless told to, or to resume it.

    Args:
        training: Says where, and whether to resume.
        output: Says whether to overwrite.

    Raises:
        SystemExit: The folder is not empty, and nothing says what to do with it.
    """
    folder = Path(training.output_dir)
    if output.overwrite_output_dir:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()) and not training.resume_from_checkpoint:
        raise SystemExit(
            f"`output_dir` {folder} is not empty. Pass --overwrite_output_dir true to replace it, "
            "--resume_from_checkpoint true to go on, or another --output_dir."
        )


def run_facts(
    options: TTDSArguments, backbone: str | None, seed: int, data: Data
) -> dict[str, Any]:
    """Return what metrics.json says of a run's data, options and machine.

    Args:
        options: Every option.
        backbone: Hub id or folder, or None.
        seed: Seed of the run.
        data: What was read.
    """
    return {
        "dataset": options.data.dataset_name or card.GENERATED_DATA,
        "data": card.data_facts(options.data.dataset_name, data),
        "data_sha256": data.sha256,
        "backbone": backbone and card.shown_name(backbone),
        "seed": seed,
        "options": options.flat(),
        "hardware": report.hardware(),
    }


def save_run(
    folder: Path,
    hub_model_id: str | None,
    model: TTDSForCausalLM,
    split: Split,
    lists: dict[str, list[list[int]]],
    metrics: dict[str, Any],
) -> None:
    """Write model, tokenizer, lists of the test users, metrics.json and card.

    Args:
        folder: Where to.
        hub_model_id: What the card tells a reader to load; the folder by default.
        model: The model, with its tokenizer.
        split: The split.
        lists: Per row, the lists of the test users.
        metrics: Facts and rows of the run.
    """
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    for row, found in lists.items():
        report.write_run(folder / report.run_file(row, lists), split, "test", found)
    report.write_json(folder / "metrics.json", metrics)
    shutil.rmtree(folder / "rerankers", ignore_errors=True)
    write_card(folder, hub_model_id or str(folder))
