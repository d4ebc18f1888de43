"""Every command says at once what it does: its help needs no torch and explains every option."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from recipes.config import HELP_GROUPS, TTDSArguments, default_of
from recipes.data.importers import IMPORTERS
from recipes.tuning.arguments import TTDSTrainingArguments
from tests.conftest import ROOT

COMMANDS = [
    file.relative_to(ROOT)
    for folder in ("recipes", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if 'if __name__ == "__main__":' in file.read_text("utf-8")
]
SLOW = {"torch", "transformers", "trl", "datasets", "pandas", "gradio"}
# Runs a command in this process, then says what it has imported.
RUN = """
import atexit, json, runpy, sys
atexit.register(lambda: print(json.dumps(sorted({name.split(".")[0] for name in sys.modules}))))
name, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(name, run_name="__main__")
"""


def help_of(file, option="--help"):
    """Return what a command prints and which packages it has imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(file), option],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    text, _, imported = done.stdout.rstrip().rpartition("\n")
    return text, set(json.loads(imported))


def entries(text):
    """Return the options of a help, each with the title of its group and its text in one line."""
    found, group = {}, ""
    for line in text.split("\n\n", 1)[1].splitlines():
        if re.match(r"\S.*:$", line):
            group = line
        elif named := re.match(r" +(?:-\w, )?--(\w+)", line):
            found[named[1]] = f"{group} {line}"
        elif line.strip() and found:
            found[list(found)[-1]] += f" {line.strip()}"
    return found


@pytest.mark.parametrize("file", [*COMMANDS, "app.py"], ids=str)
def test_help_comes_before_anything_slow_is_imported(file):
    text, imported = help_of(file)
    assert not imported & SLOW
    about = text.split("\n\n")[1]
    assert re.match(r"[A-Z][^\n]+[.:]?", about), "a sentence on what it does"
    assert max(map(len, text.splitlines())) <= 100
    options = entries(text)
    assert options.pop("help")
    for name, said in options.items():
        assert re.search(r"\[.+\]|default", said), f"--{name} has no default"
        assert re.search(rf"--{name}\b.* [A-Z`][\w ]", said), f"--{name} has no help"


def test_help_of_training_shows_our_options_with_their_defaults_on_two_screens():
    text, _ = help_of("recipes/sft.py")
    assert len(text.splitlines()) <= 115
    shown = entries(text)
    ours = TTDSArguments().flat()
    assert set(shown) - {"help"} == ours.keys() | {
        option.name for group in HELP_GROUPS for option in fields(group)
    }
    assert "[0.003]" in shown["learning_rate"] and "[64]" in shown["pair_dim"]
    titles = re.findall(r"^(\S.*):$", text, re.M)
    assert titles.index("data") < titles.index("semantic IDs") < titles.index("training")


def test_what_the_help_says_is_what_training_takes():
    theirs = {option.name: default_of(option) for option in fields(TTDSTrainingArguments)}
    (training,) = (group for group in HELP_GROUPS if group._argument_group_name == "training")
    for option in fields(training):
        assert theirs[option.name] == default_of(option), option.name


def test_everything_of_trl_is_behind_help_all():
    text, _ = help_of("recipes/sft.py", "--help-all")
    assert {"num_codes", "max_grad_norm", "push_to_hub", "lora_r"} <= entries(text).keys()
    assert "usage: python recipes/sft.py [--config FILE]" in text


def test_importers_are_those_the_help_names():
    text, _ = help_of("recipes/data/importers.py")
    assert f"Which: {', '.join(IMPORTERS)}." in text
