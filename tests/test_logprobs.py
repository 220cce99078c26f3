"""Log-probabilities of completions against a naive float64 reference: values, gradients, padding, memory."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axon_core import MODELS
from axon_core.alignment import logprobs
from axon_core.alignment.logprobs import (
    Sequences,
    completion_logprobs,
    encode_completion,
    scored_logprobs,
    token_entropies,
    token_logprobs,
)
from axon_core.errors import ContextError, DataError, UsageError
from axon_core.text.tokenizer import ByteTokenizer, CharTokenizer, DecodeStream, SentencePieceTokenizer

PAIRS = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 10, 0]), ([0, 0], [0])]


@pytest.fixture(params=[{"type": "MHA"}, {"type": "GQA", "n_kv_heads": 2}], ids=["MHA", "GQA"])
def model(request):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "context": 16, "dim": 32, "n_layers": 2, "n_heads": 4}
    return MODELS["xllama"].build(**sizes, attention=request.param).eval()


def naive(model, prompt, completion):
    """One row by itself, without padding, in float64."""
    tokens = torch.tensor([*prompt, *completion])
    logp = model.double()(tokens[None])[0].log_softmax(-1)
    return torch.stack([logp[i - 1, tokens[i]] for i in range(len(prompt), len(tokens))])


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_values_and_gradient_of_a_naive_log_softmax(chunk, monkeypatch):
    monkeypatch.setattr(logprobs, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 13, generator=generator, dtype=torch.float64).mul(4).requires_grad_()
    tokens = torch.randint(13, (3, 5), generator=generator)
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    want = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    (gradient,) = torch.autograd.grad((want * weights).sum(), logits)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        given = logits.detach().to(dtype).requires_grad_()
        got = token_logprobs(given, tokens)
        assert got.dtype == dtype
        (found,) = torch.autograd.grad((got * weights.to(dtype)).sum(), given)
        torch.testing.assert_close(got, want.to(dtype), atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(found, gradient.to(dtype), atol=tolerance, rtol=tolerance)


def test_half_precision_logits_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 1000, generator=generator).mul(3).bfloat16().requires_grad_()
    tokens = torch.randint(1000, (64,), generator=generator)
    got = token_logprobs(logits, tokens)
    exact = logits.detach().double().requires_grad_()
    want = exact.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=1e-6)
    got.sum().backward()
    want.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-6, rtol=2**-8)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0]], requires_grad=True)
    got = token_logprobs(logits, torch.tensor([1, 1]))
    assert got.tolist() == [-2e4, 0.0]
    got.sum().backward()
    assert logits.grad.tolist() == [[-1, 1, 0], [0, 0, 0]]


class Largest(TorchDispatchMode):
    """Notes the most numbers that any float32 tensor made within has."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.dtype == torch.float32]
        self.numel = max(self.numel, *made, 0)
        return out


def test_no_float32_copy_of_all_logits_is_made(monkeypatch):
    monkeypatch.setattr(logprobs, "_CHUNK", 400)
    logits = torch.randn(32, 100).bfloat16().requires_grad_()
    tokens = torch.zeros(32, dtype=torch.long)
    with Largest() as axon:
        token_logprobs(logits, tokens).sum().backward()
        token_entropies(logits.detach())
    with Largest() as plain:
        logits.float().log_softmax(-1).gather(-1, tokens[:, None]).sum().backward()
    assert axon.numel == 400 < plain.numel == 3200


def test_entropies():
    assert token_entropies(torch.zeros(2, 3, 8)).flatten().tolist() == pytest.approx([math.log(8)] * 6, abs=1e-6)
    assert token_entropies(torch.tensor([[0.0, -1e9], [-math.inf, 0.0]])).tolist() == [0, 0]
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(token_entropies, logits)
    torch.testing.assert_close(token_entropies(logits), torch.distributions.Categorical(logits=logits).entropy())


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("length", [None, 12])
def test_completions_against_rows_by_themselves(model, padding, length):
    rows = Sequences.of(PAIRS, padding=padding, length=length)
    in_float32 = completion_logprobs(model, rows)
    want = [naive(model, *pair) for pair in PAIRS]  # the model is in float64 from here on
    got = scored_logprobs(model, rows)
    for row, scored, logps in zip(got, rows.scored, want, strict=True):
        torch.testing.assert_close(row[scored], logps, atol=1e-12, rtol=0)
        assert not row[~scored].any()
    sums = torch.stack([logps.sum() for logps in want])
    torch.testing.assert_close(completion_logprobs(model, rows), sums, atol=1e-12, rtol=0)
    assert in_float32.dtype == torch.float32
    torch.testing.assert_close(in_float32.double(), sums, atol=1e-6, rtol=1e-6)


def test_gradients_against_rows_by_themselves(model):
    parameters = list(model.double().parameters())
    want = torch.autograd.grad(sum(naive(model, *pair).sum() for pair in PAIRS), parameters)
    got = torch.autograd.grad(completion_logprobs(model, Sequences.of(PAIRS, padding="left")).sum(), parameters)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_probabilities_of_all_completions_add_up_to_1(model):
    """Scoring one position too early or too late does not."""
    rows = Sequences.of(([3, 1], text) for text in product(range(11), repeat=2))
    total = completion_logprobs(model.double(), rows).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12)
    late = Sequences(rows.tokens, rows.valid, rows.scored & ~rows.scored.roll(-1, 1))
    assert completion_logprobs(model, late).exp().sum().item() == pytest.approx(11, abs=1e-9)


def test_what_is_padding_is_not_read_from_the_ids():
    right, left = (Sequences.of(PAIRS, padding=padding) for padding in ("right", "left"))
    assert right.valid.sum(1).tolist() == left.valid.sum(1).tolist() == [5, 6, 3]
    assert right.scored.sum(1).tolist() == left.scored.sum(1).tolist() == [2, 5, 1]
    assert left.tokens[2].tolist() == [-1, -1, -1, 0, 0, 0] and left.scored[2].tolist() == [False] * 5 + [True]
    assert right.tokens[2].tolist() == [0, 0, 0, -1, -1, -1]
    moved = right.to("meta")
    assert {moved.tokens.device.type, moved.valid.device.type, moved.scored.device.type} == {"meta"}


def test_rows_that_cannot_be_are_refused_by_name():
    names = ["line 1 of a.jsonl", "line 2 of a.jsonl", "line 3 of a.jsonl"]
    with pytest.raises(ContextError, match=r"line 2 of a\.jsonl: .*at most 5 tokens together, .* got 1 \+ 5; shorten"):
        Sequences.of(PAIRS, context=5, names=names)
    with pytest.raises(ContextError, match=r"sequence 1: .* at most 5"):
        Sequences.of(PAIRS, length=5)
    with pytest.raises(UsageError, match="sequence 1: the prompt must have at least one token, got none"):
        Sequences.of([([1], [2]), ([], [1])])
    with pytest.raises(UsageError, match="sequence 0: the completion must have at least one token"):
        Sequences.of([([1], [])])
    with pytest.raises(UsageError, match="at least one prompt and completion"):
        Sequences.of([])


def test_a_completion_is_encoded_without_the_space_that_begins_a_text():
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[:20_000]
    words = SentencePieceTokenizer.train(text, SentencePieceTokenizer.Config(vocab_size=360))
    for tokenizer in (words, ByteTokenizer(), CharTokenizer(" abcdefgh")):
        for prompt, completion in (("a bad", "ge"), ("a", " bad head"), ("a b", "\n\n x" if tokenizer.eos else " h")):
            ids = encode_completion(tokenizer, completion)
            assert ids[-1] == tokenizer.eos or tokenizer.eos is None
            assert encode_completion(tokenizer, completion, finished=False) == [i for i in ids if i != tokenizer.eos]
            assert tokenizer.decode(tokenizer.encode_prompt(prompt) + ids) == prompt + completion
    with pytest.raises(DataError, match="'x'"):
        encode_completion(CharTokenizer("ab"), "x")


WORDS = "the cat sat in the hat, and then the rat sat on the mat.\n"
SPACED = st.text(st.sampled_from(WORDS + "é  "))


@pytest.fixture(scope="module")
def spaced():
    """Pieces that may begin with a space, and an encoder that puts one before a text."""
    text = "".join(WORDS[i:] + WORDS for i in range(len(WORDS)))
    return SentencePieceTokenizer.train(text, SentencePieceTokenizer.Config(vocab_size=310, add_bos=True))


@given(SPACED.filter(len), SPACED)
def test_a_completion_is_decoded_after_its_prompt_and_encodes_to_its_tokens_again(spaced, prompt, completion):
    asked, ids = spaced.encode_prompt(prompt), encode_completion(spaced, completion)
    assert spaced.decode(ids, after=asked) == completion
    assert spaced.decode([*asked, *ids]) == prompt + completion
    stream = DecodeStream(spaced, asked)
    assert "".join([stream.push(token) for token in ids]) + stream.finish() == completion


def test_a_first_space_is_the_encoders_own_only_where_nothing_comes_before_it(spaced):
    ids = spaced.encode("the")
    assert spaced.decode(ids) == spaced.decode(ids, after=[spaced.bos]) == "the"
    assert spaced.decode(ids, after=spaced.encode("cat")) == " the"


def test_the_bytes_of_a_character_that_the_prompt_began_end_it():
    assert ByteTokenizer().decode([0xA9, 0x21], after=[0xC3]) == "é!"
