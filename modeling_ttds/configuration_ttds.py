"""Configurations of TTDS: one for a tower, one for the whole model."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

# A prompt that is not bound yet holds *placeholder ids*: integers above every vocabulary that name
# an entity row and a level. They survive padding, packing and truncation as plain ids do.
PLACEHOLDER_START = 2**24
KINDS = ("item", "user")
# Others look for the language model's shape in the whole model's configuration: DeepSpeed's "auto",
# PEFT's prompt tuning. Whether a cache is kept is read and set there too.
OF_BACKBONE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "use_cache",
)


def placeholder_ids(kind: str, row: int, num_levels: int) -> list[int]:
    """Return the ids that stand for one entity until `TTDSForCausalLM.bind` replaces them.

    Args:
        kind: `"item"` or `"user"`.
        row: Row of the entity in the SID table of its kind.
        num_levels: Number of SID tokens an entity takes.
    """
    first = PLACEHOLDER_START + (row * len(KINDS) + KINDS.index(kind)) * num_levels
    return list(range(first, first + num_levels))


def sid_token(kind: str, level: int, code: int) -> str:
    """Return the text of a SID token, `<item_2_17>` for level 2 and code 17."""
    return f"<{kind}_{level}_{code}>"


@strict
class TTDSTowerConfig(PreTrainedConfig):
    """Configuration of a tower: a dual-modality variational auto-encoder, residually quantised.

    Args:
        text_dim: Width of the text embedding.
        collaborative_dim: Width of the collaborative embedding.
        hidden_dim: Width of the hidden layer of encoders and decoders.
        code_dim: Width of the latent and of a codebook vector.
        num_levels: Number of codebooks, and so of codes in a semantic ID.
        num_codes: Number of codes per level.
        dropout: Dropout in the encoders.
        modality_dropout: Share of training entities that lose one modality.
        kl_weight: Weight of the KL divergence to the standard normal prior.
        codebook_weight: Weight of pulling codebook vectors to residuals.
        commitment_weight: Weight of pulling residuals to codebook vectors.
        coarse_weight: Weight of the contrast between the two views' means.
        fine_weight: Weight of the per-level divergence between the two views' codes.
        balance_weight: Weight of a balanced use of every level's codes.
        contrastive_temperature: Temperature of the coarse contrast (cosine similarities).
        code_temperature: Temperature of a level's code distribution, in units of the mean
            squared distance between the level's codebook vectors.
    """

    model_type = "ttds_tower"

    text_dim: int = 128
    collaborative_dim: int = 64
    hidden_dim: int = 256
    code_dim: int = 32
    num_levels: int = 4
    num_codes: int = 64
    dropout: float = 0.1
    modality_dropout: float = 0.3
    kl_weight: float = 0.001
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    coarse_weight: float = 0.1
    fine_weight: float = 0.1
    balance_weight: float = 0.3
    contrastive_temperature: float = 0.1
    code_temperature: float = 0.1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("text_dim", "collaborative_dim", "hidden_dim", "code_dim", "num_levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.num_codes < 2:
            raise ValueError(f"`num_codes` is {self.num_codes}; a level needs at least 2 codes.")
        for name in ("dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be in [0, 1).")


@strict
class TTDSConfig(PreTrainedConfig):
    """Configuration of `TTDSForCausalLM`: a causal language model with an item and a user tower.

    Args:
        backbone_config: Configuration of the causal language model, as object or dict; a dict
            without a `model_type`, or None, means Llama.
        item_tower: Configuration of the item tower.
        user_tower: Configuration of the user tower; levels, codes and `code_dim` as the items'.
        num_items: Number of items in the catalogue.
        sid_token_start: Id of `<item_0_0>`. SID tokens are contiguous: items before users, then
            by level, then by code.
        prompt_ids: The next-item prompt, as ids that contain the `<user>` and `<item>` placeholder
            tokens; `<item>` stands for the whole history.
        item_placeholder_id: Id of the `<item>` token.
        user_placeholder_id: Id of the `<user>` token.
        max_history: How many of the newest items of a history a prompt keeps.
        recency_decay: Weight of an item in a user's embeddings per step into the past.
        item_vector_dim: Width of the item vectors that prompts and node logits use, a fixed
            projection of text and collaborative embeddings; 0 takes both whole.
        item_vector_dropout: Dropout of the item vectors in a prompt.
        pair_dim: Width of the vectors that say which nodes follow which item; 0 for none.
        pair_dropout: Their dropout.
        pair_nodes: Nodes of the trie per depth from 1 on, for those vectors.
        exclude_seen: Whether `recommend` leaves out the items of the history by default.
        trained_on: What the model belongs to: hashes of data, item order and vocabulary, and how
            the data were read.
        text_encoder: What turns text into text embeddings: `"tokens"` (a table over the
            tokenizer's tokens), `"backbone"`, or the name or folder of a Hub encoder.
        tower_weight: Weight of the tower losses while the language model is tuned; 0 leaves the
            towers as they are.
        tower_grad_scale: Factor on the gradient of the language model's loss where it enters towers
            and codebooks; 0 keeps it out.
        soft_target_weight: Share of an item's label that is the tower's soft code distribution.
        infonce_weight: Weight of the token alignment over the batch.
        cosine_weight: Weight of the token alignment per entity.
        prompts: Per question the model was tuned for, its wording with slots.
        has_priors: Whether the model carries a co-occurrence memory whose priors join the beams.
        has_reranker: Whether the model carries a co-occurrence memory and re-ranker.
        cooccurrence_pairs: Number of item pairs in the co-occurrence memory.
        min_pair_users: Least number of users behind each of them, None where it is not known.
        tie_word_embeddings: Taken from the backbone; a value given here is ignored.
    """

    model_type = "ttds"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "losses"]
    sub_configs = {
        "backbone_config": AutoConfig,
        "item_tower": TTDSTowerConfig,
        "user_tower": TTDSTowerConfig,
    }

    backbone_config: dict | PreTrainedConfig | None = None
    item_tower: dict | PreTrainedConfig | None = None
    user_tower: dict | PreTrainedConfig | None = None
    num_items: int = 0
    sid_token_start: int = 0
    prompt_ids: list[int] | None = None
    item_placeholder_id: int = 0
    user_placeholder_id: int = 0
    max_history: int = 20
    recency_decay: float = 0.8
    item_vector_dim: int = 0
    item_vector_dropout: float = 0.2
    pair_dim: int = 0
    pair_dropout: float = 0.3
    pair_nodes: list[int] | None = None
    exclude_seen: bool = True
    trained_on: dict | None = None
    text_encoder: str = "tokens"
    tower_weight: float = 0.0
    tower_grad_scale: float = 0.0
    soft_target_weight: float = 0.0
    infonce_weight: float = 0.0
    cosine_weight: float = 0.0
    prompts: dict[str, str] | None = None
    has_priors: bool = False
    has_reranker: bool = False
    cooccurrence_pairs: int = 0
    min_pair_users: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # Before the parent's part, which hands the attention implementation down to them.
        if not isinstance(self.backbone_config, PreTrainedConfig):
            backbone = {"model_type": "llama"} | (self.backbone_config or {})
            self.backbone_config = AutoConfig.for_model(**backbone)
        for name in ("item_tower", "user_tower"):
            tower = getattr(self, name)
            if not isinstance(tower, PreTrainedConfig):
                setattr(self, name, TTDSTowerConfig(**(tower or {})))
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(self.backbone_config.tie_word_embeddings)
        self.auto_map = {
            "AutoConfig": "configuration_ttds.TTDSConfig",
            "AutoModel": "modeling_ttds.TTDSForCausalLM",
            "AutoModelForCausalLM": "modeling_ttds.TTDSForCausalLM",
        }
        self.custom_pipelines = {
            "sequential-recommendation": {
                "impl": "pipeline_ttds.TTDSPipeline",
                "pt": ["AutoModelForCausalLM"],
                "type": "text",
            }
        }
        for name in ("num_levels", "num_codes", "code_dim"):
            item, user = getattr(self.item_tower, name), getattr(self.user_tower, name)
            if item != user:
                raise ValueError(
                    f"`{name}` is {item} for items and {user} for users; both towers need the same."
                )
        if self.max_history < 1:
            raise ValueError(f"`max_history` is {self.max_history}; it must be at least 1.")
        if not 0 <= self.soft_target_weight < 1:
            raise ValueError(
                f"`soft_target_weight` is {self.soft_target_weight}; it must be in [0, 1)."
            )

    @property
    def has_cooccurrence(self) -> bool:
        """Whether the model carries a co-occurrence memory."""
        return self.has_priors or self.has_reranker

    @property
    def vector_dim(self) -> int:
        """Width of an item vector."""
        tower = self.item_tower
        return self.item_vector_dim or tower.text_dim + tower.collaborative_dim

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """Return the backbone's configuration, which describes the vocabulary and the decoder."""
        return self.backbone_config

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "TTDSConfig":
        """Return the configuration that a dict describes; a plain language model's is a backbone's.

        Args:
            config_dict: The dict, as in `config.json`.
            **kwargs: As of `PreTrainedConfig.from_dict`.
        """
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            config_dict = {"backbone_config": config_dict}
        config_dict = {name: v for name, v in config_dict.items() if name not in OF_BACKBONE}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict:
        """Return the configuration as a dict, in which the backbone's shape stands once more."""
        shape = {name: getattr(self, name) for name in OF_BACKBONE if hasattr(self, name)}
        return super().to_dict() | shape


def _of_backbone(name: str) -> property:
    def get(config):
        return getattr(config.backbone_config, name)

    def put(config, value):
        setattr(config.backbone_config, name, value)

    return property(get, put, doc=f"The backbone's `{name}`.")


for _name in OF_BACKBONE:
    setattr(TTDSConfig, _name, _of_backbone(_name))
