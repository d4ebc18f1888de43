"""The command line of a run: our options, TRL's, and a YAML file below both."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import yaml
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, SFTConfig, TrlParser

from recipes.config import TrainingOptions, TTDSArguments, check_ranges
from recipes.data.reading import as_utf8
from recipes.errors import HelpFormatter, expand_home, refuse_unknown

# Trackers that transformers takes without saying whether they are installed.
UNLISTED = ("flyte", "kubeflow")
# What validation measures, beside the losses of tasks.
METRICS = ("eval_NDCG@10", "eval_HR@10", "eval_next_item_loss")
# Of TRL's options those that are for other rows than ours and another loss than the model's own.
FOREIGN = (
    "assistant_only_loss", "label_smoothing_factor", "loss_type", "packing", "padding_free",
)  # fmt: skip
# And those of a backbone that are read; weights are loaded whole, in single precision.
BACKBONE = ("model_name_or_path", "use_peft", "lora_r", "lora_alpha", "lora_dropout")


def refuse_foreign(options: object, names: Iterable[str]) -> None:
    """Refuse options that nobody reads, where they are set.

    Args:
        options: A group of options.
        names: Their names.

    Raises:
        ValueError: One has another value than its default.
    """
    for name in names:
        value = getattr(options, name)
        if value != options.__dataclass_fields__[name].default:
            raise ValueError(f"`{name}` is {value}, which has no meaning here; leave it out.")


@dataclass
class TTDSTrainingArguments(TrainingOptions, SFTConfig):
    """`SFTConfig` with the defaults of the demo."""

    def __post_init__(self):
        # YAML's and the command line's ways to say yes and no, before texts are checked.
        if self.resume_from_checkpoint in (False, "false", "False"):
            self.resume_from_checkpoint = None
        elif self.resume_from_checkpoint in (True, "True"):
            self.resume_from_checkpoint = "true"
        check_ranges(self)  # TRL would stumble over them after the towers are fitted
        rate = self.head_learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"`head_learning_rate` is {rate}; it must be above 0.")
        refuse_foreign(self, FOREIGN)
        self.report_to = self.report_to or "none"  # YAML's null
        super().__post_init__()
        there = get_available_reporting_integrations()
        for name in self.report_to:
            if name not in (*there, *UNLISTED):
                raise ValueError(
                    f"`report_to` is {name!r}, which is not installed; install it, or give one of "
                    f"{', '.join(['none', *there])}."
                )
        best = self.metric_for_best_model
        known = best is None or f"eval_{best.removeprefix('eval_')}" in METRICS
        if not known and "task_" not in best:
            raise ValueError(
                f"`metric_for_best_model` is {best!r}; it must be one of {', '.join(METRICS)}."
            )
        if not torch.accelerator.is_available():  # torch warns at every data loader
            self.dataloader_pin_memory = False


class _Parser(TrlParser):
    def error(self, message):
        raise ValueError(message[:1].upper() + message[1:].rstrip(".") + ".")


def check_keys(file: Path) -> None:
    """Refuse a file that names an option twice, of which YAML's reader would drop the first.

    Args:
        file: A YAML file.

    Raises:
        ValueError: There is one.
    """
    with as_utf8(file), file.open(encoding="utf-8-sig") as lines:
        content = yaml.compose(lines, yaml.SafeLoader)
    pairs = content.value if isinstance(content, yaml.MappingNode) else []
    names = [key.value for key, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{file} names `{name}` more than once; keep one.")


def parse_arguments() -> tuple[TTDSArguments, TTDSTrainingArguments, ModelConfig]:
    """Read the command line above the YAML file that `--config` names.

    Raises:
        ValueError: An option is unknown or its value wrong, or the file cannot be read.
    """
    groups = [part.default_factory for part in fields(TTDSArguments)]
    parser = _Parser(
        (*groups, TTDSTrainingArguments, ModelConfig),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        usage="python recipes/sft.py [--config FILE] [--OPTION VALUE ...]",
    )
    if {"--help-all", "--help_all"} & set(sys.argv[1:]):
        parser.print_help()
        raise SystemExit
    words = []
    for word in sys.argv[1:]:  # the parser knows a file behind a space only
        words += word.split("=", 1) if word.startswith("--config=") else [word]
    if words[-1:] == ["--config"] or ("--config", "") in zip(words, words[1:], strict=False):
        raise ValueError("`--config` names no file; write --config FILE.")
    if words.count("--config") > 1:
        raise ValueError("`--config` is given more than once; name one file.")
    try:
        if "--config" in words:
            check_keys(Path(words[words.index("--config") + 1]))
        *parts, training, model_config, in_file, unknown = parser.parse_args_and_config(
            words, return_remaining_strings=True, separate_remaining_strings=True
        )
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from None
    refuse_unknown(parser, [*unknown, *in_file])
    for part in (*parts, training, model_config):
        expand_home(part)
    if training.n_gpu > 1:
        raise ValueError(
            f"One process sees {training.n_gpu} GPUs; start one per GPU by `accelerate launch "
            "--config_file recipes/accelerate/ddp.yaml`, or name one by CUDA_VISIBLE_DEVICES=0."
        )
    options = TTDSArguments(*parts)
    unread = [option.name for option in fields(model_config) if option.name not in BACKBONE]
    refuse_foreign(model_config, unread)
    by_backbone = options.index.text_encoder == "backbone"
    for name, needed in (("text_encoder", by_backbone), ("use_peft", model_config.use_peft)):
        if needed and model_config.model_name_or_path is None:
            raise ValueError(
                f"`{name}` needs a pretrained language model, and `model_name_or_path` names none; "
                f"name one, or leave `{name}` out."
            )
    return options, training, model_config
