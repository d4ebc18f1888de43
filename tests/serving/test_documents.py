"""What docs/serving.md and docs/updating.md show runs, and is answered."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from recipes import evaluate, publish, recommend, update
from recipes import serve as server
from recipes.hub.files import ROOT
from recipes.serving.handler import EndpointHandler
from tests.serving.test_server import folder, loaded, serve  # noqa: F401, fixtures

SERVING = (ROOT / "docs" / "serving.md").read_text("utf-8")
UPDATING = (ROOT / "docs" / "updating.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", SERVING + UPDATING, re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind in ("bash", "sh") for line in block.splitlines()]
SCRIPTS = {s.__name__.split(".")[1]: s for s in (evaluate, publish, recommend, server, update)}


class Parsed(Exception):  # noqa: N818
    """The command line was understood."""


@pytest.mark.parametrize("line", [line for line in LINES if "recipes/" in line])
def test_commands_are_understood_by_their_scripts(line, monkeypatch):
    words = shlex.split(line)
    place = next(n for n, word in enumerate(words) if re.fullmatch(r"recipes/\w+\.py", word))
    script = SCRIPTS[words[place].split("/")[1].removesuffix(".py")]
    assert all((ROOT / word).exists() for word in words if word.startswith("recipes/"))
    monkeypatch.setattr(sys, "argv", words[place:])
    real = argparse.ArgumentParser.parse_known_args

    def parse(self, *arguments):
        found, unknown = real(self, *arguments)
        assert not unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(Parsed):
        script.main()
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", real)
        assert launch_command_parser().parse_args(words[2:]).training_script == words[place]


def test_requests_are_answered(serve, loaded, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "today"):
        loaded.save_pretrained(f"outputs/{name}")
    client, _ = serve(token="secret")
    asked = [shlex.split(line) for line in LINES if line.startswith("curl")]
    assert len(asked) == 7
    for words in asked:
        assert words[1].startswith("http://127.0.0.1:8000/")
        route = "/" + words[1].split("/", 3)[3]
        headers = dict([words[words.index("-H") + 1].split(": ")] if "-H" in words else [])
        if "--json" in words:
            body = json.loads(words[words.index("--json") + 1])
            answer = client.post(route, json=body, headers=headers)
        else:
            answer = client.get(route)
        assert answer.status_code == 200, (words, answer.text)
    handler = EndpointHandler("outputs/demo")
    posted = [json.loads(block) for kind, block in BLOCKS if kind == "json"]
    assert [len(handler(data)) for data in posted] == [5, 2]


@pytest.mark.parametrize(("engine", "library"), [("Ray Data", "ray"), ("Spark", "pyspark")])
def test_engines_give_the_lists_of_recommend(engine, library, loaded, shop, tmp_path):  # noqa: F811
    pytest.importorskip(library)
    if library == "pyspark" and not os.environ.get("JAVA_HOME") and not _has_java():
        pytest.skip("there is no Java")
    (block,) = re.findall(rf"### {engine}\n.*?```py\n(.*?)```", SERVING, re.DOTALL)
    loaded.save_pretrained(tmp_path / "outputs" / "demo")
    ids = shop.data.catalogue.item_ids
    users = shop.data.user_ids[:24]
    histories = [[ids[row] for row in history] for history in shop.data.histories[:24]]
    table = pd.DataFrame({"user_id": users, "history": histories})
    table.to_parquet(tmp_path / "histories.parquet")
    (tmp_path / "batch.py").write_text(block)
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0", "SPARK_LOCAL_IP": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "PYSPARK_PYTHON": sys.executable, "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "batch.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if "The current node timed out during startup" in done.stderr:
        pytest.skip("Ray gives itself 30 s to start, which this machine did not")
    assert done.returncode == 0, done.stderr[-3000:]
    lists = pd.concat([pd.read_parquet(part) for part in (tmp_path / "lists").glob("*.parquet")])
    lists = lists.set_index("user_id").loc[users]
    expected = loaded.recommend(histories, top_k=10)
    assert [list(row) for row in lists.item_ids] == [[e.item_id for e in row] for row in expected]
    assert lists.scores.iloc[0].tolist() == pytest.approx([e.score for e in expected[0]], abs=1e-4)


def _has_java() -> bool:
    try:
        return subprocess.run(["java", "-version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
