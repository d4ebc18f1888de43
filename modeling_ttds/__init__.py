"""TTDS: a generative recommender whose language model generates semantic IDs."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from .configuration_ttds import TTDSConfig, TTDSTowerConfig
from .modeling_ttds import TTDSForCausalLM
from .tokenization_ttds import TTDSTokenizer
from .towers_ttds import TTDSTower

AutoConfig.register("ttds", TTDSConfig)
AutoModel.register(TTDSConfig, TTDSForCausalLM)
AutoModelForCausalLM.register(TTDSConfig, TTDSForCausalLM)
AutoTokenizer.register(TTDSConfig, fast_tokenizer_class=TTDSTokenizer)

__all__ = ["TTDSConfig", "TTDSForCausalLM", "TTDSTokenizer", "TTDSTower", "TTDSTowerConfig"]
