"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from axon_core.config import validate
from axon_core.sampling import Sampling

__all__ = ["generation_options"]

_SAMPLING = {
    "temperature": click.option(
        "--temperature", default=0.8, show_default=True, help="0 always takes the most likely token."
    ),
    "top_k": click.option("--top-k", type=int, help="Choose among the k most likely tokens only."),
    "top_p": click.option(
        "--top-p", default=1.0, show_default=True, help="Choose among the most likely tokens up to probability p."
    ),
    "min_p": click.option(
        "--min-p",
        default=0.0,
        show_default=True,
        help="Leave out tokens less than p times as likely as the likeliest.",
    ),
    "repetition_penalty": click.option(
        "--repetition-penalty", default=1.0, show_default=True, help="Above 1, tokens that have occurred lose by it."
    ),
}


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameters `sampling`, `max_new_tokens` and `seed`, with all options that set them."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        sampling = validate(Sampling, {name: values.pop(name) for name in _SAMPLING})
        return command(sampling=sampling, **values)

    options = [
        click.option(
            "--max-new-tokens", default=200, show_default=True, type=click.IntRange(1), help="How much, at most."
        ),
        *_SAMPLING.values(),
        click.option("--seed", default=0, show_default=True, help="Equal seeds give equal texts."),
    ]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
