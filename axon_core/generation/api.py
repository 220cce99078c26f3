"""Generation with any causal language model: batched, cached, and streaming.

`generate` returns text for text, and `stream` yields its pieces as they come. `complete` takes requests with options
of their own, and returns completions with tokens, log-probabilities and the reason they ended; `chunks` yields these
as they come.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, overload

from pydantic import Field, field_validator

from axon_core.checkpoint.models import check_vocabulary
from axon_core.config import Config, validate
from axon_core.errors import UsageError
from axon_core.generation.decoder import Decoder, evaluation_mode
from axon_core.generation.sampling import Sampling
from axon_core.generation.stop_strings import StopStrings
from axon_core.interfaces.model import CausalLM
from axon_core.text.tokenizer import DecodeStream, Tokenizer

__all__ = [
    "Chunk",
    "Completion",
    "Finish",
    "Request",
    "TextStream",
    "chunks",
    "complete",
    "decode",
    "decode_requests",
    "generate",
    "sample_text",
    "stream",
    "warn_beyond",
]

_log = logging.getLogger("axon")

Finish = Literal["stop", "length", "eos"]
"""Why a text ended: at a stop string, at its `max_new_tokens`, or with a token that ends texts (`Tokenizer.ends`)."""


class Request(Config):
    """A text to continue, and how."""

    prompt: str | Sequence[int]
    """A text, or its tokens if they are more than the tokenizer makes of a text."""
    max_new_tokens: int = Field(default=200, gt=0, le=1_000_000)
    """The most tokens to generate."""
    sampling: Sampling = Sampling()
    """How tokens are chosen."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings that is complete."""
    seed: int = 0
    """Equal requests with equal seeds give equal texts, whatever runs beside them."""

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("a stop string needs at least one character, got ''")
        return stop

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Return the prompt's tokens.

        Raises:
            UsageError: the text is empty, and the tokenizer puts no marker before it.
            DataError: it cannot be encoded.
        """
        if self.prompt == "" and not tokenizer.add_bos:
            raise UsageError(
                "the prompt is empty, and this model's texts do not begin with a marker that it could continue; give "
                "a text"
            )
        return tokenizer.encode_prompt(self.prompt) if isinstance(self.prompt, str) else list(self.prompt)


class Chunk(NamedTuple):
    """What one token adds to one row's text; the texts of a row's chunks, joined, are its completion's."""

    row: int
    """The request's number, counted from 0."""
    text: str
    """May be empty, while a character lacks bytes or the text may turn out to be a stop string."""
    token: int
    """The token."""
    logprob: float
    """Its log-probability under the model as it is: before penalty, temperature and filters, in nats."""
    finish: Finish | None
    """Why the row ends with this chunk, or None if it continues."""


@dataclass
class Completion:
    """The result of a request."""

    text: str = ""
    """The text after the prompt, without the stop string that ended it."""
    tokens: list[int] = field(default_factory=list[int])
    """All generated tokens, including those of the stop string and the end-of-text token."""
    logprobs: list[float] = field(default_factory=list[float])
    """The log-probability of each token (`Chunk.logprob`)."""
    finish: Finish | None = None
    """Why the text ended; None until it has."""

    def add(self, chunk: Chunk) -> None:
        """Append the request's next chunk."""
        self.text += chunk.text
        self.tokens.append(chunk.token)
        self.logprobs.append(chunk.logprob)
        self.finish = chunk.finish


@overload
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    stop: Sequence[str] = ...,
    seed: int = ...,
    compile: bool = ...,
) -> str: ...
@overload
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: list[str],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    stop: Sequence[str] = ...,
    seed: int = ...,
    compile: bool = ...,
) -> list[str]: ...
def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str | list[str],
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    compile: bool = False,
) -> str | list[str]:
    """Return the text that follows `prompt`, or the list of texts that follow each of several prompts.

    Args:
        model: any causal language model.
        tokenizer: the one the model was trained with.
        prompt: one text, or several, which are run as one batch and do not affect each other.
        max_new_tokens: the most tokens to generate; the tokenizer's end-of-text token ends a text earlier.
        sampling: how tokens are chosen.
        stop: strings that end a text; they are not part of it.
        seed: row i of a batch draws what a single prompt with seed `seed + i` draws.
        compile: whether decoding is compiled: the first text then takes a minute, and later ones are much faster.

    Raises:
        UsageError: a prompt is empty.
        ConfigError: an option breaks a rule.
        DataError: a prompt cannot be encoded.
        CheckpointError: the tokenizer is not the model's, or the model's scores are not finite.
        ContextError: a prompt is longer than the model's context.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    requests = [_request(text, max_new_tokens, sampling, stop, seed + i) for i, text in enumerate(prompts)]
    texts = [completion.text for completion in complete(model, tokenizer, requests, compile=compile)]
    return texts[0] if isinstance(prompt, str) else texts


def stream(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    compile: bool = False,
) -> Iterator[str]:
    """Yield the pieces of the text that `generate` returns for one prompt, as they come; arguments as there."""
    request = _request(prompt, max_new_tokens, sampling, stop, seed)
    return (chunk.text for chunk in chunks(model, tokenizer, [request], compile=compile) if chunk.text)


def complete(
    model: CausalLM, tokenizer: Tokenizer, requests: Sequence[Request], *, compile: bool = False
) -> list[Completion]:
    """Return the completion of each request; they run as one batch and are independent. Arguments as for `chunks`."""
    completions = [Completion() for _ in requests]
    for chunk in chunks(model, tokenizer, requests, compile=compile):
        completions[chunk.row].add(chunk)
    return completions


def chunks(
    model: CausalLM, tokenizer: Tokenizer, requests: Sequence[Request], *, compile: bool = False
) -> Generator[Chunk, None, None]:
    """Yield what each token adds, as it comes; every step yields one chunk for each request that continues.

    With `compile`, decoding is compiled when the first token is asked for (`compiled`). A warning
    is logged if a text may outgrow the context that the model was trained on.

    Raises:
        UsageError: there is no request, a prompt is empty, or it holds a number that is not a token of the model.
        DataError: a prompt cannot be encoded.
        ContextError: a prompt is longer than the model's context.
        CheckpointError: the tokenizer has more tokens than the model, or the model's scores are not finite.
    """
    encoded = [request.model_copy(update={"prompt": request.tokens(tokenizer)}) for request in requests]
    warn_beyond(model.context, encoded)
    yield from decode_requests(model, tokenizer, encoded, compile=compile)


def decode_requests(
    model: CausalLM, tokenizer: Tokenizer, requests: Sequence[Request], *, compile: bool = False
) -> Generator[Chunk, None, None]:
    """Yield what `chunks` yields, and raise what it raises, without a warning about long texts."""
    check_vocabulary(tokenizer, model.config.vocab_size)
    prompts = [request.tokens(tokenizer) for request in requests]
    texts = [TextStream(tokenizer, request, prompt) for request, prompt in zip(requests, prompts, strict=True)]
    decoder = Decoder(
        model,
        prompts,
        [request.seed for request in requests],
        [request.sampling for request in requests],
        [request.max_new_tokens for request in requests],
        vocab_size=tokenizer.vocab_size,
        compile=compile,
    )
    with evaluation_mode(model):
        while decoder.going:
            for row, token, logprob in decoder.step():
                text, finish = texts[row].push(token)
                if finish:
                    decoder.end(row)
                yield Chunk(row, text, token, logprob, finish)


def sample_text(model: CausalLM, tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """Return a text to judge a training by: the prompt, and 200 tokens after it, even past the context."""
    request = Request(prompt=prompt, sampling=Sampling(temperature=0.8))
    tokens = [chunk.token for chunk in decode_requests(model, tokenizer, [request])]
    return tokenizer.decode([*prompt, *tokens])


def decode(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    vocab_size: int | None = None,
    compile: bool = False,
) -> Generator[list[int | None], None, None]:
    """Yield, step by step, the next token of each row of `prompts`; None for a row that has ended.

    A row ends with a token of `stop`, which is its last. See `Decoder` for the other arguments, how rows behave, and
    the errors raised.
    """
    n = len(prompts)
    given = [sampling or Sampling()] * n, [max_new_tokens] * n
    decoder = Decoder(model, prompts, seeds, *given, vocab_size=vocab_size, compile=compile)
    with evaluation_mode(model):
        while decoder.going:
            tokens: list[int | None] = [None] * n
            for row, token, _ in decoder.step():
                tokens[row] = token
                if token in stop:
                    decoder.end(row)
            yield tokens


class TextStream:
    """The text of a request: tokens to characters, up to where the request says it ends.

    `prompt` are the request's tokens, whose text is left out.

    Raises:
        DataError: the tokenizer has no such token.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request, prompt: Sequence[int]) -> None:
        self._ends = tokenizer.ends
        self._left = request.max_new_tokens
        self._stop = StopStrings(request.stop)
        self._pieces = DecodeStream(tokenizer, prompt)

    def push(self, token: int) -> tuple[str, Finish | None]:
        """Return what the token adds, and why the text ends with it."""
        self._left -= 1
        finish: Finish | None = "eos" if token in self._ends else "length" if not self._left else None
        text = self._stop.push("" if finish == "eos" else self._pieces.push(token))
        if finish and not self._stop.stopped:
            text += self._stop.push(self._pieces.finish())
        if self._stop.stopped:
            return text, "stop"
        return (text + self._stop.finish() if finish else text), finish


def warn_beyond(context: int, requests: Iterable[Request]) -> None:
    """Log one warning if prompts, as tokens, and what follows them may be longer than a model's context."""
    total = max((len(request.prompt) + request.max_new_tokens for request in requests), default=0)
    if total > context:
        _log.warning(
            f"up to {total:,} tokens are requested, including the prompt, but the model was trained on {context:,}: "
            "beyond these it sees only the last half of its context, and writes worse; request fewer new tokens"
        )


def _request(prompt: str, max_new_tokens: int, sampling: Sampling | None, stop: Sequence[str], seed: int) -> Request:
    values = {"prompt": prompt, "max_new_tokens": max_new_tokens, "stop": stop, "seed": seed}
    return validate(Request, {**values, "sampling": sampling or Sampling()})
