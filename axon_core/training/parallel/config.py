"""The table `[trainer.parallel]` of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveFloat, model_validator

from axon_core import config
from axon_core.config import Count
from axon_core.errors import UsageError

__all__ = ["Parallel"]

Dtype = Literal["fp32", "bf16"]


class Parallel(config.Config):
    """How a training is divided among the processes that torchrun starts; with a single process it changes nothing."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: every process holds all weights, and gradients are summed (DistributedDataParallel). `fsdp`: weights,
    gradients and the optimiser's state are sharded, and gathered unit by unit as they are needed (`fully_shard`)."""
    replicate: Count = 1
    """With `fsdp`, how many whole copies of the weights there are, each sharded over the processes of one group
    (hybrid sharding); the groups sum gradients among them."""
    shard: Count | None = None
    """With `fsdp`, how many processes share one copy; left out, all that `replicate` and `tensor` leave."""
    tensor: Count = 1
    """With `fsdp`, how many processes compute each example together, every one with a part of each layer's weights, as
    far as the parts of the models say how they are divided (`TensorSplit`); the others are computed by all of them. It
    does not work with `compile`."""
    param_dtype: Dtype | None = None
    """With `fsdp`, the dtype that weights are gathered and multiplied in; left out, that of the weights."""
    reduce_dtype: Dtype | None = None
    """With `fsdp`, the dtype that gradients are summed in; left out, `param_dtype`."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each unit for the backward pass, and compute the rest again: less memory, a third more
    arithmetic. It works with a single process too."""
    cpu_offload: bool = False
    """With `fsdp`, keep weights, gradients and the optimiser's state in the CPU's memory between uses; for GPUs."""
    timeout: PositiveFloat = 600.0
    """Seconds after which a process that waits for another gives up, and says for which."""

    @model_validator(mode="after")
    def _fits_strategy(self) -> Self:
        if self.strategy == "ddp":
            default = type(self).model_fields
            names = ("replicate", "shard", "tensor", "param_dtype", "reduce_dtype", "cpu_offload")
            for name in (name for name in names if getattr(self, name) != default[name].default):
                raise ValueError(f"{name} belongs to the strategy 'fsdp', got {getattr(self, name)!r} with 'ddp'")
        return self

    def sizes(self, world: int) -> tuple[int, int, int]:
        """Return how many copies of the weights there are, over how many workers each is sharded, and their processes.

        Raises:
            UsageError: `replicate` times `shard` times `tensor` are not `world` processes.
        """
        if self.strategy == "ddp":
            return world, 1, 1
        shard = self.shard or max(1, world // (self.replicate * self.tensor))
        if self.replicate * shard * self.tensor != world:
            sizes = {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}
            shown = [name for name in sizes if name in ("replicate", "shard") or self.tensor > 1]
            given = " × ".join(f"{name} {sizes[name]}" for name in shown if sizes[name] is not None)
            raise UsageError(
                f"trainer.parallel: {given} must {'be' if self.shard else 'divide'} the number of processes, {world}; "
                "change it, or start another number of processes"
            )
        return self.replicate, shard, self.tensor
