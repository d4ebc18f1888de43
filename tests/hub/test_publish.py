"""Publishing to a Hub on this machine: what leaves, and what stays."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from modeling_ttds.configuration_ttds import TTDSConfig
from recipes.config import TTDSArguments
from recipes.data.tables import write_data
from recipes.hub.files import PublishError, model_files
from recipes.hub.publishing import take_over_push
from recipes.tuning.arguments import TTDSTrainingArguments
from tests.conftest import ROOT, altered
from tests.hub.conftest import LITTER, listed, published
from tests.hub_server import TOKEN


def test_what_is_sent_is_what_the_dry_run_lists(folder, server, publish):
    printed = publish(folder, "--dry_run")
    assert not server.requests, "a dry run asks nothing of anybody"
    publish(folder)
    sent = published(server)
    assert listed(printed) == {name: len(content) for name, content in sent.items()}
    assert len(server.repos["model", "org/name"].commits) == 2, "the first is the Hub's own"
    suffixes = {".safetensors", ".json", ".jsonl", ".py", ".md", ".txt"}
    assert {Path(name).suffix for name in sent} == suffixes
    assert not set(sent) & (LITTER.keys() - {"README.md"})
    assert not any(name.startswith("run") for name in sent)
    code = {file.name for file in (ROOT / "modeling_ttds").glob("*_ttds.py")}
    assert {name for name in sent if name.endswith(".py")} == code | {"handler.py"}
    made = {"README.md", "config.json", "metrics.json", "handler.py", "requirements.txt"}
    for name in sent.keys() - made:
        assert sent[name] == (folder / name).read_bytes(), name
    assert json.loads(sent["config.json"]) == json.loads((folder / "config.json").read_text())


def test_no_byte_names_a_user_or_a_place_on_this_machine(folder, server, publish, shop, split):
    publish(folder)
    everything = b"\n".join(published(server).values())
    assert not [user for user in shop.data.user_ids if user.encode() in everything]
    assert str(folder).encode() not in everything and TOKEN.encode() not in everything
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    assert not [name for name, shape in shapes.items() if len(split.data.user_ids) in shape]

    publish(folder, "--include_user_lists")
    asked_for = published(server)["run.jsonl"]
    assert all(shop.data.user_ids[user].encode() in asked_for for user in split.users("test"))
    publish(folder)
    assert "run.jsonl" not in published(server), "what is no longer meant to be there goes"


def test_pairs_of_single_users_leave_only_when_told_to(folder, server, publish, tmp_path):
    other = tmp_path / "toyshop"
    shutil.copytree(folder, other)
    metrics = json.loads((folder / "metrics.json").read_text())

    def check(refused):
        remedy = "Train with --min_pair_users 5, or pass --allow_rare_pairs"
        with pytest.raises(PublishError, match=remedy) if refused else nullcontext():
            model_files(other, "org/name")

    for name, least, refused in (
        (None, 1, False),  # nobody is behind the generated data
        ("mine", 2, False),
        ("mine", 1, True),
        (str(other), 1, True),  # a folder of the name of the generated data
    ):
        metrics["dataset"] = "toyshop" if name is None else Path(name).name
        metrics["options"] |= {"dataset_name": name, "min_pair_users": least}
        (other / "metrics.json").write_text(json.dumps(metrics))
        check(refused)
    assert "--allow_rare_pairs" in publish(other, ok=False)
    assert not server.requests
    publish(other, "--allow_rare_pairs")
    assert "model.safetensors" in published(server)

    del metrics["options"]
    (other / "metrics.json").write_text(json.dumps(metrics | {"dataset": "mine"}))
    check(True)  # what is not known is 1
    config = TTDSConfig.from_pretrained(other)
    for part, refused in (("has_reranker", True), ("has_priors", False)):  # priors need it too
        setattr(config, part, False)
        config.save_pretrained(other)
        check(refused)


# The Space


def test_space_holds_the_page_and_names_the_model(folder, server, publish, tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    copied = {"root": tmp_path, "PYTHONPATH": str(tmp_path)}
    printed = publish(folder, "--space", "org/demo", **copied, ok=False)
    assert "app.py is missing" in printed and not server.repos
    (tmp_path / "app.py").write_text("import gradio, torch, transformers\n")
    printed = publish(folder, "--space", "org/demo", **copied)
    space = server.repos["space", "org/demo"]
    files = published(server, "space", "org/demo")
    assert set(files) == {"app.py", "requirements.txt", "README.md"}
    assert set(listed(printed)) == set(files) | set(published(server))
    assert len(space.commits) == 2 and space.sdk == "gradio"
    assert space.variables == {"TTDS_MODEL": "org/name"}
    assert files["app.py"] == (tmp_path / "app.py").read_bytes()
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert metadata["sdk"] == "gradio" and metadata["sdk_version"] == version("gradio")
    assert metadata["app_file"] in files and metadata["models"] == ["org/name"]
    lines = files["requirements.txt"].decode().splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in lines}
    assert {"torch", "transformers", "safetensors", "gradio"} <= names and "trl" not in names


# At the end of a run


def test_run_that_could_not_publish_does_not_start(tmp_path):
    wishes = {"output_dir": str(tmp_path), "use_cpu": True, "push_to_hub": True}
    generated, named = TTDSArguments(), altered(TTDSArguments(), dataset_name="mine")

    def take_over(options, **wishes):
        training = TTDSTrainingArguments(**wishes)
        return take_over_push(training, options.data, options.reranker, options.output)

    with pytest.raises(PublishError, match="pass --hub_model_id"):
        take_over(generated, **wishes)
    wishes |= {"hub_model_id": "org/run", "hub_token": TOKEN}
    for options in (named, altered(named, reranker=False)):
        with pytest.raises(PublishError, match="Train with --min_pair_users 5"):
            take_over(options, **wishes)
    for options in (
        generated,
        altered(named, min_pair_users=2),
        altered(named, memory=False, reranker=False),
        altered(named, allow_rare_pairs=True),
    ):
        with pytest.raises(PublishError, match="unset it"):  # tests run offline
            take_over(options, **wishes)
    assert take_over(named, **wishes | {"push_to_hub": False}) is None


RUN = """
text_dim: 16
collaborative_dim: 16
num_levels: 3
num_codes: 8
code_dim: 8
tower_epochs: 1
reranker: false
min_pair_users: 2
vocab_size: 400
hidden_size: 16
num_layers: 1
num_heads: 2
max_history: 4
num_beams: 20
eval_users: 10
num_train_epochs: 1
per_device_train_batch_size: 64
disable_tqdm: true
use_cpu: true
"""


def test_run_publishes_once_at_its_end(shop, server, environment, tmp_path):
    write_data(shop.data, tmp_path / "data")
    (tmp_path / "run.yaml").write_text(RUN)
    environment.pop("HF_TOKEN")
    command = [
        sys.executable, "recipes/sft.py", "--config", str(tmp_path / "run.yaml"),
        "--dataset_name", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache"),
        "--output_dir", str(tmp_path / "out"), "--push_to_hub", "--hub_model_id", "org/run",
        "--hub_token", TOKEN, "--hub_private_repo", "true",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    asked = [path for _, path in server.requests]
    assert asked[:2] == ["/api/whoami-v2", "/api/repos/create"], "nothing while it trains"
    assert len(server.repos["model", "org/run"].commits) == 2
    assert server.repos["model", "org/run"].private
    files = model_files(tmp_path / "out", "org/run")
    contents = {n: s if isinstance(s, bytes) else s.read_bytes() for n, s in files.items()}
    assert published(server, name="org/run") == contents
    assert (tmp_path / "out" / "README.md").read_bytes() == contents["README.md"]
    everything = b"\n".join(contents.values())
    assert not [user for user in shop.data.user_ids if user.encode() in everything]
    assert str(tmp_path).encode() not in everything
    left = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any(file.name == "training_args.bin" for file in left)
    assert not [file for file in left if TOKEN.encode() in file.read_bytes()]
