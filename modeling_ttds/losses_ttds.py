"""The losses of `TTDSForCausalLM`: next codes, towers, token alignment, towers' gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .configuration_ttds import KINDS
from .entities_ttds import TTDSContext
from .towers_ttds import TTDSPath, evaluating


@dataclass
class TTDSEntities:
    """The entities of one kind in a batch.

    Args:
        rows: Their rows, sorted, (num_entities,).
        embeddings: Text and collaborative embeddings, each (num_entities, its dim).
        path: The way of their semantic IDs down the quantiser.
    """

    rows: Tensor
    embeddings: tuple[Tensor, Tensor]
    path: TTDSPath


class TTDSLossMixin:
    """What `TTDSForCausalLM` is trained by."""

    def _batch_entities(self, ids: Tensor) -> dict[str, TTDSEntities]:
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
                tower, sids = self.user_tower, self.sids_of_rows(rows)
                embeddings = self.user_embeddings(self.user_histories[rows])
            with evaluating(tower):  # the path of the semantic ID in the table, without dropout
                path = tower.quantise(tower.encode(*embeddings).mean, sids)
            entities[name] = TTDSEntities(rows, embeddings, path)
        return entities

    def _let_gradient_through(
        self, embeddings: Tensor, ids: Tensor, entities: dict[str, TTDSEntities]
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
        targets: Tensor,
        context: TTDSContext,
        entities: dict[str, TTDSEntities],
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Targets stand where they are predicted, one place before their ids.
        supervised = targets != -100
        rows, columns = supervised.nonzero(as_tuple=True)
        targets = targets[supervised]  # (num_targets,)
        states = hidden[supervised]  # (num_targets, hidden)
        nll = self._item_nll(states, targets, context, (rows, columns), entities)
        rest = nll.isnan()
        if rest.any():
            logits = self.token_logits(states[rest]).float()
            nll = nll.masked_scatter(
                rest, F.cross_entropy(logits, self.bind(targets[rest]), reduction="none")
            )
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        # Processes share gradients: parameters that a batch happens to leave out have one of zero.
        heads = [self.node_head, *([self.node_pairs] if self.config.pair_dim else [])]
        unused = sum(weight.sum() for head in heads for weight in head.parameters()) * 0
        loss = nll.sum() / max(count, 1) + unused
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

    def _item_nll(
        self,
        states: Tensor,
        targets: Tensor,
        context: TTDSContext,
        places: tuple[Tensor, Tensor],
        entities: dict[str, TTDSEntities],
    ) -> Tensor:
        """Return the loss of codes that lead down the trie, NaN for all other targets."""
        kind = torch.promote_types(states.dtype, torch.float32)
        nll = torch.full(targets.shape, torch.nan, device=states.device, dtype=kind)
        if not len(self.item_sids):
            return nll
        tower, trie = self.config.item_tower, self.trie
        offset = self.bind(targets) - self.config.sid_token_start
        depth, nodes, history = context.at(*places)
        for level in range(tower.num_levels):
            code = offset - level * tower.num_codes
            here = (depth == level) & (code >= 0) & (code < tower.num_codes)
            child = trie.child(nodes, code.clamp(0, tower.num_codes - 1), level)
            here = here & (child >= 0)
            if not here.any():
                continue
            logits, children = self.node_logits(states[here], history[here], nodes[here], level)
            log_probs = logits.log_softmax(-1)
            # The children of a node follow each other.
            chosen = (child[here] - children[:, 0])[:, None]
            loss = -log_probs.gather(1, chosen)[:, 0]
            if self.training and self.config.soft_target_weight and "item" in entities:
                soft = self._soft_nll(log_probs, targets[here], children, level, entities["item"])
                loss = loss + self.config.soft_target_weight * (soft - loss)
            nll = nll.masked_scatter(here, loss)
        return nll

    def _soft_nll(
        self,
        log_probs: Tensor,
        targets: Tensor,
        children: Tensor,
        level: int,
        items: TTDSEntities,
    ) -> Tensor:
        # Cross-entropy to the tower's soft codes among the children: an item's semantic ID can move
        # to where the language model expects it.
        _, row, _, mask = self._placeholders(targets)
        entity = torch.searchsorted(items.rows, torch.where(mask, row, items.rows[0]))
        soft = self.item_tower.code_log_probs(items.path.residuals)[entity, level]
        soft = self._scaled(soft.exp()).gather(1, self.trie.codes[level + 1][children])
        real = log_probs > -torch.inf
        soft = soft * real
        soft = soft / soft.sum(1, keepdim=True).clamp_min(1e-12)
        nll = -(soft * log_probs.masked_fill(~real, 0)).sum(1)
        hard = -log_probs.gather(1, soft.argmax(1, keepdim=True))[:, 0]
        return torch.where(mask, nll, hard)

    def _alignment(
        self, ids: Tensor, text_ids: Tensor, entities: dict[str, TTDSEntities]
    ) -> tuple[Tensor, Tensor]:
        # Token alignment: the pooled state of an entity's SID tokens goes to that of its text
        # (which gets no gradient), among the entities of the batch and one by one.
        embeddings = self._let_gradient_through(
            self.embed(self.bind(ids), self.context(ids).items), ids, entities
        )
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
