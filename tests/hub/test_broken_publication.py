"""Publishing to a Hub on this machine: what breaks, and what is refused."""

import json
import re
import shutil

import pytest

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.hub.files import PublishError, model_files
from tests.conftest import ROOT
from tests.hub.conftest import listed, published
from tests.hub_server import READ_ONLY


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
