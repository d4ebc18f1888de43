"""What the README shows runs."""

import json
import re

import pytest

from benchmarks.result import results
from benchmarks.tables import filled
from recipes.config import (
    ExampleOptions,
    TTDSArguments,
    TTDSTrainingArguments,
    parse_arguments,
)
from recipes.hub.files import ROOT
from recipes.tuning.examples import question_wordings
from recipes.tuning.tasks import ITEM_TASKS, USER_TASKS
from tests.conftest import altered, build_model, build_tokenizer

README = (ROOT / "README.md").read_text("utf-8")


def test_python_of_the_readme_runs(split, states, options, tmp_path, monkeypatch):
    settings = altered(options, tasks={task: 0.1 for task in USER_TASKS | ITEM_TASKS})
    tokenizer = build_tokenizer(split, settings, None)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    model.share_sid_table()
    model.save_pretrained(tmp_path / "outputs" / "demo")
    tokenizer.save_pretrained(tmp_path / "outputs" / "demo")
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)  # noqa: S102
    assert len(names["kettles"][0]) == 3


def test_the_demo_answers_every_question_the_readme_asks():
    asked = question_wordings(ExampleOptions())
    assert set(asked) >= {
        "query",
        "search",
        "next_user",
        "bought_together",
        "profile_of_history",
    }


def test_options_the_readme_names_exist():
    known = set(TTDSArguments().flat()) | set(TTDSTrainingArguments.__dataclass_fields__)
    known |= {"config", "model", "model_name_or_path", "use_peft", "config_file", "show"}
    known |= {"output"}
    known |= {"dry_run", "include_user_lists", "allow_rare_pairs", "space", "repo_id"}
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", README, flags=re.DOTALL)
    named = set(re.findall(r"--([a-z_]+)", text))
    assert named <= known, named - known


def test_mappings_are_read_from_the_command_line(monkeypatch):
    shown = re.findall(r"`--(tasks|column_map) '(.+?)'`", README)
    assert {name for name, _ in shown} == {"tasks", "column_map"}
    for name, text in shown:
        monkeypatch.setattr("sys.argv", ["sft.py", f"--{name}", text])
        assert parse_arguments()[0].flat()[name] == json.loads(text)
    monkeypatch.setattr("sys.argv", ["sft.py", "--tasks", "query"])
    with pytest.raises(ValueError, match="`tasks` is 'query'"):
        parse_arguments()


def test_files_the_readme_names_exist():
    tree = re.findall(r"```\n(modeling_ttds/.*?)```", README, re.DOTALL)[0]
    folder = None
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = ROOT / line.split("/")[0]
            assert folder.is_dir(), folder
            continue
        for name in re.findall(r"\b[a-z_]+\.py\b|\b[a-z]+/", line):
            assert (folder / name).exists() or (ROOT / name).exists(), f"{folder.name}/{name}"


def test_results_say_how_they_were_made():
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(file.read_text())
        for key in ("command", "commit", "seed", "hardware", "seconds"):
            assert result[key] not in (None, ""), f"{file.name}: {key}"


def test_tables_are_those_of_the_results():
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert filled(file.read_text("utf-8"), results()) == file.read_text("utf-8"), file.name
