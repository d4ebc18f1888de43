"""What the README shows runs."""

import json
import re

import pytest
from accelerate.commands.launch import launch_command_parser

from benchmarks.first_minute import first_block, printed
from benchmarks.result import results
from benchmarks.tables import filled
from recipes.config import ExampleOptions, TTDSArguments
from recipes.hub.files import ROOT
from recipes.tuning.arguments import TTDSTrainingArguments, parse_arguments
from recipes.tuning.examples import question_wordings
from recipes.tuning.tasks import ITEM_TASKS, USER_TASKS
from tests.conftest import altered, build_model, build_tokenizer
from tests.test_layout import STAGES

README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
TREE = re.findall(r"```\n(recipes/ .*?)```", ARCHITECTURE, re.DOTALL)[0]
TABLE = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


SHOWN = r" *-\d+\.\d\d  \S.*"  # a log-probability and a title


def first_minute():
    """Return what `benchmarks.first_minute` recorded."""
    found = [row["first_minute"] for row in results() if "first_minute" in row]
    if not found:
        pytest.skip("no result yet; run `make demo` and `python -m benchmarks.first_minute`")
    return found[0]


def save_demo(folder, split, states, options):
    """Save a small model, tuned on no task but able to be asked all, as the demo."""
    settings = altered(options, tasks={task: 0.1 for task in USER_TASKS | ITEM_TASKS})
    tokenizer = build_tokenizer(split, settings, None)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    model.share_sid_table()
    model.save_pretrained(folder / "outputs" / "demo")
    tokenizer.save_pretrained(folder / "outputs" / "demo")


def test_python_of_the_readme_runs(split, states, options, tmp_path):
    save_demo(tmp_path, split, states, options)
    lines = printed(first_block(), tmp_path).splitlines()
    assert len(first_block().strip().splitlines()) == 6 and len(lines) == 5
    # A small model prints what the README shows in form: a log-probability and a title.
    for line in lines:
        assert re.fullmatch(SHOWN, line), line


def test_the_readme_prints_what_the_demo_printed():
    recorded = first_minute()
    assert first_block() == recorded["code"], "run `python -m benchmarks.first_minute` again"
    assert f"```text\n{recorded['output']}\n```" in README
    for line in recorded["output"].splitlines():
        assert re.fullmatch(SHOWN, line), line


def test_the_demo_prints_what_the_readme_shows():
    recorded = first_minute()
    file = ROOT / "outputs" / "demo" / "metrics.json"
    if not file.is_file():
        pytest.skip("no outputs/demo; `make demo` trains it")
    if json.loads(file.read_text("utf-8"))["model_sha256"] != recorded["model_sha256"]:
        pytest.skip("outputs/demo was trained on another machine or by other code")
    assert printed(recorded["code"], ROOT) == recorded["output"]


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
    known |= {"output", "filter", "help", "lists"}
    known |= {"dry_run", "include_user_lists", "allow_rare_pairs", "space", "repo_id"}
    known |= {"index_url", "json", "no_deps", "lora_r", "lora_alpha"}  # of pip, of curl, of TRL
    known |= {option.lstrip("-") for option in launch_command_parser()._option_string_actions}
    for folder in ("recipes", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            known |= set(re.findall(r'add_argument\(\s*"--(\w+)"', file.read_text("utf-8")))
    for document in DOCUMENTS:
        text = re.sub(r"<!--.*?-->", "", TABLE.sub("", document.read_text("utf-8")))
        text = re.sub(r"^```text\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        named = re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]*)", text)
        named = {name.replace("-", "_") for name in named}
        assert named <= known, f"{document.name}: {named - known}"


def test_mappings_are_read_from_the_command_line(monkeypatch):
    text = "".join(document.read_text("utf-8") for document in DOCUMENTS)
    shown = re.findall(r"--(tasks|column_map) '(.+?)'", text)
    assert {name for name, _ in shown} == {"tasks", "column_map"}
    for name, text in shown:
        monkeypatch.setattr("sys.argv", ["sft.py", f"--{name}", text])
        assert parse_arguments()[0].flat()[name] == json.loads(text)
    monkeypatch.setattr("sys.argv", ["sft.py", "--tasks", "query"])
    with pytest.raises(ValueError, match="`tasks` is 'query'"):
        parse_arguments()


def test_files_the_readme_names_exist():
    parts = []  # the folders that a line stands in
    for line in TREE.splitlines():
        names = re.findall(r"\b[a-z0-9_]+\.(?:py|md)\b|\b[a-z_]+/", line)
        indent = len(line) - len(line.lstrip())
        if indent < 20:  # else it goes on where the line above was
            parts = parts[: indent // 2]
            first, *names = names
            assert ROOT.joinpath(*parts, first).exists(), line
            if first.endswith("/"):
                parts = [*parts, first]
        for name in names:
            assert ROOT.joinpath(*parts, name).exists(), f"{line}: {name}"


def test_files_the_documents_name_exist():
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for name in re.findall(
            r"`((?:recipes|modeling_ttds|benchmarks|docs|tests)/[\w./-]+)`", text
        ):
            assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_every_module_is_in_the_architecture():
    named = set(re.findall(r"\b[a-z0-9_]+\.py\b", TREE))
    for package in ("recipes", "modeling_ttds"):
        modules = {file.name for file in (ROOT / package).rglob("*.py")} - {"__init__.py"}
        assert modules <= named, modules - named


def test_the_architecture_shows_the_stages_in_the_order_of_the_imports():
    shown = [name for name in re.findall(r"^  ([a-z]+)/", TREE, re.MULTILINE) if name in STAGES]
    assert shown == list(STAGES[1:])
    picture = re.findall(r"recipes/([a-z]+)", ARCHITECTURE.split("## Files")[0])
    walked = [name for name in dict.fromkeys(picture) if name in STAGES]
    assert sorted(walked, key=STAGES.index) == walked


def test_results_say_how_they_were_made():
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = json.loads(file.read_text())
        for key in ("command", "commit", "seed", "hardware", "seconds"):
            assert result[key] not in (None, ""), f"{file.name}: {key}"


def test_tables_are_those_of_the_results():
    for file in DOCUMENTS:
        assert filled(file.read_text("utf-8"), results()) == file.read_text("utf-8"), file.name
