"""What a training would do, before it starts: models with their sizes, steps, and memory; nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from axon_core import config
from axon_core.documents import to_toml
from axon_core.interfaces.model import Model
from axon_core.text.language_data import SourcePlan
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.muon import MuonOptimizer
from axon_core.training.optim import moment_bytes
from axon_core.training.recipe import Recipe
from axon_core.training.swapping import Swap
from axon_core.training.trainer import Trainer

__all__ = ["MemoryPlan", "ModelPlan", "Plan", "in_bytes", "memory_of", "models_of", "owned_bytes"]

_STEPS = 8  # first steps whose batches are inspected


class ModelPlan(config.Config):
    """One role's model."""

    kind: str
    """Its class."""
    parameters: int
    """All of its parameters, shared ones counted once."""
    trained: int
    """Those that the optimiser updates; the others are frozen."""
    config: dict[str, Any]
    """All of its settings, with their defaults; empty if it is not a registered model."""

    @property
    def described(self) -> str:
        """Its class and size in words: `Bigram, 1,024 parameters, trained`."""
        frozen = self.parameters - self.trained
        state = "trained" if not frozen else "frozen" if not self.trained else f"{frozen:,} of them frozen"
        return f"{self.kind}, {self.parameters:,} parameters, {state}"


class MemoryPlan(config.Config):
    """Bytes that the parameters take; activations, data and what libraries need come on top.

    The numbers are exact if every trained parameter is part of the loss, and otherwise upper bounds.
    """

    weights: int
    """Parameters and buffers of all roles."""
    gradients: int
    """One number for each trained parameter."""
    optimizer: int
    """The optimiser's moments, after its first update."""
    average: int
    """The moving average of the trained parameters, if there is one (`ema`)."""

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.average


class Plan(config.Config):
    """What a recipe amounts to, before any step is done."""

    name: str
    """The recipe's name."""
    out: Path
    """The run folder that the training would make."""
    recipe: dict[str, Any]
    """The recipe's tables, after overrides, and `trainer` with all defaults."""
    swaps: tuple[Swap, ...]
    """The parts that overrides replace, and what became of their options."""
    models: dict[str, ModelPlan]
    """The models by role."""
    steps: int
    """Steps of the loop."""
    examples: float
    """Examples in a step, rows of its batch: the mean of the first steps."""
    unit: str
    """What the trainer counts."""
    units: float | None
    """How many of that unit a step learns from, the mean of the first steps; None if they arise only in training."""
    memory: MemoryPlan
    """What the parameters take."""
    sources: tuple[SourcePlan, ...]
    """What the data consist of, and how often the training goes through each part, if the trainer knows."""

    @classmethod
    def of(cls, recipe: Recipe, trainer: Trainer, out: Path) -> Plan:
        """Return what `trainer`, which was built from `recipe`, would do in the folder `out`."""
        settings = trainer.config
        batches = [trainer.batch(step) for step in range(min(_STEPS, settings.steps))]
        return cls(
            name=recipe.name,
            out=out,
            recipe={
                **{name: table for name, table in recipe.tables.items() if name != "swaps"},
                "trainer": {"type": recipe.trainer.type, **settings.model_dump(mode="json")},
            },
            swaps=recipe.swaps,
            models=models_of(trainer),
            steps=settings.steps,
            examples=sum(len(next(iter(batch.values()))) for batch in batches) / len(batches),
            unit=trainer.unit,
            units=_units(trainer, batches),
            memory=memory_of(trainer),
            sources=tuple(trainer.sources()),
        )

    def lines(self) -> list[str]:
        """Return it as a recipe in TOML, for people: what is known besides its tables is in comments."""
        units = "" if self.units is None or self.unit == "examples" else f", {self.units:,.0f} {self.unit}"
        of_all = f", {self.units * self.steps:,.0f} {self.unit}" if units and self.units else ""
        parts = {name: value for name, value in self.memory.model_dump().items() if value}
        return [
            f"# {self.name}, into {self.out}",
            *(f"# {swap}" for swap in self.swaps),
            *(f"# model {role}: {model.described}" for role, model in self.models.items()),
            *(f"# data {source}" for source in self.sources),
            f"# a step: {self.examples:,.0f} examples{units}",
            f"# {self.steps:,} steps: {self.examples * self.steps:,.0f} examples{of_all}",
            f"# memory: {' + '.join(f'{name} {in_bytes(value)}' for name, value in parts.items())} = "
            f"{in_bytes(self.memory.total)}; plus activations and data",
            "",
            *to_toml(self.recipe).splitlines(),
        ]


def models_of(trainer: Trainer) -> dict[str, ModelPlan]:
    """Return the models of a trainer by role."""
    return {role: _model(role in trainer.trainable, model) for role, model in trainer.models.items()}


def _model(trained: bool, model: nn.Module) -> ModelPlan:
    parameters = list(model.parameters())
    return ModelPlan(
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if trained and p.requires_grad),
        config=model.config.model_dump(mode="json") if isinstance(model, Model) else {},
    )


def _units(trainer: Trainer, batches: Sequence[dict[str, Tensor]]) -> float | None:
    """Return the mean of what steps count, if they learn from their batches unchanged."""
    kind = type(trainer)
    if kind.collect is not Trainer.collect or kind.minibatches is not Trainer.minibatches:
        return None
    return sum(float(next(iter(trainer.counts(batch).values()))) for batch in batches) / len(batches)


def memory_of(trainer: Trainer) -> MemoryPlan:
    """Return the bytes that the parameters of a trainer take; they may lack memory (`weightless`)."""
    trained = {
        id(p): p for role in trainer.trainable for p in trainer.models[role].parameters() if p.requires_grad
    }.values()
    everything = [t for model in trainer.models.values() for t in (*model.parameters(), *model.buffers())]
    roles = [] if isinstance(trainer, DirectTrainer) else [trainer.models[role] for role in trainer.trainable]
    optimizers = trainer.config.optimizer.build(roles) if roles else []
    return MemoryPlan(
        weights=_size(everything),
        gradients=_size(trained),
        optimizer=sum(map(moment_bytes, optimizers)),
        average=_size(trained) if trainer.config.ema is not None else 0,
    )


def owned_bytes(trainer: Trainer, divided: Collection[int] = (), among: int = 1) -> int:
    """Return the bytes of the parameters whose updates one of several processes makes whole (`training.owners`).

    Of those whose identities are in `divided`, each of `among` processes has a part, and that is counted.
    """
    optimizers = trainer.config.optimizer.build([trainer.models[role] for role in trainer.trainable])
    muon = [optimizer for optimizer in optimizers if isinstance(optimizer, MuonOptimizer)]
    owned = [p for optimizer in muon for group in optimizer.param_groups for p in group["params"]]
    parts = _size(p for p in owned if id(p) in divided)
    return _size(owned) - parts + parts // among


def _size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, those that share their memory counted once."""
    return sum(
        {(StorageWeakRef(t.untyped_storage()), t.storage_offset(), t.nbytes): t.nbytes for t in tensors}.values()
    )


def in_bytes(number: float) -> str:
    """Return a number of bytes in a unit that leaves few digits: `6.4 MB`, where a MB is 10⁶ bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
