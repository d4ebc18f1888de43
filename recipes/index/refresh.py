"""The SID table: fit the towers, write the semantic IDs they give, and refresh them."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.sid_ttds import unique_sids
from modeling_ttds.text_ttds import item_text
from modeling_ttds.users_ttds import TTDSUserHistories
from recipes.index.towers import code_usage, fit_tower, latents_of

# More users than that teach the tower of users nothing new: it sees means of items' embeddings.
FITTED_USERS = 100_000
CHUNK = 4096
CHURN_ROWS = 16_384  # user states that churn is measured on at most


def build_sid_table(
    model: TTDSForCausalLM,
    histories: Tensor | TTDSUserHistories,
    users: np.ndarray,
    *,
    num_epochs: int,
    freeze: bool,
    seed: int,
    folder: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Fit both towers, give every item and every user state a semantic ID; report on the towers.

    Args:
        model: A model with its items' embeddings.
        histories: As of `attach_users`, of all user states.
        users: The states that the user tower is fitted on, one per user; of more than
            `FITTED_USERS` so many are drawn.
        num_epochs: Epochs over the items; over the users half as many.
        freeze: Whether every item must get a unique semantic ID at once.
        seed: Seed of both fits.
        folder: Keeps the finished fits; the same fit is not made twice.
    """
    model.attach_users(histories)
    items, fit = (model.item_text, model.item_collaborative), {"seed": seed, "folder": folder}
    report = {
        "item": fit_tower(
            model.item_tower, *items, num_epochs=num_epochs, description="item tower", **fit
        )
    }
    if len(users) > FITTED_USERS:
        users = np.random.default_rng(seed).choice(users, FITTED_USERS, replace=False)
    report["user"] = fit_tower(
        model.user_tower,
        *_user_embeddings(model, users),
        num_epochs=max(1, num_epochs // 2),
        description="user tower",
        **fit,
    )
    refresh_sids(model, freeze=freeze)
    if model.codebook_projections.weight.any():  # beside pretrained words they start at zero
        init_codebook_projections(model)
    model.make_node_pairs()
    return report


def _user_embeddings(model: TTDSForCausalLM, users: np.ndarray) -> list[Tensor]:
    # In parts: a history's embeddings take `max_history` times the memory of their mean.
    parts = torch.as_tensor(users, device=model.device).split(CHUNK)
    both = zip(*(model.user_embeddings(model.user_histories[part]) for part in parts), strict=True)
    return [torch.cat(modality) for modality in both]


@torch.no_grad()
def init_codebook_projections(model: TTDSForCausalLM) -> None:
    """Scale the projections so that the SID tokens of every level start alike in size.

    Args:
        model: The model; its codebooks are set.
    """
    std = model.get_input_embeddings().weight.std()
    for kind, tower in enumerate((model.item_tower, model.user_tower)):
        for level, codebook in enumerate(tower.codebooks):
            scale = std / (codebook.std() * codebook.shape[1] ** 0.5)
            nn.init.normal_(model.codebook_projections.weight[kind, level], std=scale.item())


@torch.no_grad()
def refresh_sids(model: TTDSForCausalLM, freeze: bool = False) -> dict[str, float]:
    """Write today's semantic IDs of all items into the SID table; refresh the attached users'.

    Args:
        model: The model whose towers give the codes.
        freeze: Whether every item must get a unique semantic ID.

    Returns:
        `churn_LEVEL` and `churn` (share of items whose code changed at the level, at any level),
        `user_churn` (the same of user states, of `CHURN_ROWS` at most), `collision_rate` before
        freezing, `moved` (share of items that freezing gave
        other codes than their nearest) and `perplexity_LEVEL`.
    """
    was_training = model.training
    model.eval()
    if hasattr(model, "user_histories"):
        count = len(model.user_histories)
        rows = torch.linspace(0, count - 1, min(count, CHURN_ROWS), dtype=torch.double)
        rows = rows.round().long().to(model.device)
        before = model.sids_of_rows(rows)
    if model.config.text_encoder == "backbone":
        model.item_text.copy_(model.embed_texts(item_text(entry) for entry in model.catalogue))
    tower = model.item_tower
    latents = latents_of(tower, model.item_text, model.item_collaborative)
    nearest = tower.quantise(latents).codes
    codes = nearest
    if freeze:
        codes = unique_sids(latents, tower.codebooks, nearest, taken=nearest[:0])
    report = code_usage(nearest, tower.config.num_codes)
    changed = codes != model.item_sids
    report |= {f"churn_{level}": c.item() for level, c in enumerate(changed.float().mean(0))}
    report["churn"] = changed.any(1).float().mean().item()
    report["moved"] = (codes != nearest).any(1).float().mean().item()
    _agree(codes)
    model.item_sids.copy_(codes)
    if hasattr(model, "user_histories"):
        model.refresh_users()
        for weight in model.refreshed_tower.buffers():
            _agree(weight)
        changed = model.sids_of_rows(rows) != before
        report["user_churn"] = changed.any(1).float().mean().item()
    model.train(was_training)
    return report


def _agree(tensor: Tensor) -> None:
    # Rounding may differ between processes; what the first one has counts.
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(tensor, 0)
