"""Ranking metrics against hand computation and against an independent referee."""

import json
import math
import subprocess
import sys

import evaluate
import ir_measures
import numpy as np
import pytest

from recipes.data.split import split_data
from recipes.data.tables import read_data, write_data
from recipes.evaluation import report
from recipes.evaluation.baselines.popularity import popularity
from recipes.evaluation.metrics import CUTOFFS, evaluate_run, rank_metrics
from tests.conftest import SHARED

REFEREE = SHARED / "scoring" / "score.py"


def test_hand_computed():
    result = rank_metrics([[4, 2, 9], [1, 2, 3], [5]], [9, 1, 6])
    assert result["HR@1"] == 1 / 3 and result["HR@5"] == 2 / 3
    assert result["NDCG@5"] == (1 / math.log2(4) + 1) / 3
    assert result["MRR@5"] == (1 / 3 + 1) / 3


def test_equal_to_trec_eval_by_ir_measures():
    """An independent implementation, one query per user, on lists of unlike lengths."""
    draw = np.random.default_rng(0)
    lists = [draw.permutation(30)[: draw.integers(1, 25)].tolist() for _ in range(200)]
    targets = draw.integers(0, 30, 200).tolist()
    relevant = [ir_measures.Qrel(str(user), str(item), 1) for user, item in enumerate(targets)]
    listed = [
        ir_measures.ScoredDoc(str(user), str(item), -place)
        for user, items in enumerate(lists)
        for place, item in enumerate(items)
    ]
    theirs = {"HR": ir_measures.Success, "NDCG": ir_measures.nDCG, "MRR": ir_measures.RR}
    names = {f"{name}@{k}": measure @ k for name, measure in theirs.items() for k in CUTOFFS}
    expected = ir_measures.calc_aggregate(names.values(), relevant, listed)
    ours = rank_metrics(lists, targets)
    assert 0.1 < ours["NDCG@10"] < 0.5
    assert ours == pytest.approx({name: expected[measure] for name, measure in names.items()})


def test_evaluate_loads_the_module_from_its_file():
    module = evaluate.load("recipes/evaluation/ranking_metrics.py")
    assert module.compute(predictions=[[4, 2], [1, 2]], references=[2, 2])["MRR@5"] == 0.5


def test_slices_and_coverage(split):
    lists = popularity(split, "test", 20).tolist()
    result = evaluate_run(split, "test", lists)
    assert result["users"] == len(split.users("test"))
    assert result["head_users"] + result["tail_users"] == result["users"]
    assert result["coverage@1"] == len({items[0] for items in lists}) / split.num_items
    hits = result["head_HR@10"] * result["head_users"] + result["tail_HR@10"] * result["tail_users"]
    assert np.isclose(hits, result["HR@10"] * result["users"])


def test_a_damaged_file_of_figures_is_named(tmp_path):
    file = tmp_path / "metrics.json"
    report.write_json(file, {"split": "timeline"})
    assert report.read_json(file) == {"split": "timeline"}
    for damaged in (b"", b'{"split"', b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="metrics.json is no JSON .* copy it again, or delete"):
            report.read_json(file)


@pytest.mark.skipif(not REFEREE.exists(), reason="../shared/scoring/score.py is not here")
@pytest.mark.parametrize("name", ["toyshop", "scientific", "beauty", "toys", "sports"])
@pytest.mark.parametrize("which", ["validation", "test"])
def test_equal_to_the_referee_to_the_last_digit(name, which, shop, tmp_path):
    folder = SHARED / "data" / name
    if name == "toyshop":
        folder = tmp_path / "shop"
        write_data(shop.data, folder)
    split = split_data(read_data(str(folder)))
    # Lists that hit: the target at a random place among random items.
    rng = np.random.default_rng(0)
    lists = []
    for target in split.targets(which)[split.users(which)]:
        items = rng.choice(split.num_items, 20, replace=False).tolist()
        if target not in items and rng.random() < 0.5:
            items[rng.integers(20)] = int(target)
        lists.append(items)
    report.write_run(tmp_path / "run.jsonl", split, which, lists)
    command = [sys.executable, REFEREE, folder, tmp_path / "run.jsonl", "--split", which, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = json.loads(done.stdout)
    ours = evaluate_run(split, which, lists)
    assert ours["HR@10"] > 0.1
    assert {key: ours[key] for key in expected if key in ours} == {
        key: value for key, value in expected.items() if key != "users_without_a_list"
    }
