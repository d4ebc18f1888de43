"""What a run leaves behind, to be published."""

import pytest

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from recipes.config import RerankerOptions
from recipes.evaluation import report
from recipes.evaluation.report import LM_ONLY
from recipes.hub.card import data_facts
from recipes.ranking import reranker
from tests.hub_server import TOKEN

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
