"""Published figures beside ours: each with its source, none out of range, in one order."""

import json

import pytest

from benchmarks.published import FILE, published_table

ENTRIES = json.loads(FILE.read_text("utf-8"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["method"])
def test_a_published_row_says_where_it_is_from_and_could_be_true(entry):
    assert set(entry) == {
        "method", "source", "year", "reviewed", "seen_items", "reproduced", "results",
    }  # fmt: skip
    assert entry["source"] and entry["reviewed"] in (True, False, None)
    assert entry["seen_items"] in ("left out", "among them", None)
    assert entry["year"] is None or 2018 <= entry["year"] <= 2026
    assert entry["results"].keys() <= {"beauty", "toys", "sports"}
    for found in entry["results"].values():
        assert {"HR@10"} <= found.keys() <= {"HR@5", "HR@10", "NDCG@5", "NDCG@10"}
        for k in (5, 10):
            hits, gain = found.get(f"HR@{k}"), found.get(f"NDCG@{k}")
            assert gain is None or 0.2 * hits < gain < hits < 0.2, "one in ten is seldom first"
        assert found.get("HR@5", 0) < found["HR@10"]
        assert found.get("NDCG@5", 0) < found.get("NDCG@10", 1)


def test_no_row_stands_there_twice():
    assert len({entry["method"] for entry in ENTRIES}) == len(ENTRIES)


def row(method, seed, hits, **more):
    return {
        "dataset": "toys", "method": method, "seed": seed, "validation": {"NDCG@10": hits},
        "test": {"HR@10": hits, "NDCG@10": hits / 2}, **more,
    }  # fmt: skip


def test_ours_stand_among_the_published_by_hit_rate():
    rows = [row("TTDS", 0, 0.14), row("TTDS", 1, 0.12), row("EASE", 0, 0.05)]
    rows += [row("item-kNN", 0, 0.06), row("TTDS", 0, 0.9, split="timeline")]
    rows.append(row("re-ranker only", 0, 0.08, config={"exclude_seen": False}))
    lines = published_table("toys", rows).splitlines()
    hits = [float(line.split(" | ")[1].strip("*")) for line in lines[2:]]
    assert hits == sorted(hits, reverse=True)
    named = {line.split(" | ")[0].strip("| *"): line for line in lines[2:]}
    assert "| **0.1300** | **0.0650** | left out |" in named["TTDS"] and "2 seeds" in named["TTDS"]
    assert "among them" in named["re-ranker only"]
    assert "item-kNN" in named and "EASE" not in named, "of the baselines the best on validation"
    assert "| 0.1232 | 0.0640 | among them | arXiv:2308.14029" in named["TASTE"]
    assert "0.9" not in published_table("toys", rows[:1] + rows[4:5]).split("TASTE")[0]


def test_ours_are_shown_with_seen_items_too():
    both = {"left out": {"HR@10": 0.13, "NDCG@10": 0.08}}
    both["among them"] = {"HR@10": 0.11, "NDCG@10": 0.06}
    rows = [row("TTDS", 0, 0.13), {"history_filter": "toys", "rows": {"TTDS": both}}]
    named = [line for line in published_table("toys", rows).splitlines() if "**TTDS" in line]
    assert "| **0.1300** | **0.0650** | left out |" in named[0]
    assert "seen items not left out** | **0.1100** | **0.0600** | among them |" in named[1]
    assert len(named) == 2 and "not left out**" not in published_table("beauty", rows)


def test_without_any_result_the_table_says_so():
    assert published_table("scientific", []) == "No result yet."
    assert "TASTE" in published_table("beauty", [])
