"""A model with more rows than its tokenizer has tokens: those are never drawn, by no sampler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.alignment.logprobs import Sequences, completion_logprobs
from axon_core.alignment.responses import sample_responses
from axon_core.errors import CheckpointError
from axon_core.generation.api import Request, complete, decode, generate
from axon_core.generation.batch_file import generate_rows, plan
from axon_core.generation.sampling import Sampling
from axon_core.interfaces.model import CausalLM
from axon_core.text.tokenizer import ByteTokenizer

TOKENS, ROWS = ByteTokenizer().vocab_size, 320


@pytest.fixture
def model() -> CausalLM:
    """A model that prefers the rows which no token belongs to."""
    torch.manual_seed(0)
    made = MODELS["xllama"].build(vocab_size=ROWS, context=64, dim=16, n_layers=1, n_heads=2)
    assert isinstance(made, CausalLM)
    raw = made.logits
    made.logits = lambda features: raw(features) + 30 * (torch.arange(ROWS) >= TOKENS)
    return made.eval()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=3),
        Sampling(top_p=0.5),
        Sampling(min_p=0.1),
        Sampling(repetition_penalty=1.5),
    ],
    ids=str,
)
def test_only_tokens_are_drawn(model: CausalLM, sampling: Sampling):
    requests = [Request(prompt="the ", sampling=sampling, seed=seed, max_new_tokens=8) for seed in range(8)]
    for completion in complete(model, ByteTokenizer(), requests):
        assert max(completion.tokens) < TOKENS
    mixed = [*requests, Request(prompt="the ", sampling=Sampling(top_k=5), max_new_tokens=8)]  # in groups
    assert all(max(completion.tokens) < TOKENS for completion in complete(model, ByteTokenizer(), mixed))
    assert isinstance(generate(model, ByteTokenizer(), ["the "] * 8, sampling=sampling, max_new_tokens=8), list)


def test_without_a_tokenizer_the_number_of_its_tokens_is_said(model: CausalLM):
    (free,) = zip(*decode(model, [[5]], [0], max_new_tokens=8), strict=True)
    (kept,) = zip(*decode(model, [[5]], [0], max_new_tokens=8, vocab_size=TOKENS), strict=True)
    assert min(free) >= TOKENS > max(kept)
    (response,) = sample_responses(model, [[5]], [0], max_new_tokens=8, temperature=1.0, ends={257}, vocab_size=TOKENS)
    assert max(response.tokens) < TOKENS


@torch.no_grad()
def test_log_probabilities_are_those_of_what_is_drawn(model: CausalLM):
    rows = Sequences.of([([5, 6], [7]), ([5, 6], [9])])
    expected = model(torch.tensor([[5, 6]]))[0, -1, :TOKENS].log_softmax(-1)[[7, 9]]
    torch.testing.assert_close(completion_logprobs(model, rows, vocab_size=TOKENS), expected)


def test_a_row_that_the_model_fails_on_ends_no_other(tmp_path: Path):
    """NaN for a token of the third prompt alone: the rows beside it in the batch, and after it, are finished."""
    torch.manual_seed(0)
    model, tokenizer = (
        MODELS["xllama"].build(vocab_size=TOKENS, context=32, dim=16, n_layers=1, n_heads=2).eval(),
        ByteTokenizer(),
    )
    weights, out = model.embedding.weight.data, tmp_path / "out.jsonl"
    good = weights[ord("Z")].clone()
    prompts = {1: "aa", 2: "bb", 3: "cZ", 4: "dd", 5: "ee"}
    options = {"max_new_tokens": 4, "sampling": Sampling(top_k=20)}

    def run() -> None:
        generate_rows(model, plan(model, tokenizer, prompts, out, options=options), batch_size=3)

    weights[ord("Z")] = torch.nan
    with pytest.raises(CheckpointError, match=r"failed on 1 of 5 prompts, first on 3: .* must be finite"):
        run()
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {1, 2, 4, 5}
    weights[ord("Z")] = good
    run()
    for line in out.read_text().splitlines():
        row = json.loads(line)
        (alone,) = complete(model, tokenizer, [Request(prompt=row["prompt"], seed=row["id"] - 1, **options)])
        assert row["tokens"] == alone.tokens
