"""A saved model that several files start from."""

import pytest
import torch

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.reranker_ttds import FEATURES, TTDSReranker
from recipes.ranking.cooccurrence import build_cooccurrence


@pytest.fixture(scope="package")
def origin(built, split, tmp_path_factory):
    """The folder of a model with a co-occurrence memory and a re-ranker fitted for nothing."""
    folder = tmp_path_factory.mktemp("origin") / "model"
    built.save_pretrained(folder)
    model = TTDSForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    model.set_reranker(
        build_cooccurrence(split.training, split.num_items), TTDSReranker(len(FEATURES)).eval()
    )
    model.save_pretrained(folder)
    return folder
