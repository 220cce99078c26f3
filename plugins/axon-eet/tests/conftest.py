"""Small models with random weights, and questions about nothing."""

import pytest
import torch

from axon_core import MODELS


@pytest.fixture
def build():
    """Return a function that builds a small X-Llama whose probabilities are far from uniform."""

    def make(dtype=torch.float32, **values):
        values = {"vocab_size": 258, "context": 64, "dim": 32, "n_layers": 2, "n_heads": 4} | values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MODELS["xllama"].build(**values)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3 if parameter.ndim > 1 else 1)
        return model.to(dtype)

    return make
