"""A language model that is a table, and trainers small enough to enumerate."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for the small models that several test modules share
from small_models import llama, value_of, vowels

from axon_core.interfaces import Cache, CausalLM
from axon_core.text import CharTokenizer
from axon_ppo import PPOTrainer, PromptData, ValueModel


class Table(CausalLM):
    """The next token's scores are a row of a table, chosen by the last token."""

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def features(self, tokens, *, valid=None, documents=None, cache=None):
        if cache is not None:
            cache.extend(tokens, valid)
        return self.table(tokens.clamp(min=0))

    def logits(self, features):
        return features

    def new_cache(self, batch, capacity):
        return Cache([], batch, capacity, dtype=torch.float32, device="cpu")


class Letters(CharTokenizer):
    """Characters, of which the last marks the end."""

    def __init__(self, characters: str) -> None:
        super().__init__(characters)
        self.eos = len(characters) - 1


@pytest.fixture(scope="session")
def letters():
    return Letters


@pytest.fixture(scope="session")
def table():
    return Table


@pytest.fixture(scope="session")
def make():
    """Return what makes a trainer of policy, tokenizer, prompts and reward."""

    def make(
        policy, tokenizer, prompts, reward, *, reference=None, value=None, held_out=0.0, auxiliary=None, **options
    ):
        data = PromptData.of([(f"line {i} of p", text) for i, text in enumerate(prompts, 1)], tokenizer, held_out)
        models = {
            "policy": policy,
            "value": value or ValueModel(copy.deepcopy(policy)),
            "reference": reference or copy.deepcopy(policy),
        }
        trainer = PPOTrainer(PPOTrainer.Config(**options), models, data, reward, auxiliary)
        for model in trainer.models.values():
            model.eval()
        return trainer

    return make


@pytest.fixture
def ragged(make, letters):
    """A trainer on ragged prompts, whose responses end early or not."""

    def ragged(**options):
        policy = llama(6)
        options = {"batch_size": 8, "response_tokens": 4, "kl_coefficient": 0.2, **options}
        reference, value = llama(6, seed=1), value_of(llama(6, seed=2))
        prompts = ["a", "bc", "abcde", "dd", "eab", "cabd"]
        return make(policy, letters("abcde."), prompts, vowels, reference=reference, value=value, **options)

    return ragged
