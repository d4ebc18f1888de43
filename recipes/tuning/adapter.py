"""LoRA: which parts of a model an adapter trains, and the folders it leaves."""

from pathlib import Path

from peft import LoraConfig, PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig

from modeling_ttds.modeling_ttds import TTDSForCausalLM


def lora_config(model: TTDSForCausalLM, settings: ModelConfig) -> LoraConfig:
    """Return an adapter over the trunk's linear layers that also trains what is new.

    The rows of SID tokens, the code projections and, unless they are frozen, the towers train
    whole and are saved with the adapter.

    Args:
        model: The model the adapter is for.
        settings: Rank, alpha and dropout.
    """
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    start = model.config.sid_token_start
    codes = list(range(start, start + len(model.sid_token_vectors())))
    tied = model.config.tie_word_embeddings
    targets = [
        f"model.{name}"
        for name, module in model.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    towers = [
        name
        for name in ("item_tower", "user_tower")
        if any(parameter.requires_grad for parameter in getattr(model, name).parameters())
    ]
    pairs = ["node_pairs"] if model.config.pair_dim else []
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.model.modules()),
        trainable_token_indices=codes if tied else {name: codes, "lm_head": codes},
        modules_to_save=[*pairs, "codebook_projections", "item_reader", "node_head", *towers],
    )


def save_base(model: TTDSForCausalLM, folder: Path) -> None:
    """Write the model an adapter stands on.

    Args:
        model: The model, without an adapter.
        folder: Folder of the run; the base goes into `base` below it.
    """
    model.share_sid_table()
    model.save_pretrained(folder / "base")
    model.tokenizer.save_pretrained(folder / "base")


def save_adapter(model: PeftModel, folder: Path) -> TTDSForCausalLM:
    """Write an adapter, give its base the tuned SID table, and return the merged model.

    Args:
        model: The tuned model with its adapter.
        folder: Folder of the run; the adapter goes into `adapter` below it.
    """
    tuned = model.get_base_model()
    base = TTDSForCausalLM.from_pretrained(folder / "base")
    base.item_sids, base.item_text = tuned.item_sids.cpu(), tuned.item_text.cpu()
    base.tokenizer = tuned.tokenizer
    save_base(base, folder)
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return model.merge_and_unload()
