"""Whether a causal language model can be the trunk: asked at the start, by a small forward."""

import torch
from torch import Tensor

from modeling_ttds.generation_ttds import TTDSPrefix
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.towers_ttds import evaluating

WORKING = "Llama, Qwen2, GPT-2 or GPT-NeoX"  # tried by the tests
NUM_BEAMS = 50
TOLERANCE = 1e-3  # of a state, in units of the states' spread


def check_backbone(model: TTDSForCausalLM, name: str, prompt_length: int) -> None:
    """Refuse a backbone whose states differ where they should not.

    A prompt in a batch must give what it gives alone, and a beam behind a cached prompt what the
    whole sequence gives. Convolutions and recurrent states see the padding and the other beams;
    windows of attention shorter than a prompt lose its beginning.

    Args:
        model: The model around the backbone.
        name: What the backbone is called.
        prompt_length: Number of tokens of the longest prompt.

    Raises:
        ValueError: The backbone does not do; the message says why and which do.
    """
    kind = model.config.backbone_config.model_type
    remedy = f"take one of plain causal attention, e.g. {WORKING}."
    try:
        with torch.no_grad(), evaluating(model):
            batch, alone, beams, whole = _states(model, prompt_length)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"`model_name_or_path` {name} is a {kind} model that cannot be run as this needs "
            f"({reason}); {remedy}"
        ) from error
    for found, expected, what in (
        (batch, alone, "a prompt in a batch gives other states than alone"),
        (beams, whole, "a beam behind a cached prompt gives other states than the whole sequence"),
    ):
        apart = (found - expected).abs().max() / expected.std().clamp_min(1e-6)
        if not apart <= TOLERANCE:  # NaN is apart too
            raise ValueError(f"`model_name_or_path` {name} is a {kind} model: {what}; {remedy}")


def _states(model: TTDSForCausalLM, prompt_length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    texts = model.config.sid_token_start - 2
    ids = torch.randint(0, texts, (2, prompt_length), generator=draw).to(model.device)
    short = max(1, prompt_length // 2)
    mask = torch.ones_like(ids)
    mask[1, short:] = 0
    prefix = TTDSPrefix(model, ids, mask)
    batch = prefix.state[:, 0]
    first = torch.randint(0, texts, (2, NUM_BEAMS), generator=draw).to(model.device)
    second = torch.randint(0, texts, (2, NUM_BEAMS), generator=draw).to(model.device)
    parents = torch.arange(NUM_BEAMS, device=model.device).flip(0).expand(2, -1)
    prefix.extend(first, torch.zeros_like(first))
    reached = prefix.extend(second, parents)
    alone, beams, whole = [], [], []
    for row, length in enumerate((prompt_length, short)):
        for beam in (0, NUM_BEAMS - 1):
            before = first[row, parents[row, beam]]
            sequence = torch.cat([ids[row, :length], torch.stack([before, second[row, beam]])])
            states = model.model(
                inputs_embeds=model.embed(sequence[None]), use_cache=False
            ).last_hidden_state[0]
            beams.append(reached[row, beam])
            whole.append(states[-1])
        alone.append(states[length - 1])
    return batch, torch.stack(alone), torch.stack(beams), torch.stack(whole)
