"""How likely a language model finds a text, and the progress of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import torch

from axon_core.alignment.logprobs import token_logprobs
from axon_core.interfaces.model import CausalLM
from axon_core.processes import sum_numbers, worker, workers
from axon_core.text.corpus import TextData, read_text
from axon_core.text.language_data import LanguageData, piece_lengths
from axon_core.training.pretrained import load_pretrained
from axon_core.training.trainer import Trainer

__all__ = [
    "Listener",
    "TextEvaluation",
    "coverage",
    "evenly_spaced",
    "held_out_likelihood",
    "report_progress",
    "report_progress_to",
    "track_own",
    "track_progress",
]

_SCORES = 1 << 28
"""Scores of tokens that an evaluation computes at once, if one row has fewer: 1 GB."""

T = TypeVar("T")
Listener = Callable[..., object]
"""Called with the keywords `done` and `total`, how much of how much is done, and `doing`, a word for what."""

_listener: ContextVar[Listener | None] = ContextVar("evaluation", default=None)


@contextmanager
def report_progress_to(listener: Listener) -> Generator[None]:
    """Within the block, report the progress of each evaluation to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_progress(done: int, total: int, doing: str = "evaluating") -> None:
    """Report the progress of an evaluation to the listener, if there is one; at the beginning `done` is 0."""
    if listener := _listener.get():
        listener(done=min(done, total), total=total, doing=doing)


def track_progress(
    batches: Iterable[T], total: int, size: Callable[[T], int], doing: str = "evaluating"
) -> Generator[T]:
    """Yield the batches; before the first and after each, report how much of `total` is done, as `size` counts it."""
    done = 0
    report_progress(done, total, doing)
    for batch in batches:
        yield batch
        done += size(batch)
        report_progress(done, total, doing)


def track_own(batches: Iterable[T], total: int, size: Callable[[T], int], doing: str = "evaluating") -> Generator[T]:
    """Yield what `track_progress` does, but of several workers to each its own part: every so many-th batch.

    What is summed over them is to go through `sum_numbers`. The progress counts all.
    """
    for number, batch in enumerate(track_progress(batches, total, size, doing)):
        if number % workers() == worker():
            yield batch


def evenly_spaced(n: int, most: int) -> Sequence[int]:
    """Return the numbers, counted from 0, of `most` of n examples, spread evenly; of all if there are no more."""
    return range(n) if n <= most else [i * n // most for i in range(most)]


def coverage(unit: str, evaluated: float, of: float) -> dict[str, float]:
    """Return how many of the held-out examples were evaluated, to stand beside the numbers; nothing if all were.

    `unit` names the examples in the plural, as in `{"tokens": 250000, "held_out_tokens": 1115394}`.
    """
    return {} if evaluated == of else {unit: evaluated, f"held_out_{unit}": of}


class TextEvaluation(Trainer.Evaluation):
    """What any causal language model can be measured on: a text."""

    text: str
    """A UTF-8 text file, or a folder of them; `~` and `$VARIABLES` are filled in."""

    def evaluate(self, folder: Path, device: str) -> Mapping[str, float | str]:
        """Return how likely the saved model in `folder`, computing on `device`, finds the text.

        These are `loss` in nats per token, `nats_per_byte`, `bits_per_byte`, `perplexity` (per token) and the number of
        `tokens`. The whole text is read, in windows of the model's context; all tokens but the first count.

        Raises:
            DataError: the text cannot be read, has fewer than two tokens, or the tokenizer cannot encode it.
            CheckpointError: there is no intact language model in the folder.
        """
        model, tokenizer = load_pretrained(folder, CausalLM)
        tokens = torch.tensor(tokenizer.encode(read_text(self.text)), dtype=torch.int32)
        found = held_out_likelihood(model.eval().to(device), TextData(tokenizer, tokens[:0], tokens))
        return {
            **found,
            "nats_per_byte": found["bits_per_byte"] * math.log(2),
            "perplexity": math.exp(min(found["loss"], 700.0)),  # capped at what a float can hold
        }


@torch.no_grad()
def held_out_likelihood(
    model: CausalLM, data: LanguageData, most: int | None = None, context: int | None = None
) -> dict[str, float]:
    """Return `loss` in nats per token, `bits_per_byte`, and the number of `tokens`, of what is held out.

    Args:
        model: what is evaluated.
        data: the text.
        most: about how many tokens are read, in windows spread evenly over the part; by default all.
        context: tokens of a window; by default the model's context.
    """
    context, device = context or model.config.context, next(model.parameters()).device
    at_once = max(1, min(64, _SCORES // (context * model.config.vocab_size)))
    total, tokens, length = torch.zeros((), dtype=torch.float64), 0, 0
    expected = min(data.held_out_targets, most or data.held_out_targets)
    lengths = piece_lengths(data.tokenizer)
    examples = data.held_out_examples(context, at_once, most)
    for batch in track_own(examples, expected, lambda batch: batch["tokens"][:, 1:].numel()):
        rows = {name: part.to(device) for name, part in batch.items()}
        logits = model(rows["tokens"][:, :-1], documents=rows.get("documents"))
        total -= token_logprobs(logits, rows["tokens"][:, 1:]).sum().cpu().double()
        targets = batch["tokens"][:, 1:]
        tokens += targets.numel()
        length += int(lengths[targets].sum())
    found = sum_numbers({"nats": total.item(), "tokens": tokens, "length": length})
    bits = found["nats"] / math.log(2)
    return {
        "loss": found["nats"] / found["tokens"],
        "bits_per_byte": bits / max(1, found["length"]),
        "tokens": found["tokens"],
    }
