"""Small models with random weights, a reward, and what a trainer collects, for several test modules."""

import torch

from axon_core import MODELS, Key
from axon_ppo import ValueModel

LLAMA = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 12}


def llama(vocab_size=5, seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS.build({**LLAMA, **sizes}, vocab_size=vocab_size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def value_of(trunk, seed=7):
    value = ValueModel(trunk)
    with torch.no_grad():
        value.head.weight.copy_(torch.randn(value.head.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return value


def vowels(prompts, responses):
    return [
        sum(c in "ae" for c in response) + 0.1 * len(prompt)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def collected(trainer, step=0):
    return trainer.collect(trainer.batch(step), Key((trainer.config.seed, step)))
