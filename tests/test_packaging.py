"""Wheel and sdist build from a checkout, and the wheel works where the checkout is not."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = {
    str(file.relative_to(ROOT))
    for package in ("modeling_ttds", "recipes")
    for file in (ROOT / package).rglob("*.py")
}


@pytest.fixture(scope="module")
def built_packages(tmp_path_factory):
    """Wheel and sdist, the wheel built from the sdist, as `python -m build` does."""
    if find_spec("build") is None:
        pytest.skip('build is not installed; `pip install -e ".[dev]"` brings it')
    folder = tmp_path_factory.mktemp("packages")
    # A build leaves folders behind: not in our checkout.
    litter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "outputs")
    shutil.copytree(ROOT, folder / "checkout", ignore=litter)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run(command, cwd=folder / "checkout", capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def test_packages_hold_model_and_recipes_and_nothing_else(built_packages):
    wheel, sdist = built_packages
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == CODE
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(metadata))
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert metadata["Version"] == project["version"] and metadata["License-Expression"]
    extras = {"train", "app", "counting", "serve", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(needed) == len(project["dependencies"]) == 4

    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = {name for name in names if "." in name and "egg-info" not in name}
    assert files == CODE | {"pyproject.toml", "README.md", "MANIFEST.in", "setup.cfg"}
    assert {"LICENSE", "PKG-INFO"} <= {*names}


SCRIPT = """
import sys
from pathlib import Path
import modeling_ttds
from modeling_ttds import TTDSConfig, TTDSForCausalLM, TTDSTokenizer
assert Path(modeling_ttds.__file__).is_relative_to(sys.argv[1]), modeling_ttds.__file__
model = TTDSForCausalLM.from_pretrained(sys.argv[2]).eval()
history = [entry["item_id"] for entry in model.catalogue[:3]]
assert len(model.recommend([history], top_k=5)[0]) == 5
"""


def test_installed_wheel_works_without_the_checkout(built_packages, built, tmp_path):
    wheel, _ = built_packages
    target = tmp_path / "site"
    built.save_pretrained(tmp_path / "model")
    built.tokenizer.save_pretrained(tmp_path / "model")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(target), str(tmp_path / "model")],
        cwd=tmp_path, env={"PYTHONPATH": str(target), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
