"""Every option of a training run, in groups; YAML below the command line, unknown keys are errors.

A stage takes its own group. On the command line and in YAML the names are flat.
"""

import argparse
import inspect
import json
import math
import sys
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from types import NoneType
from typing import get_args

from recipes.errors import Parser

LIST_LENGTH = 20  # items of the lists that are measured; no fewer beams can fill them
# From where to below where a number may lie.
RANGES = {
    (1, math.inf): (
        "min_interactions", "text_dim", "num_levels", "code_dim", "vocab_size", "hidden_size",
        "num_layers", "num_heads", "max_history", "max_text_tokens", "min_pair_users", "eval_users",
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "max_length",
    ),
    (2, math.inf): ("num_codes",),
    (LIST_LENGTH, math.inf): ("num_beams",),
    (0, math.inf): (
        "collaborative_dim", "tower_epochs", "item_vector_dim", "pair_dim", "tower_weight",
        "tower_grad_scale", "infonce_weight", "cosine_weight", "refresh_steps",
        "tower_learning_rate", "num_train_epochs", "learning_rate", "weight_decay",
        "max_grad_norm", "profile_epochs",
    ),
    (0, 1): (
        "dropout", "item_vector_dropout", "pair_dropout", "soft_target_weight", "item_dropout",
        "cold_item_dropout",
    ),
    (0, 2**32): ("seed",),
}  # fmt: skip


LEAST_USERS = 8  # with a validation target, for priors and re-ranker to be fitted
SPLITS, TIMELINE_TARGETS = ("leave_one_out", "timeline"), ("first", "last", "random")


def _option(default, text: str):
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def check_ranges(options: object) -> None:
    """Refuse numbers out of their range, and what YAML takes for another type than is due.

    Args:
        options: A group of options; what it does not have is passed over.

    Raises:
        ValueError: A number is out of its range, or a value is of another type.
    """
    for (least, below), names in RANGES.items():
        for name in names:
            value = getattr(options, name, least)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and least <= value < below):
                upper = "or more" if below == math.inf else f"or more, below {below}"
                raise ValueError(f"`{name}` is {value}; it must be {least} {upper}.")
    kinds = {}  # as they are written here: the parser puts simpler ones into the fields
    for group in reversed(type(options).__mro__):
        kinds |= inspect.get_annotations(group)
    for option in fields(options):
        value, kind = getattr(options, option.name), kinds[option.name]
        if value is None and (option.default is None or NoneType in get_args(kind)):
            continue
        if kind in (str, str | None) and not isinstance(value, str):
            remedy = "put it in quotes" if isinstance(value, int | float) else "give one"
            raise ValueError(f"`{option.name}` is {value}, which is no text; {remedy}.")
        if kind is int and isinstance(value, float):
            raise ValueError(f"`{option.name}` is {value}, which is no whole number; give one.")
        if kind is bool and value not in (True, False):
            raise ValueError(f"`{option.name}` is {value}; it must be true or false.")
        if kind is float and value is None:
            raise ValueError(f"`{option.name}` is None, which is no number; give one.")


class _Group:
    """A group of options; numbers out of their range are refused when it is made."""

    def __post_init__(self):
        check_ranges(self)


@dataclass
class DataOptions(_Group):
    """What is read."""

    _argument_group_name = "data"

    dataset_name: str | None = _option(
        None, "Folder or Hub data set; the generated data set by default."
    )
    column_map: dict[str, str] | str | None = _option(
        None, "Column names of the data set to ours, as JSON; ours by default."
    )
    min_interactions: int = _option(
        1, "Least interactions of a user and an item; 5 gives a 5-core."
    )
    tie_break: str = _option("published", "Order of equal timestamps: `published` or `shuffled`.")
    timestamp_unit: str | None = _option(
        None, "Unit of numeric timestamps: `s`, `ms`, `us`, `ns`; guessed by default."
    )
    merge_repeats: bool = _option(
        False, "Merge a user's repeats in a row of the same item into one."
    )
    split: str = _option(
        "leave_one_out",
        "`leave_one_out`, or `timeline`: the same two moments end training and validation for all.",
    )
    timeline_target: str = _option(
        "first",
        "Which of a user's interactions after a cut is the target: `first`, `last`, `random`.",
    )

    def __post_init__(self):
        super().__post_init__()
        self.column_map = _mapping("column_map", self.column_map)


@dataclass
class IndexOptions(_Group):
    """Embeddings, towers and the semantic IDs they give."""

    _argument_group_name = "semantic IDs"

    cache_dir: str = _option(".cache", "Where prepared embeddings are kept.")
    text_encoder: str = _option(
        "tokens", "`tokens`, `backbone`, or a Hub id or folder of an encoder."
    )
    text_embeddings: str | None = _option(
        None, "File of text embeddings by `text_encoder`; computed by default."
    )
    text_dim: int = _option(128, "Width of the text embeddings that `tokens` makes.")
    collaborative_dim: int = _option(128, "Width of the collaborative embeddings; 0 for none.")
    num_levels: int = _option(3, "Levels of a semantic ID: codes per entity.")
    num_codes: int = _option(32, "Codes per level.")
    code_dim: int = _option(32, "Width of a codebook vector.")
    tower_epochs: int = _option(
        60,
        "Epochs over the items before tuning, half as many over the users; or as many as 10,000 "
        "steps allow.",
    )
    item_vector_dim: int = _option(
        0, "Width of item vectors; 0 takes both embeddings whole, 128 saves memory."
    )


@dataclass
class LanguageModelOptions(_Group):
    """The decoder that is trained from scratch, and the losses of any."""

    _argument_group_name = "language model"

    vocab_size: int = _option(2048, "Text tokens of the decoder that is trained from scratch.")
    hidden_size: int = _option(128, "Width of that decoder.")
    num_layers: int = _option(2, "Its layers.")
    num_heads: int = _option(4, "Its attention heads.")
    dropout: float = _option(0.1, "Its dropout.")
    item_vector_dropout: float = _option(0.2, "Dropout of the item vectors in a prompt.")
    pair_dim: int = _option(
        64, "Width of vectors that learn which nodes follow which item; 0: none."
    )
    pair_dropout: float = _option(0.3, "Dropout of those vectors.")
    profile_epochs: int = _option(
        2,
        "Epochs that fit what profiles say of nodes before tuning, or as many as 1,500 steps "
        "allow; 0: in tuning.",
    )
    tower_weight: float = _option(0.0, "Weight of the tower losses while tuning.")
    tower_grad_scale: float = _option(
        0.0, "Factor on the gradient into the towers; 0 keeps it out."
    )
    soft_target_weight: float = _option(
        0.0, "Share of the tower's soft code distribution in a label."
    )
    infonce_weight: float = _option(0.0, "Weight of the token alignment among a batch's entities.")
    cosine_weight: float = _option(0.0, "Weight of the token alignment per entity.")

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}; it must be an even multiple of `num_heads` "
                f"{self.num_heads}."
            )


@dataclass
class ExampleOptions(_Group):
    """What the language model is tuned on."""

    _argument_group_name = "tasks and their prompts"

    max_history: int = _option(20, "How many of the newest items a prompt shows.")
    sliding_windows: bool = _option(
        False, "One row per position of a history, not one sequence per user."
    )
    item_dropout: float = _option(0.0, "Share of items left out of packed sequences at random.")
    user_tokens: bool = _option(True, "Name the user by SID tokens in the next-item prompt.")
    tasks: dict[str, float] | str | None = _option(
        {
            "query": 0.3, "search": 0.15, "next_user": 0.15, "profile_of_history": 0.1,
            "bought_together": 0.2,
        },
        "Rows of every further task per epoch, as a multiple of the number of users, as JSON.",
    )  # fmt: skip
    max_text_tokens: int = _option(32, "How many tokens of a text a prompt or response keeps.")

    def __post_init__(self):
        super().__post_init__()
        self.tasks = _mapping("tasks", self.tasks)
        for task, weight in (self.tasks or {}).items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and 0 <= weight < math.inf):
                raise ValueError(
                    f"`tasks` gives {task!r} the weight {weight!r}; it must be a number, 0 or more."
                )


@dataclass
class RefreshOptions(_Group):
    """How semantic IDs move while the language model is tuned."""

    _argument_group_name = "dynamic semantic IDs"

    refresh_steps: int = _option(
        0, "Steps between refreshes of the SID table; 0 for none (static)."
    )
    freeze_at: float = _option(0.7, "Share of the steps after which a dynamic SID table freezes.")
    tower_learning_rate: float = _option(1e-4, "Peak learning rate of the towers while tuning.")

    def __post_init__(self):
        super().__post_init__()
        if not self.freeze_at <= 1:
            raise ValueError(
                f"`freeze_at` is {self.freeze_at}; give a share of the steps, up to 1."
            )


@dataclass
class RerankerOptions(_Group):
    """The co-occurrence memory and the re-ranker."""

    _argument_group_name = "re-ranker"

    memory: bool = _option(
        True, "Fit priors of a co-occurrence memory, which join the beam search."
    )
    reranker: bool = _option(True, "Fit a re-ranker; it stays unless lists are better without.")
    min_pair_users: int = _option(1, "Least users behind a pair of items that the memory keeps.")
    cold_item_dropout: float = _option(
        0.75,
        "How often the fits of priors and re-ranker see a fifth of the items as if they were new.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.reranker and not self.memory:
            raise ValueError(
                "`memory` is false and `reranker` true, which needs it; set both or neither."
            )


@dataclass
class EvaluationOptions(_Group):
    """How lists are made and measured."""

    _argument_group_name = "evaluation"

    num_beams: int = _option(50, "Prefixes kept per level at evaluation.")
    eval_users: int = _option(1000, "How many users the validation while tuning looks at.")
    exclude_seen: bool = _option(
        True, "Leave out of lists what a user chose before; the model keeps it."
    )


@dataclass
class TrainingOptions:
    """TRL's options that get another default here, or that a run often sets."""

    _argument_group_name = "training"

    output_dir: str | None = _option("outputs/demo", "Folder of model, checkpoints and card.")
    num_train_epochs: float = _option(3, "Epochs of tuning.")
    per_device_train_batch_size: int = _option(16, "Rows per step and process.")
    per_device_eval_batch_size: int = _option(64, "Rows per step and process at evaluation.")
    learning_rate: float = _option(3e-3, "Peak learning rate.")
    head_learning_rate: float | None = _option(
        None, "The same for node head and SID tokens; as `learning_rate` by default."
    )
    lr_scheduler_type: str = _option("cosine", "How the learning rate falls.")
    warmup_steps: float = _option(0.05, "Steps until the peak; below 1, their share of all.")
    weight_decay: float = _option(0.1, "Weight decay of AdamW.")
    bf16: bool | None = _option(False, "Compute in bfloat16; for GPUs.")
    use_cpu: bool = _option(False, "Stay on the CPU though there is a GPU.")
    gradient_checkpointing: bool | None = _option(
        None, "Keep less in memory and compute it again; off by default."
    )
    eval_strategy: str = _option(
        "steps", "When validation users are ranked: `steps`, `epoch` or `no`."
    )
    eval_steps: float | None = _option(0.2, "Steps between; below 1, their share of all.")
    save_strategy: str = _option("steps", "When a checkpoint is written.")
    save_steps: float = _option(0.2, "Steps between; below 1, their share of all.")
    save_total_limit: int | None = _option(2, "How many checkpoints stay.")
    load_best_model_at_end: bool = _option(True, "Keep the best checkpoint, not the last.")
    metric_for_best_model: str | None = _option("eval_NDCG@10", "What is best on validation.")
    resume_from_checkpoint: str | None = _option(
        None, "`true` for the newest checkpoint, or a folder; by default none."
    )
    logging_steps: float = _option(50, "Steps between logs of the losses.")
    report_to: None | str | list[str] = _option(
        "none", "Log to `trackio`, `tensorboard` or `wandb`."
    )
    ddp_broadcast_buffers: bool | None = _option(
        False, "Send buffers to all processes at every step."
    )
    seed: int = _option(0, "Seed of everything drawn at random.")


@dataclass
class OutputOptions(_Group):
    """What becomes of the output folder."""

    _argument_group_name = "output and publishing"

    overwrite_output_dir: bool = _option(False, "Replace what an earlier run left in `output_dir`.")
    allow_rare_pairs: bool = _option(
        False, "Let `push_to_hub` send pairs that a single user chose."
    )


@dataclass
class TTDSArguments:
    """All groups of options: what is built, of what, and how it is measured."""

    data: DataOptions = field(default_factory=DataOptions)
    index: IndexOptions = field(default_factory=IndexOptions)
    language_model: LanguageModelOptions = field(default_factory=LanguageModelOptions)
    examples: ExampleOptions = field(default_factory=ExampleOptions)
    refresh: RefreshOptions = field(default_factory=RefreshOptions)
    reranker: RerankerOptions = field(default_factory=RerankerOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self):
        if self.language_model.pair_dim and self.refresh.refresh_steps:
            raise ValueError(
                f"`pair_dim` is {self.language_model.pair_dim}, `refresh_steps` "
                f"{self.refresh.refresh_steps}: a refresh moves the nodes its vectors are of; "
                "set one of them to 0."
            )

    def flat(self) -> dict:
        """Return every option by its name on the command line."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}


def _mapping(name: str, value: dict | str | None) -> dict | None:
    if value is None:
        return None
    try:  # a text from the command line
        read = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise ValueError(f"`{name}` is {value!r}; give a JSON object, e.g. '{{\"key\": ...}}'.")
    return read


# In the order in which the help shows them.
HELP_GROUPS = (
    DataOptions, IndexOptions, RefreshOptions, LanguageModelOptions, ExampleOptions,
    TrainingOptions, RerankerOptions, EvaluationOptions, OutputOptions,
)  # fmt: skip
MORE_HELP = """\
--config FILE reads options from YAML; the command line wins. Of TRL's own options the most used are
--model_name_or_path NAME (tune a pretrained language model), --use_peft (an adapter of it),
--push_to_hub with --hub_model_id OWNER/NAME (publish). --help-all lists all of them."""


def answer_help(about: str) -> None:
    """Print our own options and end, if the command line asks for help.

    What TRL adds takes seconds to import and ten screens to read: `--help-all` has it.

    Args:
        about: Docstring of the script; its first sentence opens the help.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    usage = "python recipes/sft.py [--config FILE] [--OPTION VALUE ...]"
    parser = Parser(usage=usage, description=about.splitlines()[0], epilog=MORE_HELP)
    for group in HELP_GROUPS:
        added = parser.add_argument_group(group._argument_group_name)
        for option in fields(group):
            text, default = option.metadata["help"], default_of(option)
            added.add_argument(f"--{option.name}", metavar="", default=default, help=text)
    parser.print_help()
    raise SystemExit


def default_of(option: Field) -> object:
    """Return the default of an option.

    Args:
        option: A field of a group.
    """
    return option.default if option.default is not MISSING else option.default_factory()


# How data are read: what a saved model remembers of its training.
READING = ("column_map", "min_interactions", "tie_break", "timestamp_unit", "merge_repeats")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model and data are read, and how if not as for training.

    Args:
        parser: Gets the options.
    """
    parser.add_argument("--model", required=True, help="Folder or Hub id of the model.")
    options = {option.name: option.metadata["help"] for option in fields(DataOptions)}
    parser.add_argument("--dataset_name", help=options["dataset_name"])
    group = parser.add_argument_group("how the data are read; by default as they were for training")
    kinds = {
        "min_interactions": {"type": int},
        "tie_break": {"choices": ("published", "shuffled")},
        "timestamp_unit": {"choices": ("s", "ms", "us", "ns")},
        "merge_repeats": {"type": _truth, "metavar": "BOOL"},
    }
    for name in READING:
        group.add_argument(f"--{name}", help=options[name], **kinds.get(name, {}))
    group.add_argument(
        "--exclude_seen", type=_truth, metavar="BOOL", help="Leave out what a user chose before."
    )


def _truth(text: str) -> bool:
    from transformers.hf_argparser import string_to_bool  # takes seconds: where one is given

    return string_to_bool(text)
