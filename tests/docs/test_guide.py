"""The guide and the notebook, run as a reader would, on small data."""

import os
import random
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from recipes.tuning.arguments import parse_arguments
from tests.conftest import ROOT, SMALL

GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")


@pytest.fixture
def movielens(tmp_path):
    """A folder with small files in the shape of MovieLens 1M, and the scripts beside it."""
    draw = random.Random(0)
    (tmp_path / "ml-1m").mkdir()
    ratings = [
        f"{user}::{movie}::4::{978300000 + 86400 * place}\n"
        for user in range(1, 61)
        for place, movie in enumerate(draw.sample(range(1, 31), 12))
    ]
    (tmp_path / "ml-1m" / "ratings.dat").write_text("".join(ratings))
    kinds = ("Drama|Comedy", "Action", "Horror")
    movies = [f"{movie}::Movie {movie} (2000)::{kinds[movie % 3]}\n" for movie in range(1, 31)]
    (tmp_path / "ml-1m" / "movies.dat").write_text("".join(movies))
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def test_commands_of_the_guide_run(movielens):
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = 0
    for line in lines:
        python, *words = shlex.split(line)
        if words[0] == "app.py" or (words[0].endswith("publish.py") and "--dry_run" not in words):
            continue  # a server; the network
        if words[0].endswith("sft.py"):
            words += ["--config", "small.yaml"]
        done = subprocess.run(
            [sys.executable, *words], cwd=movielens, env=environment, capture_output=True, text=True
        )
        assert python == "python" and done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran == 6
    lists = pd.read_parquet(movielens / "outputs" / "lists")
    assert len(lists) == 60 and (movielens / "outputs" / "movielens" / "metrics.json").is_file()


def test_the_recipe_for_data_of_ones_own_needs_no_file_and_no_download(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft.py", "--config", str(ROOT / "recipes" / "sparse.yaml")])
    index = parse_arguments()[0].index
    assert index.text_encoder == "tokens" and index.text_embeddings is None


def test_the_notebook_runs():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        iopub_timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert any("image/png" in out.get("data", {}) for out in outputs), "it draws a plot"
