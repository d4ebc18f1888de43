"""TTDSForCausalLM: a causal language model that reads and generates semantic IDs."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from .catalogue_ttds import TTDSCatalogueMixin
from .configuration_ttds import KINDS, TTDSConfig
from .cooccurrence_ttds import TTDSCooccurrence
from .entities_ttds import TTDSEntitiesMixin
from .entries_ttds import TTDSEntries, TTDSRoom
from .generation_ttds import TTDSGenerationMixin
from .lock_ttds import TTDSLock
from .losses_ttds import TTDSLogProbs, TTDSLossMixin
from .nodes_ttds import TTDSNodeHead
from .pairs_ttds import TTDSNodePairs
from .pipeline_ttds import TTDSPipeline  # noqa: F401, what is imported travels with the model
from .precision_ttds import unhalved
from .prefix_ttds import CACHE, visible_ids
from .priors_ttds import TTDSPriorHead
from .questions_ttds import TTDSQuestionsMixin
from .recommendation_ttds import TTDSRecommendationMixin
from .reranker_ttds import FEATURES, TTDSReranker
from .saving_ttds import TTDSSavingMixin
from .text_ttds import TTDSTokenTable
from .towers_ttds import TTDSTower

# What semantic IDs and re-ranking are made of.
WHOLE_MODULES = ("item_tower", "user_tower", "token_table", "prior_head", "reranker")
WHOLE_BUFFERS = (
    "item_text",
    "item_collaborative",
    "vector_projection",
    r"cooccurrence\.values",
    r"cooccurrence\.items",
)

# transformers before the new name of the cache hands it on by the old one.
_cache_by_its_old_name = (
    deprecate_kwarg("past_key_values", "5.40.0", new_name=CACHE)
    if CACHE != "past_key_values"
    else lambda forward: forward
)


@dataclass
class TTDSOutput(CausalLMOutputWithPast):
    """Output of `TTDSForCausalLM.forward`.

    Args:
        losses: The parts of `loss` before weighting, scalars for the log.
    """

    losses: dict[str, Tensor] | None = None


class TTDSCodebookProjections(nn.Module):
    """One matrix per kind and level, from codebook vectors to the language model's width.

    Args:
        config: Gives levels and widths.
    """

    def __init__(self, config: TTDSConfig):
        super().__init__()
        tower = config.item_tower
        shape = (len(KINDS), tower.num_levels, tower.code_dim, config.backbone_config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape))


class TTDSItemReader(nn.Module):
    """Projects item vectors to the language model's width, after dropout.

    Args:
        config: Gives widths and dropout.
    """

    def __init__(self, config: TTDSConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.item_vector_dropout)
        self.weight = nn.Parameter(
            torch.empty(config.vector_dim, config.backbone_config.hidden_size)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Return projected vectors, (..., hidden).

        Args:
            vectors: Item vectors, (..., vector_dim).
        """
        return self.dropout(vectors.to(self.weight.dtype)) @ self.weight


class TTDSForCausalLM(
    TTDSSavingMixin,
    PreTrainedModel,
    TTDSEntitiesMixin,
    TTDSLossMixin,
    TTDSCatalogueMixin,
    TTDSRecommendationMixin,
    TTDSQuestionsMixin,
    TTDSGenerationMixin,
):
    """A causal language model around two towers.

    The trunk is any causal language model without its head. The vocabulary holds every SID token
    once; which semantic ID an item has is in the buffer `item_sids` and may change while
    the model is tuned. Prompts name entities by placeholder ids, which `bind` swaps for today's SID
    tokens.

    The embedding of a SID token is its own row of the embedding matrix plus a projection of its
    codebook vector, on the input side and in the head.
    """

    config_class = TTDSConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # No flash attention: the beams of one prompt stand side by side in a mask of their own.
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: TTDSConfig):
        super().__init__(config)
        backbone, tower = config.backbone_config, config.item_tower
        self.model = AutoModel.from_config(backbone)
        self.lm_head = nn.Linear(backbone.hidden_size, backbone.vocab_size, bias=False)
        self.item_tower = TTDSTower(config.item_tower)
        self.user_tower = TTDSTower(config.user_tower)
        self.codebook_projections = TTDSCodebookProjections(config)
        self.item_reader = TTDSItemReader(config)
        self.node_head = TTDSNodeHead(config)
        if config.pair_dim:
            self.node_pairs = TTDSNodePairs(config)
        if config.text_encoder == "tokens":
            self.token_table = TTDSTokenTable(config.sid_token_start, tower.text_dim)
        if config.has_cooccurrence:
            self.cooccurrence = TTDSCooccurrence(config.num_items, config.cooccurrence_pairs)
        if config.has_priors:
            self.prior_head = TTDSPriorHead(tower.num_levels)
        if config.has_reranker:
            self.reranker = TTDSReranker(len(FEATURES))
        self._catalogue, self.row_of = TTDSEntries([]), {}
        self._tokenizer = self._origin = None
        self._rooms = {
            name: TTDSRoom() for name in ("item_sids", "item_text", "item_collaborative")
        }
        self.lock, self.fused_temperature = TTDSLock(), 1.0
        n = config.num_items
        self.register_buffer("item_sids", torch.zeros(n, tower.num_levels, dtype=torch.long))
        whole = {"dtype": torch.float32}  # where a model is made in half precision too
        self.register_buffer("item_text", torch.zeros(n, tower.text_dim, **whole))
        self.register_buffer("item_collaborative", torch.zeros(n, tower.collaborative_dim, **whole))
        width = tower.text_dim + tower.collaborative_dim
        shape = (width, config.item_vector_dim) if config.item_vector_dim else (0, 0)
        self.register_buffer("vector_projection", torch.zeros(shape, **whole))
        embeddings = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        # In half precision the language model is halved, not what makes semantic IDs: it stays, and
        # no layer of it is quantised.
        whole_modules = [name for name in WHOLE_MODULES if hasattr(self, name)]
        self._keep_in_fp32_modules = whole_modules
        whole_parts = "|".join([*whole_modules, *WHOLE_BUFFERS])
        self._keep_in_fp32_modules_strict = [f"({whole_parts})"]
        self.post_init()
        # Whole rows of the embedding matrix and of the tied head are read: no process has a part.
        (self._tp_plan or {}).pop(f"model.{name}", None)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TTDSTower):
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    init.xavier_uniform_(part.weight)
            init.normal_(module.codebooks, std=1.0)
        elif isinstance(module, TTDSCodebookProjections):
            init.normal_(module.weight, std=self.config.item_tower.code_dim**-0.5 * 0.02)
        elif isinstance(module, TTDSNodeHead | TTDSNodePairs):
            module.reset()
        elif isinstance(module, TTDSItemReader):
            init.normal_(module.weight, std=self.config.vector_dim**-0.5 * 0.02)
        elif module is self:
            for buffer in (self.item_sids, self.item_text, self.item_collaborative):
                init.zeros_(buffer)
            init.zeros_(self.vector_projection)
        elif isinstance(module, TTDSTokenTable | TTDSCooccurrence):
            for buffer in module.buffers():
                init.zeros_(buffer)
        elif isinstance(module, TTDSPriorHead):
            module.reset()
        elif isinstance(module, TTDSReranker):
            init.zeros_(module.mean)
            init.ones_(module.std)

    def __setattr__(self, name: str, value: object) -> None:
        # Trainers of TRL give a model a `forward` of theirs, which multiplies the trunk's states by
        # the head: node logits would be missing. Ours answers their question itself.
        function = getattr(value, "__func__", None) if name == "forward" else None
        code = getattr(function, "__code__", None)
        if code is not None and "get_output_embeddings" in code.co_names:
            if "fused_lm_head" not in code.co_varnames:
                raise ValueError(
                    f"`forward` is replaced by `{function.__qualname__}`, which reads the head by "
                    "itself and so misses node logits; train by `TTDSTrainer` or `Trainer`."
                )
            settings = inspect.getclosurevars(function).nonlocals
            self.fused_temperature = settings["temperature"]
            return
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        tables = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in tables.items():  # as of `TTDSFloat32`
            self._buffers[name] = unhalved(before, self._buffers[name])
        return self

    @property
    def device(self) -> torch.device:
        """Where catalogue and trie are; parts of the language model may be elsewhere."""
        return self.item_sids.device

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args, **kwargs
    ) -> nn.Embedding:
        """Give the vocabulary another size, as `PreTrainedModel.resize_token_embeddings` does.

        Args:
            new_num_tokens: The size; as it is by default.
            *args: As of `PreTrainedModel.resize_token_embeddings`.
            **kwargs: As of `PreTrainedModel.resize_token_embeddings`.

        Raises:
            ValueError: It would cut off SID tokens.
        """
        tower = self.config.item_tower
        end = self.config.sid_token_start + len(KINDS) * tower.num_levels * tower.num_codes
        if new_num_tokens is not None and new_num_tokens < end <= self.config.vocab_size:
            raise ValueError(
                f"`new_num_tokens` is {new_num_tokens}, but the SID tokens end at {end}; keep as "
                "many."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def set_reranker(self, cooccurrence: TTDSCooccurrence, reranker: TTDSReranker) -> None:
        """Give the model a co-occurrence memory and re-ranker, which `recommend` then uses.

        Args:
            cooccurrence: The co-occurrence memory of its items.
            reranker: The re-ranker fitted with it.
        """
        self.config.has_reranker, self.config.cooccurrence_pairs = True, len(cooccurrence.others)
        self.cooccurrence, self.reranker = cooccurrence, reranker

    def set_priors(self, cooccurrence: TTDSCooccurrence, prior_head: TTDSPriorHead) -> None:
        """Give the model a co-occurrence memory whose priors join every beam search.

        Args:
            cooccurrence: The co-occurrence memory of its items.
            prior_head: The head fitted with it.
        """
        self.config.has_priors, self.config.cooccurrence_pairs = True, len(cooccurrence.others)
        self.cooccurrence, self.prior_head = cooccurrence, prior_head

    @_cache_by_its_old_name
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        entity_ids: Tensor | None = None,
        entity_text_ids: Tensor | None = None,
        context_ids: Tensor | None = None,
        **kwargs,
    ) -> TTDSOutput | TTDSLogProbs:
        """Run the language model on ids that may hold placeholders.

        Args:
            input_ids: Token or placeholder ids, (batch, length).
            attention_mask: 1 for tokens, 0 for padding, (batch, length).
            position_ids: Places of the ids; where they start anew from 0, a packed row goes on with
                another sequence, (batch, length).
            cache: Keys and values of the ids before; `past_key_values` is its older name.
            inputs_embeds: Rows of `get_input_embeddings()` instead of ids, or vectors of one's own,
                (batch, length, hidden). A SID token's row stands for the token, in every way.
            labels: Ids to predict, -100 where none, (batch, length). In training mode the logits
                are then computed where a label stands only, and not returned.
            use_cache: Whether keys and values are kept and returned.
            logits_to_keep: How many of the last positions get logits; 0 means all.
            num_items_in_batch: Number of labels the loss is averaged over; by default this batch's.
                `Trainer` gives it without the labels where it makes the loss itself; a warning says
                what that misses.
            entity_ids: Placeholder ids of entities of the batch whose SID tokens are aligned with
                their text, (num_entities, num_levels).
            entity_text_ids: Their text, padded on the right with -100, (num_entities, text_length).
            context_ids: All ids of the sequence, where `input_ids` are its last ones and a cache
                holds those before, (batch, whole length); without them the items before do not
                count, and a warning says so.
            **kwargs: `shift_labels` stand where they are predicted, one place before their ids,
                and go before `labels`. `fused_lm_head=True` gives `TTDSLogProbs` of the labels, as
                TRL's trainers want them. `return_dict=False` gives a tuple. The rest is passed on
                to the trunk.

        Raises:
            ValueError: There are neither ids nor embeddings, or both, or there are no labels for
                `fused_lm_head`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "`input_ids` and `inputs_embeds` are "
                f"{'both missing' if input_ids is None else 'both given'}; give one of them."
            )
        ids = self.ids_of(inputs_embeds) if input_ids is None else input_ids
        alone = context_ids is None and cache is not None and not torch.compiler.is_compiling()
        if alone and (kept := int(cache.get_seq_length())):
            warnings.warn(
                f"`cache` holds {kept} positions and `context_ids` are missing, so the items "
                "before `input_ids` do not count; give all ids of the sequence as `context_ids`.",
                stacklevel=2,
            )
        whole = ids if context_ids is None else context_ids
        whole = visible_ids(whole, attention_mask)
        context = self.context(whole, position_ids if context_ids is None else None)
        items = context.items[:, whole.shape[1] - ids.shape[1] :]
        entities = {}
        if input_ids is None:
            inputs_embeds = self.with_codes(inputs_embeds, ids, items)
        else:
            inputs_embeds = self.embed(self.bind(ids), items)
            if self.training:
                entities = self._batch_entities(ids)
                inputs_embeds = self._let_gradient_through(inputs_embeds, ids, entities)
        # Not named above, since `Trainer` takes every name with "label" in it for a column of the
        # data.
        targets, fused = kwargs.pop("shift_labels", None), kwargs.pop("fused_lm_head", False)
        shifted = targets is not None
        if targets is None and labels is not None:
            targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        if targets is None and num_items_in_batch is not None and not torch.compiler.is_compiling():
            warnings.warn(
                "`num_items_in_batch` comes without `labels`: a loss that is made of `logits`, as "
                "by `label_smoothing_factor` or `compute_loss_func`, is over the whole vocabulary, "
                "not among the codes that lead to items; leave them out.",
                stacklevel=2,
            )
        named = {"position_ids": position_ids, "use_cache": use_cache, CACHE: cache}
        kwargs |= {name: value for name, value in named.items() if value is not None}
        outputs = self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        hidden = outputs.last_hidden_state.to(self.device)  # (batch, length, hidden)
        if fused:
            if targets is None:
                raise ValueError("`fused_lm_head` is true without `labels`; give them.")
            kept = slice(None) if shifted else slice(-1)
            return self._log_probs(
                hidden[:, kept],
                targets[:, kept],
                context,
                num_items_in_batch,
                self.fused_temperature,
            )
        loss, losses, logits = None, None, None
        if targets is not None:
            loss, losses = self._loss(hidden, targets, context, entities, num_items_in_batch)
            if self.training and entity_ids is not None and len(entity_ids) > 1:
                # This batch's share of the step, as of the tower losses.
                share = 1.0
                if num_items_in_batch is not None:
                    share = (targets != -100).sum() / num_items_in_batch
                contrast, entity = self._alignment(entity_ids, entity_text_ids, entities)
                weighted = self.config.infonce_weight * contrast
                loss = loss + share * (weighted + self.config.cosine_weight * entity)
                losses |= {"align_infonce": contrast.detach(), "align_cosine": entity.detach()}
        if targets is None or not self.training:
            keep = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.token_logits(hidden[:, keep])
            places = torch.arange(whole.shape[1], device=hidden.device)
            places = places[-hidden.shape[1] :][keep]
            logits = self.with_nodes(logits, hidden[:, keep], context, places)
        return TTDSOutput(
            loss=loss,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            losses=losses,
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args, inputs_embeds: Tensor | None = None, **kwargs
    ) -> dict:
        """Hand all ids on, since a cache drops those that say where in the trie we are."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        cache = inputs.get(CACHE)
        if inputs_embeds is not None:
            # Ids may be given beside them: what is new is what is kept and read beyond them.
            kept = cache.get_seq_length() if isinstance(cache, Cache) else 0
            read = inputs["inputs_embeds" if inputs.get("input_ids") is None else "input_ids"]
            new = int(kept) + read.shape[1] - inputs_embeds.shape[1]
            told = input_ids[:, input_ids.shape[1] - new :]
            input_ids = torch.cat([self.ids_of(inputs_embeds), told], 1)
        # A static cache is given a mask of another shape.
        input_ids = visible_ids(input_ids, kwargs.get("attention_mask"))
        if isinstance(cache, Cache) and cache.is_compileable:
            # As long at every step, or each would be compiled anew; what is before says nothing.
            length = max(getattr(layer, "max_cache_len", 0) for layer in cache.layers)
            input_ids = F.pad(input_ids, (max(length - input_ids.shape[1], 0), 0), value=-100)
        inputs["context_ids"] = input_ids
        return inputs

    def get_compiled_call(self, *args, **kwargs) -> Callable:
        """Return what `generate` calls where it compiles, for the catalogue of today."""
        self.prepare_tracing()
        return super().get_compiled_call(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs) -> None:
        """Say no to continuous batching: its paged cache tells no ids of those before.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "`generate_batch` gives `forward` the last id of a sequence alone, and node logits "
            "need them all; call `generate` or `recommend` with a batch."
        )

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Say no: engines such as vLLM put a head of their own on the trunk.

        Node logits depend on history and trie, so no stock head can hold them.
        """
        return False


# `Trainer` shifts the labels that it smoothes for the classes named there, and no others.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[TTDSConfig.model_type] = TTDSForCausalLM.__name__
TTDSConfig.register_for_auto_class()
TTDSForCausalLM.register_for_auto_class("AutoModelForCausalLM")
