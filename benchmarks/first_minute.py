"""Run the first Python block of README.md on the model of `make demo`, and keep what it prints.

python -m benchmarks.first_minute

`make tables` then shows it in README.md. It has to be run again when the block or the demo changes.
"""

import argparse

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.parse_args()

import contextlib
import io
import json
import re
import time
from pathlib import Path

from benchmarks.result import write_result

ROOT = Path(__file__).resolve().parents[1]
DEMO = "outputs/demo"  # as the block says


def first_block() -> str:
    """Return the first Python block of README.md."""
    text = (ROOT / "README.md").read_text("utf-8")
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def printed(code: str) -> str:
    """Return what a block of Python prints in the working directory.

    Args:
        code: The block.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})  # noqa: S102
    return out.getvalue().rstrip("\n")


def main() -> None:
    """Run the block and write its output."""
    begun = time.perf_counter()
    code = first_block()
    shown = {"code": code, "output": printed(code)}
    shown["model_sha256"] = json.loads(Path(DEMO, "metrics.json").read_text())["model_sha256"]
    write_result("first-minute", 0, time.perf_counter() - begun, {"first_minute": shown})


if __name__ == "__main__":
    main()
