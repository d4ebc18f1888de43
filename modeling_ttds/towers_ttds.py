"""The tower: a dual-modality variational auto-encoder whose latent is quantised to a semantic ID.

One class serves items and users. Each modality (text, collaborative) has an encoder that gives a
Gaussian; a product of experts fuses what is present; a residual quantiser turns the latent into one
code per level; decoders rebuild both modalities from the quantised latent.

An all-zero embedding means that the modality is absent.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .configuration_ttds import TTDSTowerConfig
from .offload_ttds import at_hand
from .precision_ttds import TTDSFloat32

MODALITIES = ("text", "collaborative")


# Modules that are in training mode but for those who ask them now, and how many do; whoever looks
# at modes holds the lock.
_asking: dict[nn.Module, int] = {}
_modes = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while.

    Several threads may: what was in training mode is so again when the last of them is done.

    Args:
        model: The model, or a part of it; each module's mode comes back afterwards.
    """
    modes = nullcontext() if torch.compiler.is_compiling() else _modes  # no lock can be traced
    with modes:
        # None in the usual case: setting the mode of every module takes milliseconds.
        modules = [part for part in model.modules() if part.training or part in _asking]
        for part in modules:
            _asking[part] = _asking.get(part, 0) + 1
            part.training = False
    try:
        yield
    finally:
        with modes:
            for part in modules:
                _asking[part] -= 1
                if not _asking[part]:
                    del _asking[part]
                    part.training = True


@dataclass
class TTDSPosterior:
    """What the encoders say of a batch of entities.

    Args:
        mean: Mean of the fused Gaussian, (batch, code_dim).
        log_variance: Log variance of the fused Gaussian, (batch, code_dim).
        view_means: Per modality, the mean with that modality alone, (batch, code_dim).
        present: Per modality, whether the entity has it, (batch,).
    """

    mean: Tensor
    log_variance: Tensor
    view_means: dict[str, Tensor]
    present: dict[str, Tensor]


@dataclass
class TTDSPath:
    """A way down the residual quantiser.

    Args:
        codes: One code per level, (batch, num_levels).
        residuals: What each level had to quantise, (batch, num_levels, code_dim).
        vectors: The chosen codebook vectors, (batch, num_levels, code_dim).
    """

    codes: Tensor
    residuals: Tensor
    vectors: Tensor


@dataclass
class TTDSTowerOutput:
    """Result of `TTDSTower.forward`.

    Args:
        loss: Weighted sum of `losses`, a scalar.
        losses: Each term before weighting, scalars.
        path: Codes, residuals and codebook vectors of the sampled latent.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    path: TTDSPath


class TTDSTower(TTDSFloat32):
    """Turns text and collaborative embeddings of an entity into its semantic ID."""

    def __init__(self, config: TTDSTowerConfig):
        super().__init__()
        self.config = config
        widths = {"text": config.text_dim, "collaborative": config.collaborative_dim}
        self.norms = nn.ModuleDict(
            {m: nn.LayerNorm(widths[m], elementwise_affine=False) for m in MODALITIES}
        )
        self.encoders = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(widths[m], config.hidden_dim),
                    nn.GELU(),
                    nn.Dropout(config.dropout),
                    nn.Linear(config.hidden_dim, 2 * config.code_dim),
                )
                for m in MODALITIES
            }
        )
        self.decoders = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(config.code_dim, config.hidden_dim),
                    nn.GELU(),
                    nn.Linear(config.hidden_dim, widths[m]),
                )
                for m in MODALITIES
            }
        )
        self.codebooks = nn.Parameter(
            torch.empty(config.num_levels, config.num_codes, config.code_dim)
        )
        self.float()  # where a model is made in half precision too

    @property
    def vectors(self) -> Tensor:
        """The codebook vectors, wherever they are kept, (num_levels, num_codes, code_dim)."""
        return at_hand(self, "codebooks")

    def encode(
        self, text: Tensor, collaborative: Tensor, drop: dict[str, Tensor] | None = None
    ) -> TTDSPosterior:
        """Fuse what is present of an entity into one Gaussian.

        The fusion is the product of experts with a standard normal prior (Wu & Goodman 2018,
        arXiv:1802.05335): precisions add, means are averaged by precision.

        Args:
            text: Text embeddings, (batch, text_dim).
            collaborative: Collaborative embeddings, (batch, collaborative_dim).
            drop: Per modality, a mask (batch,) of entities that must do without it.
        """
        inputs = {"text": text, "collaborative": collaborative}
        precision = torch.ones_like(text[:, :1]).expand(-1, self.config.code_dim)
        weighted = torch.zeros_like(precision)
        view_means, present = {}, {}
        for modality in MODALITIES:
            x = inputs[modality].to(self.codebooks.dtype)
            mean, log_variance = self.encoders[modality](self.norms[modality](x)).chunk(2, -1)
            expert = torch.exp(-log_variance.clamp(-8, 8))  # (batch, code_dim)
            present[modality] = inputs[modality].any(-1)
            view_means[modality] = mean * expert / (1 + expert)
            used = present[modality]
            if drop is not None:
                used = used & ~drop[modality]
            precision = precision + expert * used[:, None]
            weighted = weighted + mean * expert * used[:, None]
        return TTDSPosterior(weighted / precision, -torch.log(precision), view_means, present)

    def quantise(self, latent: Tensor, codes: Tensor | None = None) -> TTDSPath:
        """Walk down the levels: take the nearest codebook vector, go on with what is left.

        Args:
            latent: Vectors to quantise, (batch, code_dim).
            codes: Codes to follow instead of the nearest ones, (batch, num_levels).
        """
        residual, chosen, residuals, vectors = latent, [], [], []
        for level, codebook in enumerate(self.vectors):
            nearest = codes is None
            code = torch.cdist(residual, codebook).argmin(-1) if nearest else codes[:, level]
            vector = codebook[code]  # (batch, code_dim)
            chosen.append(code)
            residuals.append(residual)
            vectors.append(vector)
            residual = residual - vector
        return TTDSPath(torch.stack(chosen, 1), torch.stack(residuals, 1), torch.stack(vectors, 1))

    def code_log_probs(self, residuals: Tensor) -> Tensor:
        """Return the soft code distribution of every level, (batch, num_levels, num_codes).

        A softmax over negative squared distances to the codebook, in units of the codebook's own
        mean squared distance, so that one temperature serves levels of every scale.

        Args:
            residuals: What each level has to quantise, (batch, num_levels, code_dim).
        """
        vectors = self.vectors
        squares = torch.cdist(residuals.transpose(0, 1), vectors).square()
        unit = 2 * vectors.detach().var(1, unbiased=False).sum(-1)[:, None, None]
        scale = self.config.code_temperature * unit.clamp_min(1e-12)
        return torch.log_softmax(-squares / scale, -1).transpose(0, 1)

    def semantic_ids(self, text: Tensor, collaborative: Tensor) -> Tensor:
        """Return today's semantic IDs of entities, (batch, num_levels)."""
        with evaluating(self):
            return self.quantise(self.encode(text, collaborative).mean).codes

    def decode(self, quantised: Tensor) -> dict[str, Tensor]:
        """Rebuild both modalities, each (batch, its width), from (batch, code_dim)."""
        return {m: self.decoders[m](quantised) for m in MODALITIES}

    def forward(self, text: Tensor, collaborative: Tensor) -> TTDSTowerOutput:
        """Compute the losses that train a tower (design: reconstruction, KL, codes, alignment).

        Args:
            text: Text embeddings, (batch, text_dim).
            collaborative: Collaborative embeddings, (batch, collaborative_dim).
        """
        posterior = self.encode(text, collaborative, self._modality_dropout(text))
        latent = posterior.mean
        if self.training:
            latent = latent + torch.randn_like(latent) * torch.exp(posterior.log_variance / 2)
        path = self.quantise(latent)
        quantised = path.vectors.sum(1)
        straight_through = latent + (quantised - latent).detach()
        losses = self.reconstruction(straight_through, text, collaborative, posterior.present)
        variance = posterior.log_variance.exp()
        losses["kl"] = (
            0.5 * (posterior.mean.square() + variance - 1 - posterior.log_variance).sum(-1).mean()
        )
        losses["codebook"] = (path.vectors - path.residuals.detach()).square().sum(-1).mean()
        losses["commitment"] = (path.residuals - path.vectors.detach()).square().sum(-1).mean()
        losses["coarse"], losses["fine"] = self._alignment(posterior, path)
        # Balance: how far the batch's mean use of a level's codes is from a balanced one.
        usage = self.code_log_probs(path.residuals).exp().mean(0)  # (num_levels, num_codes)
        entropy = torch.special.entr(usage.clamp_min(1e-12)).sum(-1).mean()
        losses["balance"] = math.log(self.config.num_codes) - entropy
        config = self.config
        loss = (
            losses["text_reconstruction"]
            + losses["collaborative_reconstruction"]
            + config.kl_weight * losses["kl"]
            + config.codebook_weight * losses["codebook"]
            + config.commitment_weight * losses["commitment"]
            + config.coarse_weight * losses["coarse"]
            + config.fine_weight * losses["fine"]
            + config.balance_weight * losses["balance"]
        )
        return TTDSTowerOutput(loss, losses, path)

    def reconstruction(
        self, vectors: Tensor, text: Tensor, collaborative: Tensor, present: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return `text_reconstruction` and `collaborative_reconstruction`.

        Mean squared errors of the standardised embeddings, over the entities that have them.

        Args:
            vectors: Quantised latents, (batch, code_dim).
            text: Text embeddings, (batch, text_dim).
            collaborative: Collaborative embeddings, (batch, collaborative_dim).
            present: Per modality, who has it, (batch,).
        """
        decoded, inputs = self.decode(vectors), {"text": text, "collaborative": collaborative}
        losses = {}
        for m in MODALITIES:
            error = (decoded[m] - self.norms[m](inputs[m].to(vectors.dtype))).square().mean(-1)
            losses[f"{m}_reconstruction"] = _masked_mean(error, present[m])
        return losses

    def _modality_dropout(self, text: Tensor) -> dict[str, Tensor] | None:
        if not self.training or self.config.modality_dropout == 0:
            return None
        draw = torch.rand(len(text), device=text.device)
        half = self.config.modality_dropout / 2
        return {"text": draw < half, "collaborative": draw > 1 - half}

    def _alignment(self, posterior: TTDSPosterior, path: TTDSPath) -> tuple[Tensor, Tensor]:
        both = posterior.present["text"] & posterior.present["collaborative"]
        text, collaborative = (posterior.view_means[m][both] for m in MODALITIES)
        if len(text) < 2:
            nothing = path.vectors.sum() * 0
            return nothing, nothing
        # Coarse: InfoNCE between the two views of the same entity (van den Oord et al. 2018).
        similarity = F.normalize(text, dim=-1) @ F.normalize(collaborative, dim=-1).T
        logits = similarity / self.config.contrastive_temperature  # (both, both)
        labels = torch.arange(len(text), device=text.device)
        coarse = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        # Fine: on the branch the codes took, either view alone should choose the same code.
        above = (path.vectors[both].cumsum(1) - path.vectors[both]).detach()
        p = self.code_log_probs(text[:, None] - above)  # (both, num_levels, num_codes)
        q = self.code_log_probs(collaborative[:, None] - above)
        fine = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean() / 2
        return coarse, fine


def profile(table: Tensor, histories: Tensor, decay: float) -> Tensor:
    """Return the unit recency-weighted mean of the history's embeddings, (batch, dim).

    Args:
        table: Embeddings of the items, (num_items, dim).
        histories: Item rows, newest last, padded with -1, (batch, max_history).
        decay: Weight of an item per step into the past.
    """
    real = histories >= 0
    steps_back = real.flip(1).cumsum(1).flip(1) - 1
    weights = decay ** steps_back.float() * real
    mean = torch.einsum("bh,bhd->bd", weights.to(table.dtype), table[histories.clamp_min(0)])
    return F.normalize(mean, dim=-1)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp_min(1)
