"""transformers' own tests of models, configurations and tokenizers, on ours."""

import unittest

import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config
from upstream.tests.generation.test_utils import GenerationTesterMixin
from upstream.tests.test_configuration_common import ConfigTester
from upstream.tests.test_modeling_common import ModelTesterMixin, ids_tensor
from upstream.tests.test_training_mixin import TrainingTesterMixin

from modeling_ttds import TTDSConfig, TTDSForCausalLM

LEVELS, CODES, ITEMS = 2, 4, 10
TEXT = 60  # ids below are text, those above SID tokens
VOCABULARY = TEXT + 2 * LEVELS * CODES


class Tester:
    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads = 32, 2, 2, 2
    vocab_size = VOCABULARY
    causal_lm_class = TTDSForCausalLM

    def __init__(self, parent, backbone_class):
        self.parent, self.backbone_class = parent, backbone_class

    def get_config(self):
        backbone = self.backbone_class(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            **(
                {}
                if self.backbone_class is GPT2Config
                else {"intermediate_size": 37, "num_key_value_heads": self.num_key_value_heads}
            ),
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **({"tie_word_embeddings": True} if self.backbone_class is Qwen2Config else {}),
        )
        tower = dict(
            text_dim=6,
            collaborative_dim=4,
            num_levels=LEVELS,
            num_codes=CODES,
            code_dim=4,
            hidden_dim=8,
        )
        return TTDSConfig(
            backbone_config=backbone,
            item_tower=tower,
            user_tower=dict(tower),
            num_items=ITEMS,
            sid_token_start=TEXT,
            prompt_ids=[5, 3, 6, 4],
            item_placeholder_id=4,
            user_placeholder_id=3,
            max_history=4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs(self):
        ids = ids_tensor([self.batch_size, self.seq_length], VOCABULARY)
        return self.get_config(), ids, torch.tril(torch.ones_like(ids))

    def prepare_config_and_inputs_for_common(self):
        config, ids, mask = self.prepare_config_and_inputs()
        return config, {"input_ids": ids, "attention_mask": mask}


class OfModel(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    all_model_classes = (TTDSForCausalLM,)
    backbone_class = None

    @property
    def model_tester(self):
        return self._tester

    def setUp(self):
        self._tester = Tester(self, self.backbone_class)
        self.config_tester = ConfigTester(
            self,
            config_class=TTDSConfig,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class TestGPTNeoX(OfModel, unittest.TestCase):
    backbone_class = GPTNeoXConfig


class TestLlama(OfModel, unittest.TestCase):
    backbone_class = LlamaConfig


class TestQwen2(OfModel, unittest.TestCase):
    backbone_class = Qwen2Config


class TestGPT2(OfModel, unittest.TestCase):
    backbone_class = GPT2Config
