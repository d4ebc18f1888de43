"""Every option of a training run, in groups; YAML below the command line, unknown keys are errors.

A stage takes its own group. On the command line and in YAML the names are flat.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, field, fields

import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from recipes.errors import refuse_unknown

# From where to below where a number may lie.
RANGES = {
    (1, math.inf): (
        "min_interactions", "text_dim", "num_levels", "code_dim", "vocab_size", "hidden_size",
        "num_layers", "num_heads", "max_history", "max_text_tokens", "min_pair_users", "num_beams",
        "eval_users",
    ),
    (2, math.inf): ("num_codes",),
    (0, math.inf): (
        "collaborative_dim", "tower_epochs", "item_vector_dim", "pair_dim", "tower_weight",
        "tower_grad_scale", "infonce_weight", "cosine_weight", "refresh_steps",
        "tower_learning_rate",
    ),
    (0, 1): (
        "dropout", "item_vector_dropout", "pair_dropout", "soft_target_weight", "item_dropout",
        "cold_item_dropout",
    ),
}  # fmt: skip


def _option(default, text: str):
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


class _Group:
    """A group of options; numbers out of their range are refused when it is made."""

    def __post_init__(self):
        for (least, below), names in RANGES.items():
            for name in names:
                value = getattr(self, name, least)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not (number and least <= value < below):
                    upper = "or more" if below == math.inf else f"or more, below {below}"
                    raise ValueError(f"`{name}` is {value}; it must be {least} {upper}.")


@dataclass
class DataOptions(_Group):
    """What is read."""

    _argument_group_name = "data"

    dataset_name: str | None = _option(
        None, "Folder or Hub data set; the generated data set by default."
    )
    column_map: dict[str, str] | str | None = _option(
        None, "Column names of the data set to ours, as JSON."
    )
    min_interactions: int = _option(
        1, "Least interactions of a user and an item; 5 gives a 5-core."
    )
    tie_break: str = _option(
        "published",
        "`published` or `shuffled` order of interactions with the same timestamp.",
    )
    timestamp_unit: str | None = _option(
        None,
        "What numbers in `timestamp` count: `s`, `ms`, `us`, `ns`; by their magnitude by default.",
    )
    merge_repeats: bool = _option(
        False, "Make one interaction of those of a user in a row with the same item."
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
        None,
        "File of precomputed text embeddings, made by `text_encoder`; a name alone is looked for "
        "in the data set's folder.",
    )
    text_dim: int = _option(128, "Width of the text embeddings that `tokens` makes.")
    collaborative_dim: int = _option(
        128, "Width of the collaborative embeddings; 0 leaves the modality out."
    )
    num_levels: int = _option(3, "Levels of a semantic ID: codes per entity.")
    num_codes: int = _option(32, "Codes per level.")
    code_dim: int = _option(32, "Width of a codebook vector.")
    tower_epochs: int = _option(60, "Epochs over the items before tuning.")
    item_vector_dim: int = _option(
        0,
        "Width of the item vectors in prompts and node logits, a projection of both embeddings; 0 "
        "takes them whole. 128 saves memory for large catalogues.",
    )


@dataclass
class LanguageModelOptions(_Group):
    """The decoder that starts from nothing, and the losses of any."""

    _argument_group_name = "language model"

    vocab_size: int = _option(2048, "Text tokens of the decoder that starts from nothing.")
    hidden_size: int = _option(128, "Width of that decoder.")
    num_layers: int = _option(2, "Its layers.")
    num_heads: int = _option(4, "Its attention heads.")
    dropout: float = _option(0.1, "Its dropout.")
    item_vector_dropout: float = _option(0.2, "Dropout of the item vectors in a prompt.")
    pair_dim: int = _option(
        64,
        "Width of the vectors that learn which nodes follow which item; 0 for none (sparse data).",
    )
    pair_dropout: float = _option(0.3, "Dropout of those vectors.")
    profile_epochs: int = _option(
        2,
        "Epochs that fit what a history's profiles say of nodes before tuning, which then holds "
        "it; 0 tunes it with the language model.",
    )
    tower_weight: float = _option(
        0.0, "Weight of the tower losses while the language model is tuned."
    )
    tower_grad_scale: float = _option(
        0.0, "Factor on the language model's gradient where it enters the towers; 0 keeps it out."
    )
    soft_target_weight: float = _option(
        0.0, "Share of an item's label that is the tower's soft code distribution."
    )
    infonce_weight: float = _option(
        0.0, "Weight of the token alignment among the entities of a batch."
    )
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
        False,
        "One row per position of a history instead of one packed sequence per user.",
    )
    item_dropout: float = _option(
        0.0, "Share of a row's items left out at random, in the packed sequences."
    )
    user_tokens: bool = _option(True, "Whether the next-item prompt names the user by SID tokens.")
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
        0, "Steps between refreshes of the SID table; 0 keeps it as it is (static)."
    )
    freeze_at: float = _option(0.7, "Share of the steps after which a dynamic SID table is frozen.")
    tower_learning_rate: float = _option(
        1e-4, "Peak learning rate of the towers while the language model is tuned."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.freeze_at > 1:
            raise ValueError(
                f"`freeze_at` is {self.freeze_at}; give a share of the steps, up to 1."
            )


@dataclass
class RerankerOptions(_Group):
    """The co-occurrence memory and the re-ranker."""

    _argument_group_name = "re-ranker"

    memory: bool = _option(
        True, "Whether to fit priors of a co-occurrence memory, which join the beam search."
    )
    reranker: bool = _option(True, "Whether to fit a re-ranker too.")
    min_pair_users: int = _option(
        1, "Least number of users behind a pair of items the co-occurrence memory keeps."
    )
    cold_item_dropout: float = _option(
        0.25,
        "How often a step of their fits shows priors and re-ranker a user as if a fifth of the "
        "items had just been added, so that they can judge new items.",
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
        True, "Whether lists leave out what a user chose before; the model keeps it as its default."
    )


@dataclass
class OutputOptions(_Group):
    """What becomes of the output folder."""

    _argument_group_name = "output and publishing"

    overwrite_output_dir: bool = _option(False, "Replace what an earlier run left in `output_dir`.")
    allow_rare_pairs: bool = _option(
        False, "Whether `push_to_hub` may send pairs behind which a single user stands."
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
    if not isinstance(value, str):
        return value
    try:  # from the command line
        read = json.loads(value)
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise ValueError(f"`{name}` is {value!r}; give a JSON object, e.g. '{{\"key\": ...}}'.")
    return read


@dataclass
class TTDSTrainingArguments(SFTConfig):
    """`SFTConfig` with the defaults of the demo."""

    output_dir: str | None = field(default="outputs/demo")
    num_train_epochs: float = 6
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 64
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    weight_decay: float = 0.1
    bf16: bool | None = False
    gradient_checkpointing: bool = False
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.2
    save_strategy: str = "steps"
    save_steps: float = 0.2
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "eval_NDCG@10"
    logging_steps: float = 50
    report_to: None | str | list[str] = "none"
    ddp_broadcast_buffers: bool | None = False
    seed: int = 0


class _Parser(TrlParser):
    def error(self, message):
        raise ValueError(message[:1].upper() + message[1:].rstrip(".") + ".")


def parse_arguments() -> tuple[TTDSArguments, TTDSTrainingArguments, ModelConfig]:
    """Read the command line above the YAML file that `--config` names.

    Raises:
        ValueError: An option is unknown or its value wrong, or the file cannot be read.
    """
    groups = [part.default_factory for part in fields(TTDSArguments)]
    parser = _Parser((*groups, TTDSTrainingArguments, ModelConfig), allow_abbrev=False)
    if sys.argv[-1] == "--config":
        raise ValueError("`--config` names no file; write --config FILE.")
    try:
        *parts, training, model_config, in_file, unknown = parser.parse_args_and_config(
            return_remaining_strings=True, separate_remaining_strings=True
        )
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from None
    refuse_unknown(parser, [*unknown, *in_file])
    return TTDSArguments(*parts), training, model_config
