"""Fetch the tests that transformers keeps for all of its models, of the installed version."""

import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import transformers

# The source distribution has the files of `tests` alone, the repository also its folders. Where it
# is out of reach, these stand in, and what they stand for is not run.
REPOSITORY = "https://raw.githubusercontent.com/huggingface/transformers"
BESIDE = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fixtures/sample_text.txt": "A walnut kettle.\n\nA bramble lamp for the evening.\n",
}


def fetch(folder: Path) -> tuple[Path, list[str]]:
    """Return where to import `upstream.tests` from, and which of its files could not be fetched.

    Args:
        folder: Where fetched versions are kept.
    """
    version = transformers.__version__
    tests = folder / version / "upstream" / "tests"
    if not tests.is_dir():
        tests.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # Its build needs nothing but what is installed, and nothing is built.
            options = [
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--no-binary",
                "transformers",
            ]
            pip = [sys.executable, "-m", "pip", "download", *options, f"transformers=={version}"]
            subprocess.run(pip, cwd=scratch, check=True)
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
                archive.extractall(scratch, filter="data")
            unpacked = next(Path(scratch).glob("*/tests"))
            for package in (unpacked, *(unpacked / Path(name).parent for name in BESIDE)):
                package.mkdir(exist_ok=True)
                (package / "__init__.py").touch()
            unpacked.rename(tests)
    missing = []
    for name, stand_in in BESIDE.items():
        file = tests / name
        if file.is_file() and file.read_text("utf-8") != stand_in:
            continue
        try:
            with urllib.request.urlopen(f"{REPOSITORY}/v{version}/tests/{name}") as answer:
                # Some name their package in full, which is ours here.
                file.write_bytes(answer.read().replace(b"from tests.", b"from upstream.tests."))
        except urllib.error.URLError:
            file.write_text(stand_in, "utf-8")
            missing.append(name)
    return folder / version, missing
