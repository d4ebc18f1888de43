"""What transformers, accelerate, PEFT and plain Trainer may expect of a model of theirs."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModel, CompileConfig, Trainer, TrainingArguments
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from modeling_ttds import TTDSConfig, TTDSForCausalLM
from modeling_ttds.configuration_ttds import placeholder_ids
from modeling_ttds.prefix_ttds import CACHE
from tests.model.test_generation import LEVELS, SHAPES, START, make_model, spelt

IDS = torch.tensor([[5, *spelt(3), 7, *spelt(8)[:2]]])  # words, an item, and a part of another


@pytest.fixture(params=SHAPES)
def model(request):
    return make_model(request.param)


@pytest.fixture
def llama():
    return make_model()


@torch.no_grad()
def test_rows_of_the_embedding_matrix_are_as_good_as_ids(model):
    rows = model.get_input_embeddings()(IDS)
    assert model.ids_of(rows).tolist() == [[i if i >= START else -100 for i in IDS[0].tolist()]]
    expected = model(input_ids=IDS).logits
    assert torch.equal(model(inputs_embeds=rows).logits, expected)
    own = rows.clone()
    own[0, 1] += 1e-6  # a vector of one's own is no SID token
    assert model.ids_of(own)[0, 1] == -100
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    generated = model.generate(input_ids=IDS, **options)[:, IDS.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=rows, **options), generated)


@torch.no_grad()
def test_ids_beside_embeddings_do_not_count_twice(model):
    ids = torch.tensor([[5, *spelt(3), 7, *spelt(8), 6], [*spelt(1), 7, *spelt(2), 6, 5]])
    rows = model.get_input_embeddings()(ids)
    options = {
        "max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "num_beams": 2,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    expected = torch.stack(model.generate(input_ids=ids, **options).logits)
    for given in ({"inputs_embeds": rows}, {"inputs_embeds": rows, "input_ids": ids}):
        found = torch.stack(model.generate(**given, **options).logits)
        torch.testing.assert_close(found, expected)


def test_prompt_tuning_sees_items_behind_its_virtual_tokens(model):
    virtual = torch.tensor([[9, 11, 13]])
    expected = model(input_ids=torch.cat([virtual, IDS], 1)).logits
    start = model.get_input_embeddings()(virtual[0]).detach().clone()
    tuned = get_peft_model(
        model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    prompt = tuned.prompt_encoder["default"].embedding.weight
    prompt.data.copy_(start)
    found = tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(found, expected)
    tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss.backward()
    assert prompt.grad.abs().sum() > 0
    named = torch.tensor([[5, *placeholder_ids("item", 3, LEVELS), *IDS[0, 1 + LEVELS :]]])
    answers = [
        tuned.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
        )
        for ids in (model.bind(named), named)
    ]
    assert torch.equal(*answers)


@torch.no_grad()
def test_left_padding_changes_nothing(model):
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS], 1)
    mask = (torch.arange(padded.shape[1]) >= 4).long()[None]
    options = {
        "max_new_tokens": 4, "do_sample": False, "eos_token_id": None,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    alone = model.generate(input_ids=IDS, **options)
    beside = model.generate(input_ids=padded, attention_mask=mask, **options)
    assert torch.equal(beside.sequences[:, 4:], alone.sequences)
    for found, expected in zip(beside.logits, alone.logits, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_static_cache_gives_the_same(model):
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    static = options | {"cache_implementation": "static", "disable_compile": True}
    for given in ({"input_ids": IDS}, {"inputs_embeds": model.get_input_embeddings()(IDS)}):
        assert torch.equal(model.generate(**given, **static), model.generate(**given, **options))


@torch.no_grad()
@pytest.mark.parametrize("shape", ["llama untied", "gpt2"])
def test_the_graph_of_a_loaded_model_is_exported_whole(shape, tmp_path):
    make_model(shape).save_pretrained(tmp_path)
    model = TTDSForCausalLM.from_pretrained(tmp_path)
    graph = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False}).module()
    other = torch.cat([IDS[:, 4:], IDS[:, :4]], 1)
    assert other.tolist() != IDS.tolist()
    for ids in (IDS, other, torch.tensor([placeholder_ids("item", 5, LEVELS) * 2 + [7]])):
        found = graph(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, model(input_ids=ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_model_is_traced_without_a_break(llama):
    compiled = torch.compile(llama, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="call `prepare_tracing`"):
        compiled(input_ids=IDS)
    llama.prepare_tracing()
    expected = llama(input_ids=IDS).logits
    torch.testing.assert_close(compiled(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)
    made = llama.generate(input_ids=IDS, max_new_tokens=4, eos_token_id=None, do_sample=False)
    static = llama.generate(
        input_ids=IDS, max_new_tokens=4, eos_token_id=None, do_sample=False,
        cache_implementation="static", disable_compile=True,
    )  # fmt: skip
    assert torch.equal(static, made)


@torch.no_grad()
@torch.no_grad()
def test_users_are_bound_without_a_break_whatever_the_mode_of_their_tower(llama):
    llama.attach_users(torch.tensor([[1, 2, 3, 4], [-1, 5, 6, 7]]))
    llama.prepare_tracing()
    ids = torch.tensor([[5, *placeholder_ids("user", 1, 3), 6, *placeholder_ids("item", 3, 3), 2]])
    expected = llama.bind(ids)
    for training in (False, True):
        torch._dynamo.reset()
        llama.refreshed_tower.train(training)
        assert torch.equal(
            torch.compile(llama.bind, fullgraph=True, backend="eager")(ids), expected
        )
        assert all(part.training == training for part in llama.refreshed_tower.modules())


def test_what_has_run_once_is_traced_and_an_old_catalogue_is_not(llama):
    compiled = torch.compile(llama, fullgraph=True, backend="eager")
    expected = llama(input_ids=IDS).logits
    torch.testing.assert_close(compiled(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)
    llama.remove_items(["i1"])
    with pytest.raises(Exception, match="call `prepare_tracing`"):
        compiled(input_ids=IDS)
    changed = llama(input_ids=IDS).logits
    assert not torch.allclose(changed, expected, atol=1e-3)
    torch.testing.assert_close(compiled(input_ids=IDS).logits, changed, atol=1e-5, rtol=0)


@torch.no_grad()
def test_generate_compiles_once_for_each_catalogue(llama):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_config = CompileConfig(backend=keep, mode=None, fullgraph=True, dynamic=False)
    compile_config._compile_all_devices = True
    options = {
        "max_new_tokens": 4, "eos_token_id": None, "do_sample": False,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    static = options | {"cache_implementation": "static", "compile_config": compile_config}
    found = []
    for gone in ([], ["i1", "i4", "i7"]):
        llama.remove_items(gone)
        compiled = llama.generate(input_ids=IDS, **static)
        plain = llama.generate(input_ids=IDS, **options)
        assert torch.equal(compiled.sequences, plain.sequences)
        logits = torch.stack(plain.logits)
        torch.testing.assert_close(torch.stack(compiled.logits), logits, atol=1e-5, rtol=0)
        found.append(logits)
        assert len(graphs) == len(found), "one for all tokens"
    assert not torch.allclose(*found, atol=1e-3)


def test_whether_a_cache_is_kept_is_set_in_the_configuration_of_the_whole(model, tmp_path):
    assert model.config.use_cache and model(input_ids=IDS).get(CACHE) is not None
    model.config.use_cache = False
    assert model(input_ids=IDS).get(CACHE) is None
    model.config.save_pretrained(tmp_path)
    assert not TTDSConfig.from_pretrained(tmp_path).backbone_config.use_cache


@torch.no_grad()
@pytest.mark.parametrize("how", ["auto", "cpu_offload", "disk_offload", "dispatch_model"])
def test_an_offloaded_model_gives_the_same(how, tmp_path):
    model = make_model("qwen2 tied")
    expected = model(input_ids=IDS).logits
    lists = model.recommend([["i1", "i2"], []], top_k=3)
    model.save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "offloaded")
    if how == "auto":
        spread = {"device_map": "auto", "max_memory": {"cpu": "100KB"}, "offload_folder": folder}
        model = TTDSForCausalLM.from_pretrained(tmp_path / "model", **spread)
        assert "disk" in model.hf_device_map.values()
    elif how == "dispatch_model":
        places = {name: "cpu" for name, _ in model.named_children()}
        places |= {name: "cpu" for name, _ in model.named_buffers(recurse=False)}
        places |= dict.fromkeys(("item_tower", "user_tower", "codebook_projections"), "disk")
        dispatch_model(model, places, main_device="cpu", offload_dir=folder)
    else:
        offload = {"cpu_offload": cpu_offload, "disk_offload": disk_offload}[how]
        offload(model, *([folder] if how == "disk_offload" else []), execution_device="cpu")
    assert model.item_tower.codebooks.is_meta
    torch.testing.assert_close(model(input_ids=IDS).logits, expected)
    assert model.recommend([["i1", "i2"], []], top_k=3) == lists
    assert model.item_tower.codebooks.is_meta, "what is put away stays there"


def test_a_tuple_and_shifted_labels(llama):
    out = llama(input_ids=IDS, labels=IDS)
    loss, logits = llama(input_ids=IDS, labels=IDS, return_dict=False)[:2]
    assert torch.equal(loss, out.loss) and torch.equal(logits, out.logits)
    assert torch.equal(llama(input_ids=IDS, return_dict=False)[0], out.logits)
    shifted = torch.cat([IDS[:, 1:], torch.full((1, 1), -100)], 1)
    assert torch.equal(llama(input_ids=IDS, shift_labels=shifted).loss, out.loss)
    wrong = llama(input_ids=IDS, shift_labels=IDS).loss
    assert wrong != out.loss
    assert torch.equal(llama(input_ids=IDS, labels=IDS, shift_labels=shifted).loss, out.loss)


def test_the_cache_goes_by_either_name(llama):
    first = llama(input_ids=IDS[:, :-1], use_cache=True)
    rest = {"input_ids": IDS[:, -1:], "context_ids": IDS}
    expected = llama(input_ids=IDS).logits[:, -1]
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
        found = llama(**rest, past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(found, expected)
    assert llama(input_ids=IDS, use_cache=False).cache is None


@torch.no_grad()
def test_what_a_cache_does_not_tell_is_warned_of(llama, recwarn):
    expected = llama(input_ids=IDS).logits[:, -1]
    first = llama(input_ids=IDS[:, :-1], use_cache=True)
    found = llama(input_ids=IDS[:, -1:], context_ids=IDS, cache=first.cache).logits[:, -1]
    torch.testing.assert_close(found, expected)
    llama.generate(input_ids=IDS, max_new_tokens=3)
    assert not [warning for warning in recwarn if "context_ids" in str(warning.message)]
    first = llama(input_ids=IDS[:, :-1], use_cache=True)
    with pytest.warns(UserWarning, match=f"holds {IDS.shape[1] - 1} positions and `context_ids`"):
        found = llama(input_ids=IDS[:, -1:], cache=first.cache).logits[:, -1]
    assert not torch.allclose(found, expected)


def test_plain_trainer_evaluates_logits(llama, tmp_path):
    seen = []
    rows = Dataset.from_dict({"input_ids": IDS.tolist() * 4, "labels": IDS.tolist() * 4})
    trainer = Trainer(
        llama,
        TrainingArguments(str(tmp_path), report_to=[], use_cpu=True),
        eval_dataset=rows,
        compute_metrics=lambda result: seen.append(result.predictions) or {},
    )
    trainer.evaluate()
    assert isinstance(seen[0], np.ndarray) and seen[0].shape == (4, IDS.shape[1], 192)
    np.testing.assert_allclose(seen[0][0], llama(input_ids=IDS).logits[0].detach(), atol=1e-5)


def test_labels_that_a_trainer_smoothes_are_shifted_and_what_it_misses_is_said(llama, tmp_path):
    ids = torch.cat([IDS[:, :3], IDS.flip(1)], 1)
    log_probs = llama(input_ids=ids).logits[0, :-1].log_softmax(-1)
    plain = -log_probs.gather(1, ids[0, 1:, None]).mean()
    expected = 0.9 * plain - 0.1 * log_probs.mean()
    trainer = Trainer(
        llama, TrainingArguments(tmp_path, report_to=[], use_cpu=True, label_smoothing_factor=0.1)
    )
    batch = {"input_ids": ids, "labels": ids}
    torch.testing.assert_close(trainer.compute_loss(llama, dict(batch)), expected)
    with pytest.warns(UserWarning, match="comes without `labels`: a loss .* whole vocabulary"):
        trainer.training_step(llama, dict(batch), num_items_in_batch=torch.tensor(ids.shape[1]))


def test_the_configuration_reads_the_backbone_s_shape_through(model):
    config, backbone = model.config, model.config.backbone_config
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config, name) == getattr(backbone, name)
    config.vocab_size = 193
    assert backbone.vocab_size == 193
    loaded = type(config).from_dict(config.to_dict() | {"vocab_size": 5})
    assert loaded.vocab_size == 193, "the backbone's own counts"
    assert hasattr(config, "num_key_value_heads") == hasattr(backbone, "num_key_value_heads")


def test_a_plain_backbone_s_folder_is_a_backbone(llama, tmp_path):
    llama.model.save_pretrained(tmp_path)
    found, loading = TTDSForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not [key for key in loading["missing_keys"] if key.startswith("model.")]
    assert "item_tower.codebooks" in loading["missing_keys"]
    for name, weight in llama.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight)


def test_engines_with_a_head_of_their_own_are_told_no():
    assert not TTDSForCausalLM.is_backend_compatible()
    with pytest.raises(ValueError, match="Flash Attention"):
        make_model(attention="flash_attention_2")


def test_no_layer_behind_semantic_ids_is_quantised(model):
    left_out = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantised = {name for name in layers if should_convert_module(name, left_out)}
    assert {name for name in layers if name.startswith(("item_tower", "user_tower"))}
    assert all(name.startswith("model.") for name in quantised)
    assert quantised or isinstance(model.config.backbone_config, SHAPES["gpt2"][0])


def test_no_process_of_tensor_parallelism_holds_a_part_of_the_vocabulary(model):
    names = [name for name, part in model.named_modules() if part is model.get_input_embeddings()]
    assert not {*names, "lm_head"} & set(model.tp_plan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(), "`input_ids` and `inputs_embeds` are both missing"),
        (
            lambda m: m(input_ids=IDS, inputs_embeds=m.get_input_embeddings()(IDS)),
            "`input_ids` and `inputs_embeds` are both given",
        ),
        (lambda m: m.recommend([[]], top_k="5"), "`top_k` is '5'"),
        (lambda m: m.resize_token_embeddings(120), "`new_num_tokens` is 120, but .* end at 148"),
        (lambda m: m.generate_batch(IDS.tolist()), "`generate_batch` gives `forward` the last id"),
        (
            lambda m: AutoModel.from_config(m.config).recommend([[]]),
            "The model has no catalogue",
        ),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(llama, call, message):
    with pytest.raises(ValueError, match=message):
        call(llama)


def test_ids_of_every_item_s_levels(llama):
    rows = llama.get_input_embeddings()(torch.tensor(spelt(8)))
    assert llama.ids_of(rows).tolist() == spelt(8) and len(spelt(8)) == LEVELS
