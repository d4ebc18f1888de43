"""What the card of a model says."""

import json
import re
import tomllib

import yaml
from huggingface_hub import ModelCard

from recipes.hub.card import CITATION, card, data_facts, shown_name
from recipes.hub.files import model_files
from tests.conftest import ROOT


def test_card_reports_what_was_measured_and_nothing_else(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    text = model_files(folder, "org/name")["README.md"].decode()
    parsed = ModelCard(text)
    row = metrics["test"]["TTDS"]
    found = {result.metric_name: result.metric_value for result in parsed.data.eval_results}
    assert (
        found == {name: round(row[name], 4) for name in found}
        and {"NDCG@10", "HR@10"} <= found.keys()
    )
    assert parsed.data.model_name == "name" and parsed.data.library_name == "transformers"
    assert parsed.data.license == "apache-2.0" and parsed.data.datasets is None
    assert parsed.data.pipeline_tag == "text-generation" and parsed.data.language == "en"
    assert "HR@10, rare" in text and "cold" not in text.replace("benchmarks.cold_start", "").lower()
    assert f"{metrics['test']['TTDS']['cold_HR@10']:.4f} for them" in text
    assert "0.2 minutes in all" in text and "## When not to use it" in text
    assert "training.png" not in text, "no picture lies there"
    for name, row in metrics["test"].items():
        assert re.search(rf"^\| {re.escape(name)} \| {row['HR@5']:.4f} \|", text, re.M)
    measured = {f"{v:.4f}" for row in metrics["test"].values() for v in row.values()}
    assert set(re.findall(r"\b0\.\d{4}\b", text)) <= measured
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (transformers,) = (line for line in project["dependencies"] if line.startswith("transformers"))
    assert f'pip install "{transformers}" torch safetensors' in text
    assert "2409.09253" in text and "org/name" in text and metrics["hardware"] in text
    assert not re.search(r"\btrl\b|fine-tuned version|None|nan", text, re.I)


def test_card_tells_new_items_from_rare_ones(folder):
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    row = metrics["test"]["TTDS"]
    row |= {"new_users": 3, "new_HR@10": 0.3141, "cold_users": 1234, "cold_HR@10": 0.2468}
    text = card("org/name", config, metrics)
    assert "0.3141" not in text and "was not measured" in text, "three users say nothing"
    assert "1,234 users chose an item that training had seen at most 5 times" in text
    text = card("org/name", config, metrics | {"test": {"TTDS": row | {"new_users": 300}}})
    assert "300 users chose an item that nobody had chosen before; HR@10 is 0.3141" in text
    assert "was not measured" not in text and "0.2468 for them" in text


def test_card_names_the_encoder_that_new_items_need(folder):
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "Text embeddings: a table" in card("org/name", config, metrics)
    text = card("org/name", config | {"text_encoder": "them/encoder"}, metrics)
    assert "Text embeddings: by `them/encoder`" in text


def test_card_of_other_peoples_data_claims_no_licence(folder):
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"dataset": "/home/me/mine", "data": {"on_hub": False, "license": None}}
    metrics["options"]["dataset_name"] = "/home/me/mine"
    text = card("org/name", config, metrics)
    assert "license" not in ModelCard(text).data.to_dict() and "ask its owners" in text
    assert "`mine`" in text and "/home/me" not in text
    metrics |= {"dataset": "them/data", "data": {"on_hub": True, "license": "cc-by-4.0"}}
    parsed = ModelCard(card("org/name", config, metrics | {"backbone": "them/model"}))
    assert parsed.data.datasets == ["them/data"] and parsed.data.base_model == "them/model"
    own = ModelCard(card("org/name", config, metrics | {"backbone": shown_name(str(folder))}))
    assert own.data.base_model is None and "tuned from `model`" in own.text
    assert "`cc-by-4.0`" in parsed.text and "tuned from `them/model`" in parsed.text
    text = card("org/name", config, metrics | {"dataset": "toyshop"})
    assert "license" not in ModelCard(text).data.to_dict() and "No real person" not in text
    least = {
        "dataset": "toyshop",
        "validation": {"TTDS, language model only": metrics["test"]["TTDS"]},
    }
    text = card("org/name", config | {"has_reranker": False}, least)
    assert "Validation split" in text and "None" not in text and "re-ranker join" not in text


def test_card_and_citation_file_name_the_same_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"]
    paper = cited["preferred-citation"]
    bibtex = " ".join(CITATION.split())
    names = [f"{who['given-names']} {who['family-names']}" for who in paper["authors"]]
    assert f"author = {{{' and '.join(names)}}}" in bibtex
    assert f"title = {{{paper['title']}}}" in bibtex and f"{{{paper['year']}}}" in bibtex
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in bibtex


def test_licence_is_read_from_the_data_sets_own_card(shop, tmp_path):
    assert data_facts(str(tmp_path), shop.data)["license"] is None
    (tmp_path / "README.md").write_text("---\nlicense: cc0-1.0\nlanguage: [de, en]\n---\n")
    facts = data_facts(str(tmp_path), shop.data)
    assert facts["license"] == "cc0-1.0" and not facts["on_hub"]
    assert facts["language"] == ["de", "en"]
    assert facts["users"] == 150 and facts["interactions"] == sum(map(len, shop.data.histories))
