"""Which cells fit, and what is known of each before any is trained: its models are built without weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from axon_core import AxonError, CausalLM, ConfigError, UsageError, first_line
from axon_core.training import Trainer, build_bare_trainer, trace
from axon_lab.compare.design import Design, FittingCell, choices_of
from axon_lab.compare.results import Budget, LeftOut

__all__ = ["cache_bytes", "check_cells", "reason", "silenced"]

_log = logging.getLogger("axon")


def check_cells(design: Design, progress: Callable[[int, int], None]) -> tuple[Design, list[str]]:
    """Return the design with its cells, and with those that do not fit; and in words which options parts drop.

    Each cell's trainer is built as for `axon plan`: its data are read, its models have no weights.

    Raises:
        UsageError: a value that was written fits in no cell, or the metric or the budget is not one of this training.
    """
    cells, left_out, dropped = list[FittingCell](), list[LeftOut](), dict[str, None]()
    choices = list(choices_of(design.axes))
    progress(0, len(choices))
    for done, values in enumerate(choices, 1):
        try:
            with silenced():
                recipe = design.recipe_of(values, f"trainer.seed={design.seeds[0]}")
                trainer = build_bare_trainer(recipe)
            cells.append(_cell(design, values, trainer))
            dropped |= dict.fromkeys(str(swap) for swap in recipe.swaps if swap.dropped)
        except Exception as error:  # whatever a plugin raises, its cell alone is left out
            left_out.append(LeftOut(values=values, reason=reason(error)))
        progress(done, len(choices))
    _check_written(design, cells, left_out)
    return design.model_copy(update={"cells": tuple(cells), "left_out": tuple(left_out)}), list(dropped)


def _check_written(design: Design, cells: Sequence[FittingCell], left_out: Sequence[LeftOut]) -> None:
    """Raise `UsageError` if a value that the user wrote fits nowhere, or if nothing fits at all."""
    for i, axis in enumerate(design.axes):
        fitting = {cell.values[i] for cell in cells}
        for value in axis.values:
            if value not in fitting and (axis in design.asked or not cells):
                why = next((left.reason for left in left_out if left.values[i] == value), "")
                raise UsageError(f"--vary {axis.path}={value} fits in no cell of the comparison: {why}")


def _cell(design: Design, values: tuple[str, ...], trainer: Trainer) -> FittingCell:
    if type(trainer).evaluate is Trainer.evaluate:
        raise UsageError(f"{type(trainer).__name__} has no evaluation on held-out data, so nothing can be compared")
    flops, units = _work(trainer)
    trained = {id(p): p for role in trainer.trainable for p in trainer.models[role].parameters() if p.requires_grad}
    return FittingCell(
        values=values,
        steps=_steps(design.budget, trainer, flops, units),
        parameters=sum(parameter.numel() for parameter in trained.values()),
        flops=flops,
        cache_bytes_per_token=cache_bytes(trainer),
    )


def _work(trainer: Trainer) -> tuple[float | None, float | None]:
    """Return the floating-point operations of an update, and how much of the trainer's unit it learns from."""
    try:
        work = trace(trainer, ())
    except Exception:  # a trainer's own code may need numbers, which the traced tensors do not have
        return None, None
    return work.flops, work.units


def _steps(budget: Budget | None, trainer: Trainer, flops: float | None, units: float | None) -> int | None:
    """Return how many updates a budget is enough for, at least one; None if that is measured later."""
    if budget is None:
        return trainer.config.steps
    if budget.unit == "steps":
        return int(budget.amount)
    if budget.unit == "seconds":
        return None
    if budget.unit == "tokens" and trainer.unit != "tokens":
        raise UsageError(f"--budget tokens is for trainings that count tokens; this one counts {trainer.unit}")
    each = units if budget.unit == "tokens" else flops
    if not each:
        raise UsageError(f"--budget {budget.unit}: the {budget.unit} of an update cannot be counted; use steps")
    if budget.amount < each:
        raise UsageError(f"--budget {budget.unit}={budget.amount:g} is less than one update takes, {each:g}")
    return int(budget.amount // each)


def cache_bytes(trainer: Trainer) -> float | None:
    """Return the bytes that a token keeps in the decoding cache of the trained model, by what its attentions declare.

    A state that does not grow with the text, as of a recurrent attention, does not count. None if no trained model
    generates text.
    """
    model = next((m for role in trainer.trainable if isinstance(m := trainer.models[role], CausalLM)), None)
    if model is None:
        return None
    layers = model.new_cache(1, 1).layers
    return float(
        sum(layer.buffers[name].nbytes for layer in layers for name, state in layer.states.items() if state.per_token)
    )


def reason(error: BaseException) -> str:
    """Return why something failed, in one line; where it stands in the recipe, but not the whole command."""
    if isinstance(error, ConfigError):
        return str(ConfigError(error.problems))
    if isinstance(error, AxonError):
        if hasattr(error, "source"):
            error.source = None  # type: ignore[attr-defined]
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


@contextmanager
def silenced() -> Generator[None]:
    """Within the block Axon's warnings are not shown: they would come once for each cell."""
    before, _log.disabled = _log.disabled, True
    try:
        yield
    finally:
        _log.disabled = before
