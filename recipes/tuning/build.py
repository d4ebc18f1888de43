"""From data to a model that knows no semantic IDs yet: tokenizer and language model."""

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    PreTrainedConfig,
)

from modeling_ttds.configuration_ttds import TTDSConfig
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.text_ttds import normalised
from modeling_ttds.tokenization_ttds import TTDSTokenizer
from recipes.config import ExampleOptions, IndexOptions, LanguageModelOptions
from recipes.data.split import Split
from recipes.errors import named_model
from recipes.index.vocabulary import train_vocabulary
from recipes.tuning.backbone import WORKING, check_backbone
from recipes.tuning.examples import next_item_wording, question_wordings
from recipes.tuning.wordings import ALL_WORDINGS


def build_tokenizer(
    split: Split,
    index: IndexOptions,
    language_model: LanguageModelOptions,
    examples: ExampleOptions,
    backbone: str | None,
) -> TTDSTokenizer:
    """Extend the backbone's tokenizer, or train one on the catalogue and the prompts' wording.

    Args:
        split: Gives the catalogue.
        index: Levels and codes.
        language_model: Vocabulary size.
        examples: Tasks, for their wordings.
        backbone: Hub id or folder, or None for a decoder that starts from nothing.
    """
    if backbone is None:
        texts = split.data.catalogue.texts()
        learnt = [f" {normalised(text)}" for text in texts] + [next_item_wording(examples)]
        if examples.tasks:  # some of them answer in the catalogue's own writing
            learnt += texts + [wording for several in ALL_WORDINGS for wording in several]
        base = train_vocabulary(learnt, language_model.vocab_size)
    else:
        with named_model("model_name_or_path", backbone):
            base = AutoTokenizer.from_pretrained(backbone)
    return TTDSTokenizer.from_base(base, index.num_levels, index.num_codes)


def build_model(
    split: Split,
    tokenizer: TTDSTokenizer,
    index: IndexOptions,
    language_model: LanguageModelOptions,
    examples: ExampleOptions,
    backbone: str | None,
    text: Tensor | None,
    seed: int,
) -> TTDSForCausalLM:
    """Return a model whose trunk is a pretrained backbone or a compact decoder.

    Its embeddings are zero, its towers not fitted, its SID table empty.

    Args:
        split: Gives the catalogue.
        tokenizer: As of `build_tokenizer`.
        index: Shape of the towers.
        language_model: Shape of the compact decoder, weights of the losses.
        examples: How histories and questions are worded.
        backbone: Hub id or folder, or None for a decoder that starts from nothing.
        text: Precomputed text embeddings, if there are any.
        seed: Seed of the weights.

    Raises:
        ValueError: The backbone does not fit, or item vectors are to be wider than what they are
            made of.
    """
    torch.manual_seed(seed)
    pretrained = None
    decoder = _compact_config(tokenizer, language_model)
    if backbone is not None:
        with named_model("model_name_or_path", backbone):
            pretrained = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
        if len(tokenizer) > pretrained.get_input_embeddings().num_embeddings:
            pretrained.resize_token_embeddings(
                len(tokenizer), pad_to_multiple_of=64, mean_resizing=False
            )
        decoder = pretrained.config
    tower = {
        "text_dim": _text_dim(index, decoder) if text is None else text.shape[1],
        "collaborative_dim": max(1, index.collaborative_dim),
        "num_levels": index.num_levels,
        "num_codes": index.num_codes,
        "code_dim": index.code_dim,
    }
    directions = min(split.num_items, tower["text_dim"] + tower["collaborative_dim"])
    if index.item_vector_dim > directions:
        raise ValueError(
            f"`item_vector_dim` is {index.item_vector_dim}; it must be at most {directions}, the "
            "least of the number of items and the width of both embeddings together."
        )
    config = TTDSConfig(
        backbone_config=decoder,
        item_tower=tower,
        user_tower=tower,
        num_items=split.num_items,
        sid_token_start=tokenizer.sid_token_start,
        item_placeholder_id=tokenizer.convert_tokens_to_ids("<item>"),
        user_placeholder_id=tokenizer.convert_tokens_to_ids("<user>"),
        prompt_ids=tokenizer.prompt_ids(next_item_wording(examples)),
        prompts=question_wordings(examples),
        max_history=examples.max_history,
        text_encoder=index.text_encoder,
        item_vector_dim=index.item_vector_dim,
        item_vector_dropout=language_model.item_vector_dropout,
        pair_dim=language_model.pair_dim,
        pair_dropout=language_model.pair_dropout,
        pair_nodes=[0] * index.num_levels,
        tower_weight=language_model.tower_weight,
        tower_grad_scale=language_model.tower_grad_scale,
        soft_target_weight=language_model.soft_target_weight,
        infonce_weight=language_model.infonce_weight,
        cosine_weight=language_model.cosine_weight,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = TTDSForCausalLM(config)
    if pretrained is not None:
        try:
            model.model.load_state_dict(pretrained.base_model.state_dict())
            model.lm_head.load_state_dict(pretrained.get_output_embeddings().state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"`model_name_or_path` {backbone} is a {decoder.model_type} model whose weights do "
                f"not fit a trunk and a head without bias; take e.g. {WORKING}."
            ) from error
        _start_sid_tokens(model)
        longest = len(config.prompt_ids) + (examples.max_history + 1) * index.num_levels
        check_backbone(model, backbone, longest)
    model.catalogue = split.data.catalogue.entries()
    model.tokenizer = tokenizer
    return model


@torch.no_grad()
def _start_sid_tokens(model: TTDSForCausalLM) -> None:
    """Let SID tokens beside a pretrained model's words start as the mean word, all alike.

    A pretrained model's states are long: by random rows and projections its head would tell codes
    apart before anything is learnt, and the loss start far above that of the nodes. What an item is
    comes from its vector, which is made as long as a word, or it would drown among them.
    """
    start = model.config.sid_token_start
    sids = slice(start, start + len(model.sid_token_vectors()))
    for table in (model.get_input_embeddings().weight, model.lm_head.weight):
        table[sids] = table[:start].mean(0)
    model.codebook_projections.weight.zero_()
    words = model.get_input_embeddings().weight[:start]
    model.item_reader.weight.normal_(std=words.std(0).mean().item())  # vectors are of unit length


def _text_dim(index: IndexOptions, decoder: PreTrainedConfig) -> int:
    if index.text_encoder == "tokens":
        return index.text_dim
    if index.text_encoder == "backbone":
        return decoder.hidden_size
    with named_model("text_encoder", index.text_encoder):
        return AutoConfig.from_pretrained(index.text_encoder).hidden_size


def _compact_config(tokenizer: TTDSTokenizer, shape: LanguageModelOptions) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
        hidden_dropout=shape.dropout,
        attention_dropout=shape.dropout,
        rotary_pct=1.0,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
