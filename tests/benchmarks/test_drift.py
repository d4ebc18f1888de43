"""An index of the first half of a log under a language model of nine tenths of it."""

import argparse
import json

import pytest
import torch

from benchmarks import drift, result, tables
from tests.conftest import SMALL
from tests.test_data_of_a_run import write
from tests.test_timeline_run import later_items


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The results of all forms; on the way, the semantic IDs that each was tuned with."""
    folder = tmp_path_factory.mktemp("drift")
    data = write(folder / "data", *later_items())
    (folder / "small.yaml").write_text(SMALL)
    recipe = ["--config", str(folder / "small.yaml"), "--dataset_name", str(data)]
    recipe += ["--cache_dir", str(folder / "cache")]
    tuned = []

    class Trainer(drift.TTDSTrainer):
        def tune(self):
            tuned.append((self.ttds.item_sids.clone(), self.ttds.item_collaborative.clone()))
            return super().tune()

    with pytest.MonkeyPatch.context() as patch:
        for module in (drift, result):
            patch.setattr(module, "RESULTS", folder / "results")
        patch.setattr(drift, "TTDSTrainer", Trainer)
        patch.setattr(drift, "MOVES", drift.RefreshOptions(refresh_steps=1, freeze_at=0.6))
        for _ in range(2):  # the second time nothing is left to do
            drift.main(argparse.Namespace(name="shop", seed=0), recipe)
    found = {}
    for file in (folder / "results").iterdir():
        content = json.loads(file.read_text())
        found[content["form"]] = content
    forms = (drift.OLD, drift.VECTORS, drift.MOVING, drift.TURNED, drift.NEW)
    return found, dict(zip(forms, tuned, strict=True))


def test_a_form_has_what_its_name_says(measured):
    found, tuned = measured
    sids, vectors = ({form: parts[i] for form, parts in tuned.items()} for i in (0, 1))
    assert torch.equal(sids[drift.OLD], sids[drift.VECTORS])
    assert torch.equal(sids[drift.OLD], sids[drift.MOVING])
    assert torch.equal(sids[drift.OLD], sids[drift.TURNED])
    assert not torch.equal(sids[drift.OLD], sids[drift.NEW])
    assert not torch.equal(vectors[drift.OLD], vectors[drift.VECTORS])
    assert torch.equal(vectors[drift.VECTORS], vectors[drift.NEW])
    torch.testing.assert_close(*(v @ v.T for v in (vectors[drift.TURNED], vectors[drift.NEW])))
    away = {form: (vectors[form] - vectors[drift.OLD])[:40].norm() for form in vectors}
    assert away[drift.TURNED] < 0.9 * away[drift.NEW]
    moving = (drift.MOVING, drift.TURNED)
    for form, content in found.items():
        assert len(content["refreshes"]) == (2 if form in moving else 0)
        assert (content["share_of_other_sids"] == 0) == (form == drift.NEW)
        assert content["items"] == {"first half": 40, "before the test": 41}
        assert content["users"] == {"all": 60, "joined": 0}
        assert 0 <= content["test"]["HR@10"] <= 1


def test_the_table_has_a_line_a_form(measured):
    found, _ = measured
    lines = tables.drift_table(list(found.values())).splitlines()
    cells = {line.split(" | ")[1]: line.split(" | ") for line in lines[2:7]}
    assert set(cells) == set(found)
    for form, content in found.items():
        assert cells[form][3] == f"{content['test']['HR@10']:.4f}"
    assert lines[-1] == "shop: 60 users; 0 chose an item that joined in the second half."


def test_embeddings_are_turned_to_the_axes_of_earlier_ones_by_what_both_know():
    torch.manual_seed(0)
    old, turn = torch.randn(9, 4), torch.linalg.qr(torch.randn(4, 4))[0]
    new = old @ turn
    new[6:] = torch.randn(3, 4)  # came later: they say nothing of the axes
    found = drift.aligned(new, old, 6)
    torch.testing.assert_close(found[:6], old[:6])
    torch.testing.assert_close(found[6:], new[6:] @ turn.T)
