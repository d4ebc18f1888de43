"""Plots, full tables and figures within sentences are those of the results; claims hold."""

import json
import re

import pytest

from benchmarks import full_tables, plots
from benchmarks.result import results
from benchmarks.values import MISSING, value, with_values
from tests.conftest import ROOT

FIGURES, TABLES = ROOT / "docs" / "figures", ROOT / "docs" / "tables"


@pytest.fixture(scope="module")
def rows():
    return results()


@pytest.mark.parametrize("name", plots.DRAWINGS)
@pytest.mark.parametrize("theme", plots.THEMES)
def test_plots_are_of_the_results(name, theme, rows):
    text = (FIGURES / f"{name}-{theme}.svg").read_text("utf-8")
    assert plots.shown_hash(name, rows) in text, "run `make tables`"
    assert "<dc:date>" not in text


def test_a_plot_is_drawn_the_same_twice(rows, tmp_path):
    for number in (1, 2):
        plots.drawn("ndcg", rows, "light", tmp_path / f"{number}.svg")
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()


def test_plots_and_tables_do_without_a_row(rows, tmp_path):
    some = [row for row in rows if row.get("method") not in ("TTDS", "bilinear similarity")]
    for name in plots.DRAWINGS:
        plots.drawn(name, some, "dark", tmp_path / f"{name}.svg")
    assert value("NDCG@10 of TTDS on toys", some) == MISSING
    for table in full_tables.FILES.values():
        assert table(some).count("\n") > 1


@pytest.mark.parametrize("name", full_tables.FILES)
def test_full_tables_are_of_the_results(name, rows):
    assert (TABLES / name).read_text("utf-8") == full_tables.FILES[name](rows), "run `make tables`"


def test_a_value_is_that_of_the_result(rows):
    file = ROOT / "benchmarks" / "results" / "toyshop-ttds-seed0.json"
    measured = json.loads(file.read_text("utf-8"))
    shown = f"{measured['test']['NDCG@10']:.3f}"
    text = "It is <!-- value: NDCG@10 of TTDS on toyshop -->9<!-- / -->."
    assert with_values(text, rows) == text.replace("9<", f"{shown}<")
    assert value("minutes of TTDS on toyshop", rows) == f"{measured['seconds'] / 60:.0f}"
    with pytest.raises(ValueError, match="no figure called 'the best'"):
        value("the best", rows)


def test_no_figure_is_typed_by_hand():
    for page in ("README.md", "docs/guide.md", "docs/using.md", "docs/results.md"):
        text = (ROOT / page).read_text("utf-8")
        assert MISSING not in text
        text = re.sub(
            r"<!-- table: .*?<!-- end -->|<!-- value: .*?<!-- / -->", "", text, flags=re.S
        )
        text = re.sub(r"^(```.*?^```| {4}.*?$)|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S | re.M)
        text = re.sub(r"[Vv]ersion \d\.\d", "", text)
        typed = re.findall(r"(?<![\w.])[-+]?(?:0?\.\d+|\d+(?:\.\d+)? ?%)", text)
        # What the paper claims, and the width of an interval.
        assert set(typed) <= {"+19.41 %", "+20.84 %", "95 %"}, f"{page}: {typed}"


def test_claims_of_readme_and_results_hold(rows):
    def interval(dataset):
        (found,) = (
            one for one in plots.differences(rows)
            if one["dataset"] == dataset and one["order"] == "published"
            and one["method"] == "re-ranker only"
        )  # fmt: skip
        return found["interval"]

    for dataset, methods in plots.shares(rows, "NDCG@10").items():
        low, high = interval(dataset)
        chance = dataset in ("beauty", "scientific")
        assert low < 0 < high if chance else low > 0, dataset
        best, second, *_ = sorted(methods, key=lambda name: -methods[name]["mean"])
        assert (best, second) == ("TTDS", "re-ranker only"), dataset
