"""The folder of a training run: make room for it, write what the run made."""

import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from trl import SFTConfig

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import OutputOptions, RerankerOptions, TTDSArguments
from recipes.data.split import Split
from recipes.data.tables import Data
from recipes.errors import check_writable
from recipes.evaluation import report
from recipes.hub import card
from recipes.hub.files import CARD, CURVE, MODEL_FILES, model_sha256, write_card
from recipes.tuning.trainer import LASTING, SEAL_FILE, is_checkpoint

# Beside it lies what a run of ours wrote, under these names; whatever else lies there stays.
MARKER = "ttds_run.json"
REFIT = "refit"  # checkpoints of the model that a timeline's test is of
# Of the training arguments those that decide what comes out.
TUNED_BY = (
    *LASTING, "num_train_epochs", "max_steps", "warmup_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "bf16",
)  # fmt: skip
LISTS = ("run.jsonl", "run-*.jsonl")  # today in a folder beside it
WRITTEN = (
    *MODEL_FILES, CARD, MARKER, *LISTS, "training_args.bin", "rerankers", REFIT,
    "base", "adapter", "runs",
)  # fmt: skip


def check_output(
    training: SFTConfig, options: TTDSArguments, model_name_or_path: str | None
) -> bool:
    """Refuse to overwrite an earlier run unless told to, or to resume it; nothing is deleted yet.

    Args:
        training: Says where, and whether to resume.
        options: Say whether to overwrite, and which folders and files the run reads.
        model_name_or_path: The backbone, which may be such a folder.

    Returns:
        Whether nothing is in the folder yet.

    Raises:
        ValueError: The folder is not empty, and nothing says what to do with it, or it may not be
            deleted; it cannot be written to; or there is nothing to resume in it.
    """
    folder = Path(training.output_dir)
    check_writable("output_dir", folder)
    check_writable("output_dir", report.lists_folder(folder))
    check_writable("cache_dir", Path(options.index.cache_dir))
    overwrite = options.output.overwrite_output_dir
    if overwrite and training.resume_from_checkpoint:
        raise ValueError(
            "`overwrite_output_dir` and `resume_from_checkpoint` are both given; the one deletes "
            "what the other goes on from."
        )
    if not folder.exists() or not any(folder.iterdir()):
        return True
    if training.resume_from_checkpoint:
        _check_resumable(folder, training.resume_from_checkpoint)
        return False
    if not overwrite:
        raise ValueError(
            f"`output_dir` {folder} is not empty. Pass --overwrite_output_dir true to replace it, "
            "--resume_from_checkpoint true to go on, or another --output_dir."
        )
    inputs = {
        "dataset_name": options.data.dataset_name,
        "text_embeddings": options.index.text_embeddings,
        "text_encoder": options.index.text_encoder,
        "model_name_or_path": model_name_or_path,
    }
    reason = _kept_for(folder.resolve(), inputs)
    if reason is not None:
        raise ValueError(
            f"`output_dir` {folder} is not overwritten: {reason}. Name another, or delete what is "
            "yours to delete."
        )
    return False


def _check_resumable(folder: Path, resume: str) -> None:
    """Refuse to resume into a folder that holds something else than the run to be resumed."""
    if resume != "true":
        if Path(resume).is_dir() and folder.resolve() not in Path(resume).resolve().parents:
            raise ValueError(
                f"`resume_from_checkpoint` {resume} is not in `output_dir` {folder}, which is not "
                "empty; name another --output_dir."
            )
        return
    sealed = any((file / SEAL_FILE).is_file() for file in folder.iterdir() if is_checkpoint(file))
    stopped_early = (folder / MARKER).is_file() and not (folder / "config.json").exists()
    if not (sealed or stopped_early):
        raise ValueError(
            f"`output_dir` {folder} holds no checkpoint to resume, and is not empty. Pass "
            "--overwrite_output_dir true to replace what a run left there, or name another."
        )


def _kept_for(folder: Path, inputs: Mapping[str, str | None]) -> str | None:
    """Return why a folder may not be overwritten, None where it may."""
    for name, place in (("home", Path.home()), ("the working directory", Path.cwd())):
        if place.resolve().is_relative_to(folder):
            return f"it is or holds {name}"
    if (folder / ".git").exists():
        return "it is a git repository"
    for option, place in inputs.items():
        there = place is not None and Path(place).exists()
        if there and Path(place).resolve().is_relative_to(folder):
            return f"it is or holds `{option}` {place}"
    if not (folder / MARKER).is_file():
        return f"it has no {MARKER}, so no run of TTDS wrote it"
    return None


def make_room(training: SFTConfig, output: OutputOptions, fresh: bool) -> None:
    """Delete what an earlier run wrote, if told to, and mark the folder as ours.

    Args:
        training: Says where, and which process this is.
        output: Says whether to overwrite.
        fresh: Whether nothing was in the folder when the run began.

    Raises:
        ValueError: Another run has begun to write there.
    """
    folder = Path(training.output_dir)
    with training.main_process_first(local=False, desc="make room for the run"):
        if training.process_index != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if fresh and any(folder.iterdir()):
            raise ValueError(
                f"`output_dir` {folder} is not empty any more: another run writes there. Name "
                "another folder."
            )
        if output.overwrite_output_dir and (folder / MARKER).is_file():
            # The marker goes last: what is left of a deletion that was stopped is still ours.
            for file in sorted(folder.iterdir(), key=lambda file: file.name == MARKER):
                if not (is_checkpoint(file) or any(fnmatch(file.name, p) for p in WRITTEN)):
                    print(f"{file} was not written by a run and stays.")
                elif file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file)
                else:
                    file.unlink()
        report.write_json(folder / MARKER, {"written_by": "recipes/sft.py"})


def announce(split: Split, training: SFTConfig, reranker: RerankerOptions) -> None:
    """Say what a run is about to do, on the first process.

    Args:
        split: The split.
        training: How the language model is tuned.
        reranker: What joins it.
    """
    if training.process_index != 0:
        return
    data = split.data
    stages = ["towers", "language model"]
    stages += ["priors"] if reranker.memory else []
    stages += ["re-ranker"] if reranker.reranker else []
    length = f"{training.num_train_epochs:g} epochs"
    if training.max_steps > 0:  # which the epochs give way to
        length = f"{training.max_steps:,} steps"
    print(
        f"{len(data.user_ids):,} users, {split.num_items:,} items, "
        f"{sum(map(len, data.histories)):,} interactions, on {report.hardware()}.\n"
        f"Fits {', '.join(stages)}; tunes for {length}; then ranks the "
        f"catalogue for every user.\nA line per stage follows, then a table; the model goes to "
        f"{training.output_dir}.",
        flush=True,
    )


def run_facts(
    options: TTDSArguments, backbone: str | None, training: SFTConfig, data: Data
) -> dict[str, Any]:
    """Return what metrics.json says of a run's data, options and machine.

    Args:
        options: Every option.
        backbone: Hub id or folder, or None.
        training: Says the seed, and which checkpoint was resumed.
        data: What was read.
    """
    resumed = training.resume_from_checkpoint
    since = {"resumed_from": Path(resumed).name} if resumed else {}
    return since | {
        "dataset": options.data.dataset_name or card.GENERATED_DATA,
        "data": card.data_facts(options.data.dataset_name, data),
        "data_sha256": data.sha256,
        "backbone": backbone and card.shown_name(backbone),
        "seed": training.seed,
        "options": options.flat(),
        "training": {name: training.to_dict()[name] for name in TUNED_BY},
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
    """Write model, tokenizer, metrics.json, training curve and card; beside them the lists.

    The lists of the test users are by user id, so they lie outside of what is published.

    Args:
        folder: Where to.
        hub_model_id: What the card tells a reader to load; the folder by default.
        model: The model, with its tokenizer.
        split: The split.
        lists: Per row, the lists of the test users.
        metrics: Facts and rows of the run.
    """
    model.save_pretrained(folder)
    beside = report.lists_folder(folder)
    for old in (file for pattern in LISTS for file in beside.glob(pattern)):
        old.unlink()
    for row, found in lists.items():
        report.write_run(beside / report.run_file(row, lists), split, "test", found)
    metrics = metrics | {"model_sha256": model_sha256(folder)}
    report.write_json(folder / "metrics.json", metrics)
    if "tuning" in metrics:
        draw_curve(folder / CURVE, metrics["tuning"])
    shutil.rmtree(folder / "rerankers", ignore_errors=True)
    write_card(folder, hub_model_id or str(folder))


def draw_curve(file: Path, tuning: dict[str, Any]) -> None:
    """Draw the loss and the validation NDCG@10 of a tuning over its steps; refreshes are lines.

    Args:
        file: Where to; a PNG, which every page shows.
        tuning: `report` of the trainer.
    """
    figure = Figure(figsize=(8, 2.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2)
    shown = (("loss", "training loss"), ("NDCG@10", "validation NDCG@10, language model"))
    for panel, (name, title) in zip(panels, shown, strict=True):
        entries = [entry for entry in tuning["log"] if name in entry]
        panel.plot([e["step"] for e in entries], [e[name] for e in entries], ".-")
        for refresh in tuning["refreshes"]:
            panel.axvline(refresh["step"], color="tab:orange", linewidth=0.8, alpha=0.6)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
    scratch = file.with_suffix(".tmp")
    figure.savefig(scratch, format="png", metadata={"Software": None})
    scratch.replace(file)
