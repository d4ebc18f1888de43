"""Any causal language model as the trunk, whole or with an adapter."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from trl import ModelConfig

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.nodes_ttds import TTDSHistory
from recipes.data.tables import write_data
from recipes.index.vocabulary import train_vocabulary
from recipes.tuning import build
from recipes.tuning.arguments import TTDSTrainingArguments
from recipes.tuning.examples import Examples, collate
from recipes.tuning.trainer import TTDSTrainer
from tests.conftest import ROOT, SMALL, altered, build_model, build_tokenizer

SHAPES = {
    "qwen2-tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "llama-untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "gpt2": (GPT2Config, {}),
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory, split):
    """Folders of tiny pretrained backbones with a tokenizer of their own."""
    base = train_vocabulary(split.data.catalogue.texts(), 400)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer, eos_token=base.eos_token
    )
    folder = tmp_path_factory.mktemp("backbones")
    for name, (config_class, settings) in SHAPES.items():
        widths = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
        if config_class is not GPT2Config:
            widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                      "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
        torch.manual_seed(0)
        config = config_class(vocab_size=len(tokenizer), **widths, **settings)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", SHAPES)
def test_a_backbone_keeps_its_weights_and_recommends(
    backbones, name, split, states, options, tmp_path
):
    path = str(backbones / name)
    settings = altered(options, tasks={"query": 1.0})
    tokenizer = build_tokenizer(split, settings, path)
    model = build_model(split, states, tokenizer, settings, path, seed=0)
    pretrained = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.tensor([tokenizer.encode_text("A walnut kettle")])
    assert len(ids[0]) > 2
    expected = pretrained(ids).logits
    found = model.eval()(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected)
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tied == pretrained.config.tie_word_embeddings

    examples = Examples(split, states, tokenizer, settings.examples, 0)
    batch = collate([examples[n] for n in range(8)], tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.6  # the first is the log of the children at most

    model.share_sid_table()
    model.eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    history = [entry["item_id"] for entry in model.catalogue[3:7]]
    again = TTDSForCausalLM.from_pretrained(tmp_path)
    assert again.recommend([history]) == model.recommend([history])
    every = len(model.catalogue) - len(history)
    searched = model.recommend([history], top_k=every, num_beams=every)[0]
    alone = model.recommend([history], top_k=5, allowed=[searched[7].item_id])[0]
    assert alone[0].score == pytest.approx(searched[7].score, abs=1e-5)


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied"])
def test_the_loss_starts_at_that_of_the_nodes_and_heads_learn_at_a_rate_of_their_own(
    backbones, name, split, states, options, tmp_path
):
    path = str(backbones / name)
    settings = altered(options, pair_dim=0)
    tokenizer = build_tokenizer(split, settings, path)
    model = build_model(split, states, tokenizer, settings, path, seed=0).eval()
    history = TTDSHistory(torch.rand(2, 3, model.config.vector_dim), torch.tensor([-1, -1]))
    history.profiles[1] = history.profiles[0]
    long = torch.stack([torch.zeros(32), 100 * torch.randn(32)])
    root = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        said, _ = model.node_logits(long, history, root, 0)
        vectors = model.item_reader(model.item_vectors(torch.arange(8)))
    shares = said.log_softmax(-1)
    apart = (shares[0] - shares[1]).abs().max().item()
    assert apart < 1e-3, "no state tells new codes apart"
    words = model.get_input_embeddings().weight[: model.config.sid_token_start]
    assert 0.3 < vectors.norm(dim=-1).mean() / words.norm(dim=-1).mean() < 3

    training = TTDSTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-3, head_learning_rate=1e-4
    )
    trainer = TTDSTrainer(
        model, training, examples=Examples(split, states, tokenizer, settings.examples, 0),
        split=split, refresh=settings.refresh, evaluation=settings.evaluation,
        backbone=ModelConfig(use_peft=True, lora_r=4),
    )  # fmt: skip
    rates = {
        id(weight): group["lr"]
        for group in trainer.create_optimizer().param_groups
        for weight in group["params"]
    }
    slow = {
        name
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad and rates[id(weight)] == 1e-4
    }
    for part in ("node_head", "codebook_projections", "trainable_tokens_delta"):
        assert any(part in name for name in slow), part
    assert not any("lora_" in name or "item_reader" in name for name in slow)


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied"])
def test_an_adapter_trains_sid_tokens_and_towers_and_merges(backbones, name, tmp_path, shop):
    write_data(shop.data, tmp_path / "data")
    (tmp_path / "small.yaml").write_text(SMALL)
    run = tmp_path / "run"
    command = [
        sys.executable, "recipes/sft.py", "--config", str(tmp_path / "small.yaml"),
        "--dataset_name", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache"),
        "--output_dir", str(run), "--model_name_or_path", str(backbones / name), "--use_peft",
        "--refresh_steps", "2", "--tower_weight", "1", "--tower_grad_scale", "0.1",
        "--tower_learning_rate", "1e-2", "--reranker", "false", "--memory", "false",
        "--learning_rate", "1e-2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    merged = TTDSForCausalLM.from_pretrained(run).eval()
    base = TTDSForCausalLM.from_pretrained(run / "base").eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", trust_remote_code=True)
    adapted.eval()
    start = merged.config.sid_token_start
    rows = {model: model.get_input_embeddings().weight for model in (merged, base)}
    assert torch.equal(rows[merged][:start], rows[base][:start]), "words stay as they were"
    assert not torch.equal(rows[merged][start : start + 24], rows[base][start : start + 24])
    assert torch.equal(merged.item_sids, base.item_sids), "the base carries the tuned SID table"
    names = load_file(run / "adapter" / "adapter_model.safetensors")
    assert any("item_tower.codebooks" in key for key in names)
    assert not torch.equal(merged.item_tower.codebooks, base.item_tower.codebooks)

    history = [entry["item_id"] for entry in merged.catalogue[3:7]]
    ids = torch.tensor([merged.tokenizer.encode_items(history)])
    ours, theirs = merged(input_ids=ids).logits, adapted(input_ids=ids).logits
    assert not torch.allclose(ours, base(input_ids=ids).logits, atol=1e-3)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    lists = [
        [(r.item_id, round(r.score, 3)) for r in model.recommend([history], top_k=5)[0]]
        for model in (merged, adapted.get_base_model())
    ]
    assert lists[0] == lists[1]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["tuning"]["refreshes"]


REFUSED = {
    "window": (
        "MistralConfig",
        {"sliding_window": 8, "num_key_value_heads": 1},
        "cached prompt|run",
    ),
    "bias": ("PhiConfig", {}, "without bias"),
    "alibi": ("BloomConfig", {"n_layer": 2, "n_head": 2}, "BloomModel|bloom"),
    "recurrent": ("MambaConfig", {"state_size": 4}, "mamba"),
    "convolutions": (
        "Lfm2Config",
        {
            "num_key_value_heads": 1,
            "layer_types": ["conv", "full_attention"],
            "initializer_range": 0.3,
        },
        "lfm2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_that_would_answer_wrongly_is_refused_before_anything_is_fitted(
    name, split, options, tmp_path
):
    config_name, settings, message = REFUSED[name]
    base = train_vocabulary(split.data.catalogue.texts(), 400)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer, eos_token=base.eos_token
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64}  # fmt: skip
    config = getattr(transformers, config_name)(vocab_size=len(tokenizer), **sizes | settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    path = str(tmp_path / name)
    shapes = options.index, options.language_model, options.examples
    with pytest.raises(ValueError, match=message) as refused:
        build.build_model(
            split, build.build_tokenizer(split, *shapes, path), *shapes, path, None, seed=0
        )
    assert "`model_name_or_path`" in str(refused.value) and "Llama" in str(refused.value)
