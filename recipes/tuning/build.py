"""From data to a model that is ready for tuning: vocabulary, embeddings, decoder, towers, index."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig

from modeling_ttds.configuration_ttds import TTDSConfig
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.config import TTDSArguments
from recipes.data.split import Split
from recipes.index import embeddings
from recipes.index.refresh import refresh_sids
from recipes.index.towers import fit_tower
from recipes.index.vocabulary import train_vocabulary
from recipes.tuning.examples import UserStates, next_item_wording, question_wordings
from recipes.tuning.wordings import ALL_WORDINGS


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
        wordings = [next_item_wording(options)]
        if options.tasks:
            wordings += [w for several in ALL_WORDINGS for w in several]
        base = train_vocabulary([*split.data.catalogue.texts(), *wordings], options.vocab_size)
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
    """Return a model with embeddings, fitted towers and an index, and the report of both towers.

    Args:
        split: Gives catalogue and training histories.
        states: The user states, attached to the model.
        tokenizer: As of `build_tokenizer`.
        options: The recipe's arguments.
        model_name_or_path: The backbone, or None for a decoder that starts from nothing.
        seed: Seed of every initialisation and fit.
    """
    torch.manual_seed(seed)
    text = None
    if options.text_embeddings is not None:
        if options.text_encoder in ("tokens", "backbone"):
            raise ValueError(
                f"`text_encoder` is {options.text_encoder!r}, which did not make "
                "`text_embeddings`; name the encoder that did, so that new items get embeddings "
                "like the others'."
            )
        file = Path(options.text_embeddings)
        if not file.exists() and options.dataset_name is not None:
            file = Path(options.dataset_name) / file
        text = embeddings.read_text_embeddings(file, split.num_items)
    model = build_decoder(split, tokenizer, options, model_name_or_path, text)
    model.catalogue = split.data.catalogue.entries()
    model.tokenizer = tokenizer
    if text is None:
        text = _text_embeddings(model, split, options, seed)
    model.item_text.copy_(text)
    model.item_collaborative.copy_(_collaborative_embeddings(split, options, seed))
    model.attach_users(states.histories())

    report = {
        "item": fit_tower(
            model.item_tower,
            model.item_text,
            model.item_collaborative,
            num_epochs=options.tower_epochs,
            seed=seed,
            description="item tower",
        )
    }
    users = model.user_embeddings(model.user_histories[states.latest()])
    report["user"] = fit_tower(
        model.user_tower,
        *users,
        num_epochs=max(1, options.tower_epochs // 2),
        seed=seed,
        description="user tower",
    )
    refresh_sids(model, freeze=options.refresh_steps == 0)
    init_codebook_projections(model)
    return model, report


def build_decoder(
    split: Split,
    tokenizer: TTDSTokenizer,
    options: TTDSArguments,
    model_name_or_path: str | None,
    text: Tensor | None,
) -> TTDSForCausalLM:
    """Return a model whose trunk is a pretrained backbone or a compact decoder.

    Args:
        split: Gives the number of items.
        tokenizer: As of `build_tokenizer`.
        options: The recipe's arguments.
        model_name_or_path: The backbone, or None for a decoder that starts from nothing.
        text: Precomputed text embeddings, if there are any.
    """
    backbone = None
    backbone_config = _compact_config(tokenizer, options)
    if model_name_or_path is not None:
        backbone = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=torch.float32)
        if len(tokenizer) > backbone.get_input_embeddings().num_embeddings:
            backbone.resize_token_embeddings(
                len(tokenizer), pad_to_multiple_of=64, mean_resizing=False
            )
        backbone_config = backbone.config
    if text is not None:
        text_dim = text.shape[1]
    elif options.text_encoder == "tokens":
        text_dim = options.text_dim
    elif options.text_encoder == "backbone":
        text_dim = backbone_config.hidden_size
    else:
        text_dim = AutoConfig.from_pretrained(options.text_encoder).hidden_size
    tower = {
        "text_dim": text_dim,
        "collaborative_dim": max(1, options.collaborative_dim),
        "num_levels": options.num_levels,
        "num_codes": options.num_codes,
        "code_dim": options.code_dim,
    }
    config = TTDSConfig(
        backbone_config=backbone_config,
        item_tower=tower,
        user_tower=tower,
        num_items=split.num_items,
        sid_token_start=tokenizer.sid_token_start,
        item_placeholder_id=tokenizer.convert_tokens_to_ids("<item>"),
        user_placeholder_id=tokenizer.convert_tokens_to_ids("<user>"),
        prompt_ids=tokenizer.prompt_ids(next_item_wording(options)),
        prompts=question_wordings(options),
        max_history=options.max_history,
        text_encoder=options.text_encoder,
        tower_weight=options.tower_weight,
        tower_grad_scale=options.tower_grad_scale,
        soft_target_weight=options.soft_target_weight,
        infonce_weight=options.infonce_weight,
        cosine_weight=options.cosine_weight,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = TTDSForCausalLM(config)
    if backbone is not None:
        model.model.load_state_dict(backbone.base_model.state_dict())
        model.lm_head.load_state_dict(backbone.get_output_embeddings().state_dict())
    return model


@torch.no_grad()
def init_codebook_projections(model: TTDSForCausalLM) -> None:
    """Scale the projections so that the SID tokens of every level start alike in size.

    Args:
        model: The model; its codebooks are set.
    """
    std = model.get_input_embeddings().weight.std()
    for kind, tower in enumerate((model.item_tower, model.user_tower)):
        for level, codebook in enumerate(tower.codebooks):
            scale = std / (codebook.std() * codebook.shape[1] ** 0.5)
            nn.init.normal_(model.codebook_projections.weight[kind, level], std=scale.item())


def _compact_config(tokenizer: TTDSTokenizer, options: TTDSArguments) -> GPTNeoXConfig:
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


def _text_embeddings(
    model: TTDSForCausalLM,
    split: Split,
    options: TTDSArguments,
    seed: int,
) -> Tensor:
    texts = split.data.catalogue.texts()
    folder = Path(options.cache_dir)
    key = {"texts": embeddings.hashed(*texts)}
    if options.text_encoder in ("tokens", "backbone"):
        key["tokenizer"] = embeddings.hashed(model.tokenizer.backend_tokenizer.to_str())
    if options.text_encoder == "tokens":
        tokenizer = model.tokenizer
        key |= {"text_dim": options.text_dim, "seed": seed}
        table = embeddings.cached(
            folder,
            "token_table",
            key,
            lambda: embeddings.fit_token_table(texts, tokenizer, options.text_dim, seed),
        )
        model.token_table.table.copy_(table)
        return model.embed_texts(texts)
    if options.text_encoder == "backbone":
        key["encoder"] = embeddings.hashed(*model.model.state_dict().values())
    else:
        key["encoder"] = embeddings.encoder_version(options.text_encoder)
    text = embeddings.cached(folder, "text", key, lambda: model.embed_texts(texts))
    return embeddings.check_embeddings(
        text, split.num_items, f"`text_encoder` {options.text_encoder}"
    )


def _collaborative_embeddings(split: Split, options: TTDSArguments, seed: int) -> Tensor:
    if options.collaborative_dim == 0:
        return torch.zeros(split.num_items, 1)
    key = {
        "training": embeddings.hashed(*(history.tobytes() for history in split.training)),
        "num_items": split.num_items,
        "dim": options.collaborative_dim,
        "seed": seed,
    }
    return embeddings.cached(
        Path(options.cache_dir),
        "collaborative",
        key,
        lambda: embeddings.collaborative_embeddings(
            split.training, split.num_items, options.collaborative_dim, seed
        ),
    )
