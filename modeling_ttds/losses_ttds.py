"""The losses of `TTDSForCausalLM`: next codes, towers, token alignment, towers' gradient."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers.utils import ModelOutput

from .configuration_ttds import KINDS
from .nodes_ttds import TTDSContext
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


@dataclass
class TTDSChoices:
    """Targets of one level, or those outside the trie, and what each was chosen from.

    Args:
        here: Which targets these are, (num_targets,).
        logits: Logits of what could follow, minus infinity where a row is shorter, (here, width).
        chosen: Which of them did, (here,).
        level: The level of the codes, None for tokens of the whole vocabulary.
        children: The nodes that the logits are of, (here, width), None where there is no level.
    """

    here: Tensor
    logits: Tensor
    chosen: Tensor
    level: int | None = None
    children: Tensor | None = None


@dataclass
class TTDSLogProbs(ModelOutput):
    """What trainers of TRL ask for by `fused_lm_head=True`: numbers per label instead of logits.

    Each is of the distribution that `loss` is of, zero where there is no label, and of shape
    (batch, length - 1), or (batch, length) with `shift_labels`. The names are TRL's.

    Args:
        loss: Their negative sum over their number.
        log_probs: Log-probability of the label.
        entropy: Entropy of the distribution.
        log_sum_sq_probs: Logarithm of the sum of squared probabilities, without gradient.
        mean_logits: Mean logit of what could follow, without gradient.
        is_top1: Whether the label is the most likely.
        label_mask: Where the labels are.
        aux_loss: Always None; it is that of a mixture of experts.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None
    aux_loss: Tensor | None = None


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
        targets = targets[supervised]  # (num_targets,)
        nll = hidden.new_zeros(targets.shape, dtype=_exact(hidden))
        for choices in self._choices(hidden, supervised, targets, context):
            log_probs = choices.logits.log_softmax(-1)
            loss = -log_probs.gather(1, choices.chosen[:, None])[:, 0]
            weight = self.config.soft_target_weight if choices.level is not None else 0
            if self.training and weight and "item" in entities:
                chosen = targets[choices.here]
                soft = self._soft_nll(log_probs, chosen, choices, entities["item"])
                loss = loss + weight * (soft - loss)
            nll = nll.masked_scatter(choices.here, loss)
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss = nll.sum() / max(count, 1) + self._unused()
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

    def _unused(self) -> Tensor:
        # Processes share gradients: parameters that a batch happens to leave out have one of zero.
        heads = [self.node_head, *([self.node_pairs] if self.config.pair_dim else [])]
        return sum(weight.sum() for head in heads for weight in head.parameters()) * 0

    def _choices(
        self, hidden: Tensor, supervised: Tensor, targets: Tensor, context: TTDSContext
    ) -> Iterator[TTDSChoices]:
        """Yield the targets in groups, each with the distribution that the model is trained on.

        A code that leads down the trie is one of the children of its node; any other token, of the
        whole vocabulary.

        Args:
            hidden: States, (batch, length, hidden).
            supervised: Which of them have a target, (batch, length).
            targets: The targets, (num_targets,).
            context: Of the whole sequence.
        """
        states, bound = hidden[supervised], self.bind(targets)
        rest = torch.ones_like(targets, dtype=torch.bool)
        if len(self.item_sids):
            tower, trie = self.config.item_tower, self.trie
            offset = bound - self.config.sid_token_start
            depth, nodes, history = context.at(*supervised.nonzero(as_tuple=True))
            for level in range(tower.num_levels):
                code = offset - level * tower.num_codes
                here = (depth == level) & (code >= 0) & (code < tower.num_codes)
                child = trie.child(nodes, code.clamp(0, tower.num_codes - 1), level)
                here = here & (child >= 0)
                if not here.any():
                    continue
                rest = rest & ~here
                logits, children = self.node_logits(states[here], history[here], nodes[here], level)
                # The children of a node follow each other.
                yield TTDSChoices(here, logits, child[here] - children[:, 0], level, children)
        if rest.any():
            logits = self.token_logits(states[rest]).to(_exact(hidden))
            yield TTDSChoices(rest, logits, bound[rest])

    def _log_probs(
        self,
        hidden: Tensor,
        targets: Tensor,
        context: TTDSContext,
        num_items_in_batch: Tensor | int | None,
        temperature: float,
    ) -> TTDSLogProbs:
        mask = targets != -100
        targets = targets[mask]
        names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        found = {name: hidden.new_zeros(targets.shape, dtype=_exact(hidden)) for name in names}
        for choices in self._choices(hidden, mask, targets, context):
            logits, chosen = choices.logits / temperature, choices.chosen
            real = logits > -torch.inf
            log_probs = logits.log_softmax(-1)
            known = log_probs.masked_fill(~real, 0)
            mean = logits.detach().masked_fill(~real, 0).sum(-1) / real.sum(-1)
            values = {
                "log_probs": log_probs.gather(1, chosen[:, None])[:, 0],
                "entropy": -(log_probs.exp() * known).sum(-1),
                "log_sum_sq_probs": (2 * log_probs.detach()).logsumexp(-1),
                "mean_logits": mean,
                "is_top1": (logits.argmax(-1) == chosen).to(mean.dtype),
            }
            for name, value in values.items():
                found[name] = found[name].masked_scatter(choices.here, value)
        per_token = {
            name: value.new_zeros(mask.shape).masked_scatter(mask, value)
            for name, value in found.items()
        }
        # Without a label there is still a gradient, of zero.
        per_token["log_probs"] = per_token["log_probs"] + hidden.sum() * 0 + self._unused()
        per_token["is_top1"] = per_token["is_top1"].bool()
        count = mask.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        loss = -(per_token["log_probs"] * mask).sum() / count
        return TTDSLogProbs(loss=loss, **per_token, label_mask=mask)

    def _soft_nll(
        self,
        log_probs: Tensor,
        targets: Tensor,
        choices: TTDSChoices,
        items: TTDSEntities,
    ) -> Tensor:
        # Cross-entropy to the tower's soft codes among the children: an item's semantic ID can move
        # to where the language model expects it.
        _, row, _, mask = self._placeholders(targets)
        entity = torch.searchsorted(items.rows, torch.where(mask, row, items.rows[0]))
        soft = self.item_tower.code_log_probs(items.path.residuals)[entity, choices.level]
        codes = self.trie.codes[choices.level + 1][choices.children]
        soft = self._scaled(soft.exp()).gather(1, codes)
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


def _exact(states: Tensor) -> torch.dtype:
    """Return the precision of losses: single, or that of the states if it is higher."""
    return torch.promote_types(states.dtype, torch.float32)
