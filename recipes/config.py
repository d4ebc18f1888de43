"""Arguments of the recipes: YAML below the command line, unknown keys are errors."""

import json
from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig, TrlParser


@dataclass
class TTDSArguments:
    """What is built: data, embeddings, towers, decoder, index.

    Args:
        dataset_name: Folder or Hub data set; the generated data set by default.
        column_map: Column names of the data set to ours.
        min_interactions: Least interactions of a user and an item; 5 gives a 5-core.
        tie_break: `published` or `shuffled` order of interactions with the same stamp.
        cache_dir: Where prepared embeddings are kept.
        text_encoder: `tokens`, `backbone`, or a Hub id or folder of an encoder.
        text_embeddings: File of precomputed text embeddings, made by `text_encoder`; a name alone
            is looked for in the data set's folder.
        text_dim: Width of the text embeddings that `tokens` makes.
        collaborative_dim: Width of the collaborative embeddings; 0 leaves the modality out.
        num_levels: Codes per entity.
        num_codes: Codes per level.
        code_dim: Width of a codebook vector.
        tower_epochs: Passes over the items before tuning.
        vocab_size: Text tokens of the decoder that starts from nothing.
        hidden_size: Width of that decoder.
        num_layers: Its layers.
        num_heads: Its attention heads.
        dropout: Its dropout.
        max_history: How many of the newest items a prompt shows.
        sliding_windows: One row per position of a history instead of one per user.
        item_dropout: Share of a row's items left out at random, in the packed sequences.
        user_tokens: Whether the next-item prompt names the user by SID tokens.
        tasks: Rows of every further task per epoch, as a multiple of the number of users.
        max_text_tokens: How many tokens of a text a prompt or response keeps.
        refresh_steps: Steps between refreshes of the index; 0 keeps it as it is (static).
        freeze_at: Share of the steps after which a dynamic index is frozen.
        tower_learning_rate: Peak learning rate of the towers while the language model is tuned.
        tower_weight: Weight of the tower losses while the language model is tuned.
        tower_grad_scale: Factor on the language model's gradient where it enters the towers; 0
            keeps it out.
        soft_target_weight: Share of an item's label that is the tower's soft code distribution.
        infonce_weight: Weight of the token alignment among the entities of a batch.
        cosine_weight: Weight of the token alignment per entity.
        reranker: Whether to fit a co-occurrence memory and re-ranker after tuning.
        min_pair_users: Least number of users behind a pair of items the co-occurrence memory keeps.
        cold_item_dropout: Share of the candidates that the re-ranker, while it is fitted, sees as
            if nobody had chosen them, so that it can judge new items.
        allow_rare_pairs: Whether `push_to_hub` may send pairs behind which a single user stands.
        num_beams: Prefixes kept per level at evaluation.
        eval_users: How many users the validation while tuning looks at.
        overwrite_output_dir: Replace what an earlier run left in `output_dir`.
    """

    dataset_name: str | None = None
    column_map: dict[str, str] | str | None = None
    min_interactions: int = 1
    tie_break: str = "published"
    cache_dir: str = ".cache"
    text_encoder: str = "tokens"
    text_embeddings: str | None = None
    text_dim: int = 128
    collaborative_dim: int = 128
    num_levels: int = 3
    num_codes: int = 32
    code_dim: int = 32
    tower_epochs: int = 60
    vocab_size: int = 2048
    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    dropout: float = 0.1
    max_history: int = 20
    sliding_windows: bool = False
    item_dropout: float = 0.0
    user_tokens: bool = True
    tasks: dict[str, float] | str | None = field(
        default_factory=lambda: {
            "query": 0.3, "search": 0.15, "next_user": 0.15, "profile_of_history": 0.1,
            "bought_together": 0.2,
        }
    )  # fmt: skip
    max_text_tokens: int = 32
    refresh_steps: int = 0
    freeze_at: float = 0.7
    tower_learning_rate: float = 1e-4
    tower_weight: float = 0.0
    tower_grad_scale: float = 0.0
    soft_target_weight: float = 0.0
    infonce_weight: float = 0.0
    cosine_weight: float = 0.0
    reranker: bool = True
    min_pair_users: int = 1
    cold_item_dropout: float = 0.1
    allow_rare_pairs: bool = False
    num_beams: int = 50
    eval_users: int = 1000
    overwrite_output_dir: bool = False

    def __post_init__(self):
        for name in ("column_map", "tasks"):
            value = getattr(self, name)
            if isinstance(value, str):  # from the command line
                setattr(self, name, _mapping(name, value))
        if not 0 <= self.cold_item_dropout < 1:
            raise ValueError(
                f"`cold_item_dropout` is {self.cold_item_dropout}; give a share from 0 to below 1."
            )


def _mapping(name: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` is {text!r}; give a JSON object, e.g. '{{\"key\": ...}}'.")
    return value


@dataclass
class TTDSTrainingArguments(SFTConfig):
    """`SFTConfig` with the defaults of the demo."""

    output_dir: str | None = field(default="outputs/demo")
    num_train_epochs: float = 14
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


def parse_arguments() -> tuple[TTDSArguments, TTDSTrainingArguments, ModelConfig]:
    """Read the command line above the YAML file that `--config` names."""
    parser = TrlParser((TTDSArguments, TTDSTrainingArguments, ModelConfig))
    return parser.parse_args_and_config()
