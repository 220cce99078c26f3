"""Generation: the cache changes no number, rows do not affect each other, and text may outgrow the context."""

import itertools
import weakref

import pytest
import torch

from axon_core import MODELS
from axon_core.errors import CheckpointError, ConfigError, ContextError, UsageError
from axon_core.generation.api import Completion, Request, chunks, complete, decode, generate, stream
from axon_core.generation.decoder import pad_left
from axon_core.generation.sampling import Sampling
from axon_core.generation.stop_strings import cut
from axon_core.registry.discovery import discover
from axon_core.text.tokenizer import ByteTokenizer

GREEDY = Sampling(temperature=0)
PARTS = ("GQA MHA MQA SWA VR", "rotary linear dynamic yarn llama3", "rmsnorm layernorm")
SHIPPED = list(itertools.product(*map(str.split, PARTS)))


def model(attention="GQA", rotary="rotary", norm="rmsnorm", *, context=32, vocab_size=61):
    torch.manual_seed(0)
    built = MODELS["xllama"].build(
        vocab_size=vocab_size,
        context=context,
        dim=32,
        n_layers=2,
        n_heads=4,
        attention={"type": "SWA", "window": 5} if attention == "SWA" else attention,
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
    n = 40 if rotary == "dynamic" else 26  # `dynamic` is meant for twice its context: go well past it
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
    rows = tokens_of(decode(built, prompts, [0, 0], max_new_tokens=10, sampling=GREEDY, stop={stop}))
    at = free[0].index(stop)
    assert rows[0] == free[0][: at + 1] + [None] * (9 - at)
    assert rows[1] == free[1]


def test_each_token_that_ends_texts_ends_a_row():
    built, prompts = model(), [[1, 2, 3], [4, 5, 6]]
    free = tokens_of(decode(built, prompts, [0, 0], max_new_tokens=10, sampling=GREEDY))
    stop = {free[0][0], free[1][-1]}
    lengths = [min(row.index(end) for end in stop if end in row) + 1 for row in free]
    rows = tokens_of(decode(built, prompts, [0, 0], max_new_tokens=10, sampling=GREEDY, stop=stop))
    assert lengths[0] == 1 < lengths[1]
    for row, whole, length in zip(rows, free, lengths, strict=True):
        assert row == whole[:length] + [None] * (lengths[1] - length)


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
        ([], UsageError, "there must be at least one prompt, got none"),
        ([[1], []], UsageError, "prompt 2 is empty; give a text to continue"),
        ([[1] * 33], ContextError, "the prompt has 33 tokens, but the model's context is 32; shorten it"),
        (
            [[1], [5, 61]],
            UsageError,
            "prompt 2 has the token 61, but the model's tokens run from 0 to 60; use the tokenizer that the model was "
            "trained with",
        ),
    ],
)
def test_prompts_that_cannot_be_used(prompts, error, message):
    with pytest.raises(error) as caught:
        next(decode(model(), prompts, [0] * len(prompts), max_new_tokens=5))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(), Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1), Sampling(repetition_penalty=2)],
)
@pytest.mark.parametrize(("value", "logprob"), [(float("nan"), "nan"), (3e38, "(nan|-inf)")])
def test_scores_that_are_no_numbers_are_an_error(sampling, value, logprob):
    built = model()
    steps = decode(built, [[1, 2, 3], [4, 5]], [0, 0], max_new_tokens=5, sampling=sampling)
    next(steps)
    with torch.no_grad():
        built.norm.weight.mul_(100)
        built.head.weight[7] = value * torch.ones(32)  # 3e38: the sum is infinite, as float16's are from 65,520
        built.head.weight[8] = -built.head.weight[7]  # one of both is more than any number, whatever the features are
    message = (
        rf"must be finite, but those of token 2 of row [12] are not \(log-probability {logprob}\): use another dtype"
    )
    with pytest.raises(CheckpointError, match=message):
        next(steps)


def test_the_row_whose_scores_are_no_numbers_is_named():
    built = model()
    with torch.no_grad():
        built.embedding.weight[9] = float("nan")
    with pytest.raises(CheckpointError, match="those of token 1 of row 2 are not"):
        next(decode(built, [[1, 2, 3], [4, 9], [5]], [0, 0, 0], max_new_tokens=5, sampling=GREEDY))


def test_the_old_cache_is_freed_before_the_next_one_is_made(monkeypatch):
    built = model(context=8)
    caches, new_cache = [], built.new_cache

    def make(batch, capacity):
        assert all(cache() is None for cache in caches)
        cache = new_cache(batch, capacity)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(built, "new_cache", make)
    list(decode(built, [[3, 1, 4], [1]], [0, 0], max_new_tokens=20, sampling=GREEDY))
    assert len(caches) > 2


def test_a_tokenizer_of_another_vocabulary_is_refused():
    with pytest.raises(CheckpointError, match="the tokenizer has 258 tokens, but the model's vocabulary has only 61"):
        generate(model(), ByteTokenizer(), "a")


OPTIONS = [
    Sampling(temperature=0),
    Sampling(temperature=1.2, top_k=30),
    Sampling(temperature=0.9, min_p=0.02, repetition_penalty=1.3),
    Sampling(temperature=0, repetition_penalty=1.5),
    Sampling(temperature=2, top_p=0.9),
]


def letters(context):
    """A model of bytes that writes lower-case letters alone, so that texts are about as long as they have tokens."""
    built = model(vocab_size=258, context=context)
    plain = built.logits
    outside = torch.ones(258, dtype=torch.bool)
    outside[97:123] = False
    built.logits = lambda features: plain(features).masked_fill(outside, -1e9)
    return built


@pytest.mark.parametrize("rotary", ["rotary", "dynamic"])
def test_requests_of_a_batch_have_options_of_their_own_and_do_not_affect_each_other(rotary):
    built, tokenizer = model(rotary=rotary, vocab_size=258, context=24), ByteTokenizer()
    requests = [
        Request(prompt="abcdefghij"[: 2 * i + 1], sampling=sampling, seed=i, max_new_tokens=8 * i + 5)
        for i, sampling in enumerate(OPTIONS)
    ]  # rows end one after the other, and the last outgrows the context
    together = complete(built, tokenizer, requests)
    for request, completion in zip(requests, together, strict=True):
        (alone,) = complete(built, tokenizer, [request])
        assert (completion.text, completion.tokens, completion.finish) == (alone.text, alone.tokens, alone.finish)
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    assert len({len(completion.tokens) for completion in together}) == len(requests)


@torch.no_grad()
def test_log_probabilities_are_the_models_own():
    built, tokenizer = model(vocab_size=258), ByteTokenizer()
    sampling = Sampling(temperature=0.5, top_k=3, repetition_penalty=2)
    (completion,) = complete(built, tokenizer, [Request(prompt="seven", sampling=sampling, max_new_tokens=20)])
    row = torch.tensor([tokenizer.encode("seven") + completion.tokens])
    every = built(row).log_softmax(-1)[0, 4:-1]
    expected = every.gather(1, torch.tensor(completion.tokens).unsqueeze(1)).flatten()
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_repetition_penalty_counts_the_prompt_and_the_text_so_far():
    built, penalty = model(), 1.8
    prompt = torch.randint(61, (4,)).tolist()
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    (got,) = tokens_of(decode(built, [prompt], [0], max_new_tokens=25, sampling=sampling))
    row = list(prompt)
    for _ in range(25):
        logits = built(torch.tensor([row]))[0, -1]
        for token in set(row):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        row.append(logits.argmax().item())
    assert got == row[4:]
    (plain,) = tokens_of(decode(built, [prompt], [0], max_new_tokens=25, sampling=GREEDY))
    assert len(set(got)) > len(set(plain))


def test_stop_strings_cut_the_text_that_would_have_come():
    built, tokenizer = letters(64), ByteTokenizer()
    wide = Sampling(temperature=1.5)
    free = [Request(prompt="Once", sampling=wide, seed=seed, max_new_tokens=50) for seed in range(8)]
    whole = complete(built, tokenizer, free)
    # Strings of two and three characters, which span tokens, from the middle of each text.
    stops = [(text[9:11], text[20:23]) for text in (completion.text for completion in whole)]
    stopping = [request.model_copy(update={"stop": stop}) for request, stop in zip(free, stops, strict=True)]
    for completion, before, stop in zip(complete(built, tokenizer, stopping), whole, stops, strict=True):
        assert completion.text == cut(before.text, stop)
        assert completion.finish == "stop"
        assert completion.tokens == before.tokens[: len(completion.tokens)]
        assert len(completion.tokens) < len(before.tokens)
    assert "".join(stream(built, tokenizer, "Once", sampling=wide, max_new_tokens=50, stop=stops[0])) == cut(
        whole[0].text, stops[0]
    )


def test_what_may_begin_a_stop_string_is_given_out_when_the_text_ends():
    built, tokenizer = model(vocab_size=258), ByteTokenizer()
    text = generate(built, tokenizer, "Once", sampling=GREEDY, max_new_tokens=6)
    request = Request(prompt="Once", sampling=GREEDY, max_new_tokens=6, stop=(text[-2:] + "never",))
    (completion,) = complete(built, tokenizer, [request])
    assert (completion.text, completion.finish) == (text, "length")


def test_end_of_text_is_a_token_with_a_probability_and_no_text():
    built, tokenizer = model(vocab_size=258), ByteTokenizer()
    free = tokens_of(decode(built, [tokenizer.encode("Once")], [0], max_new_tokens=10, sampling=GREEDY))[0]
    tokenizer.eos = free[4]
    (completion,) = complete(built, tokenizer, [Request(prompt="Once", sampling=GREEDY)])
    at = free.index(free[4])
    assert (completion.tokens, completion.finish) == (free[: at + 1], "eos")
    assert len(completion.logprobs) == at + 1


def test_an_end_that_has_a_piece_of_its_own_ends_the_text_and_adds_nothing_to_it():
    built, tokenizer = letters(32), ByteTokenizer()
    request = Request(prompt="Once", sampling=GREEDY, max_new_tokens=20)
    (free,) = complete(built, tokenizer, [request])
    tokenizer.other_ends = frozenset({free.tokens[5]})
    at = free.tokens.index(free.tokens[5])
    (completion,) = complete(built, tokenizer, [request])
    assert (completion.tokens, completion.finish) == (free.tokens[: at + 1], "eos")
    assert completion.text == tokenizer.decode(free.tokens[:at])


def test_chunks_add_up_to_the_completions():
    built, tokenizer = letters(32), ByteTokenizer()
    requests = [Request(prompt="ab", seed=i, max_new_tokens=9 + i, stop=("e",)) for i in range(4)]
    added = [Completion() for _ in requests]
    for chunk in chunks(built, tokenizer, requests):
        assert added[chunk.row].finish is None  # nothing comes after the end
        added[chunk.row].add(chunk)
    assert added == complete(built, tokenizer, requests)


def test_no_new_tokens_are_no_steps():
    assert list(decode(model(), [[1], [2]], [0, 0], max_new_tokens=0)) == []


def test_rows_that_have_ended_leave_the_batch():
    built, sizes = model(vocab_size=258), []
    built.head.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    requests = [Request(prompt=[1, 2, 3], sampling=GREEDY, max_new_tokens=n) for n in (2, 4, 6, 20)]
    complete(built, ByteTokenizer(), requests)
    # 3 of 4 stay as they are, 2 of 4 and 1 of 2 move together.
    assert sizes == [4] * 4 + [2] * 2 + [1] * 14


def test_a_request_that_breaks_a_rule():
    built, tokenizer = model(vocab_size=258), ByteTokenizer()
    for options, message in (
        ({"stop": [""]}, "stop: a stop string needs at least one character, got ''"),
        ({"stop": "end"}, "stop: must be a valid tuple, got 'end'"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be greater than 0, got 0"),
    ):
        with pytest.raises(ConfigError) as caught:
            generate(built, tokenizer, "Once", **options)
        assert str(caught.value) == message


def test_every_shipped_part_is_covered_here():
    for place, group in enumerate(("attention", "rotary_embedding", "norm")):
        shipped = {e.key for e in discover().entries(group) if e.distribution.startswith("axon-")}
        assert {parts[place] for parts in SHIPPED} == shipped


def test_an_empty_prompt_is_one_where_a_marker_comes_before_it():
    tokenizer = ByteTokenizer()
    built = model(vocab_size=tokenizer.vocab_size)
    with pytest.raises(UsageError, match="the prompt is empty, and this model's texts do not begin with a marker"):
        generate(built, tokenizer, "")
    tokenizer.add_bos = True
    text = generate(built, tokenizer, "", max_new_tokens=5)
    (from_marker,) = complete(built, tokenizer, [Request(prompt=[tokenizer.bos], max_new_tokens=5)])
    assert text == from_marker.text


def test_all_ways_to_generate_warn_once_and_encode_a_prompt_once(caplog, monkeypatch):
    built, tokenizer = model(vocab_size=258), ByteTokenizer()
    encoded, encode = [], tokenizer.encode_prompt
    monkeypatch.setattr(tokenizer, "encode_prompt", lambda text: encoded.append(text) or encode(text))
    requests = [Request(prompt=text, max_new_tokens=built.context - 2) for text in ("ab", "abc")]
    ways = {
        "generate": lambda: generate(built, tokenizer, ["ab", "abc"], max_new_tokens=built.context - 2),
        "stream": lambda: list(stream(built, tokenizer, "abc", max_new_tokens=built.context - 2)),
        "complete": lambda: complete(built, tokenizer, requests),
        "chunks": lambda: list(chunks(built, tokenizer, requests)),
    }
    for name, way in ways.items():
        caplog.clear()
        encoded.clear()
        way()
        assert encoded == (["abc"] if name == "stream" else ["ab", "abc"]), name
        (message,) = caplog.messages
        assert message.startswith(f"up to {built.context + 1} tokens are requested"), name
        assert f"trained on {built.context}" in message and "\n" not in message
    caplog.clear()
    complete(built, tokenizer, [Request(prompt="ab", max_new_tokens=built.context - 2)])
    assert not caplog.messages
