"""Imports run downward only, and what travels needs nothing but torch and transformers."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAVELLING = {"huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "tqdm"}
TRAVELLING |= {"transformers"} | set(sys.stdlib_module_names)
VERBS = {"sft", "evaluate", "recommend", "publish"}


def imports(file: Path) -> list[tuple[int, str]]:
    """Return (relative level, module) of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "modeling_ttds").glob("*_ttds.py")), ids=str)
def test_travelling_file_imports_only_what_a_loader_has(file):
    for level, module in imports(file):
        if level:
            assert level == 1 and "." not in module and module, f"from {'.' * level}{module}"
        else:
            assert module.split(".")[0] in TRAVELLING, module


def test_parts_of_the_model_do_not_import_the_model():
    for file in (ROOT / "modeling_ttds").glob("*_ttds.py"):
        if file.stem not in ("modeling_ttds", "pipeline_ttds"):
            assert (1, "modeling_ttds") not in imports(file), file.name


def test_nouns_import_no_verb_and_verbs_import_no_verb():
    for file in (ROOT / "recipes").glob("*.py"):
        for _, module in imports(file):
            assert module.removeprefix("recipes.") not in VERBS or not module.startswith(
                "recipes."
            ), f"{file.name} imports {module}"
            assert not module.startswith(("app", "tests", "benchmarks")), file.name


def test_recipes_verbs_stay_short():
    for verb in VERBS:
        file = ROOT / "recipes" / f"{verb}.py"
        if file.exists():
            assert len(file.read_text("utf-8").splitlines()) < 200, file.name


def test_the_space_needs_nothing_of_this_repo():
    allowed = {"gradio", "torch", "transformers"} | set(sys.stdlib_module_names)
    assert {module.split(".")[0] for _, module in imports(ROOT / "app.py")} <= allowed
