"""A run on a timeline: what it knew at each cut, and that no other split is taken for it."""

import pandas as pd
import pytest

from modeling_ttds import TTDSForCausalLM
from recipes import evaluate, update
from recipes.evaluation.report import lists_folder
from tests.test_data_of_a_run import ITEMS, ROWS, call, metrics, train, write  # noqa: F401


def later_items():
    """On the day of the validation a few users choose an item of that day, on the test's too."""
    rows, items = ROWS.copy(), ITEMS.copy()
    new = [("41", "Pewter kettle of the validation"), ("42", "Zinc lamp of the test")]
    items = pd.concat([items, pd.DataFrame(new, columns=["item_id", "title"])], ignore_index=True)
    for day, item, users in ((6, "41", "05"), (7, "42", "1379")):
        rows.loc[(rows.position == day) & rows.user_id.str[-1].isin(list(users)), "item_id"] = item
    items = pd.concat([items[40:], items[:40]], ignore_index=True)  # the new ones stand first
    return rows, items


@pytest.fixture
def run(train, tmp_path):  # noqa: F811
    data = write(tmp_path / "data", *later_items())
    how = ["--split", "timeline", "--seed", "1"]
    code, output, said = train(data, *how)
    assert code == 0, said
    return tmp_path / "out", data, how, output


def test_a_run_on_a_timeline_and_what_is_refused_afterwards(run, train, call, tmp_path):  # noqa: F811
    folder, data, how, output = run
    assert "60 users have a test target; 24 targets are items that nobody had chosen" in output
    found = metrics(folder)
    assert found["test"]["TTDS"]["users"] == 60 and found["test"]["TTDS"]["new_users"] == 24
    assert found["validation"]["TTDS"]["users"] == 60
    assert found["validation"]["TTDS"]["new_users"] == 12
    assert found["test"]["popularity"]["new_HR@10"] == 0
    assert "quantiles .8 and .9 of the timestamps" in (folder / "README.md").read_text()

    model = TTDSForCausalLM.from_pretrained(folder).eval()
    assert [entry["item_id"] for entry in model.catalogue[-2:]] == ["41", "42"]
    assert len(model.item_sids.unique(dim=0)) == 42
    words = " ".join(model.tokenizer.get_vocab()).lower()
    assert "pewter" in words and "zinc" not in words, "tuned anew on all that precedes the test"
    assert model.item_collaborative[41].any(), "known by who chose it, not by like texts alone"
    assert {*found["refit"]} == {"towers", "tuning"} and not found["refit"]["tuning"]["validation"]
    memory = model.cooccurrence
    assert memory.starts[40] < memory.starts[41], "41 was chosen before the test"
    assert memory.starts[41] == memory.starts[42] and not memory.items[41].any()

    before = (lists_folder(folder) / "run.jsonl").read_text()
    asked = ["--model", folder, "--dataset_name", data, "--num_beams", 20]
    code, _, said = call(evaluate, *asked)
    assert code == 0, said
    assert (lists_folder(folder) / "run.jsonl").read_text() == before
    assert len(before.splitlines()) == 60
    measured = metrics(folder)
    assert measured["towers"] == found["towers"], "what the run wrote stays"
    code, _, said = call(evaluate, *asked, "--split", "leave_one_out")
    assert code == 2 and "was trained on `split` 'timeline', so it may have seen targets" in said
    assert (lists_folder(folder) / "run.jsonl").read_text() == before
    code, _, said = call(evaluate, *asked, "--targets", "validation")
    assert code == 2 and "learnt from the validation's interactions before its test" in said
    assert metrics(folder) == measured and measured["test"] == found["test"]
    wishes = ["--model", folder, "--dataset_name", data, "--output_dir", tmp_path / "newer"]
    code, _, said = call(update, *wishes)
    assert code == 2 and "train with --split leave_one_out what is to be updated" in said
    assert not (tmp_path / "newer").exists()

    assert list((folder / "refit").glob("checkpoint-*/complete.json"))
    code, output, said = train(data, *how, "--resume_from_checkpoint", "true")
    assert code == 0 and metrics(folder)["test"] == found["test"], said
    assert not metrics(folder)["refit"]["tuning"]["tokens"], "both tunings were finished already"
    for otherwise in (["--seed", "1"], [*how, "--timeline_target", "last"]):
        code, _, said = train(data, *otherwise, "--resume_from_checkpoint", "true")
        assert code == 2 and "belongs to other data or options: this run has" in said
    code, _, said = train(data, "--split", "in_time", output="none")
    assert code == 2 and "`split` is 'in_time'; it must be one of leave_one_out, timeline" in said
    untimed = write(tmp_path / "untimed", ROWS.drop(columns="timestamp"))
    code, _, said = train(untimed, *how, output="none")
    assert code == 2 and "needs the column `timestamp`" in said
