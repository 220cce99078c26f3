"""Which way a training computes its loss and gradients: in one process, with DDP, or with FSDP2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.errors import UsageError
from axon_core.processes import by_mesh, is_spread, world
from axon_core.training.parallel.strategy import Strategy
from axon_core.training.parallel.units import checkpoint_activations, sharding_units
from axon_core.training.trainer import Trainer

__all__ = ["clip_gradients", "prepare", "strategy_of"]

_prepared: WeakKeyDictionary[Trainer, Strategy] = WeakKeyDictionary()


def prepare(trainer: Trainer) -> Strategy:
    """Bring the models of a trainer to its device, divided among the processes as its config says.

    All processes get the weights of the first: those that a script has drawn may differ. What has been divided once
    stays so.

    Raises:
        UsageError: the sizes in `[trainer.parallel]` do not make up the number of processes, a batch has fewer examples
            than workers, or a part of a model cannot be divided as `tensor` says, or not if the loss is compiled.
        ContractError: a part does not say rightly how it is divided.
    """
    if (before := _prepared.get(trainer)) is not None:
        before.place()
        return before
    parallel, processes = trainer.config.parallel, world()
    if processes == 1:
        strategy = Strategy(trainer)
        strategy.place()
    else:
        *_, tensor = parallel.sizes(processes)
        if tensor > 1 and trainer.config.compile:
            raise UsageError(
                f"trainer.compile does not work with trainer.parallel.tensor, which is {tensor}: set one of them back "
                "to its default"
            )
        if (batch := trainer.config.batch_size) < (workers := processes // tensor):
            what = "processes" if tensor == 1 else f"groups of {tensor} processes"
            raise UsageError(
                f"trainer.batch_size {batch} is less than the number of {what}, {workers}, so that some would have "
                "nothing to do: enlarge it, or start fewer"
            )
        from axon_core.training.parallel.divided import divided  # here: one process needs nothing that it imports

        strategy = divided(trainer)
    if parallel.activation_checkpointing:  # outside of what divides a unit: all of it is to be computed again
        checkpoint_activations([unit for role in trainer.trainable for unit in sharding_units(trainer.models[role])])
    _prepared[trainer] = strategy
    return strategy


def strategy_of(trainer: Trainer) -> Strategy:
    """Return the strategy that the trainer's models were prepared for; one process, if they were not."""
    return _prepared.get(trainer) or Strategy(trainer)


def clip_gradients(parameters: Sequence[Tensor], most: float) -> Float[Tensor, ""]:
    """Scale the gradients so that their norm is at most `most`, and return the norm that they had, of all processes.

    See `torch.nn.utils.clip_grad_norm_`, which does not take gradients of several meshes.
    """
    groups = by_mesh([parameter for parameter in parameters if parameter.grad is not None])
    norms = [torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in group]) for group in groups]
    whole = [norm.full_tensor() if is_spread(norm) else norm for norm in norms]
    norm = whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))
    for group in groups:
        torch.nn.utils.clip_grads_with_norm_(group, most, norm)
    return norm
