"""Counts of an engine beside those of the recipe, on DuckDB and on local Spark."""

import shutil

import numpy as np
import pytest
import torch

from modeling_ttds.cooccurrence_ttds import TTDSCooccurrence
from recipes.data.split import split_data
from recipes.data.tables import read_data
from recipes.ranking.cooccurrence import build_cooccurrence
from tests.conftest import SHARED

pytest.importorskip("ibis")
from recipes.ranking import counting  # noqa: E402

LIMITS = [(1, None), (2, None), (1, 3)]


def equal(found: TTDSCooccurrence, expected: TTDSCooccurrence) -> None:
    assert torch.equal(found.starts, expected.starts)
    assert torch.equal(found.others, expected.others)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.items, expected.items, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def log():
    """Histories with repeats, one longer than what counts, one empty; some timestamps unknown.

    Nobody chose item 12, which has others behind it.
    """
    draw, items = np.random.default_rng(0), np.delete(np.arange(26), 12)
    lengths = [0, 1, 70, *draw.integers(1, 12, 60)]
    histories = [items[draw.integers(0, 25, length)] for length in lengths]
    timestamps = [np.sort(draw.integers(0, 10**8, length)).astype(float) for length in lengths]
    for times in timestamps[::3]:
        times[::2] = np.nan
    return histories, timestamps


@pytest.mark.parametrize(("least", "most"), LIMITS)
@pytest.mark.parametrize("timed", [True, False])
def test_duckdb_counts_as_numpy_does(log, least, most, timed):
    histories, timestamps = log[0], log[1] if timed else None
    expected = build_cooccurrence(histories, 30, least, timestamps, most)
    assert len(expected.others) > 0 and (most is None or expected.starts.diff().max() == most)
    equal(counting.count(counting.embedded_log(histories, timestamps), 30, least, most), expected)


def test_the_strongest_pairs_of_an_item_stay(log):
    whole, capped = (build_cooccurrence(log[0], 30, max_pairs=most) for most in (None, 3))
    for item in range(30):
        (values, others), (kept, of) = (
            (memory.values[begin:end, 0], memory.others[begin:end])
            for memory in (whole, capped)
            for begin, end in [memory.starts[item : item + 2]]
        )
        assert len(kept) == min(3, len(values))
        torch.testing.assert_close(kept.sort().values, values.sort().values[-3:])
        place = torch.searchsorted(others, of)
        assert torch.equal(others[place], of) and torch.equal(values[place], kept)
    assert torch.equal(capped.items, whole.items)


def test_duckdb_counts_a_real_log_as_numpy_does():
    if not (SHARED / "data" / "scientific").is_dir():
        pytest.skip("the data set is not here")
    split = split_data(read_data(str(SHARED / "data" / "scientific")))
    times = split.training_timestamps
    expected = build_cooccurrence(split.training, split.num_items, 1, times)
    log = counting.embedded_log(split.training, times)
    equal(counting.count(log, split.num_items), expected)


def test_spark_counts_as_numpy_does(log):
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    import ibis

    settings = {
        "spark.ui.enabled": False, "spark.sql.shuffle.partitions": 2,
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
    }  # fmt: skip
    spark = sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    try:
        rows = counting.embedded_log(*log).to_pandas()
        rows["timestamp"] = rows["timestamp"].astype(float)
        spark.createDataFrame(rows).createOrReplaceTempView("log")
        table = ibis.pyspark.connect(spark).table("log")
        table = table.mutate(timestamp=table.timestamp.nullif(float("nan")))
        for least, most in LIMITS:
            equal(counting.count(table, 30, least, most),
                  build_cooccurrence(log[0], 30, least, log[1], most))  # fmt: skip
    finally:
        spark.stop()
