"""Responses: each depends on its own prompt and seed, and ends where it ends."""

from __future__ import annotations

import pytest
import torch

from axon_core import MODELS
from axon_core.interfaces.model import CausalLM
from axon_core.responses import respond

PROMPTS, SEEDS = [[0, 1], [2], [3, 4, 0]], [11, 12, 13]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    torch.manual_seed(0)
    made = MODELS["xllama"].build(vocab_size=6, context=12, dim=16, n_layers=1, n_heads=2)
    assert isinstance(made, CausalLM)
    return made.eval()


def test_a_response_is_the_same_alone_and_however_many_run_at_once(model: CausalLM):
    whole = respond(model, PROMPTS, SEEDS, max_new_tokens=5, temperature=1.3, eos=5)
    for prompt, seed, response in zip(PROMPTS, SEEDS, whole, strict=True):
        assert respond(model, [prompt], [seed], max_new_tokens=5, temperature=1.3, eos=5) == [response]
        assert response.finished == (response.tokens[-1] == 5) and 5 not in response.tokens[:-1]
    assert respond(model, PROMPTS, SEEDS, max_new_tokens=5, temperature=1.3, eos=5, rows=2) == whole
    assert respond(model, [], [], max_new_tokens=5, temperature=1.3, eos=5) == []


def test_it_ends_with_eos_or_at_its_greatest_length(model: CausalLM):
    prompts, seeds = [[0]] * 60, range(60)
    drawn = respond(model, prompts, seeds, max_new_tokens=2, temperature=1.0, eos=5)
    assert {(len(r.tokens), r.finished, r.tokens[-1] == 5) for r in drawn} == {
        (1, True, True),
        (2, True, True),
        (2, False, False),
    }
    endless = respond(model, prompts, seeds, max_new_tokens=2, temperature=1.0, eos=None)
    assert all(r.finished and len(r.tokens) == 2 for r in endless)
