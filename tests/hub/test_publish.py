"""Publishing to a Hub on this machine: what leaves, what stays, what breaks, what loads."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from modeling_ttds.configuration_ttds import TTDSConfig
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import TTDSArguments
from recipes.data.tables import write_data
from recipes.hub.files import PublishError, model_files
from recipes.hub.publishing import take_over_push
from recipes.tuning.arguments import TTDSTrainingArguments
from tests.conftest import ROOT, altered
from tests.hub.conftest import LITTER
from tests.hub_server import READ_ONLY, TOKEN, HubServer


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


# What leaves


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
    for name, least, refused in (
        (None, 1, False),  # nobody is behind the generated data
        ("mine", 2, False),
        ("mine", 1, True),
        (str(other), 1, True),  # a folder of the name of the generated data
    ):
        metrics["dataset"] = "toyshop" if name is None else Path(name).name
        metrics["options"] |= {"dataset_name": name, "min_pair_users": least}
        (other / "metrics.json").write_text(json.dumps(metrics))
        printed = publish(other, "--dry_run", ok=not refused)
        assert ("Train with --min_pair_users 5, or pass --allow_rare_pairs" in printed) == refused
    publish(other, ok=False)
    assert not server.requests
    publish(other, "--allow_rare_pairs")
    assert "model.safetensors" in published(server)

    del metrics["options"]
    (other / "metrics.json").write_text(json.dumps(metrics | {"dataset": "mine"}))
    assert "--allow_rare_pairs" in publish(other, "--dry_run", ok=False), "what is not known is 1"
    config = TTDSConfig.from_pretrained(other)
    for part, refused in (("has_reranker", True), ("has_priors", False)):  # priors need it too
        setattr(config, part, False)
        config.save_pretrained(other)
        assert ("--allow_rare_pairs" in publish(other, "--dry_run", ok=not refused)) == refused


# What breaks


def test_second_publication_changes_nothing(folder, server, publish):
    publish(folder)
    commits = list(server.repos["model", "org/name"].commits)
    server.requests.clear()
    publish(folder)
    assert server.repos["model", "org/name"].commits == commits
    assert not [path for method, path in server.requests if method == "PUT" or "/commit/" in path]


@pytest.mark.parametrize("status", [None, 500], ids=["dropped", "500"])
def test_broken_publication_is_completed_by_the_next(folder, server, publish, status):
    server.fail("POST", "/commit/", status)
    printed = publish(folder, ok=False)
    assert "org/name was not published" in printed and "Publish again" in printed
    assert not published(server), "all or nothing"
    publish(folder)
    assert set(published(server)) == set(listed(publish(folder, "--dry_run")))
    assert len(server.repos["model", "org/name"].commits) == 2
    assert [method for method, _ in server.requests].count("PUT") == 1, "weights went once"


def test_upload_cut_in_the_middle_is_repeated(folder, server, publish):
    server.fail("PUT", "/lfs/", None)
    server.fail("POST", "/preupload/", 500)
    publish(folder)
    assert [method for method, _ in server.requests].count("PUT") == 2
    weights = published(server)["model.safetensors"]
    assert weights == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("variables", "repo_id", "remedy"),
    [
        ({"HF_TOKEN": None}, "org/name", "hf auth login"),
        ({"HF_TOKEN": "hf_" + "Wrong" * 7}, "org/name", "hf auth login"),
        ({"HF_TOKEN": READ_ONLY}, "org/name", "right to write for org"),
        ({}, "other/name", "right to write for other"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "org/name", "127.0.0.1:9 broke"),
        ({"HF_HUB_OFFLINE": "1"}, "org/name", "unset it"),
        ({}, "name", "OWNER/NAME"),
        ({}, "org/na me", "`repo_id` is 'org/na me'"),
    ],
)
def test_refusals_say_what_to_do(folder, server, publish, variables, repo_id, remedy):
    printed = publish(folder, repo_id=repo_id, ok=False, **variables)
    assert remedy in printed
    assert not server.repos


def test_refused_upload_and_missing_repository(folder, server, publish):
    server.fail("PUT", "/lfs/", 403)
    assert "right to write for org" in publish(folder, ok=False)
    server.fail("POST", "/preupload/", 404)
    assert "check the spelling" in publish(folder, ok=False)
    server.fail("POST", "/preupload/", 413)
    assert "answered 413: Injected failure" in publish(folder, ok=False)
    assert not published(server)


def test_private_stays_private(folder, server, publish):
    publish(folder, "--private", repo_id="org/secret")
    assert server.repos["model", "org/secret"].private
    publish(folder, repo_id="org/open")
    before = server.repos["model", "org/open"].commits[-1]
    printed = publish(folder, "--private", "--include_user_lists", repo_id="org/open", ok=False)
    assert "org/open is there and public" in printed
    assert server.repos["model", "org/open"].commits[-1] == before


def remove(name):
    return lambda folder: (folder / name).unlink()


def rewrite(name, **values):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "has no config.json; name a folder that recipes/sft.py wrote"),
        (remove("config.json"), "has no config.json"),
        (remove("metrics.json"), "lacks metrics.json; measure the model by recipes/evaluate.py"),
        (remove("model.safetensors"), "has no weights as safetensors"),
        (remove("towers_ttds.py"), "lacks towers_ttds.py; save model and tokenizer again"),
        (remove("pipeline_ttds.py"), "lacks pipeline_ttds.py"),
        (remove("tokenizer.json"), "lacks tokenizer.json"),
        (rewrite("config.json", model_type="llama"), "holds a 'llama' model"),
        (rewrite("config.json", text_encoder=str(ROOT)), "`text_encoder` is the folder"),
        (rewrite("metrics.json", test={}), "has no rows under `test`"),
    ],
)
def test_folder_that_is_not_whole_is_refused(folder, tmp_path, change, message):
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    change(broken)
    with pytest.raises(PublishError, match=re.escape(message)):
        model_files(broken, "org/name")


def test_shards_replace_what_was_whole(folder, server, publish, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded)
    (sharded / "model.safetensors").unlink()
    TTDSForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="200KB")
    publish(folder)
    publish(sharded)
    weights = {name for name in published(server) if name.startswith("model")}
    assert weights == {file.name for file in sharded.glob("model*") if file.suffix != ".py"} | {
        "modeling_ttds.py"
    }
    assert "model.safetensors" not in weights and len(weights) > 3
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(PublishError, match="lacks model-00002"):
        model_files(sharded, "org/name")


def test_half_precision_spares_no_part_of_the_language_model(folder):
    names = [f"model.layers.0.{name}" for name in ("mlp.gate_proj.weight", "mlp.gate.weight")]
    spared = TTDSForCausalLM.from_pretrained(folder)._keep_in_fp32_modules_strict
    assert not [name for name in names if any(re.search(pattern, name) for pattern in spared)]
    assert any(re.search(pattern, "reranker.layers.0.weight") for pattern in spared)


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


def test_space_that_broke_is_completed_and_a_private_one_is_told_of_its_token(
    folder, server, publish
):
    server.fail("POST", "/api/spaces/.*/commit/", 500)
    assert "org/demo was not published" in publish(folder, "--space", "org/demo", ok=False)
    assert not published(server, "space", "org/demo")
    assert "HF_TOKEN" not in publish(folder, "--space", "org/demo")
    assert set(published(server, "space", "org/demo")) == {
        "app.py",
        "requirements.txt",
        "README.md",
    }
    assert [len(repo.commits) for repo in server.repos.values()] == [2, 2]
    printed = publish(folder, "--space", "org/hidden", "--private", repo_id="org/secret")
    assert "add a secret HF_TOKEN, a token that may read org/secret" in printed


# Loading

LOAD = """
import json, sys
for name in ("modeling_ttds", "recipes"):
    sys.modules[name] = None  # importing it raises, even where it is installed
import torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
first, out = sys.argv[1:]
remote = {"trust_remote_code": True}

def same(ours, theirs):
    # A batch rounds otherwise than a single row.
    def names(lists): return [[entry["item_id"] for entry in entries] for entries in lists]
    def scores(lists): return torch.tensor([e["score"] for entries in lists for e in entries])
    torch.testing.assert_close(scores(ours), scores(theirs), rtol=1e-4, atol=1e-4)
    return names(ours) == names(theirs)

config = AutoConfig.from_pretrained("org/name", **remote)
model = AutoModel.from_pretrained("org/name", **remote).eval()
history = [entry["item_id"] for entry in model.catalogue[3:6]]
expected = model.recommend([history, []], top_k=5)
causal = AutoModelForCausalLM.from_pretrained("org/name", device_map="cpu", **remote).eval()
assert causal.recommend([history, []], top_k=5) == expected
tokenizer = AutoTokenizer.from_pretrained("org/name", **remote)
assert tokenizer.decode_items(tokenizer.encode_items(history)) == history
assert config.num_items == len(model.catalogue) == len(expected[0]) + 66

# Revisions: the first commit has one item more.
old = AutoModel.from_pretrained("org/name", revision=first, **remote).eval()
assert len(old.catalogue) == len(model.catalogue) + 1
gone = old.catalogue[-1]["item_id"]
assert gone in old.row_of and gone not in model.row_of
assert old.tokenizer.decode_items(old.tokenizer.encode_items([gone])) == [gone]
old_pipeline = pipeline(model="org/name", revision=first, **remote)
assert len(old_pipeline({"history": [gone]})) == 10

# Half precision halves the language model; codes, and so users, stay the same.
half = AutoModel.from_pretrained("org/name", dtype=torch.bfloat16, **remote).eval()
assert half.dtype == torch.bfloat16
assert all(p.dtype == torch.bfloat16 for p in (*half.model.parameters(), half.lm_head.weight))
rows = torch.tensor([[3, 4, 5], [-1, 7, 2]])
assert half.sids_of_users(rows).equal(model.sids_of_users(rows))
for rerank in (True, False):
    ours, theirs = (m.recommend([history], 5, rerank=rerank)[0] for m in (half, model))
    assert all(abs(a.score - b.score) < 0.1 for a, b in zip(ours, theirs))
new = {"item_id": "new", "title": "A walnut kettle"}
half.add_items([new])

# The pipeline.
recommend = pipeline(model="org/name", **remote)
one = recommend({"history": history, "top_k": 5})
assert one[0].keys() == {"item_id", "title", "score"} and one[0]["title"]
plain = [[vars(entry) for entry in entries] for entries in expected]
assert same([one], plain[:1])
assert recommend([{"history": history, "top_k": 5}, {"history": [], "top_k": 5}]) == plain
requests = [{"history": history[:n], "top_k": 3 + n} for n in (0, 1, 2, 3) * 5]
whole = recommend(requests)
assert same(whole, recommend(requests, batch_size=3))
assert same(whole, [recommend(request) for request in requests])
assert [len(entries) for entries in whole] == [3, 4, 5, 6] * 5
assert same(whole, list(recommend((r for r in requests), batch_size=7)))
assert recommend([]) == []
assert len(recommend({"history": ["?"] + history}, unknown="skip", rerank=False, top_k=2)) == 2
for request, message in [("x", "must be {"), ({"history": "x"}, "must be {"),
                         ({"history": ["?"]}, "unknown item '?'"),
                         ({"history": [], "topk": 1}, "'topk'"),
                         ({"history": [], "top_k": 0}, "`top_k` is 0")]:
    try:
        recommend(request)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(request)

# Save and load again, from every way of loading; a chain changes nothing.
recommend.save_pretrained(out + "/a")
again = AutoModel.from_pretrained(out + "/a", **remote).eval()
again.save_pretrained(out + "/b")
tokenizer.save_pretrained(out + "/b")
assert pipeline(model=out + "/b", **remote)({"history": history, "top_k": 5}) == one
half.save_pretrained(out + "/half")
assert AutoModel.from_pretrained(out + "/half", **remote).lm_head.weight.dtype == torch.bfloat16

# A commit after loading does not reach a model that is loaded.
held = AutoModel.from_pretrained("org/name", **remote), type(model).from_pretrained("org/name")
HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="sid_table.json", repo_id="org/name")
for loaded in held:
    assert loaded.tokenizer.decode_items(loaded.tokenizer.encode_items(history)) == history

# What the card tells a reader to run.
card = open(hf_hub_download("org/name", "README.md")).read()
snippet = card.split("```python\\n")[1].split("```")[0]
exec(snippet, {})
print("all of it")
"""


def test_published_model_loads_in_every_way(folder, server, publish, environment, tmp_path):
    publish(folder)
    first = server.repos["model", "org/name"].commits[-1][0]
    model = TTDSForCausalLM.from_pretrained(folder)
    model.remove_items([model.catalogue[-1]["item_id"]])
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    model.save_pretrained(second)
    model.tokenizer.save_pretrained(second)
    publish(second)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, first, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all of it\n")
    printed = re.findall(r"^ *-\d+\.\d\d  \S", done.stdout, re.M)
    assert len(printed) == 5, "the card's code prints a list"
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {file.name for file in (tmp_path / "b").iterdir()}
    beside = {"README.md", "metrics.json", "handler.py", "requirements.txt"}
    assert files == set(published(server)) - beside
    for name in files - {"model.safetensors"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


PRIVATE = """
import os, sys
from transformers import AutoModel
where = {"token": os.environ.pop("TOKEN_IN_HAND"), "cache_dir": sys.argv[1] + "/elsewhere"}
model = AutoModel.from_pretrained("org/name", trust_remote_code=True, **where)
model.add_items([{"item_id": "new", "title": "A walnut kettle"}])  # needs the tokenizer
assert len(model.recommend([["new"]], top_k=5)[0]) == 5
model.save_pretrained(sys.argv[1] + "/saved")
"""


def test_token_in_hand_opens_a_private_repository(folder, server, publish, environment, tmp_path):
    publish(folder, "--private")
    del environment["HF_TOKEN"]
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE, str(tmp_path)], cwd=tmp_path, capture_output=True,
        env=environment | {"TOKEN_IN_HAND": TOKEN}, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    assert not [f for f in (tmp_path / "saved").iterdir() if TOKEN.encode() in f.read_bytes()]


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
