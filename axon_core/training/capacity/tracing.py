"""The work of one micro-batch, counted without doing it: the weights have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from axon_core.nn.dropout import dropout_rows
from axon_core.nn.linear import product
from axon_core.randomness import Key
from axon_core.training.capacity.divided import Divided
from axon_core.training.capacity.stand_ins import fake_weights
from axon_core.training.examples import Share, resting, size
from axon_core.training.trainer import Trainer
from axon_core.training.updates import autocast

__all__ = ["KeptForBackward", "TracedWork", "first_rows", "trace"]

_aten = torch.ops.aten
_PRODUCT = product._opoverload.overloadpacket  # pyright: ignore[reportPrivateUsage]
_MASKED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


@dataclass(frozen=True)
class TracedWork:
    """What one rank computes and keeps in a step, as it was traced.

    Operations are those of matrix products, convolutions and attention, of which causal attention counts whole.

    Attributes:
        examples: those of the step, over all ranks.
        share: the rank's, the most that any rank has.
        units: how many of what the trainer counts the rank learns from, over all updates.
        micro_batches: the trainer's setting: into how many micro-batches an update is cut, if it has as many examples.
        updates: updates of the weights in a step.
        repeats: how often the work of the traced micro-batch is done in a step, over all updates.
        forward: floating-point operations of the forward pass of a micro-batch.
        backward: those of its backward pass.
        recomputed: those of the forward pass inside the units, which activation checkpointing does twice.
        update: those of the optimisers in one update of whole weights.
        results: bytes of the results of parts that ranks compute together, in the forward pass of a micro-batch.
        inputs: bytes of the inputs of such parts, as far as they have gradients.
        activations: bytes that the forward pass of a micro-batch keeps for the backward pass.
        checkpointed: bytes it keeps, at most, if it keeps only what enters each unit and the inside of one unit.
    """

    examples: int
    share: int
    units: float
    micro_batches: int
    updates: int
    repeats: float
    forward: int
    backward: int
    recomputed: int
    update: int
    results: int
    inputs: int
    activations: int
    checkpointed: int

    @property
    def flops(self) -> float:
        """The rank's operations in a step, with the optimisers', where no activation is recomputed."""
        return (self.forward + self.backward) * self.repeats + self.updates * self.update


def first_rows(data: Mapping[str, Tensor], pieces: int) -> dict[str, Tensor]:
    """Return the first of so many near-equal pieces of the rows of `data`, the largest one; it has at least one row."""
    return {name: rows[: -(-len(rows) // min(pieces, len(rows)))] for name, rows in data.items()}


def trace(
    trainer: Trainer, units: Sequence[nn.Module], ranks: int = 1, parts: Sequence[nn.Module] = (), among: int = 1
) -> TracedWork:
    """Return the work of the first micro-batch of a rank's share of the first step, as the training would cut it.

    The data are real; weights, and everything that is computed from them, are fake tensors, which have a shape, a dtype
    and a device but no memory. So a model larger than this machine can be traced. If its models have numbers, the
    trainer collects with them, so that it may learn from what they generate.

    Args:
        trainer: its models may be on the meta device.
        units: the modules that activation checkpointing recomputes one by one.
        ranks: how many ranks, or groups of them, share a step's examples.
        parts: the modules that the ranks of such a group compute together; of what they compute and keep, a rank does
            an equal part. Operations are divided in the same proportion forward and backward.
        among: how many ranks are in such a group.

    Raises:
        RuntimeError: the loss depends on the numbers that models compute, or `collect` does and they have none. Other
            errors of the trainer's own code are possible too, because it was not written for tensors without numbers.
    """
    key = Key((trainer.config.seed, 0))
    without = any(tensor.is_meta for model in trainer.models.values() for tensor in model.parameters())
    with ExitStack() as stack:
        stack.enter_context(key("plan").seeded("cpu"))
        if without:
            stack.enter_context(fake_weights(trainer))
        batch = trainer.batch(0)
        share = first_rows(batch, ranks)
        data = _collected(trainer, share, key("collect"))
        if not without:
            stack.enter_context(fake_weights(trainer))
        minibatches = list(trainer.minibatches(data, key("minibatches")))
        micro = first_rows(minibatches[0], trainer.config.micro_batches)
        stack.enter_context(_as_in_training(trainer))
        counter = stack.enter_context(_Counter())
        saved, forward, backward = _passes(trainer, units, micro, counter, Divided(parts, among, lambda: counter.flops))
        divided = saved.divided
        undone = divided.flops * (1 - 1 / among) / forward if forward else 0.0  # by this rank
        return TracedWork(
            examples=size(batch),
            share=size(share),
            units=sum(float(next(iter(trainer.counts(minibatch).values()))) for minibatch in minibatches),
            micro_batches=trainer.config.micro_batches,
            updates=len(minibatches),
            repeats=sum(map(size, minibatches)) / size(micro),
            forward=round(forward * (1 - undone)),
            backward=round(backward * (1 - undone)),
            recomputed=round(saved.flops_of_units * (1 - undone)),
            update=_update(trainer, counter),
            results=divided.results,
            inputs=divided.inputs,
            activations=saved.total,
            checkpointed=saved.checkpointed,
        )


def _collected(trainer: Trainer, rows: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
    """Return what the step learns from, on the trainer's device."""
    device, dtype = trainer.config.device, trainer.config.dtype
    with resting(trainer):
        if trainer.collects_ahead:
            return Share(trainer.collect(rows, key), {}, 0).to(device, dtype).rows
        return trainer.collect(Share(rows, {}, 0).to(device, dtype).rows, key)


def _passes(
    trainer: Trainer, units: Sequence[nn.Module], data: dict[str, Tensor], counter: _Counter, divided: Divided
) -> tuple[KeptForBackward, int, int]:
    """Run the loss and its backward pass; return what was kept, and the operations of either."""
    weight = next(trainer.models[trainer.trainable[0]].parameters())
    numbers = weight.new_empty(size(data), dtype=torch.long)  # without numbers, and so are the masks of dropout
    with divided, KeptForBackward(trainer.models.values(), units, lambda: counter.flops, divided) as saved:
        with autocast(trainer.config), dropout_rows(Key(()), numbers):
            terms = trainer.loss(data)
        forward = counter.flops
        sum((term for term in terms.values() if term.requires_grad), torch.zeros(())).backward()
    return saved, forward, counter.flops - forward


def _update(trainer: Trainer, counter: _Counter) -> int:
    """Return the operations of one update of whole weights."""
    before = counter.flops
    for optimizer in trainer.config.optimizer.build([trainer.models[role] for role in trainer.trainable]):
        optimizer.step()
    return counter.flops - before


class KeptForBackward:
    """Counts, within its block, the storages that autograd keeps for the backward pass; weights do not count.

    Tensors that share memory are one storage, and it counts whole, because it stays whole.

    Args:
        models: whose parameters and buffers do not count.
        units: modules in whose forward passes storages are counted apart.
        flops: returns the floating-point operations so far.
        divided: the parts of which this rank keeps an equal part; by default there are none.

    Attributes:
        flops_of_units: the operations in the forward passes of the units.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        units: Sequence[nn.Module] = (),
        flops: Callable[[], int] = lambda: 0,
        divided: Divided | None = None,
    ) -> None:
        self.flops_of_units = 0
        self.divided = divided or Divided((), 1, flops)
        self._flops, self._units = flops, units
        tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        self._weights = {StorageWeakRef(tensor.untyped_storage()): tensor.untyped_storage() for tensor in tensors}
        self._met: dict[StorageWeakRef, torch.UntypedStorage] = {}
        self._saved: set[StorageWeakRef] = set()
        self._owner: dict[StorageWeakRef, int | None] = {}  # the unit it is kept in; None if in several, or outside
        self._inside: int | None = None
        self._begun = 0

    @property
    def total(self) -> int:
        """Bytes kept."""
        return sum(self._bytes(reference) for reference in self._saved)

    @property
    def checkpointed(self) -> int:
        """Bytes kept at most, if the units keep only what enters them and are run again one by one."""
        inside = [0] * max(1, len(self._units))
        outside = 0
        for reference in self._met:
            owner = self._owner[reference]
            if owner is None:
                outside += self._bytes(reference)
            else:
                inside[owner] += self._bytes(reference)
        return outside + max(inside)

    def _bytes(self, reference: StorageWeakRef) -> int:
        return self._met[reference].nbytes() // self.divided.parts_of(reference)

    def __enter__(self) -> KeptForBackward:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._handles = [
            handle
            for number, unit in enumerate(self._units)
            for handle in (
                unit.register_forward_pre_hook(self._entering(number), with_kwargs=True),
                unit.register_forward_hook(self._leaving, always_call=True),
            )
        ]
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _pack(self, tensor: Tensor) -> Tensor:
        self._meet(tensor, self._inside, saved=True)
        return tensor

    def _meet(self, tensor: Tensor, owner: int | None, *, saved: bool) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference in self._weights:
            return
        self._met[reference] = storage
        self.divided.meet(reference)
        self._owner[reference] = owner if self._owner.get(reference, owner) == owner else None
        if saved:
            self._saved.add(reference)

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and torch.is_grad_enabled():
                    self._meet(tensor, None, saved=False)
            self._inside, self._begun = number, self._flops()

        return enter

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = None
        if torch.is_grad_enabled():
            self.flops_of_units += self._flops() - self._begun


class _Counter(TorchDispatchMode):
    """Counts floating-point operations with torch's own formulas, and selects rows of fake tensors by real masks."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._formulas: dict[Any, Callable[..., int]] = {
            **flop_registry,
            _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
            _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
                _aten._scaled_dot_product_flash_attention_backward
            ],
            _PRODUCT: _product_flops,
        }

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch, and add what it computes."""
        kwargs = kwargs or {}
        if func in _MASKED:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        out = func(*args, **kwargs)
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def _product_flops(a: Tensor, b: Tensor, **_: Any) -> int:
    """Return the operations of `axon_core.nn.linear.product`: `(n d), (r d) -> (n r)`."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[0]


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return what a mask of real numbers selects, as numbers of rows: a fake tensor cannot count them."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return (index,)
    return index.nonzero(as_tuple=True)


@contextmanager
def _as_in_training(trainer: Trainer) -> Generator[None]:
    """Within the block the models are in the mode in which the loop computes the loss."""
    before = {role: model.training for role, model in trainer.models.items()}
    for role, model in trainer.models.items():
        model.train(trainer.training_mode and role in trainer.trainable)
    try:
        yield
    finally:
        for role, model in trainer.models.items():
            model.train(before[role])
