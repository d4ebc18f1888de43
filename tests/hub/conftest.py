"""What a run leaves behind, a Hub to publish it on, and the verb that does."""

import os
import re
import subprocess
import sys

import pytest

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import RerankerOptions
from recipes.evaluation import report
from recipes.evaluation.report import LM_ONLY
from recipes.hub.card import data_facts
from recipes.ranking import reranker
from tests.conftest import ROOT
from tests.hub_server import READ_ONLY, TOKEN, HubServer

LITTER = {
    "checkpoint-10/model.safetensors": b"a checkpoint",
    "checkpoint-10/optimizer.pt": b"\x80\x04pickle",
    "training_args.bin": b"\x80\x04pickle",
    "pytorch_model.bin": b"\x80\x04pickle",
    "user_sids.safetensors": b"user-00000",
    "interactions.parquet": b"user-00000",
    "trainer_state.json": b"{}",
    ".env": f"HF_TOKEN={TOKEN}".encode(),
    "README.md": b"This model is a fine-tuned version of [None](https://hf.co/None).",
}


@pytest.fixture(scope="package")
def folder(built, split, shop, options, tmp_path_factory):
    """What a run leaves: a model with a re-ranker, metrics, lists by user id, and litter."""
    folder = tmp_path_factory.mktemp("run") / "model"
    built.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    model = TTDSForCausalLM.from_pretrained(folder).eval()
    rows, lists = reranker.join(
        model, model, split, RerankerOptions(min_pair_users=2), num_beams=20, seed=0
    )
    rows["test"][LM_ONLY]["unique_sids"] = report.unique_sids(model)
    rows["test"] |= report.baseline_rows(split, "test", shop)
    model.save_pretrained(folder)
    facts = {
        "dataset": "toyshop",
        "data": data_facts(None, shop.data),
        "data_sha256": shop.data.sha256,
        "backbone": None,
        "seed": 0,
        "options": options.flat() | {"cache_dir": str(folder / "cache"), "min_pair_users": 2},
        "towers": {},
        "hardware": report.hardware(),
        "seconds": 12.3,
    }
    report.write_json(folder / "metrics.json", facts | rows)
    for row, found in lists.items():
        report.write_run(
            report.lists_folder(folder) / report.run_file(row, lists), split, "test", found
        )
    for name, content in LITTER.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def server():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def environment(server, tmp_path):
    """What a process needs to meet this Hub and no other."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONPATH"))}
    return kept | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def publish(environment):
    """Return a function that runs the verb and returns what it printed."""

    def run(folder, *arguments, repo_id="org/name", ok=True, root=ROOT, **variables):
        environ = {k: v for k, v in (environment | variables).items() if v is not None}
        command = [sys.executable, "recipes/publish.py", str(folder), "--repo_id", repo_id]
        done = subprocess.run(
            [*command, *arguments], cwd=root, env=environ, capture_output=True, text=True
        )
        printed = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, printed[-3000:]
        assert "Traceback" not in printed, printed[-3000:]
        assert TOKEN not in printed and READ_ONLY not in printed
        return printed

    return run


def listed(printed: str) -> dict[str, int]:
    found = re.findall(r"^ +([\d,]+)  (\S+)$", printed, re.M)
    return {name: int(size.replace(",", "")) for size, name in found}


def published(server, kind="model", name="org/name") -> dict[str, bytes]:
    return {k: v for k, v in server.repos[kind, name].files().items() if k != ".gitattributes"}
