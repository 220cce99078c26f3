"""Generation: the cache changes no number, rows do not affect each other, and text may outgrow the context."""

import itertools

import pytest
import torch

from axon_core import ATTENTIONS, MODELS, NORMS, ROTARY_EMBEDDINGS
from axon_core.errors import CheckpointError, ContextError, UsageError
from axon_core.generation import decode, generate, pad_left, stream
from axon_core.sampling import Sampling
from axon_core.tokenizer import ByteTokenizer

GREEDY = Sampling(temperature=0)
SHIPPED = list(itertools.product(("GQA", "MHA", "MQA"), ("rotary", "linear", "dynamic"), ("rmsnorm", "layernorm")))


def model(attention="GQA", rotary="rotary", norm="rmsnorm", *, context=32, vocab_size=61):
    torch.manual_seed(0)
    built = MODELS["xllama"].build(
        vocab_size=vocab_size,
        context=context,
        dim=32,
        n_layers=2,
        n_heads=4,
        attention=attention,
        rotary=rotary if rotary == "rotary" else {"type": rotary, "factor": 2.0},
        norm=norm,
    )
    with torch.no_grad():
        for parameter in built.parameters():  # larger weights, so that the choices differ from step to step
            if parameter.ndim == 2:
                parameter.mul_(3)
    return built.eval()


def uncached(built, prompt, n):
    """Greedy decoding as a loop over full forward passes."""
    row = list(prompt)
    for _ in range(n):
        row.append(built(torch.tensor([row]))[0, -1].argmax().item())
    return row[len(prompt) :]


def tokens_of(steps):
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize(("attention", "rotary", "norm"), SHIPPED)
@torch.no_grad()
def test_cached_equals_uncached(attention, rotary, norm):
    built = model(attention, rotary, norm)
    prompt = torch.randint(61, (6,)).tolist()
    # `dynamic` is meant for twice its context: go well past it
    n = 40 if rotary == "dynamic" else 26
    (got,) = tokens_of(decode(built, [prompt], [0], max_new_tokens=n, sampling=GREEDY))
    assert got == uncached(built, prompt, n)


@pytest.mark.parametrize("chunks", [(9,), (5, 3, 1), (1,) * 9, (8, 1)])
@pytest.mark.parametrize("rotary", ["rotary", "dynamic"])
@torch.no_grad()
def test_chunks_equal_one_pass(chunks, rotary):
    built = model(rotary=rotary, context=6)
    tokens = torch.randint(61, (2, 9))
    cache = built.new_cache(2, 9)
    last = [built(piece, cache=cache)[:, -1] for piece in tokens.split(chunks, 1)]
    for end, logits in zip(itertools.accumulate(chunks), last, strict=True):
        torch.testing.assert_close(logits, built(tokens[:, :end])[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rotary", ["rotary", "linear", "dynamic"])
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(rotary):
    built = model(rotary=rotary, context=12)
    prompts = [torch.randint(61, (n,)).tolist() for n in (1, 5, 12, 7)]
    sampling = Sampling(temperature=0.8, top_k=20, top_p=0.95)
    seeds = [7, 8, 9, 10]
    batch = tokens_of(decode(built, prompts, seeds, max_new_tokens=30, sampling=sampling))  # well past the context
    for prompt, seed, got in zip(prompts, seeds, batch, strict=True):
        (alone,) = tokens_of(decode(built, [prompt], [seed], max_new_tokens=30, sampling=sampling))
        assert got == alone


@torch.no_grad()
def test_left_padding_changes_no_logits():
    built = model()
    rows = [torch.randint(61, (n,)).tolist() for n in (2, 9, 5)]
    tokens, valid = pad_left(rows)
    got = built(tokens.masked_fill(~valid, -1), valid=valid)  # a padding id of −1 is fine
    assert got.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(got[i, -len(row) :], built(torch.tensor([row]))[0], atol=1e-5, rtol=0)


def test_a_text_that_outgrows_the_context_goes_on_from_its_last_half():
    built = model(context=8)
    prompt = [3, 1, 4, 1, 5]
    (got,) = tokens_of(decode(built, [prompt], [0], max_new_tokens=20, sampling=GREEDY))
    row, first = list(prompt), 0
    for _ in range(20):
        if len(row) - first > 8:
            first = len(row) - 4
        row.append(built(torch.tensor([row[first:]]))[0, -1].argmax().item())
    assert got == row[5:]


def test_end_of_text_ends_a_row_alone():
    built = model()
    prompts = [[1, 2, 3], [4, 5, 6]]
    free = tokens_of(decode(built, prompts, [0, 0], max_new_tokens=10, sampling=GREEDY))
    stop = next(token for token in free[0] if token not in free[1])
    rows = tokens_of(decode(built, prompts, [0, 0], max_new_tokens=10, sampling=GREEDY, stop=stop))
    at = free[0].index(stop)
    assert rows[0] == free[0][:at] + [None] * (10 - at)
    assert rows[1] == free[1]


def test_streaming_equals_generating_and_seeds_decide():
    built, tokenizer = model(vocab_size=258), ByteTokenizer()
    options = {"max_new_tokens": 60, "sampling": Sampling(temperature=1.5)}
    text = generate(built, tokenizer, "Once", seed=3, **options)
    assert "".join(stream(built, tokenizer, "Once", seed=3, **options)) == text
    assert generate(built, tokenizer, "Once", seed=4, **options) != text
    assert generate(built, tokenizer, ["x", "Once"], seed=2, **options)[1] == text  # row i draws with seed + i


def test_training_mode_comes_back_even_when_the_caller_stops_early():
    built = model().train()
    steps = decode(built, [[1]], [0], max_new_tokens=5)
    next(steps)
    assert not built.training
    steps.close()
    assert built.training
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], UsageError, "there is no prompt; give at least one"),
        ([[1], []], UsageError, "prompt 2 is empty; give it some text to go on from"),
        ([[1] * 33], ContextError, "the prompt has 33 tokens, but the model's context is 32; make it shorter"),
    ],
)
def test_prompts_that_cannot_be_used(prompts, error, message):
    with pytest.raises(error) as caught:
        next(decode(model(), prompts, [0] * len(prompts), max_new_tokens=5))
    assert str(caught.value) == message


def test_a_tokenizer_of_another_vocabulary_is_refused():
    with pytest.raises(CheckpointError, match="the tokenizer has 258 tokens, but the model's vocabulary 61"):
        generate(model(), ByteTokenizer(), "a")


def test_every_shipped_part_is_covered_here():
    assert {a for a, _, _ in SHIPPED} <= set(ATTENTIONS)
    assert {r for _, r, _ in SHIPPED} <= set(ROTARY_EMBEDDINGS)
    assert {n for _, _, n in SHIPPED} <= set(NORMS)
