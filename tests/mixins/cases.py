"""transformers' own tests of models, configurations and tokenizers, on ours."""

import inspect
import tempfile
import unittest

import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config, testing_utils
from upstream.tests import test_modeling_common
from upstream.tests.exporters import test_export
from upstream.tests.generation import test_utils
from upstream.tests.generation.test_utils import GenerationTesterMixin
from upstream.tests.test_configuration_common import ConfigTester
from upstream.tests.test_modeling_common import ModelTesterMixin, ids_tensor
from upstream.tests.test_tokenization_common import TokenizerTesterMixin
from upstream.tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin
from upstream.tests.test_training_mixin import TrainingTesterMixin

from modeling_ttds import TTDSConfig, TTDSForCausalLM, TTDSTokenizer
from recipes.data.toyshop import generate
from recipes.index.vocabulary import train_vocabulary

LEVELS, CODES, ITEMS, VOCABULARY = 2, 4, 10, 99
SIDS = 40  # id of the first SID token: those before and behind are text

# What does not apply, and why.
LEFT_OUT = {
    "test_rust_tokenizer_add_prefix_space": (
        "whether a space is added stands in tokenizer.json, as of any PreTrainedTokenizerFast"
    ),
}
if "is_floating_point" not in inspect.getsource(ModelTesterMixin.test_keep_in_fp32_modules):
    LEFT_OUT["test_keep_in_fp32_modules"] = "older versions want integers in half precision too"


def less_flaky(config):
    """Raise the epsilons of the backbone: upstream takes our `text_encoder` for a configuration."""
    testing_utils.set_config_for_less_flaky_test(config.backbone_config)


for module in (test_modeling_common, test_utils, test_export):
    module.set_config_for_less_flaky_test = less_flaky


class Tester:
    """What the mixins ask of a model: a small configuration, and inputs that hold SID tokens."""

    batch_size, seq_length, is_training, vocab_size = 3, 7, True, VOCABULARY
    hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads = 32, 2, 2, 2
    causal_lm_class = TTDSForCausalLM

    def __init__(self, parent, backbone_class, tied):
        self.parent, self.backbone_class, self.tied = parent, backbone_class, tied

    def get_config(self):
        shape = {"num_key_value_heads": self.num_key_value_heads, "intermediate_size": 37}
        if self.backbone_class is GPT2Config:
            shape = {}
        special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        backbone = self.backbone_class(
            vocab_size=VOCABULARY, hidden_size=self.hidden_size, max_position_embeddings=512,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            tie_word_embeddings=self.tied, **shape, **special,
        )  # fmt: skip
        tower = dict(
            text_dim=6, collaborative_dim=4, hidden_dim=8, code_dim=4, num_levels=LEVELS,
            num_codes=CODES,
        )  # fmt: skip
        return TTDSConfig(
            backbone_config=backbone, item_tower=tower, user_tower=dict(tower), num_items=ITEMS,
            sid_token_start=SIDS, prompt_ids=[5, 3, 6, 4], item_placeholder_id=4,
            user_placeholder_id=3, max_history=4, **special,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], VOCABULARY)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids).tril()}


class LeavesOut:
    """Skips what does not apply."""

    def setUp(self):
        name = self._testMethodName
        for part, reason in LEFT_OUT.items():
            if name.startswith(part):
                self.skipTest(f"does not apply: {reason}")


class OfModel(LeavesOut, ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    all_model_classes = (TTDSForCausalLM,)
    test_all_params_have_gradient = False  # towers learn from placeholders; here are none
    backbone_class, tied = None, False
    model_tester = None

    def setUp(self):
        super().setUp()
        self.model_tester = Tester(self, self.backbone_class, self.tied)
        shape = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
        self.config_tester = ConfigTester(self, config_class=TTDSConfig, common_properties=shape)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:  # upstream knows the names of its own classes only
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()


class TestGPTNeoX(OfModel, unittest.TestCase):
    backbone_class = GPTNeoXConfig


class TestLlama(OfModel, unittest.TestCase):
    backbone_class = LlamaConfig


class TestQwen2(OfModel, unittest.TestCase):
    backbone_class, tied = Qwen2Config, True


class TestGPT2(OfModel, unittest.TestCase):
    backbone_class, tied = GPT2Config, True


class TestTokenizer(
    LeavesOut, TokenizerTesterMixin, TokenizersBackendTesterMixin, unittest.TestCase
):
    tokenizer_class = rust_tokenizer_class = TTDSTokenizer
    from_pretrained_kwargs = {"trust_remote_code": True}

    @classmethod
    def setUpClass(cls):
        texts = generate(seed=1, num_users=20, num_items=72).data.catalogue.texts()
        cls.folder = tempfile.TemporaryDirectory()
        base = train_vocabulary(texts, 400)
        TTDSTokenizer.from_base(base, LEVELS, CODES).save_pretrained(cls.folder.name)
        cls.from_pretrained_id = [cls.folder.name]
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()
