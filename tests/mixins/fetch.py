"""Fetch the tests that transformers ships for models, for the version that is installed."""

import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import transformers

# The source distribution leaves out all folders below `tests`; the repository has them. Where it
# is out of reach, these stand in, and their tests are not run.
REPOSITORY = "https://raw.githubusercontent.com/huggingface/transformers"
BESIDE = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    stand_in = True\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    stand_in = True\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fixtures/sample_text.txt": "A walnut kettle.\n\nA bramble lamp for the evening.\n",
}


def fetch(folder: Path) -> Path:
    """Return a folder that can be imported from as `upstream.tests`.

    Args:
        folder: Where fetched versions are kept.
    """
    version = transformers.__version__
    root = folder / version
    tests = root / "upstream" / "tests"
    if not (tests / "test_modeling_common.py").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            # Its build is not needed: torch and transformers are here.
            command = "download --quiet --no-deps --no-build-isolation --no-binary transformers"
            subprocess.run(
                [sys.executable, "-m", "pip", *command.split(), f"transformers=={version}"],
                cwd=scratch,
                check=True,
            )
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
                archive.extractall(scratch, filter="data")
            tests.parent.mkdir(parents=True, exist_ok=True)
            next(Path(scratch).glob("*/tests")).rename(tests)
    for name, stand_in in BESIDE.items():
        file = tests / name
        if file.is_file() and file.read_text("utf-8") != stand_in:
            continue
        file.parent.mkdir(exist_ok=True)
        try:
            with urllib.request.urlopen(f"{REPOSITORY}/v{version}/tests/{name}") as answer:
                file.write_bytes(answer.read())
        except urllib.error.URLError:
            file.write_text(stand_in, "utf-8")
    for package in (tests, *(tests / name for name in ("generation", "exporters", "utils"))):
        (package / "__init__.py").touch()
    return root
