"""TTDSTrainer: SFTTrainer with the model's own loss, a moving SID table and ranking metrics."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import ModelConfig, SFTConfig, SFTTrainer

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import EvaluationOptions, RefreshOptions
from recipes.data.origin import difference
from recipes.data.split import Split
from recipes.evaluation.metrics import rank_metrics
from recipes.evaluation.report import read_json, recommend_to
from recipes.index.refresh import refresh_sids
from recipes.tuning import adapter
from recipes.tuning.examples import EntityTexts, EpochSampler, Examples, collate

# Kept beside the weights: the tower that users' semantic IDs are made by until the next refresh is
# no part of them, and an adapter's hold no buffer at all.
SID_FILE = "sids.safetensors"
TABLES = ("item_sids", "item_text", "refreshed_tower.")
SEAL_FILE = "complete.json"
ORIGIN_FILE = "trained_on.json"
# How a run is tuned from its first step to its last, beside what `origin` holds.
LASTING = ("learning_rate", "head_learning_rate", "lr_scheduler_type", "weight_decay")
# Whose learning rate may be another, by their parameters' names.
PARTS = {
    "towers": ("item_tower.", "user_tower."),
    "heads": ("node_head.", "codebook_projections.", "trainable_tokens_"),
}


def freeze_step(freeze_at: float, num_steps: int) -> int:
    """Return the step at which the SID table freezes.

    Args:
        freeze_at: Share of the steps.
        num_steps: Steps of the run.
    """
    return max(1, int(freeze_at * num_steps))


class RefreshSIDs(TrainerCallback):
    """Refreshes the SID table every so many steps and freezes it at a share of the run.

    Only a model with a frozen SID table can be the best one, so what came before is forgotten then.

    Args:
        trainer: The trainer, for its model and log.
        refresh_steps: Steps between refreshes.
        freeze_at: Share of the steps after which the SID table stays.
    """

    def __init__(self, trainer: "TTDSTrainer", refresh_steps: int, freeze_at: float):
        self.trainer, self.refresh_steps, self.freeze_at = trainer, refresh_steps, freeze_at

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        freeze = freeze_step(self.freeze_at, state.max_steps)
        step = state.global_step
        if step == freeze or (step < freeze and step % self.refresh_steps == 0):
            report = refresh_sids(self.trainer.ttds, freeze=step == freeze)
            # A log of its own: the step's loss and metrics still go into the regular one.
            due = control.should_log
            Trainer.log(self.trainer, {f"sids/{name}": value for name, value in report.items()})
            control.should_log = due
            if step == freeze:
                state.best_metric = state.best_model_checkpoint = state.best_global_step = None


class OneBar(ProgressCallback):
    """One progress bar, with the loss; above it a line per evaluation and refresh."""

    def on_prediction_step(self, args, state, control, **kwargs):  # noqa: D102
        pass

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: D102
        if self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")
        said = [
            f"{shown} {logs[name]:.4f}"
            for name, shown in (
                ("eval_HR@10", "validation HR@10"),
                ("eval_NDCG@10", "validation NDCG@10"),
                ("sids/churn", "refresh, churn"),
            )
            if name in logs
        ]
        if said:
            self.training_bar.write(f"step {state.global_step}: {', '.join(said)}")


class SealCheckpoint(TrainerCallback):
    """Completes a checkpoint by the SID table and a list of its files, written last.

    Args:
        trainer: The trainer, for its model.
    """

    def __init__(self, trainer: "TTDSTrainer"):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):  # noqa: D102
        if not args.should_save:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal = folder / SEAL_FILE
        seal.unlink(missing_ok=True)  # of a checkpoint that this one takes the place of
        tensors = dict(self.trainer.ttds.named_buffers())
        tensors = {name: tensors[name].cpu() for name in tensors if name.startswith(TABLES)}
        save_file(tensors, folder / SID_FILE)
        origin = resumed_with(self.trainer.ttds.config.trained_on, args, self.trainer.evaluation)
        (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=2), "utf-8")
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        scratch = seal.with_suffix(".tmp")
        scratch.write_text(json.dumps(sizes), "utf-8")
        scratch.replace(seal)


class FindBest(TrainerCallback):
    """Finds the best checkpoint of a resumed run again where its folder was moved.

    The state names it by the path of that time, and `Trainer` forgets what is not there: the run
    would end with the last weights in place of the best.
    """

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: D102
        resumed = args.resume_from_checkpoint
        if not resumed or state.best_model_checkpoint or state.best_global_step is None:
            return
        moved = Path(resumed).parent / f"checkpoint-{state.best_global_step}"
        if moved.is_dir():
            state.best_model_checkpoint = str(moved)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has the name that the trainer gives its checkpoints.

    Args:
        folder: Any file or folder.
    """
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None and folder.is_dir()


def resumed_with(
    made_of: dict[str, Any], training: SFTConfig, evaluation: EvaluationOptions
) -> dict[str, Any]:
    """Return what a run must have in common with a checkpoint to go on from it.

    Args:
        made_of: `recipes.data.origin.origin` of the run.
        training: How it is tuned.
        evaluation: How the best checkpoint is found.
    """
    values = training.to_dict()
    chosen = {name: values[name] for name in LASTING}
    batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    chosen["batch_size"] = batch_size * training.world_size
    chosen["exclude_seen"] = evaluation.exclude_seen
    return made_of | {"options": made_of["options"] | chosen}


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest checkpoint that was written to its end; say which were not.

    Args:
        output_dir: Folder of a run.
    """
    folders = filter(is_checkpoint, Path(output_dir).glob("checkpoint-*"))
    for folder in sorted(folders, key=lambda f: int(f.name.split("-")[1]), reverse=True):
        try:
            sizes = json.loads((folder / SEAL_FILE).read_text("utf-8"))
            if all((folder / name).stat().st_size == size for name, size in sizes.items()):
                return str(folder)
        except (FileNotFoundError, ValueError):
            pass
        print(f"{folder} was cut short and is passed over.")
    return None


def resume_from(
    training: SFTConfig, made_of: dict[str, Any], evaluation: EvaluationOptions
) -> None:
    """Name the checkpoint that a run goes on from, if it is to; refuse one of other data.

    Args:
        training: Its `resume_from_checkpoint` becomes the newest whole checkpoint where it says
            true, and None where there is none.
        made_of: `recipes.data.origin.origin` of the run.
        evaluation: How the best checkpoint is found.

    Raises:
        ValueError: There is no such checkpoint, or it belongs to other data or options; the message
            names what differs.
    """
    if training.resume_from_checkpoint == "true":
        training.resume_from_checkpoint = last_whole_checkpoint(training.output_dir)
    resume = training.resume_from_checkpoint
    if resume is None:
        return
    if not Path(resume).is_dir():
        raise ValueError(f"`resume_from_checkpoint` {resume} is no folder; name a checkpoint.")
    file = Path(resume) / ORIGIN_FILE
    if not file.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` {resume} has no {ORIGIN_FILE}, so nothing tells which data "
            "it belongs to; name another checkpoint, or start anew."
        )
    ours = resumed_with(made_of, training, evaluation)
    differs = difference(ours, read_json(file))
    if differs:
        raise ValueError(
            f"{resume} belongs to other data or options: this run has {differs}. Resume with what "
            "it was started with, or start anew."
        )


class TTDSTrainer(SFTTrainer):
    """Tunes a `TTDSForCausalLM` on placeholder ids.

    Args:
        model: The model, with its SID table.
        args: How it is tuned.
        examples: The training examples.
        split: Validation users are ranked at every evaluation.
        refresh: Whether and when semantic IDs move; where they do not, nor do the towers.
        evaluation: How validation users are ranked.
        backbone: Says whether to train an adapter, and of what shape.
    """

    def __init__(
        self,
        model: TTDSForCausalLM,
        args: SFTConfig,
        *,
        examples: Examples,
        split: Split,
        refresh: RefreshOptions,
        evaluation: EvaluationOptions,
        backbone: ModelConfig,
    ):
        self.examples, self.split = examples, split
        self.refresh, self.evaluation = refresh, evaluation
        self.num_tokens, self.begun, self.curve = 0, time.perf_counter(), []
        if refresh.refresh_steps == 0:
            model.item_tower.requires_grad_(False)
            model.user_tower.requires_grad_(False)
        peft_config = None
        if backbone.use_peft:
            peft_config = adapter.lora_config(model, backbone)
            if not args.resume_from_checkpoint and args.process_index == 0:
                adapter.save_base(model, Path(args.output_dir))
        args.remove_unused_columns = False
        args.prediction_loss_only = True
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        aligned = model.config.infonce_weight or model.config.cosine_weight
        texts = EntityTexts(examples) if aligned else None
        pad_token_id = model.tokenizer.pad_token_id
        super().__init__(
            model=model,
            args=args,
            processing_class=model.tokenizer,
            data_collator=lambda rows: collate(rows, pad_token_id, texts),
            train_dataset=examples.as_dataset(),
            eval_dataset=examples.validation() or None,
            peft_config=peft_config,
        )
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(OneBar)
        self.add_callback(SealCheckpoint(self))
        self.add_callback(FindBest)
        if refresh.refresh_steps:
            self.add_callback(RefreshSIDs(self, refresh.refresh_steps, refresh.freeze_at))

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        batch_size = self._train_batch_size * self.accelerator.num_processes
        return EpochSampler(self.examples, batch_size, self.args.seed)

    @property
    def ttds(self) -> TTDSForCausalLM:
        """The model itself, without what parallel training or an adapter wraps around it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the model's own loss and log its parts."""
        outputs = model(
            **inputs, use_cache=False, num_items_in_batch=num_items_in_batch, logits_to_keep=1
        )
        loss = outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        if model.training:
            self.num_tokens += int(inputs["attention_mask"].sum())
        metrics = self._metrics["train" if model.training else "eval"]
        for name, value in outputs.losses.items():
            metrics[f"loss/{name}"].append(value.item())
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *args, **kwargs):
        """Give the towers a learning rate of their own, and node head and SID tokens theirs.

        The states of a pretrained trunk are long: what is multiplied with them has to move less at
        a step than its adapter.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        rates = {"towers": self.refresh.tower_learning_rate, "heads": self.args.head_learning_rate}
        parts = {
            id(parameter): part
            for name, parameter in self.model.named_parameters()
            for part, names in PARTS.items()
            if rates[part] is not None and any(each in name for each in names)
        }
        for group in list(optimizer.param_groups):
            for part, rate in rates.items():
                moved = [p for p in group["params"] if parts.get(id(p)) == part]
                if moved:
                    settings = {k: v for k, v in group.items() if k != "params"}
                    settings |= {"lr": rate, "params": moved, part: True}
                    group["params"] = [p for p in group["params"] if parts.get(id(p)) != part]
                    optimizer.add_param_group(settings)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Let the towers' learning rate fall to zero at the freeze."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        freeze = freeze_step(self.refresh.freeze_at, num_training_steps)

        def cooled(rate: Callable[[int], float]) -> Callable[[int], float]:
            return lambda step: rate(step) * max(0.0, 1 - step / freeze)

        groups = scheduler.optimizer.param_groups
        scheduler.lr_lambdas = [
            cooled(rate) if group.get("towers") else rate
            for rate, group in zip(scheduler.lr_lambdas, groups, strict=True)
        ]
        return scheduler

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """Add the ranking metrics of validation users to the losses."""
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix != "eval":
            return metrics
        num_beams, num_users = self.evaluation.num_beams, self.evaluation.eval_users
        lists = recommend_to(self.ttds, self.split, "validation", num_beams, num_users)
        users = self.split.users("validation")[:num_users]
        ranking = rank_metrics(lists, self.split.validation_targets[users])
        chosen = {f"{metric_key_prefix}_{name}": ranking[name] for name in ("HR@10", "NDCG@10")}
        self.log(chosen)
        seconds = round(time.perf_counter() - self.begun, 1)
        self.curve.append(
            {"step": self.state.global_step, "tokens": self.num_tokens, "seconds": seconds}
            | {name: ranking[name] for name in ("HR@10", "NDCG@10")}
        )
        return metrics | chosen

    def create_model_card(self, *args, **kwargs) -> None:
        """Write none at checkpoints: the recipe writes the card when there are figures for it."""

    def tune(self) -> dict[str, object]:
        """Tune from the start or from where a run stopped; return `report`.

        Raises:
            ValueError: The tuning diverged.
        """
        disable_progress_bar()  # of every checkpoint's shards, which would be drawn below our own
        self.train(resume_from_checkpoint=self.args.resume_from_checkpoint)
        alone = {"exclude_seen": False, "rerank": False, "memory": False}
        if not self.ttds.recommend_rows([self.split.training[0]], 1, **alone)[0]:
            raise ValueError(
                f"The tuning diverged at `learning_rate` {self.args.learning_rate}: what the model "
                "says is NaN; lower it."
            )
        return self.report()

    def tuned(self) -> TTDSForCausalLM:
        """Return the tuned model; write its adapter, if it has one, and merge it."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            model = adapter.save_adapter(model, Path(self.args.output_dir))
        model.share_sid_table()
        return model

    def report(self) -> dict[str, object]:
        """Return what tuning took and how SID table and validation moved in this process."""
        seconds = time.perf_counter() - self.begun
        return {
            "seconds": round(seconds, 1),
            "tokens": self.num_tokens,
            "tokens_per_second": round(self.num_tokens / seconds),
            "validation": self.curve,
            "log": [
                {"step": entry["step"], shown: entry[name]}
                for entry in self.state.log_history
                for name, shown in (("loss", "loss"), ("eval_NDCG@10", "NDCG@10"))
                if name in entry
            ],
            "refreshes": [
                {name.removeprefix("sids/"): value for name, value in entry.items()}
                for entry in self.state.log_history
                if "sids/churn" in entry
            ],
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_sids(resume_from_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = self.ttds.all_tied_weights_keys  # in no file, and moved with what they are tied to
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_sids(self.state.best_model_checkpoint)

    def _load_sids(self, folder: str) -> None:
        for name, tensor in load_file(f"{folder}/{SID_FILE}").items():
            self.ttds.get_buffer(name).copy_(tensor)
