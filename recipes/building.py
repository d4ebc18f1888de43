"""From data to a model that is ready for tuning: vocabulary, embeddings, decoder, towers, index."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

from modeling_ttds.configuration_ttds import TTDSConfig
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes import embeddings
from recipes.config import TTDSArguments
from recipes.data import Split
from recipes.examples import NEXT_ITEM, UserStates
from recipes.index import fit_tower, refresh_index
from recipes.vocabulary import train_vocabulary


def build_tokenizer(
    split: Split, options: TTDSArguments, model_name_or_path: str | None
) -> TTDSTokenizer:
    """Extend the backbone's tokenizer, or train one on the catalogue and the prompts' wording.

    Args:
        split: Gives the catalogue.
        options: Gives levels, codes and vocabulary size.
        model_name_or_path: The backbone, or None for a decoder that starts from nothing.
    """
    if model_name_or_path is None:
        base = train_vocabulary([*split.data.catalogue.texts(), NEXT_ITEM], options.vocab_size)
    else:
        base = AutoTokenizer.from_pretrained(model_name_or_path)
    return TTDSTokenizer.from_base(base, options.num_levels, options.num_codes)


def build_model(
    split: Split,
    states: UserStates,
    tokenizer: TTDSTokenizer,
    options: TTDSArguments,
    model_name_or_path: str | None,
    seed: int,
) -> tuple[TTDSForCausalLM, dict[str, dict[str, float]]]:
    """Return a model with fitted towers and a frozen index, and the report of both towers.

    Args:
        split: Gives catalogue and training histories.
        states: The user states, attached to the model.
        tokenizer: As of `build_tokenizer`.
        options: The recipe's arguments.
        model_name_or_path: The backbone, or None for a decoder that starts from nothing.
        seed: Seed of every initialisation and fit.
    """
    torch.manual_seed(seed)
    backbone = None
    if model_name_or_path is not None:
        backbone = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=torch.float32)
    text, table = _text_embeddings(split, tokenizer, options, backbone, seed)
    collaborative = _collaborative_embeddings(split, options, seed)
    tower = {
        "text_dim": text.shape[1],
        "collaborative_dim": collaborative.shape[1],
        "num_levels": options.num_levels,
        "num_codes": options.num_codes,
        "code_dim": options.code_dim,
    }
    config = TTDSConfig(
        backbone_config=_decoder_config(tokenizer, options)
        if backbone is None
        else backbone.config,
        item_tower=tower,
        user_tower=tower,
        num_items=split.num_items,
        code_token_start=tokenizer.code_token_start,
        item_placeholder_id=tokenizer.convert_tokens_to_ids("<item>"),
        user_placeholder_id=tokenizer.convert_tokens_to_ids("<user>"),
        prompt_ids=prompt_ids(tokenizer, NEXT_ITEM),
        max_history=options.max_history,
        text_encoder=options.text_encoder,
        tower_weight=options.tower_weight,
        lm_gradient=options.lm_gradient,
        soft_target_weight=options.soft_target_weight,
        alignment_weight=options.alignment_weight,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    if backbone is not None:
        rows = -(-max(len(tokenizer), config.backbone_config.vocab_size) // 64) * 64
        backbone.resize_token_embeddings(rows, mean_resizing=False)
    model = TTDSForCausalLM(config)
    if backbone is not None:
        model.model = backbone.base_model
        model.lm_head = backbone.get_output_embeddings()
    if table is not None:
        model.token_table = table
    model.tokenizer = tokenizer
    model.item_text.copy_(text)
    model.item_collaborative.copy_(collaborative)
    model.catalogue = split.data.catalogue.entries()
    model.attach_users(states.histories())

    report = {}
    epochs = options.tower_epochs
    report["item"] = fit_tower(
        model.item_tower, text, collaborative, num_epochs=epochs, seed=seed, description="items"
    )
    users = model.user_embeddings(model.user_histories[states.latest()])
    report["user"] = fit_tower(
        model.user_tower, *users, num_epochs=epochs // 2, seed=seed, description="users"
    )
    refresh_index(model, freeze=options.refresh_steps == 0)
    init_code_projections(model)
    return model, report


def prompt_ids(tokenizer: TTDSTokenizer, prompt: str) -> list[int]:
    """Return a prompt's ids with its placeholder tokens left in."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return bos + tokenizer(prompt, add_special_tokens=False).input_ids


@torch.no_grad()
def init_code_projections(model: TTDSForCausalLM) -> None:
    """Scale the projections so that the code tokens of every level start alike in size."""
    std = model.get_input_embeddings().weight.std()
    for kind, tower in enumerate((model.item_tower, model.user_tower)):
        for level, codebook in enumerate(tower.codebooks):
            scale = std / (codebook.std() * codebook.shape[1] ** 0.5)
            nn.init.normal_(model.code_projections[kind, level], std=scale.item())


def _decoder_config(tokenizer: TTDSTokenizer, options: TTDSArguments) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads,
        intermediate_size=4 * options.hidden_size,
        hidden_dropout=options.dropout,
        attention_dropout=options.dropout,
        rotary_pct=1.0,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _text_embeddings(split, tokenizer, options, backbone, seed):
    texts = split.data.catalogue.texts()
    if options.text_embeddings is not None:
        return embeddings.read_text_embeddings(options.text_embeddings, len(texts)), None
    if options.text_encoder == "tokens":
        table = embeddings.fit_token_table(texts, tokenizer, options.text_dim, seed)
        return table.encode([tokenizer.encode_text(text) for text in texts]), table
    folder = Path(options.cache_dir)
    return embeddings.encoded_texts(texts, options.text_encoder, tokenizer, backbone, folder), None


def _collaborative_embeddings(split, options, seed):
    if options.collaborative_dim == 0:
        return torch.zeros(split.num_items, 1)
    return embeddings.collaborative_embeddings(
        split.training, split.num_items, options.collaborative_dim, seed
    )
