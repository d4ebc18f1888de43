"""TTDSForCausalLM: a causal language model that reads and generates semantic IDs."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file, extract_commit_hash

from .catalogue_ttds import CATALOGUE_FILE, TTDSCatalogueMixin
from .configuration_ttds import KINDS, PLACEHOLDER_START, TTDSConfig
from .cooccurrence_ttds import TTDSCooccurrence
from .generation_ttds import CACHE
from .pipeline_ttds import TTDSPipeline  # noqa: F401, what is imported travels with the model
from .questions_ttds import TTDSQuestionsMixin
from .recommendation_ttds import TTDSRecommendationMixin
from .reranker_ttds import FEATURES, TTDSReranker
from .text_ttds import TTDSTokenTable
from .towers_ttds import TTDSPath, TTDSTower, evaluating, profile


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


class TTDSForCausalLM(
    PreTrainedModel,
    TTDSCatalogueMixin,
    TTDSRecommendationMixin,
    TTDSQuestionsMixin,
    GenerationMixin,
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
    _supports_flash_attn = True
    _supports_attention_backend = True
    # In half precision the language model is halved, not what makes semantic IDs: they stay.
    _keep_in_fp32_modules_strict = {
        r"^(item_tower|user_tower|token_table|reranker)\.",
        r"^(item_text|item_collaborative|cooccurrence\.values|cooccurrence\.items)$",
    }

    def __init__(self, config: TTDSConfig):
        super().__init__(config)
        backbone, tower = config.backbone_config, config.item_tower
        self.model = AutoModel.from_config(backbone)
        self.lm_head = nn.Linear(backbone.hidden_size, backbone.vocab_size, bias=False)
        self.item_tower = TTDSTower(config.item_tower)
        self.user_tower = TTDSTower(config.user_tower)
        self.codebook_projections = TTDSCodebookProjections(config)
        if config.text_encoder == "tokens":
            self.token_table = TTDSTokenTable(config.sid_token_start, tower.text_dim)
        if config.has_reranker:
            self.set_reranker(
                TTDSCooccurrence(config.num_items, config.cooccurrence_pairs),
                TTDSReranker(len(FEATURES)),
            )
        self._catalogue, self.row_of, self._tokenizer, self._origin = [], {}, None, {}
        n = config.num_items
        self.register_buffer("item_sids", torch.zeros(n, tower.num_levels, dtype=torch.long))
        self.register_buffer("item_text", torch.zeros(n, tower.text_dim))
        self.register_buffer("item_collaborative", torch.zeros(n, tower.collaborative_dim))
        embeddings = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

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
        elif module is self:
            for buffer in (self.item_sids, self.item_text, self.item_collaborative):
                init.zeros_(buffer)
        elif isinstance(module, TTDSTokenTable | TTDSCooccurrence):
            for buffer in module.buffers():
                init.zeros_(buffer)
        elif isinstance(module, TTDSReranker):
            init.zeros_(module.mean)
            init.ones_(module.std)

    # Entities and their semantic IDs

    def bind(self, ids: Tensor, user_sids: Tensor | None = None) -> Tensor:
        """Replace placeholder ids by today's SID tokens; other ids stay as they are.

        Args:
            ids: Token ids, placeholder ids or -100, of any shape.
            user_sids: Codes of the users that the ids name, (num_users, num_levels); by default
                those of the attached users.

        Raises:
            ValueError: A user is named, but no user states are attached.
        """
        if ids.numel() == 0 or ids.max() < PLACEHOLDER_START:
            return ids
        kind, row, level, mask = self._placeholders(ids)
        codes = self.item_sids[torch.where(kind == 0, row, 0), level]
        is_user = mask & (kind == 1)
        if is_user.any():
            if user_sids is None:
                user_sids = getattr(self, "user_sids", None)
            if user_sids is None:
                raise ValueError(
                    "The prompt names a user by row, but no user states are attached; "
                    "call `attach_users` first or write the user's SID tokens."
                )
            codes = torch.where(is_user, user_sids[torch.where(is_user, row, 0), level], codes)
        tower = self.config.item_tower
        block = (kind * tower.num_levels + level) * tower.num_codes
        return torch.where(mask, self.config.sid_token_start + block + codes, ids)

    def sid_tokens(self, sids: Tensor, kind: str = "item") -> Tensor:
        """Return the SID token ids of entities, shaped as `sids`.

        Args:
            sids: Their semantic IDs, (..., num_levels).
            kind: `"item"` or `"user"`.
        """
        tower = self.config.item_tower
        levels = torch.arange(tower.num_levels, device=sids.device)
        levels = levels + KINDS.index(kind) * tower.num_levels
        return self.config.sid_token_start + levels * tower.num_codes + sids

    def _placeholders(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        offset = ids - PLACEHOLDER_START
        mask = offset >= 0
        offset = offset.clamp_min(0)
        num_levels = self.config.item_tower.num_levels
        entity = offset // num_levels
        return entity % len(KINDS), entity // len(KINDS), offset % num_levels, mask

    def user_embeddings(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text and the collaborative embedding of users, seen through their histories.

        Both are means over the history's items, weighted by `recency_decay` per step back.

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
        """
        decay = self.config.recency_decay
        tables = self.item_text, self.item_collaborative
        return tuple(profile(table, histories, decay) for table in tables)

    def sids_of_users(self, histories: Tensor) -> Tensor:
        """Return the semantic IDs of users as of the end of their histories, (batch, num_levels).

        Args:
            histories: Item rows, newest last, padded with -1, (batch, max_history).
        """
        return self.user_tower.semantic_ids(*self.user_embeddings(histories))

    def attach_users(self, histories: Tensor) -> None:
        """Give user rows a meaning while tuning: row r is the user with the r-th history.

        The table is not saved with the model: histories are private.

        Args:
            histories: Item rows, newest last, padded with -1, (num_users, max_history).
        """
        self.register_buffer("user_histories", histories.to(self.device), persistent=False)
        sids = torch.zeros(
            len(histories), self.config.user_tower.num_levels, dtype=torch.long, device=self.device
        )
        self.register_buffer("user_sids", sids, persistent=False)

    def set_reranker(self, cooccurrence: TTDSCooccurrence, reranker: TTDSReranker) -> None:
        """Give the model a co-occurrence memory and re-ranker, which `recommend` then uses.

        Args:
            cooccurrence: The co-occurrence memory of its items.
            reranker: The re-ranker fitted with it.
        """
        self.config.has_reranker, self.config.cooccurrence_pairs = True, len(cooccurrence.others)
        self.cooccurrence, self.reranker = cooccurrence, reranker

    # Embeddings and logits

    def _scaled(self, values: Tensor) -> Tensor:
        """Return values of the towers, their gradient multiplied by `tower_grad_scale`."""
        factor = self.config.tower_grad_scale
        return values.detach() if not factor else factor * values + (1 - factor) * values.detach()

    def sid_token_vectors(self) -> Tensor:
        """Return the projected codebook vector of every SID token, (num_code_tokens, hidden)."""
        codebooks = torch.stack([self.item_tower.codebooks, self.user_tower.codebooks])
        codebooks = self._scaled(codebooks)
        projections = self.codebook_projections.weight.to(codebooks.dtype)
        return torch.einsum("klcd,kldh->klch", codebooks, projections).flatten(0, 2)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings of bound token ids, (*ids.shape, hidden)."""
        embeddings = self.model.get_input_embeddings()(ids)
        code = ids - self.config.sid_token_start
        vectors = self.sid_token_vectors()
        is_code = (code >= 0) & (code < len(vectors))
        added = F.embedding(torch.where(is_code, code, 0), vectors) * is_code[..., None]
        return embeddings + added.to(embeddings.dtype)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary, (..., vocab_size)."""
        logits = self.lm_head(hidden)
        level_logits = F.linear(hidden, self.sid_token_vectors().to(hidden.dtype))
        start = self.config.sid_token_start
        end = start + level_logits.shape[-1]
        return logits + F.pad(level_logits, (start, logits.shape[-1] - end))

    def level_logits(self, hidden: Tensor, kind: str, level: int) -> Tensor:
        """Return the logits of one level's SID tokens, (..., num_codes)."""
        k, tower = KINDS.index(kind), self.config.item_tower
        codebook = (self.item_tower, self.user_tower)[k].codebooks[level]
        first = self.config.sid_token_start + (k * tower.num_levels + level) * tower.num_codes
        projections = self.codebook_projections.weight[k, level].to(codebook.dtype)
        projected = (codebook @ projections).to(hidden.dtype)
        if type(self.lm_head) is not nn.Linear:  # an adapter holds some of the rows
            logits = self.lm_head(hidden)[..., first : first + tower.num_codes]
            return logits + F.linear(hidden, projected)
        return F.linear(hidden, self.lm_head.weight[first : first + tower.num_codes] + projected)

    # Loss

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        entity_ids: Tensor | None = None,
        entity_text_ids: Tensor | None = None,
        **kwargs,
    ) -> TTDSOutput:
        """Run the language model on ids that may hold placeholders.

        Args:
            input_ids: Token or placeholder ids, (batch, length).
            attention_mask: 1 for tokens, 0 for padding, (batch, length).
            inputs_embeds: Embeddings instead of ids, (batch, length, hidden).
            labels: Ids to predict, -100 where none, (batch, length). In training mode the logits
                are then computed where a label stands only, and not returned.
            logits_to_keep: How many of the last positions get logits; 0 means all.
            num_items_in_batch: Number of labels the loss is averaged over; by default this batch's.
            entity_ids: Placeholder ids of entities of the batch whose SID tokens are aligned with
                their text, (num_entities, num_levels).
            entity_text_ids: Their text, padded on the right with -100, (num_entities, text_length).
            **kwargs: Passed on to the trunk.
        """
        entities = {}
        if inputs_embeds is None:
            inputs_embeds = self.embed(self.bind(input_ids))
            if self.training:
                entities = self._batch_entities(input_ids)
                inputs_embeds = self._let_gradient_through(inputs_embeds, input_ids, entities)
        outputs = self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        hidden = outputs.last_hidden_state  # (batch, length, hidden)
        loss, losses, logits = None, None, None
        if labels is not None:
            loss, losses = self._loss(hidden, labels, entities, num_items_in_batch)
            if self.training and entity_ids is not None and len(entity_ids) > 1:
                # This batch's share of the step, as of the tower losses.
                share = 1.0
                if num_items_in_batch is not None:
                    share = (labels[:, 1:] != -100).sum() / num_items_in_batch
                contrast, entity = self._alignment(entity_ids, entity_text_ids, entities)
                weighted = self.config.infonce_weight * contrast
                loss = loss + share * (weighted + self.config.cosine_weight * entity)
                losses |= {"align_infonce": contrast.detach(), "align_cosine": entity.detach()}
        if labels is None or not self.training:
            keep = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.token_logits(hidden[:, keep])
        return TTDSOutput(
            loss=loss,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            losses=losses,
        )

    def _batch_entities(self, ids: Tensor) -> dict[str, "_Entities"]:
        if not self.config.tower_grad_scale and not self.config.tower_weight:
            return {}
        kind, row, _, mask = self._placeholders(ids)
        entities = {}
        for k, name in enumerate(KINDS):
            rows = row[mask & (kind == k)].unique()
            if not len(rows):
                continue
            if name == "item":
                tower, sids = self.item_tower, self.item_sids[rows]
                embeddings = self.item_text[rows], self.item_collaborative[rows]
            else:
                tower, sids = self.user_tower, self.user_sids[rows]
                embeddings = self.user_embeddings(self.user_histories[rows])
            with evaluating(tower):  # the path of the semantic ID in the table, without dropout
                path = tower.quantise(tower.encode(*embeddings).mean, sids)
            entities[name] = _Entities(rows, embeddings, path)
        return entities

    def _let_gradient_through(
        self, embeddings: Tensor, ids: Tensor, entities: dict[str, "_Entities"]
    ) -> Tensor:
        # Straight-through: adds zeros that carry the residuals' gradient, so the encoder moves as
        # if its residual had been embedded in place of the codebook vector.
        if not self.config.tower_grad_scale:
            return embeddings
        kind, row, level, mask = self._placeholders(ids)
        for name, batch in entities.items():
            k = KINDS.index(name)
            residuals = batch.path.residuals
            zeros = self._scaled(residuals) - residuals.detach()
            projections = self.codebook_projections.weight[k].to(zeros.dtype)
            delta = torch.einsum("eld,ldh->elh", zeros, projections)
            place = mask & (kind == k)
            added = delta[torch.searchsorted(batch.rows, row[place]), level[place]]
            embeddings = embeddings.index_put(
                torch.nonzero(place, as_tuple=True), added.to(embeddings.dtype), accumulate=True
            )
        return embeddings

    def _loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        entities: dict[str, "_Entities"],
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = labels[:, 1:]
        supervised = targets != -100
        targets = targets[supervised]  # (num_targets,)
        states = hidden[:, :-1][supervised]  # (num_targets, hidden)
        log_probs = self.token_logits(states).float().log_softmax(-1)
        bound = self.bind(targets)
        nll = F.nll_loss(log_probs, bound, reduction="none")
        if self.training and self.config.soft_target_weight and "item" in entities:
            soft = self._soft_nll(log_probs, targets, bound, entities["item"])
            nll = nll + self.config.soft_target_weight * (soft - nll) * (soft != 0)
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss = nll.sum() / max(count, 1)
        losses = {"lm": loss.detach()}
        if self.training and self.config.tower_weight:
            # This batch's share of the step, so that accumulated and parallel batches sum to one.
            share = self.config.tower_weight * len(targets) / max(count, 1)
            for name, batch in entities.items():
                tower = self.item_tower if name == "item" else self.user_tower
                output = tower(*batch.embeddings)
                loss = loss + share * output.loss
                losses |= {
                    f"{name}_{part}": value.detach() for part, value in output.losses.items()
                }
        return loss, losses

    def _alignment(
        self, ids: Tensor, text_ids: Tensor, entities: dict[str, "_Entities"]
    ) -> tuple[Tensor, Tensor]:
        # Token alignment: the pooled state of an entity's SID tokens goes to that of its text
        # (which gets no gradient), among the entities of the batch and one by one.
        embeddings = self._let_gradient_through(self.embed(self.bind(ids)), ids, entities)
        states = self.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state.mean(1)
        real = text_ids >= 0
        with torch.no_grad():
            texts = self.model(
                inputs_embeds=self.embed(text_ids.clamp_min(0)),
                attention_mask=real.long(),
                use_cache=False,
            ).last_hidden_state
            texts = (texts * real[..., None]).sum(1)
        cosines = F.normalize(states.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
        own = torch.arange(len(ids), device=ids.device)
        logits = cosines / self.config.item_tower.contrastive_temperature
        return F.cross_entropy(logits, own), 1 - cosines.diagonal().mean()

    def _soft_nll(
        self, log_probs: Tensor, targets: Tensor, bound: Tensor, items: "_Entities"
    ) -> Tensor:
        # Cross-entropy to the tower's soft codes: an item's semantic ID can move to where the
        # language model expects them. Zero where the target is no item.
        kind, row, level, mask = self._placeholders(targets)
        place = mask & (kind == 0)
        tower = self.config.item_tower
        probabilities = self.item_tower.code_log_probs(items.path.residuals).exp()
        probabilities = self._scaled(probabilities)
        probabilities = probabilities[torch.searchsorted(items.rows, row[place]), level[place]]
        first = self.config.sid_token_start + level[place] * tower.num_codes
        columns = first[:, None] + torch.arange(tower.num_codes, device=first.device)
        soft = -(probabilities * log_probs[place].gather(1, columns)).sum(-1)
        return torch.zeros_like(bound, dtype=soft.dtype).masked_scatter(place, soft)

    # Save and load

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Write weights, configuration, code files and catalogue into a flat folder.

        Args:
            save_directory: The folder.
            **kwargs: As of `PreTrainedModel.save_pretrained`.
        """
        super().save_pretrained(save_directory, **kwargs)
        if self.catalogue:
            self.write_catalogue(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs
    ) -> "TTDSForCausalLM":
        """Load a model with its catalogue from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *args: As of `PreTrainedModel.from_pretrained`.
            **kwargs: As of `PreTrainedModel.from_pretrained`.
        """
        where = (
            "cache_dir",
            "force_download",
            "local_files_only",
            "revision",
            "subfolder",
            "token",
        )
        hub = {name: kwargs[name] for name in where if kwargs.get(name) is not None}
        file = cached_file(
            pretrained_model_name_or_path,
            CATALOGUE_FILE,
            _raise_exceptions_for_missing_entries=False,
            **hub,
        )
        commit = extract_commit_hash(file, None)
        if commit is not None:  # weights, catalogue and, later, the tokenizer are of one commit
            hub["revision"] = kwargs["revision"] = commit
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._origin = hub
        if file is not None:
            model.read_catalogue(file)
        return loaded


@dataclass
class _Entities:
    """The entities of one kind in a batch: sorted rows, both embeddings, their paths."""

    rows: Tensor
    embeddings: tuple[Tensor, Tensor]
    path: TTDSPath


TTDSConfig.register_for_auto_class()
TTDSForCausalLM.register_for_auto_class("AutoModelForCausalLM")
