"""The check of parts that say how they can be divided among processes (`TensorSplit`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from axon_core.testing import attention_cache as attention
from axon_core.testing import model
from axon_core.testing.kit import PartUnderTest, same
from axon_core.training.parallel.tensor import declared_parts, divided_alone

SUITES = (attention.SUITE, *model.SUITES)
_CAUSE = "a layer left out of `tensor_split`, or something computed from all units, such as a norm over heads"


@attention.SUITE.check(_CAUSE)
def divided(part: PartUnderTest) -> None:
    """A part with a `tensor_split` is the sum of what processes compute that each have a part of its weights."""
    made = attention.build(part)
    x = attention.tokens(made)
    _sums(made, lambda: attention.at_once(made, x))


@model.CAUSAL_LM.check(_CAUSE)
def divided_parts(part: PartUnderTest) -> None:
    """Each part with a `tensor_split` is the sum of what processes compute that each have a part of its weights."""
    made = model.build(part)
    tokens = model.text(made)
    _sums(made, lambda: model.scores(made, tokens))


def _sums(module: nn.Module, run: Callable[[], object]) -> None:
    """Compare each part that can be divided with the sum over as few processes as divide it, where `run` calls it."""
    for part, split in declared_parts([module]):
        n = next((n for n in range(2, split.units + 1) if split.units % n == 0), 1)
        calls = _calls(part, run)
        alone = divided_alone(part, split, n)
        for args, options, whole in calls:
            with torch.no_grad():
                results = [process(*args, **options) for process in alone]
            same(torch.stack(results).sum(0), whole, f"{n} processes, each with its part of {split.units} {split.unit}")


def _calls(part: nn.Module, run: Callable[[], object]) -> list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
    """Return what `part` is called with in `run`, and what it returns."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def note(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], whole: Tensor) -> None:
        calls.append((args, options, whole))

    with part.register_forward_hook(note, with_kwargs=True):
        run()
    return calls
