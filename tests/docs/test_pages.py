"""What README and docs show runs, parses, exists and says what the code says."""

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from recipes.errors import Parser
from recipes.tuning.tasks import ITEM_TASKS, USER_TASKS
from tests.conftest import ROOT, altered, build_model, build_tokenizer

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
COMMAND = r"(?:git|make|pip|python3?|accelerate|hf) [^`\n]+"
BANNED = (
    "stands", "lies", "goes on", "from nothing", "by itself", "by a hair", "what is said of them",
    "`due`", "`reach`", "the mark",
)  # fmt: skip


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page):
    """Return the command lines of a page: indented, in a bash block, or in backticks."""
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = [line for block in blocks for line in block.splitlines()]
    joined = re.sub(r"\\\n\s+", "", text)
    found += re.findall(rf"^    ({COMMAND})$", joined, re.MULTILINE)
    found += re.findall(rf"`({COMMAND})`", text)
    parts = [part.strip() for line in found for part in line.split("&&")]
    return [part for part in parts if part != "accelerate launch"]


ALL_COMMANDS = sorted({command for page in PAGES for command in commands(page)})


class Parsed(BaseException):
    """A script has read its command line."""


@pytest.fixture
def stop_after_parsing(monkeypatch):
    for parser in (argparse.ArgumentParser, Parser):
        read = parser.parse_args

        def read_and_stop(self, args=None, namespace=None, read=read):
            read(self, args, namespace)
            raise Parsed

        monkeypatch.setattr(parser, "parse_args", read_and_stop)


def script_and_arguments(words):
    """Return script or module of a Python command, and what it is given."""
    if words[0] == "accelerate":
        given = launch_command_parser().parse_known_args(words[2:])[0]
        if given.config_file:
            assert (ROOT / given.config_file).is_file(), given.config_file
        return given.training_script, given.training_script_args
    if words[1] == "-m":
        return words[2], words[3:]
    return words[1], words[2:]


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_command_parses(command, monkeypatch, stop_after_parsing):
    words = shlex.split(command, comments=True)
    if words[0] in ("git", "hf", "cd", "source"):
        return
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert targets and all(f"\n{target}:" in MAKEFILE for target in targets)
        return
    if words[0] == "pip":
        for extras in re.findall(r"\[([a-z,]+)\]", command):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
        return
    script, arguments = script_and_arguments(words)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [script, *arguments])
    if script == "recipes/sft.py":
        if "--help" in arguments:
            return
        monkeypatch.setattr("sys.argv", [script, *arguments, "--use_cpu", "true"])
        runpy.run_path(script, run_name="read")["parse_arguments"]()
    elif script == "app.py":
        assert (ROOT / script).is_file() and len(arguments) == 1
    elif script in ("venv", "recipes.tuning.tasks"):
        assert script == "venv" or arguments == ["--show"]
    else:
        with pytest.raises(Parsed):
            if script.endswith(".py"):
                runpy.run_path(script, run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")


def test_commands_are_found():
    scripts = {word for command in ALL_COMMANDS for word in command.split() if ".py" in word}
    for name in ("sft", "evaluate", "recommend", "publish"):
        assert f"recipes/{name}.py" in scripts


def test_python_of_the_pages_runs_in_order(split, states, options, tmp_path, monkeypatch):
    settings = altered(options, tasks={task: 0.1 for task in USER_TASKS | ITEM_TASKS})
    tokenizer = build_tokenizer(split, settings, None)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    model.share_sid_table()
    model.save_pretrained(tmp_path / "outputs" / "demo")
    tokenizer.save_pretrained(tmp_path / "outputs" / "demo")
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        names = {}
        for block in python_blocks(page):
            exec(block, names)  # noqa: S102
        if page.name == "using.md":
            assert len(names["kettles"][0]) == 3 and names["ids"]
            alone = {"top_k": 5, "num_beams": 5, "rerank": False, "memory": False}
            (listed,) = names["model"].recommend([names["history"]], **alone)
            assert names["generated"] == [entry.item_id for entry in listed]
    assert (tmp_path / "data" / "shop" / "items.csv").is_file(), "the guide's block has run"


def test_pictures_of_the_pages_exist():
    for page in PAGES:
        text = page.read_text("utf-8")
        named = re.findall(r'(?:src|srcset)="([^"]+)"', text)
        named += re.findall(r"\]\(((?!https?:|#|mailto:)[^)#]+)[)#]", text)
        for name in named:
            assert (page.parent / name).exists(), f"{page.name}: {name}"


def test_site_builds_without_a_dead_link(tmp_path):
    pytest.importorskip("mkdocstrings", reason='`pip install -e ".[docs]"` brings it')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = (tmp_path / "api.html").read_text("utf-8")
    for name in ("recommend", "add_items", "remove_items", "similar_items", "next_users"):
        assert f'id="modeling_ttds.modeling_ttds.TTDSForCausalLM.{name}"' in shown, name
    assert "--tower_epochs" in (tmp_path / "options.html").read_text("utf-8")
    assert "First minutes" in (tmp_path / "index.html").read_text("utf-8")


def messages(node):
    """Return patterns of the text that an expression may give."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [re.escape(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = [
            re.escape(part.value) if isinstance(part, ast.Constant) else ".+?"
            for part in node.values
        ]
        return ["".join(parts)]
    if isinstance(node, ast.BinOp):
        return [a + b for a in messages(node.left) for b in messages(node.right)]
    if isinstance(node, ast.IfExp):
        return messages(node.body) + messages(node.orelse)
    return [".+?"]


def raised():
    """Return patterns of everything that the code may raise."""
    found = []
    for package in ("recipes", "modeling_ttds"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    for argument in node.exc.args[:1]:
                        found += [p for p in messages(argument) if len(re.sub(r"\W", "", p)) > 15]
    return found


def test_sentences_of_troubleshooting_are_those_of_the_code():
    shown = re.findall(
        r"^```text\n(.*?)\n```", (DOCS / "troubleshooting.md").read_text(), re.S | re.M
    )
    known = raised()
    assert len(shown) == 10
    for sentence in shown:
        assert any(re.fullmatch(pattern, sentence) for pattern in known), sentence
    assert not any(
        re.fullmatch(pattern, "This is no sentence of ours at all.") for pattern in known
    )


def test_the_readme_is_short_and_plain():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 200
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for word in BANNED:
            found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", page.read_text("utf-8"))
            assert not found, f"{page.name}: {word}"


def test_no_line_begins_with_a_figure():
    for page in PAGES:  # the site would take it for a block of HTML, which ends a list
        assert not re.search(r"^\s*<!-- value", page.read_text("utf-8"), re.MULTILINE), page.name


def test_badges_are_true():
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"python-%E2%89%A5{PROJECT['requires-python'].removeprefix('>=')}-" in text
    (needed,) = (line for line in PROJECT["dependencies"] if line.startswith("transformers"))
    assert f"transformers-%E2%89%A5{re.search(r'>=([0-9.]+)', needed)[1]}-" in text
    assert PROJECT["license"].replace("-", "--") in text
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_navigation_holds_every_page():
    listed = set(re.findall(r"- ([\w_]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {page.name for page in DOCS.glob("*.md")}
    assert listed == written | {"index.md", "contributing.md", "changelog.md"}
    assert not Path(DOCS, "index.md").exists(), "it is made from the README"
