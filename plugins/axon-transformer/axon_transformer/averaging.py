"""Checkpoint averaging: one model whose weights are the mean of a run's at its last checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from axon_core import CheckpointError, UsageError
from axon_core.checkpoint import Checkpoints
from axon_transformer.model import Transformer


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each weight over states of one model, summed in float64 (arXiv 1706.03762, Section 6.1)."""
    return {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}


def average(models: Sequence[Transformer]) -> Transformer:
    """Return the first model, its weights replaced by the mean over all models (arXiv 1706.03762, Section 6.1).

    Raises:
        CheckpointError: the models are not of one size.
    """
    first, *others = models
    if any(other.config != first.config for other in others):
        raise CheckpointError("only models with the same config can be averaged")
    first.load_state_dict(mean_weights([model.state_dict() for model in models]))
    return first


def latest_models(model: Path, count: int) -> list[Path]:
    """Return the model folders of the last `count` checkpoints of a run, given that of the last; for 1, only that.

    Raises:
        UsageError: the run keeps fewer checkpoints up to that one.
        CheckpointError: one is damaged.
    """
    if count == 1:
        return [model]
    last = model.parent
    checkpoints = Checkpoints(last.parent)
    names = checkpoints.names()
    names = names[: names.index(last.name) + 1] if last.name in names else []
    if len(names) < count:
        raise UsageError(
            f"cannot average {count} checkpoints: {last.parent} has {len(names)} up to {last.name}; let the run save "
            "more of them (trainer.save_every) and keep them (trainer.keep_checkpoints)"
        )
    found = (checkpoints.find(name) for name in reversed(names[-count:]))
    return [folder / "model" for folder in found if folder is not None]
