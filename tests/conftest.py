"""A small shop and a small model, built once by the recipe's own code."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# `accelerate launch` gives a process one thread where nothing is said, plain python all: runs that
# are compared bit for bit need the same number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from recipes.config import TTDSArguments
from recipes.data.split import split_data
from recipes.data.tables import Catalogue, Data
from recipes.data.toyshop import generate
from recipes.index.embeddings import embed_items, given_text_embeddings
from recipes.index.refresh import build_sid_table
from recipes.tuning import build
from recipes.tuning.examples import UserStates

torch.set_num_threads(1)
# A machine that others use may be slow for a while: that is no fault of the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL = """
text_dim: 16
collaborative_dim: 16
num_levels: 3
num_codes: 8
code_dim: 8
tower_epochs: 4
vocab_size: 400
hidden_size: 32
num_layers: 1
num_heads: 2
max_history: 6
num_beams: 20
eval_users: 40
num_train_epochs: 2
per_device_train_batch_size: 32
disable_tqdm: true
use_cpu: true
tasks: {}
pair_dim: 0
"""


def altered(options: TTDSArguments, **changes) -> TTDSArguments:
    """Return options with others for some, by their flat names."""
    groups = {}
    for part in fields(options):
        group = getattr(options, part.name)
        mine = {name: changes.pop(name) for name in list(changes) if hasattr(group, name)}
        groups[part.name] = replace(group, **mine)
    assert not changes, f"no such option: {list(changes)}"
    return TTDSArguments(**groups)


def small_options(cache_dir, **changes) -> TTDSArguments:
    settings = dict(
        cache_dir=str(cache_dir), text_dim=24, collaborative_dim=16, num_levels=3, num_codes=8,
        code_dim=8, tower_epochs=8, vocab_size=400, hidden_size=32, num_layers=1, num_heads=2,
        max_history=6, num_beams=20, dropout=0.0, pair_dim=4, pair_dropout=0.0, tasks={},
    )  # fmt: skip
    return altered(TTDSArguments(), **(settings | changes))


def build_tokenizer(split, options, backbone):
    return build.build_tokenizer(
        split, options.index, options.language_model, options.examples, backbone
    )


def build_model(split, states, tokenizer, options, backbone, seed):
    """Return a model that is ready for tuning, as of the stages of `recipes/sft.py`."""
    shapes = options.index, options.language_model, options.examples
    text = given_text_embeddings(options.index, options.data.dataset_name, split.num_items)
    model = build.build_model(split, tokenizer, *shapes, backbone, text, seed)
    embed_items(model, split, options.index, text, seed)
    build_sid_table(
        model,
        states.on_demand(),
        states.latest(),
        num_epochs=options.index.tower_epochs,
        freeze=options.refresh.refresh_steps == 0,
        seed=seed,
    )
    return model


@pytest.fixture(scope="session")
def cycle():
    """Users walk a circle of 20 items, each from a place and over a distance of their own."""
    draw = np.random.default_rng(0)
    histories = [(draw.integers(20) + np.arange(draw.integers(4, 10))) % 20 for _ in range(200)]
    fields = {name: [""] * 20 for name in ("title", "brand", "categories", "description", "price")}
    items = [f"item{row}" for row in range(20)]
    return split_data(Data(Catalogue(items, fields), [f"{u:03}" for u in range(200)], histories))


@pytest.fixture(scope="session")
def shop():
    return generate(seed=1, num_users=150, num_items=72)


@pytest.fixture(scope="session")
def split(shop):
    return split_data(shop.data)


@pytest.fixture(scope="session")
def options(tmp_path_factory):
    return small_options(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer(split, options):
    return build_tokenizer(split, options, None)


@pytest.fixture(scope="session")
def states(split, options):
    return UserStates(split, options.examples.max_history)


@pytest.fixture(scope="session")
def built(split, states, tokenizer, options):
    """The model that a session shares; tests that change it take `model`."""
    model = build_model(split, states, tokenizer, options, None, seed=0)
    model.share_sid_table()
    return model.eval()


@pytest.fixture
def model(built, tmp_path):
    """A model of its own, as loaded from a folder."""
    built.save_pretrained(tmp_path / "model")
    built.tokenizer.save_pretrained(tmp_path / "model")
    return type(built).from_pretrained(tmp_path / "model").eval()
