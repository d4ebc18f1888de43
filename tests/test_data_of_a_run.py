"""A run and its data: short and small data, repeats, an output folder, other data afterwards."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from modeling_ttds import TTDSForCausalLM
from recipes import evaluate, recommend, sft, update
from recipes.errors import one_sentence
from recipes.evaluation.report import lists_folder
from recipes.hub.run import MARKER
from recipes.tuning.arguments import parse_arguments
from tests.conftest import SMALL

COLOURS = ("red", "blue", "green", "black", "white")
KINDS = ("kettle", "cup", "lamp", "pen")


def walks(num_users=60, num_items=40, length=8):
    """Users walk the circle of items in steps of 3 or 4, one a day."""
    items = pd.DataFrame({"item_id": [str(i + 1) for i in range(num_items)]})
    items["title"] = [
        f"{COLOURS[i % 5]} {KINDS[i // 5 % 4]} {i + 1}".upper() for i in range(num_items)
    ]
    rows = []
    for user in range(num_users):
        draw, place = np.random.default_rng(user), user % num_items
        for day in range(length):
            rows.append((f"u{user}", str(place + 1), day, 1_600_000_000 + 86400 * day))
            place = (place + int(draw.integers(3, 5))) % num_items
    return pd.DataFrame(rows, columns=["user_id", "item_id", "position", "timestamp"]), items


ROWS, ITEMS = walks()
FIRST_THREE = ROWS[ROWS.position < 3]


def write(folder, rows=ROWS, items=ITEMS):
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "interactions.parquet")
    items.to_parquet(folder / "items.parquet")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a script in this process: exit status, output, last sentence."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        code = 0
        try:
            with one_sentence():
                sft.main(*parse_arguments()) if script is sft else script.main()
        except SystemExit as stopped:
            code = stopped.code
        output, errors = capsys.readouterr()
        return code, output, (errors.strip().splitlines() or [""])[-1]

    return run


@pytest.fixture
def train(call, tmp_path):
    """Return a function that trains a tiny model on a folder of data."""
    settings = SMALL.replace("num_train_epochs: 2", "num_train_epochs: 1")
    (tmp_path / "tiny.yaml").write_text(settings.replace("tower_epochs: 4", "tower_epochs: 1"))

    def run(data, *arguments, output="out"):
        return call(
            sft, "--config", tmp_path / "tiny.yaml", "--dataset_name", data, "--output_dir",
            tmp_path / output, "--cache_dir", tmp_path / "cache", *arguments,
        )  # fmt: skip

    return run


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def two_items():
    rows = ROWS[ROWS.position < 3].copy()
    rows["item_id"] = [str(place % 2 + 1) for place in rows.position]
    return rows, ITEMS[:2]


TWICE = pd.concat([ROWS, ROWS]).drop(columns="position")
HALVES = pd.concat([ROWS[ROWS.position < 4].assign(position=ROWS.position + n) for n in (0, 4)])


@pytest.mark.parametrize(
    ("rows", "items", "message"),
    [
        (ROWS[ROWS.position < 2], ITEMS, "No user has a validation target: each needs three"),
        (ROWS[:1], ITEMS, "No user has a validation target"),
        (ROWS.assign(item_id="1"), ITEMS[:1], "The data set has one item"),
        (*two_items(), "Every test target is in its user's history, so no list could be right"),
        (
            pd.concat([ROWS, ROWS]),
            ITEMS,
            "interactions row 480: `position` 0 of user 'u0' is there",
        ),
        (TWICE, ITEMS, "Every test target is in its user's history"),
        (HALVES, ITEMS, "Every validation target is in its user's history"),
    ],
)
def test_data_too_small_are_refused_before_anything_is_fitted(
    train, tmp_path, rows, items, message
):
    code, _, said = train(write(tmp_path / "data", rows, items))
    assert code == 2 and said.startswith(message)
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("rows", "items", "arguments"),
    [
        (FIRST_THREE, ITEMS, ()),
        (pd.concat([ROWS[ROWS.position < 2], ROWS[2:3]]), ITEMS, ()),
        (ROWS[ROWS.user_id == "u0"], ITEMS, ()),
        (FIRST_THREE[FIRST_THREE.user_id == "u0"], ITEMS, ()),
        (pd.concat([ROWS[:8].assign(user_id=f"u{user}") for user in range(20)]), ITEMS, ()),
        (*two_items(), ("--exclude_seen", "false")),
        (HALVES[HALVES.user_id < "u3"], ITEMS, ("--exclude_seen", "false")),
        (ROWS, ITEMS[["item_id"]], ("--tasks", '{"query": 0.5, "bought_together": 0.5}')),
    ],
    ids=["three each", "one long enough", "one user", "one user of three", "one history",
         "two items", "halves", "no text"],
)  # fmt: skip
def test_small_data_run_to_the_end(train, tmp_path, rows, items, arguments):
    data = write(tmp_path / "data", rows, items)
    code, output, said = train(data, *arguments)
    assert code == 0, said
    found = metrics(tmp_path / "out")["test"]
    assert all(np.isfinite(value) for row in found.values() for value in row.values())
    if rows.user_id.nunique() == 1:
        assert "1 users have a validation target, priors and re-ranker need 8: none" in output
    model = TTDSForCausalLM.from_pretrained(tmp_path / "out")
    assert all(np.isfinite(best.score) for best in model.recommend([["1"]], top_k=1)[0])


def test_a_run_says_how_it_is_tuned_and_keeps_it(train, tmp_path):
    rate = ("--learning_rate", "0.004", "--per_device_train_batch_size", "16")
    code, output, said = train(write(tmp_path / "data"), *rate, "--max_steps", "2")
    assert code == 0, said
    assert "tunes for 2 steps;" in output
    kept = metrics(tmp_path / "out")["training"]
    assert (kept["learning_rate"], kept["max_steps"]) == (0.004, 2)
    assert kept["per_device_train_batch_size"] == 16 and kept["lr_scheduler_type"] == "cosine"


def test_a_tuning_that_diverges_is_no_model(train, tmp_path):
    last = ["--load_best_model_at_end", "false", "--max_grad_norm", "0"]
    code, _, said = train(write(tmp_path / "data"), "--learning_rate", "1e30", *last)
    assert code == 2 and said.startswith("The tuning diverged at `learning_rate` 1e+30")
    assert not (tmp_path / "out" / "config.json").exists()


def test_repeats_are_told_merged_or_allowed(train, call, tmp_path):
    again = ROWS[(ROWS.position == 7) & (ROWS.user_id.str[-1].isin(list("02468")))]
    rows = pd.concat([ROWS, again.assign(position=8, timestamp=1_700_000_000)])
    data = write(tmp_path / "data", rows)
    plain = ["--reranker", "false"]
    code, output, _ = train(data, *plain, output="told")
    assert code == 0 and "30 of 60 test targets are in their user's history" in output
    code, output, _ = train(data, *plain, "--merge_repeats", "true", output="merged")
    assert code == 0 and "merged 30 of 510" in output and "targets are in" not in output
    train(write(tmp_path / "plain"), *plain, output="once")
    assert metrics(tmp_path / "merged")["test"] == metrics(tmp_path / "once")["test"]
    code, output, _ = train(data, *plain, "--exclude_seen", "false", output="seen")
    assert code == 0 and "targets are in" not in output
    found = {name: metrics(tmp_path / name)["test"]["popularity"] for name in ("told", "seen")}
    assert found["seen"]["HR@20"] > found["told"]["HR@20"]
    cards = {name: (tmp_path / name / "README.md").read_text() for name in found}
    assert "seen items among them" in cards["seen"] and "seen items left out" in cards["told"]

    # The model keeps it, for `recommend` and the scripts, until it is told otherwise.
    model = TTDSForCausalLM.from_pretrained(tmp_path / "seen").eval()
    history, every = ["1", "4", "8"], len(ITEMS)
    assert len(model.recommend([history], top_k=every, num_beams=every)[0]) == every
    kept = model.recommend([history], top_k=every, num_beams=every, exclude_seen=True)[0]
    assert len(kept) == every - 3
    before = (tmp_path / "seen-lists" / "run.jsonl").read_text()
    code, _, said = call(
        evaluate, "--model", tmp_path / "seen", "--dataset_name", data, "--num_beams", 20
    )
    assert code == 0, said
    assert (tmp_path / "seen-lists" / "run.jsonl").read_text() == before
    lists = tmp_path / "lists"
    asked = ["--model", tmp_path / "seen", "--dataset_name", data, "--use_cpu", "--top_k", every]
    assert call(recommend, *asked, "--output", lists)[0] == 0
    assert {len(items) for items in pd.read_parquet(lists).item_ids} == {every}, "as the model says"
    code, _, said = call(recommend, *asked, "--output", lists, "--exclude_seen", "true")
    assert code == 2 and "made with `exclude_seen` False, not True" in said


@pytest.fixture
def made(train, tmp_path):
    """A run on data that are read in a way of their own, and its data."""
    rows = ROWS.rename(columns={"item_id": "asin"}).drop(columns="position")
    data = write(tmp_path / "data", rows, ITEMS.rename(columns={"item_id": "asin"}))
    how = ["--column_map", '{"asin": "item_id"}', "--tie_break", "shuffled", "--seed", "3",
           "--min_interactions", "2", "--reranker", "false"]  # fmt: skip
    code, _, said = train(data, *how)
    assert code == 0, said
    return tmp_path / "out", data, how


def test_a_model_remembers_how_its_data_were_read(made, call, tmp_path):
    model, data, _ = made
    lists = lists_folder(model) / "run.jsonl"
    before = lists.read_text()
    asked = ["--model", model, "--dataset_name", data]
    code, _, said = call(evaluate, *asked, "--num_beams", 20)
    assert code == 0, said
    assert lists.read_text() == before
    assert call(recommend, *asked, "--output", tmp_path / "lists", "--use_cpu")[0] == 0
    lists = tmp_path / "lists"
    assert sorted(pd.read_parquet(lists).columns) == ["item_ids", "scores", "user_id"]
    from datasets import load_dataset

    loaded = load_dataset(str(lists), cache_dir=str(tmp_path / "datasets"))["train"]
    assert loaded.num_rows == 60 and set(loaded.column_names) == {"user_id", "item_ids", "scores"}
    code, _, said = call(evaluate, *asked, "--column_map", '{"asin": "title"}')
    assert code == 2 and "`column_map` would give items two columns `title`" in said
    found = metrics(model)
    for otherwise in (
        ("--tie_break", "published"),
        ("--exclude_seen", "false"),
        ("--num_beams", 21),
    ):
        code, output, said = call(evaluate, *asked, *otherwise)
        assert code == 0 and "was measured otherwise than by the training run" in output, said
        assert metrics(model) == found and (lists_folder(model) / "run.jsonl").read_text() == before
    (tmp_path / "apart").mkdir()
    code, output, said = call(evaluate, *asked, "--num_beams", 21, "--output", tmp_path / "apart")
    assert code == 0 and metrics(tmp_path / "apart")["measured_with"]["num_beams"] == 21
    code, _, said = call(evaluate, *asked, "--num_beams", 19)
    assert code == 2 and said.startswith("`--num_beams` is 19; lists of 20 items need as many")
    (tmp_path / "apart" / "config.json").write_text("{}")
    code, _, said = call(evaluate, *asked, "--output", tmp_path / "apart")
    assert code == 2 and "apart is the folder of another model" in said


def other_data(rows, items, how):
    """Return data of another size, or of the same with something exchanged."""
    if how == "four items more":
        more = pd.DataFrame({"asin": list("wxyz"), "title": list("WXYZ")})
        return rows, pd.concat([items, more])
    if how == "one user less":
        return rows[rows.user_id != "u9"], items
    if how == "items in another order":
        return rows, items[::-1]
    if how == "other ids":
        return rows.assign(asin="i" + rows.asin), items.assign(asin="i" + items.asin)
    if how == "other titles":
        return rows, items.assign(title=items.title[::-1].to_numpy())
    return rows.assign(asin=rows.asin[::-1].to_numpy()), items


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("four items more", "44 items, not 40"),
        ("one user less", "59 users, not 60"),
        ("items in another order", "other items, or the same in another order"),
        ("other ids", "other items, or the same in another order"),
        ("other titles", "but other ones or other texts"),
        ("other interactions", "but other ones or other texts"),
    ],
)
def test_other_data_are_refused_by_what_differs(made, train, call, tmp_path, how, message):
    model, data, read = made
    read = ["--min_interactions", "1" if how == "four items more" else "2", *read[:6], *read[8:]]
    tables = (pd.read_parquet(data / f"{name}.parquet") for name in ("interactions", "items"))
    other = write(tmp_path / "other", *other_data(*tables, how))
    if how == "four items more":  # a core would drop them
        message_then = "44 items, not 40"
        asked = ["--model", model, "--dataset_name", other, "--min_interactions", 1]
        code, _, said = call(evaluate, *asked)
        assert code == 2 and "does not know 4 of the data's 44 items, the first is 'w'" in said
    else:
        message_then = message
        code, _, said = call(evaluate, "--model", model, "--dataset_name", other)
        assert (
            code == 2
            and f"was trained on other data: these have {message}" in said
            or (message in said)
        )
    before = {file: file.read_bytes() for file in model.iterdir() if file.is_file()}
    code, _, said = train(other, *read, "--resume_from_checkpoint", "true")
    assert code == 2 and "belongs to other data or options: this run has" in said
    assert message_then in said
    assert {file: file.read_bytes() for file in model.iterdir() if file.is_file()} == before
    if how in ("four items more", "other ids", "other titles"):
        asked = ["--model", model, "--dataset_name", other, "--output", tmp_path / "lists"]
        code, _, said = call(recommend, *asked, "--use_cpu", "--min_interactions", 1)
        assert code == 2
        assert " items, the first is " in said or "40 of 40 items have other texts" in said


def test_other_options_are_not_resumed(made, train):
    _, data, how = made
    for option, value in (("--num_codes", "16"), ("--max_history", "5"), ("--seed", "4")):
        code, _, said = train(data, *how, option, value, "--resume_from_checkpoint", "true")
        assert code == 2 and (f"`{option[2:]}` {value}, not" in said or "other ones" in said)
    code, _, said = train(data, *how, "--resume_from_checkpoint", "./nowhere")
    assert code == 2 and "./nowhere is no folder" in said
    for name, value in (("learning_rate", "1e-6"), ("exclude_seen", "false"),
                        ("per_device_train_batch_size", "8")):  # fmt: skip
        code, _, said = train(data, *how, f"--{name}", value, "--resume_from_checkpoint", "true")
        shown = {"per_device_train_batch_size": "batch_size"}.get(name, name)
        assert code == 2 and f"this run has `{shown}` " in said


def test_a_folder_without_a_checkpoint_is_not_resumed_into(made, train, tmp_path):
    model, data, how = made
    before = {file: file.read_bytes() for file in model.rglob("*") if file.is_file()}
    code, _, said = train(data, *how, "--resume_from_checkpoint", "false")
    assert code == 2 and "is not empty. Pass --overwrite_output_dir true" in said
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    code, _, said = train(data, *how, "--resume_from_checkpoint", "true", output="notes")
    assert code == 2 and "holds no checkpoint to resume" in said
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["README.md"]
    checkpoints = list(model.glob("checkpoint-*"))
    resume = ["--resume_from_checkpoint", checkpoints[0]]
    code, _, said = train(data, *how, *resume, output="notes")
    assert code == 2 and "is not in `output_dir`" in said
    assert {file: file.read_bytes() for file in model.rglob("*") if file.is_file()} == before
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)
    code, _, said = train(data, *how, "--resume_from_checkpoint", "true")
    assert code == 2 and "holds no checkpoint to resume" in said, "a finished model is not replaced"


def test_what_the_user_keeps_beside_checkpoints_is_none(made, train):
    model, data, how = made
    checkpoint = max(model.glob("checkpoint-*"), key=lambda file: int(file.name.split("-")[1]))
    shutil.copytree(checkpoint, model / "checkpoint-best")
    (model / "checkpoint-40.zip").write_text("mine")
    (model / f"{checkpoint.name}-lists").mkdir()
    code, output, said = train(data, *how, "--resume_from_checkpoint", "true")
    assert code == 0 and "cut short" not in output, said
    assert metrics(model)["resumed_from"] == checkpoint.name
    code, output, said = train(data, *how, "--overwrite_output_dir", "true")
    assert code == 0, said
    assert (model / "checkpoint-40.zip").is_file()


def test_a_checkpoint_in_the_place_of_an_older_one_is_whole(train, tmp_path):
    data = write(tmp_path / "data")
    how = ["--reranker", "false", "--save_strategy", "steps", "--save_steps", "2", "--eval_steps",
           "2", "--save_total_limit", "9"]  # fmt: skip
    code, _, said = train(data, *how)
    assert code == 0, said
    first = tmp_path / "out" / "checkpoint-2"
    assert train(data, *how, "--resume_from_checkpoint", first)[0] == 0
    code, output, said = train(data, *how, "--resume_from_checkpoint", "true")
    assert code == 0 and "cut short" not in output, said


def test_places_that_cannot_be_written_to_are_named_at_once(train, call, made, tmp_path):
    model, data, how = made
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for output in ("file", "file/run", "link", "link/run"):
        code, printed, said = train(data, *how, output=output)
        assert code == 2 and "`output_dir` needs the folder" in said and "embed" not in printed
    (tmp_path / "new-lists").write_text("")
    code, _, said = train(data, *how, output="new")
    assert code == 2 and "new-lists is a file" in said
    code, _, said = train(data, *how, "--cache_dir", tmp_path / "file", output="other")
    assert code == 2 and "`cache_dir` needs the folder" in said
    asked = ["--model", model, "--dataset_name", data]
    for script, option in ((recommend, "--output"), (update, "--output_dir")):
        code, _, said = call(script, *asked, option, tmp_path / "file" / "x")
        assert code == 2 and f"`{option}` needs the folder" in said


def test_everybody_gets_a_list_of_the_model_as_it_is(made, train, call, tmp_path):
    model, data, how = made
    rows = pd.read_parquet(data / "interactions.parquet")
    new = pd.DataFrame({"user_id": ["new", "new"], "asin": ["1", "odd"], "timestamp": [1, 2]})
    items = pd.read_parquet(data / "items.parquet")
    items = pd.concat([items, pd.DataFrame({"asin": ["odd"], "title": ["Odd"]})])
    few = write(tmp_path / "few", pd.concat([rows[rows.user_id == "u1"], new]), items)
    lists = tmp_path / "lists"
    asked = ["--model", model, "--dataset_name", few, "--output", lists, "--use_cpu"]
    code, output, said = call(recommend, *asked)
    assert code == 0 and "1 items that" in output, said
    assert sorted(pd.read_parquet(lists).user_id) == ["new", "u1"]
    assert train(data, *how, "--overwrite_output_dir", "true", "--learning_rate", "1e-2")[0] == 0
    code, _, said = call(recommend, *asked)
    assert code == 2 and "holds shards made with an earlier state of" in said


def test_overwriting_deletes_only_what_a_run_wrote(made, train, tmp_path):
    model, data, how = made
    over = [*how, "--overwrite_output_dir", "true"]
    (model / "notes.txt").write_text("mine")
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "kept").write_text("mine")
    (model / "run-old-row.jsonl").write_text("ours")
    weights = (model / "model.safetensors").stat().st_mtime_ns

    code, _, said = train(data, *over, "--tie_break", "random")
    assert code == 2 and "`tie_break`" in said
    code, _, said = train(data, *over, "--tasks", '{"nothing": 1}')
    assert code == 2 and "`tasks` names 'nothing'" in said
    code, _, said = train(data, *over, "--resume_from_checkpoint", "true")
    assert code == 2 and "the one deletes what the other goes on from" in said
    assert (model / "model.safetensors").stat().st_mtime_ns == weights, "nothing before the checks"

    code, output, said = train(data, *over)
    assert code == 0, said
    assert (model / "notes.txt").read_text() == "mine" and "notes.txt was not written" in output
    assert (model / "checkpoints" / "kept").read_text() == "mine"
    assert not (model / "run-old-row.jsonl").exists()
    assert (model / "model.safetensors").stat().st_mtime_ns > weights


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("foreign", f"it has no {MARKER}, so no run of TTDS wrote it"),
        ("repository", "it is a git repository"),
        ("home", "it is or holds home"),
        ("above home", "it is or holds home"),
        ("here", "it is or holds the working directory"),
        ("data", "it is or holds `dataset_name`"),
        ("link", f"it has no {MARKER}"),
    ],
)
def test_what_is_not_ours_survives(train, tmp_path, monkeypatch, kind, reason):
    folder = tmp_path / "out"
    data = write(tmp_path / "data")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if kind not in ("foreign", "link"):
        (folder / MARKER).write_text("{}")
    if kind == "repository":
        (folder / ".git").mkdir()
    elif kind in ("home", "above home"):
        monkeypatch.setenv("HOME", str(folder if kind == "home" else folder / "me"))
    elif kind == "here":
        monkeypatch.chdir(folder)
    elif kind == "data":
        data = shutil.move(data, folder / "data")
    elif kind == "link":
        folder.rename(tmp_path / "real")
        folder.symlink_to(tmp_path / "real")
    before = sorted(folder.rglob("*"))
    output = "." if kind == "here" else folder
    for place in (output, folder):
        code, _, said = train(data, "--overwrite_output_dir", "true", "--output_dir", place)
        assert code == 2 and reason in said, said
    assert sorted(folder.rglob("*")) == before
    code, _, said = train(data)
    assert code == 2 and "is not empty. Pass --overwrite_output_dir true" in said
