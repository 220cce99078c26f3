"""Responses: each depends on its own prompt and seed, and ends where it ends."""

from __future__ import annotations

import pytest
import torch

from axon_core import MODELS
from axon_core.alignment.responses import response_text, sample_responses
from axon_core.interfaces.model import CausalLM
from axon_core.text.tokenizer import ByteTokenizer

PROMPTS, SEEDS = [[0, 1], [2], [3, 4, 0]], [11, 12, 13]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    torch.manual_seed(0)
    made = MODELS["xllama"].build(vocab_size=6, context=12, dim=16, n_layers=1, n_heads=2)
    assert isinstance(made, CausalLM)
    return made.eval()


def test_a_response_is_the_same_alone_and_however_many_run_at_once(model: CausalLM):
    whole = sample_responses(model, PROMPTS, SEEDS, max_new_tokens=5, temperature=1.3, ends={5})
    for prompt, seed, response in zip(PROMPTS, SEEDS, whole, strict=True):
        assert sample_responses(model, [prompt], [seed], max_new_tokens=5, temperature=1.3, ends={5}) == [response]
        assert response.finished == (response.tokens[-1] == 5) and 5 not in response.tokens[:-1]
    assert sample_responses(model, PROMPTS, SEEDS, max_new_tokens=5, temperature=1.3, ends={5}, rows=2) == whole
    assert sample_responses(model, [], [], max_new_tokens=5, temperature=1.3, ends={5}) == []


def test_it_ends_with_an_end_or_at_its_greatest_length(model: CausalLM):
    prompts, seeds = [[0]] * 60, range(60)
    drawn = sample_responses(model, prompts, seeds, max_new_tokens=2, temperature=1.0, ends={5})
    assert {(len(r.tokens), r.finished, r.tokens[-1] == 5) for r in drawn} == {
        (1, True, True),
        (2, True, True),
        (2, False, False),
    }
    endless = sample_responses(model, prompts, seeds, max_new_tokens=2, temperature=1.0, ends=())
    assert all(r.finished and len(r.tokens) == 2 for r in endless)


def test_every_end_ends_a_response(model: CausalLM):
    """With the same random numbers each response is what is drawn without ends, up to the first of them."""
    prompts, seeds = [[0]] * 60, range(60)
    free = sample_responses(model, prompts, seeds, max_new_tokens=4, temperature=1.0, ends=())
    drawn = sample_responses(model, prompts, seeds, max_new_tokens=4, temperature=1.0, ends={3, 5})
    for response, whole in zip(drawn, free, strict=True):
        at = next((i for i, token in enumerate(whole.tokens) if token in {3, 5}), None)
        assert response == (whole.tokens if at is None else whole.tokens[: at + 1], at is not None)
    assert {response.tokens[-1] for response in drawn if response.finished} == {3, 5}


def test_the_token_that_ends_a_response_adds_nothing_to_its_text():
    tokenizer = ByteTokenizer()
    tokenizer.other_ends = frozenset(b"!")
    prompt = tokenizer.encode("ab")
    assert response_text(tokenizer, prompt, list(b"c!")) == response_text(tokenizer, prompt, [*b"c", 257]) == "c"
    assert (response_text(tokenizer, prompt, list(b"!")), response_text(tokenizer, prompt, list(b"cd"))) == ("", "cd")
