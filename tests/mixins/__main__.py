"""Run transformers' own tests of models, configurations and tokenizers on ours.

python -m tests.mixins [options of pytest]
"""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mixins.fetch import fetch

CASES = Path(__file__).with_name("cases.py")


class Summary:
    """What became of every test."""

    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], Counter()

    def pytest_runtest_logreport(self, report):
        of_a_part = hasattr(report, "context")  # a subtest; its test has a report of its own
        if report.failed:
            self.failed.append(report.nodeid.split("::", 1)[1])
        elif report.skipped and not of_a_part:
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.skipped[reason] += 1
        elif report.when == "call" and not of_a_part:
            self.passed += 1

    def print(self, missing):
        print(f"\n{sum(self.skipped.values())} skipped:")
        for reason, count in self.skipped.most_common():
            print(f"{count:5}  {reason}")
        failed = sorted(set(self.failed))
        print(f"\n{self.passed} passed, {len(failed)} failed:", *failed, sep="\n    ")
        for name in missing:
            print(f"Out of reach, so what it holds was not run: tests/{name}")


def main():
    root, missing = fetch(Path(".mixins").resolve())
    sys.path.insert(0, str(root))
    summary = Summary()
    # Upstream has markers of its own, and waits for warnings.
    options = ["-q", "-o", "addopts=", "--disable-warnings", "--tb=short"]
    status = pytest.main([str(CASES), *options, *sys.argv[1:]], plugins=[summary])
    summary.print(missing)
    return status


if __name__ == "__main__":
    sys.exit(main())
