"""The harness: what a result keeps, and what is made of results."""

import numpy as np
import pytest

from benchmarks import result


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder of the test's own."""
    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_lists_come_back_as_item_rows_cut_to_twenty(results):
    lists = np.arange(75).reshape(3, 25)
    result.write_run("some", lists)
    assert result.read_run("some") == lists[:, :20].tolist()
    first = (results / "some.run.jsonl.gz").read_bytes()
    result.write_run("some", lists)
    assert (results / "some.run.jsonl.gz").read_bytes() == first, "no time stamp in it"


def test_lists_too_large_are_not_kept_nor_older_ones(results):
    result.write_run("some", [[1, 2]])
    random = np.random.default_rng(0).integers(0, 10**9, (40_000, 20))
    result.write_run("some", random)
    assert not list(results.iterdir())
    with pytest.raises(FileNotFoundError, match="'some' were too large"):
        result.read_run("some")
