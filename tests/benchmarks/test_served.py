"""The load test's percentiles, and the states of a log that the update's benchmark cuts."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.serving import percentile
from benchmarks.tables import serving_table, update_table
from benchmarks.update import before


def test_percentiles_are_the_times_within_which_a_share_is_answered():
    times = {"10": 50, "20": 45, "300": 4, "9": 1}
    assert [percentile(times, share) for share in (0.01, 0.5, 0.51, 0.95, 0.96, 1)] == [
        9, 10, 10, 20, 20, 300,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no requests"):
        percentile({}, 0.5)


def test_a_state_holds_what_was_there_and_nothing_later(cycle):
    data = cycle.data
    when = [np.arange(len(history)) * 10.0 + user for user, history in enumerate(data.histories)]
    data = replace(data, timestamps=when)
    state = before(data, 45.0)
    ids = state.catalogue.item_ids
    assert state.user_ids == data.user_ids[:45]  # the others came later
    for user, history in enumerate(state.histories):
        count = int((when[user] < 45).sum())
        assert [ids[row] for row in history] == [
            data.catalogue.item_ids[row] for row in data.histories[user][:count]
        ]
        assert state.timestamps[user].max() < 45
    assert ids == [item for item in data.catalogue.item_ids if item in set(ids)]
    assert set(ids) == {ids[row] for history in state.histories for row in history}
    early = before(data, 1.0)
    assert [len(early.user_ids), len(early.catalogue)] == [1, 1]


def test_tables_show_what_was_measured():
    entry = {"clients": 50, "requests": 6000, "errors": 0, "requests_per_second": 99.5}
    entry |= {"p50_ms": 480, "p95_ms": 600, "p99_ms": 1200}
    common = {"hardware": "a machine", "commit": "abc", "command": "python -m benchmarks.x"}
    row = common | {"rows": [entry], "items": 600, "cores": 2, "load_before": 0.5}
    text = serving_table([{"seed": 0}, row | {"times_one_at_a_time": 4.2}])
    assert "| 50 | 99.5 | 480 | 600 | 1,200 | 6,000 | 0 |" in text and "4.2 times" in text
    scores = {"minutes": 3.0, "HR@10": 0.1, "NDCG@10": 0.05}
    row = common | {
        "update": "shop", "rows": {"updated": scores}, "interactions": [100, 120],
        "days": ["2014-01-01", "2014-02-01"], "users": 10, "targets_of_new_items": 2,
        "targets_nobody_knew": 1,
    }  # fmt: skip
    text = update_table([{"seed": 0}, row])
    assert "| shop, updated | 0.1000 | 0.0500 | 3.0 |" in text and "before 2014-01-01" in text
    assert serving_table([]) == update_table([]) == "No result yet."
