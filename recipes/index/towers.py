"""Fit a tower, give the entities codes, and measure the codes."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed
from sklearn.cluster import KMeans
from torch import Tensor
from tqdm.auto import tqdm

from modeling_ttds import towers_ttds
from modeling_ttds.towers_ttds import TTDSTower
from recipes.index.embeddings import cached_fit, hashed

CHUNK = 65_536  # entities encoded at once
MOST_STEPS = 10_000  # of a fit: what sixty epochs of forty thousand entities take
CLUSTERED = 65_536  # k-means sees so many at most: 256 for each of 256 codes
CODE = [Path(file).read_text("utf-8") for file in (__file__, towers_ttds.__file__)]


@torch.no_grad()
def latents_of(tower: TTDSTower, text: Tensor, collaborative: Tensor) -> Tensor:
    """Return the fused means of entities, (num_entities, code_dim).

    Args:
        tower: The tower that encodes them.
        text: Text embeddings, (num_entities, text_dim).
        collaborative: Collaborative embeddings, (num_entities, collaborative_dim).
    """
    parts = zip(text.split(CHUNK), collaborative.split(CHUNK), strict=True)
    return torch.cat([tower.encode(*part).mean for part in parts])


@torch.no_grad()
def init_codebooks(tower: TTDSTower, latents: Tensor, seed: int) -> None:
    """Set every level's codebook to the k-means centres of what the levels above leave over.

    Args:
        tower: The tower whose codebooks are replaced.
        latents: Vectors to quantise, (num_entities, code_dim); of more than `CLUSTERED` so many
            are drawn.
        seed: Seed of k-means, and of the draw.
    """
    residual = latents.float().cpu().numpy()
    if len(residual) > CLUSTERED:
        draw = np.random.default_rng(seed)
        residual = residual[draw.choice(len(residual), CLUSTERED, replace=False)]
    num_codes = tower.config.num_codes
    for codebook in tower.codebooks:
        clusters = min(num_codes, len(np.unique(residual, axis=0)))
        kmeans = KMeans(clusters, n_init=3, max_iter=50, random_state=seed).fit(residual)
        centres = kmeans.cluster_centers_
        codebook[:clusters] = torch.from_numpy(centres).to(codebook)
        residual = residual - centres[kmeans.labels_]


@torch.no_grad()
def revive_dead_codes(tower: TTDSTower, latents: Tensor, generator: torch.Generator) -> int:
    """Move codebook vectors that no entity uses onto residuals drawn at random; return how many.

    Args:
        tower: The tower whose codebooks are repaired.
        latents: Vectors to quantise, (num_entities, code_dim).
        generator: Source of the draw.
    """
    path = tower.quantise(latents)
    revived = 0
    for level, codebook in enumerate(tower.codebooks):
        used = path.codes[:, level].bincount(minlength=len(codebook)) > 0
        dead = (~used).nonzero()[:, 0]
        chosen = torch.randperm(len(latents), generator=generator)[: len(dead)]
        codebook[dead[: len(chosen)]] = path.residuals[chosen.to(latents.device), level]
        revived += len(chosen)
    return revived


def fit_tower(
    tower: TTDSTower,
    text: Tensor,
    collaborative: Tensor,
    *,
    num_epochs: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    description: str = "tower",
    folder: Path | None = None,
) -> dict[str, float]:
    """Train a tower alone, before any language model, and return `tower_report`.

    Args:
        tower: The tower to train in place.
        text: Text embeddings, (num_entities, text_dim); zero rows are absent.
        collaborative: Collaborative embeddings, (num_entities, collaborative_dim).
        num_epochs: Epochs over the entities, or as many as 10,000 steps allow, but one at least.
        batch_size: Entities per step.
        learning_rate: Peak of a cosine schedule.
        seed: Seed of order, k-means, revival, sampling and dropout.
        description: Label of the progress bar.
        folder: Keeps the fit when it is finished; the same fit is not made twice.
    """
    steps = -(-len(text) // batch_size)  # of an epoch
    num_epochs = max(1, min(num_epochs, MOST_STEPS // steps))

    def fit() -> None:
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(tower.parameters(), lr=learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs * steps)
        init_codebooks(tower, latents_of(tower, text, collaborative), seed)
        progress = tqdm(range(num_epochs), desc=f"fit {description}", unit="epoch")
        for epoch in progress:
            tower.train()
            for rows in torch.randperm(len(text), generator=generator).split(batch_size):
                output = tower(text[rows], collaborative[rows])
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
                schedule.step()
            tower.eval()
            if epoch < num_epochs * 0.8:
                revive_dead_codes(tower, latents_of(tower, text, collaborative), generator)
            progress.set_postfix(loss=f"{output.loss.item():.3f}")
        # Gradient steps under sampling noise leave deep codebooks half used; k-means does not.
        init_codebooks(tower, latents_of(tower, text, collaborative), seed)

    # The same tower whether the embeddings before it were computed or read from the cache.
    torch.manual_seed(seed)
    key = {
        "data": hashed(text, collaborative, *tower.state_dict().values()),
        "settings": [num_epochs, batch_size, learning_rate, seed],
        "code": CODE,
    }
    cached_fit(folder, "tower", tower, key, fit, seed)
    return tower_report(tower, text, collaborative)


@torch.no_grad()
def tower_report(tower: TTDSTower, text: Tensor, collaborative: Tensor) -> dict[str, float]:
    """Measure codes: collisions, usage, reconstruction, agreement of the single views.

    Args:
        tower: The tower to measure.
        text: Text embeddings, (num_entities, text_dim).
        collaborative: Collaborative embeddings, (num_entities, collaborative_dim).

    Returns:
        `collision_rate` (share of entities that share all codes with another), per level
        `perplexity_LEVEL` (effective number of codes), `text_reconstruction` and
        `collaborative_reconstruction` (mean squared errors of standardised embeddings), and
        `text_agreement`, `collaborative_agreement` (share of entities with both modalities whose
        first code the view alone finds).
    """
    posterior = tower.encode(text, collaborative)
    path = tower.quantise(posterior.mean)
    report = code_usage(path.codes, tower.config.num_codes)
    errors = tower.reconstruction(path.vectors.sum(1), text, collaborative, posterior.present)
    both = posterior.present["text"] & posterior.present["collaborative"]
    for modality, view in posterior.view_means.items():
        report[f"{modality}_reconstruction"] = errors[f"{modality}_reconstruction"].item()
        first = tower.quantise(view[both]).codes[:, 0]
        report[f"{modality}_agreement"] = (first == path.codes[both, 0]).float().mean().item()
    return report


def code_usage(codes: Tensor, num_codes: int) -> dict[str, float]:
    """Return `collision_rate` and, per level, the effective number of codes in use.

    Args:
        codes: Codes of entities, (num_entities, num_levels).
        num_codes: Number of codes per level.
    """
    _, inverse, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    report = {"collision_rate": (counts[inverse] > 1).float().mean().item()}
    for level in range(codes.shape[1]):
        share = codes[:, level].bincount(minlength=num_codes) / len(codes)
        report[f"perplexity_{level}"] = torch.special.entr(share).sum().exp().item()
    return report
