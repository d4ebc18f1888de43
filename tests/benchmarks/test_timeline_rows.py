"""Baselines on a timeline: every method ranks items it was not fitted on, and results say so."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import baseline, rescore, result, tables
from tests.test_data_of_a_run import write
from tests.test_timeline_run import later_items

METHODS = [name for name in baseline.GRIDS if name != baseline.DENSE_TEXT]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The results of all methods, the first configuration of each, and their data."""
    folder = tmp_path_factory.mktemp("rows")
    rows, items = later_items()
    data = write(folder / "data", rows, items)
    text = torch.nn.functional.one_hot(torch.arange(42) % 21, 24).float() / 2
    text[:, 23], text[:2, :2] = 1, 0  # the new items are nearest to whatever came before
    save_file({"text": text}, data / "text_embeddings.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        for module in (baseline, result, rescore):
            if hasattr(module, "RESULTS"):
                patch.setattr(module, "RESULTS", folder / "results")
            if hasattr(module, "LISTS"):
                patch.setattr(module, "LISTS", folder / "lists")
        patch.setitem(baseline.GRIDS, baseline.SASREC, [{"max_epochs": 2, "hidden_size": 8}])
        for method in METHODS:
            baseline.main(
                argparse.Namespace(
                    name="shop", dataset_name=str(data), method=result.slug(method), seed=0,
                    tie_break="published", split="timeline", timeline_target="first",
                    encoder=None, max_configurations=1,
                )
            )  # fmt: skip
        yield folder


@pytest.mark.parametrize("method", METHODS)
def test_a_method_ranks_items_it_was_not_fitted_on(measured, method):
    name = f"shop-timeline-{result.slug(method)}-seed0"
    found = json.loads((measured / "results" / f"{name}.json").read_text())
    assert result.order(found) == "timeline"
    assert found["validation"]["users"] == found["test"]["users"] == 60
    assert found["validation"]["new_users"] == 12 and found["test"]["new_users"] == 24
    if method != baseline.SIMILARITY:  # of which half is what users chose
        assert (found["test"]["new_HR@10"] > 0) == (method == baseline.TEXT)


def test_rows_of_a_timeline_stay_out_of_other_tables_and_can_be_rescored(measured, monkeypatch):
    rows = [json.loads(file.read_text()) for file in (measured / "results").iterdir()]
    assert result.ranking_runs(rows, "shop") == {}
    assert set(result.ranking_runs(rows, "shop", "timeline")) == set(METHODS)
    found = next(row for row in rows if row["method"] == "popularity")["test"]
    line = f"| shop | popularity | {found['HR@10']:.4f} | {found['NDCG@10']:.4f} | 0.0000 |"
    assert line in tables.timeline_table(rows)
    assert tables.timeline_table(rows).endswith("shop: 60 users, 24 chose a new item.")
    asked = {"name": "shop-timeline-popularity-seed0", "dataset_name": str(measured / "data")}
    asked |= {"lists": str(measured / "lists"), "output": measured / "out", "referee": None}
    monkeypatch.setattr(rescore, "RESULTS", measured / "results")
    rescore.main(argparse.Namespace(**asked))
    assert len((measured / "out" / "run.jsonl").read_text().splitlines()) == 60
    with pytest.raises(SystemExit, match="is of a timeline; a referee splits by leave-one-out"):
        rescore.main(argparse.Namespace(**asked | {"referee": "score.py"}))


def test_split_and_ties_are_one_word_in_names():
    assert result.order_name("published") == "published"
    assert result.order_name("shuffled") == "shuffled"
    assert result.order_name("shuffled", "timeline", "last") == "timeline-last-shuffled"
    assert result.result_name("toys", "timeline", "EASE", 0) == "toys-timeline-ease-seed0"
    assert result.order({"config": {"tie_break": "shuffled"}}) == "shuffled"
    assert result.order({"config": {"split": "timeline", "timeline_target": "first"}}) == "timeline"
