"""Towers, residual codes and the SID table: reference computations and properties."""

import copy

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from modeling_ttds.configuration_ttds import TTDSConfig, TTDSTowerConfig
from modeling_ttds.sid_ttds import unique_sids
from modeling_ttds.towers_ttds import TTDSTower
from recipes.index import towers
from recipes.index.refresh import refresh_sids
from recipes.index.towers import (
    CHUNK,
    code_usage,
    fit_tower,
    init_codebooks,
    revive_dead_codes,
    tower_report,
)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    config = TTDSTowerConfig(
        text_dim=12, collaborative_dim=6, hidden_dim=16, code_dim=4, num_levels=3, num_codes=8
    )
    tower = TTDSTower(config)
    torch.nn.init.normal_(tower.codebooks)
    return tower.eval()


@pytest.fixture
def entities():
    """Forty entities in eight groups that both modalities show."""
    torch.manual_seed(1)
    group = torch.arange(40) % 8
    text = torch.randn(8, 12)[group] + 0.1 * torch.randn(40, 12)
    collaborative = torch.randn(8, 6)[group] + 0.1 * torch.randn(40, 6)
    return text, collaborative


def test_fusion_is_the_product_of_the_experts_and_the_prior(tower, entities):
    text, collaborative = entities
    posterior = tower.encode(text, collaborative)
    precision, weighted = torch.ones(40, 4), torch.zeros(40, 4)
    for name, x in (("text", text), ("collaborative", collaborative)):
        mean, log_variance = tower.encoders[name](tower.norms[name](x)).chunk(2, -1)
        precision = precision + 1 / log_variance.exp()
        weighted = weighted + mean / log_variance.exp()
    torch.testing.assert_close(posterior.mean, weighted / precision)
    torch.testing.assert_close(posterior.log_variance.exp(), 1 / precision)


def test_an_absent_modality_says_nothing(tower, entities):
    text, collaborative = entities
    alone = tower.encode(text, torch.zeros_like(collaborative))
    torch.testing.assert_close(alone.mean, tower.encode(text, collaborative).view_means["text"])
    nothing = tower.encode(torch.zeros(2, 12), torch.zeros(2, 6))
    assert not nothing.mean.any() and not nothing.log_variance.any(), "the prior remains"


def test_kl_equals_the_library(tower, entities):
    posterior = tower.encode(*entities)
    expected = kl_divergence(
        Normal(posterior.mean, (posterior.log_variance / 2).exp()), Normal(0.0, 1.0)
    )
    torch.testing.assert_close(tower(*entities).losses["kl"], expected.sum(-1).mean())


def test_residual_walk_takes_the_nearest_at_every_level(tower):
    latents = torch.randn(5, 4)
    path = tower.quantise(latents)
    for latent, codes in zip(latents, path.codes, strict=True):
        residual = latent
        for codebook, code in zip(tower.codebooks, codes, strict=True):
            assert (residual - codebook).norm(dim=1).argmin() == code
            residual = residual - codebook[code]
    forced = tower.quantise(latents, torch.zeros(5, 3, dtype=torch.long))
    torch.testing.assert_close(forced.residuals[:, 1], latents - tower.codebooks[0, 0])


def test_soft_codes_prefer_the_nearest_and_sum_to_one(tower):
    path = tower.quantise(torch.randn(5, 4))
    probabilities = tower.code_log_probs(path.residuals).exp()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, 3))
    assert torch.equal(probabilities.argmax(-1), path.codes)


def test_straight_through_gives_the_encoder_the_decoder_s_gradient(tower, entities):
    output = tower(*entities)
    output.losses["text_reconstruction"].backward()
    assert tower.encoders["text"][0].weight.grad.abs().sum() > 0
    assert tower.codebooks.grad is None or not tower.codebooks.grad.any()


def test_alignment_falls_when_the_views_agree(tower, entities):
    text, _ = entities
    twin = TTDSTower(tower.config)
    twin.load_state_dict(tower.state_dict())
    output = tower.eval()(*entities)
    posterior = tower.encode(*entities)
    posterior.view_means["collaborative"] = posterior.view_means["text"]
    coarse, fine = tower._alignment(posterior, output.path)
    assert coarse < output.losses["coarse"] and fine < 1e-6 < output.losses["fine"]


def test_forward_never_changes_codebooks(tower, entities):
    before = tower.codebooks.clone()
    tower.train()(*entities)
    assert torch.equal(before, tower.codebooks)


def test_k_means_start_and_revival(tower):
    centres = torch.randn(8, 4) * 5
    latents = centres.repeat(5, 1) + 0.01 * torch.randn(40, 4)
    init_codebooks(tower, latents, seed=0)
    assert torch.cdist(centres, tower.codebooks[0]).min(1).values.max() < 0.05
    with torch.no_grad():
        tower.codebooks[0, 3] = 1000
    revived = revive_dead_codes(tower, latents, torch.Generator().manual_seed(0))
    assert revived > 0 and tower.codebooks[0].abs().max() < 100


def test_fitting_finds_the_groups(entities):
    torch.manual_seed(0)
    config = TTDSTowerConfig(
        text_dim=12, collaborative_dim=6, hidden_dim=32, code_dim=4, num_levels=3, num_codes=8
    )
    tower = TTDSTower(config)
    report = fit_tower(tower, *entities, num_epochs=400, batch_size=20, learning_rate=3e-3)
    codes = tower.semantic_ids(*entities)[:, 0]
    groups = torch.arange(40) % 8
    same = groups[:, None] == groups[None]
    assert ((codes[:, None] == codes[None]) == same).float().mean() > 0.9
    assert report["text_agreement"] > 0.9 and report["collaborative_agreement"] > 0.9
    assert report["perplexity_0"] > 6


def test_a_kept_fit_is_the_fit_and_what_is_drawn_after_it_is_the_same(tower, entities, tmp_path):
    ways = (None, tmp_path, tmp_path)
    towers = [copy.deepcopy(tower) for _ in ways]
    found, written = [], []
    for fitted, folder in zip(towers, ways, strict=True):
        report = fit_tower(fitted, *entities, num_epochs=3, batch_size=20, folder=folder)
        assert not fitted.training
        found.append((report, torch.rand(3).tolist(), [*fitted.state_dict().values()]))
        written.append([file.stat().st_mtime_ns for file in tmp_path.iterdir()])
    assert [len(times) for times in written] == [0, 1, 1] and written[1] == written[2]
    for report, drawn, state in found[1:]:
        assert (report, drawn) == found[0][:2]
        assert all(map(torch.equal, state, found[0][2]))
    assert not torch.equal(found[0][2][0], next(iter(tower.state_dict().values())))
    fit_tower(tower, entities[0] + 1, entities[1], num_epochs=3, folder=tmp_path)
    assert len([*tmp_path.iterdir()]) == 2, "other data, another fit"


def test_epochs_end_where_the_steps_do(tower, entities, monkeypatch):
    states = []
    for most, epochs in ((10_000, 3), (7, 50), (1, 1), (1, 50)):  # an epoch is two steps
        monkeypatch.setattr(towers, "MOST_STEPS", most)
        torch.manual_seed(0)
        fitted = copy.deepcopy(tower)
        fit_tower(fitted, *entities, num_epochs=epochs, batch_size=20)
        states.append(torch.cat([value.flatten() for value in fitted.state_dict().values()]))
    assert torch.equal(states[0], states[1]) and torch.equal(states[2], states[3])
    assert not torch.equal(states[0], states[2])


def test_report_of_many_entities_is_the_mean_over_those_present(tower):
    text, collaborative = torch.randn(CHUNK + 50, 12), torch.randn(CHUNK + 50, 6)
    text[20:] = 0  # a part where nobody has a text
    report = tower_report(tower, text, collaborative)
    latents = tower.encode(text, collaborative).mean
    decoded = tower.decode(tower.quantise(latents).vectors.sum(1))
    for name, x, present in (("text", text, 20), ("collaborative", collaborative, CHUNK + 50)):
        errors = (decoded[name] - tower.norms[name](x)).square().mean(-1)[:present]
        assert report[f"{name}_reconstruction"] == pytest.approx(errors.mean().item(), rel=1e-4)


def test_two_hundred_identical_items_get_codes_of_their_own(tower):
    latents = torch.randn(1, 4).expand(200, -1)
    codes = tower.quantise(latents).codes
    unique = unique_sids(latents, tower.codebooks, codes, taken=codes[:0])
    assert len(unique.unique(dim=0)) == 200
    assert (unique == codes).all(1).sum() == 1, "one keeps its semantic ID"
    # 8 per leaf level: the first level moves only when the 64 paths below it are used up.
    assert (unique[:, 0] == codes[:, 0]).sum() == 64


def test_freezing_moves_as_few_items_as_possible(tower):
    torch.manual_seed(3)
    latents = torch.randn(100, 4)
    codes = tower.quantise(latents).codes
    unique = unique_sids(latents, tower.codebooks, codes, taken=codes[:0])
    assert len(unique.unique(dim=0)) == 100
    assert (unique != codes).any(1).sum() == 100 - len(codes.unique(dim=0))


def test_taken_codes_stay_taken_and_capacity_is_checked(tower):
    latents = torch.randn(5, 4)
    codes = tower.quantise(latents).codes
    fresh = unique_sids(latents, tower.codebooks, codes, taken=codes)
    assert len(torch.cat([codes, fresh]).unique(dim=0)) == len(codes.unique(dim=0)) + 5
    many = torch.zeros(513, 4)
    with pytest.raises(ValueError, match="is 512, too few for 513 items"):
        unique_sids(many, tower.codebooks, tower.quantise(many).codes, taken=codes[:0])


def test_code_usage():
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 0]])
    report = code_usage(codes, 4)
    assert report["collision_rate"] == 0.5
    assert report["perplexity_0"] == pytest.approx(2)


def test_refresh_reports_churn_and_freezes(model, split, states):
    model.attach_users(states.histories())
    before = model.item_sids.clone()
    with torch.no_grad():
        model.item_tower.codebooks[0].add_(torch.randn_like(model.item_tower.codebooks[0]))
    report = refresh_sids(model, freeze=True)
    changed = (before != model.item_sids).any(1).float().mean().item()
    assert report["churn"] == changed > 0
    assert len(model.item_sids.unique(dim=0)) == split.num_items
    assert refresh_sids(model, freeze=True)["churn"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_codes": 1}, "num_codes"), ({"text_dim": 0}, "text_dim"), ({"dropout": 1.0}, "dropout")],
)
def test_tower_config_checks(settings, message):
    with pytest.raises(Exception, match=message):
        TTDSTowerConfig(**settings)


def test_a_prompt_shows_at_least_one_item():
    with pytest.raises(Exception, match="`max_history` is 0; it must be at least 1"):
        TTDSConfig(max_history=0)


def test_towers_must_agree_on_codes():
    with pytest.raises(Exception, match="`num_codes` is 8 for items and 16 for users"):
        TTDSConfig(item_tower={"num_codes": 8}, user_tower={"num_codes": 16})
