"""Imports run one way only, and what travels needs nothing but torch and transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAVELLING = {"huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "tqdm"}
TRAVELLING |= {"transformers"} | set(sys.stdlib_module_names)
# The order in which a run walks the folders: each may import those before it. Options come first: a
# stage takes its own group of them, and `config` imports nothing of ours but how errors are said.
STAGES = ("modeling_ttds", "data", "evaluation", "index", "tuning", "ranking", "hub", "serving")
ORDER = ("errors", "config", *STAGES, "script", "benchmarks")
SCRIPTS = {"sft", "evaluate", "recommend", "update", "serve", "publish"}


def imports(file: Path) -> list[tuple[int, str]]:
    """Return (relative level, module) of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
            # `from recipes.data import toyshop` names a module too.
            found += [(node.level, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def place(module: str) -> str | None:
    """Return which part of `ORDER` a module of ours belongs to; None for other modules."""
    parts = module.split(".")
    if parts[0] in ("modeling_ttds", "benchmarks"):
        return parts[0]
    if parts[0] != "recipes" or len(parts) == 1:
        return None
    return "script" if parts[1] in SCRIPTS else parts[1]


@pytest.mark.parametrize("file", sorted((ROOT / "modeling_ttds").glob("*_ttds.py")), ids=str)
def test_travelling_file_imports_only_what_a_loader_has(file):
    for level, module in imports(file):
        if level:
            assert level == 1 and module, f"from {'.' * level}{module}"
        else:
            assert module.split(".")[0] in TRAVELLING, module


def test_parts_of_the_model_do_not_import_the_model():
    for file in (ROOT / "modeling_ttds").glob("*_ttds.py"):
        if file.stem not in ("modeling_ttds", "pipeline_ttds"):
            assert (1, "modeling_ttds") not in imports(file), file.name


def test_imports_run_one_way():
    for file in [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        own = place(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for _, module in imports(file):
            other = place(module)
            if other is None or own is None:
                continue
            assert ORDER.index(other) <= ORDER.index(own), f"{file} imports {module}"
            assert not own == other == "script", f"{file}: a script imports no script"


def test_nothing_patches_the_path_of_modules():
    for file in [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        assert "sys.path" not in file.read_text("utf-8"), file.name


def test_scripts_stay_short():
    for script in SCRIPTS:
        file = ROOT / "recipes" / f"{script}.py"
        assert len(file.read_text("utf-8").splitlines()) < 200, file.name


def test_the_space_needs_nothing_of_this_repo():
    allowed = {"gradio", "torch", "transformers"} | set(sys.stdlib_module_names)
    assert {module.split(".")[0] for _, module in imports(ROOT / "app.py")} <= allowed


def test_the_handler_needs_nothing_of_this_repo():
    allowed = {"torch", "transformers"} | set(sys.stdlib_module_names)
    found = imports(ROOT / "recipes" / "serving" / "handler.py")
    assert {module.split(".")[0] for _, module in found} <= allowed


def test_the_tree_is_light():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    if not files:
        pytest.skip("no git checkout")
    assert sum(file.stat().st_size for file in files if file.exists()) < 5_000_000
