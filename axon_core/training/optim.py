"""Optimisers, and how learning rates move over a run."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, SerializeAsAny, ValidationInfo
from torch import Tensor, nn

from axon_core import config
from axon_core.config import Count, at, validate
from axon_core.errors import ConfigError
from axon_core.nn.linear import StackedLinear
from axon_core.processes import by_mesh
from axon_core.registry.registry import Registry
from axon_core.registry.spec import Spec
from axon_core.training.muon import COEFFICIENTS, Coefficients, MuonOptimizer

__all__ = [
    "OPTIMIZERS",
    "AdamW",
    "Muon",
    "Optimizer",
    "OptimizerConfig",
    "matrices_and_vectors",
    "moment_bytes",
    "schedule",
    "stacked_rows",
]

Decay = Annotated[float, Field(ge=0, lt=1)]
ScheduleKind = Literal["constant", "linear", "cosine", "inverse_sqrt"]


def schedule(kind: ScheduleKind, step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """Return the fraction of its peak that a learning rate has at a step, counted from 0.

    It rises as `(step + 1) / warmup`. Then, with t the fraction of the remaining steps that are done,

        constant      1
        linear        1 - (1 - final) t
        cosine        final + (1 - final) (1 + cos π t) / 2
        inverse_sqrt  √(warmup / (step + 1))             (1706.03762, Section 5.3, divided by its peak)
    """
    if step < warmup:
        return (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, steps - warmup))
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - final) * t
        case "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * t)) / 2
        case "inverse_sqrt":
            return math.sqrt(warmup / (step + 1))


class OptimizerConfig(config.Config):
    """The options of an optimiser, which `build` makes: a registered class is its own `Config`.

    A subclass names itself in `type` and has `lr`, the learning rate at its peak.
    """

    Config: ClassVar[type[config.Config]]

    type: str
    """The key it is registered under."""
    lr: PositiveFloat = 1e-3
    """Learning rate at its peak."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's ε."""
    decay: Spec | None = None
    """The rule by which weights decay where `weight_decay` is not 0; left out, `decoupled`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.Config = cls

    @abstractmethod
    def build(self, modules: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
        """Return optimisers that share the trainable parameters of `modules` among them."""


class AdamW(OptimizerConfig):
    """AdamW (1711.05101) on all parameters; vectors, such as the weights of norms and biases, do not decay."""

    type: Literal["adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 0.1
    """Decay of matrices a step, as a fraction of the learning rate."""

    def build(self, modules: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
        """Return one AdamW, with the matrices and the vectors in different groups."""
        groups = matrices_and_vectors(modules, self.lr, self.weight_decay)
        return [torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=True)]


class Muon(OptimizerConfig):
    """Muon on the hidden matrices of a model, AdamW without decay on the rest.

    A hidden matrix is one that the model's `hidden_matrices()` returns, or the weight of any `nn.Linear` if a module
    has no such method; the matrices in a `StackedLinear` are taken one by one. The rest are embeddings
    (`nn.Embedding`), the head (other matrices) and vectors.
    """

    type: Literal["muon"] = "muon"
    lr: PositiveFloat = 0.02
    """Muon's learning rate at its peak: the spectral norm of a step."""
    embedding_lr: PositiveFloat = 0.01
    """AdamW's learning rate for embeddings."""
    head_lr: PositiveFloat = 0.005
    """AdamW's learning rate for the output head."""
    vector_lr: PositiveFloat = 0.005
    """AdamW's learning rate for norms and biases."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's (Nesterov) momentum."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of hidden matrices a step, as a fraction of the learning rate."""
    iteration: Literal["quintic", "polar"] = "quintic"
    """The polynomials of the Newton–Schulz iteration: one for all steps, or the faster Polar Express."""
    iterations: Count = 5
    """How often the polynomials are applied: the more, the closer to orthogonal, and the slower."""

    def build(self, modules: Sequence[nn.Module]) -> list[torch.optim.Optimizer]:
        """Return a Muon for the hidden matrices and an AdamW for the rest."""
        parameters = _parameters(modules)
        hidden = {id(p) for module in modules for p in _hidden_matrices(module)}
        embeddings = {
            id(part.weight) for module in modules for part in module.modules() if isinstance(part, nn.Embedding)
        }
        matrices = [p for p in parameters if id(p) in hidden and p.ndim == 2 and id(p) not in embeddings]
        taken = {id(p) for p in matrices} | embeddings
        groups = [
            *_groups([p for p in parameters if id(p) in embeddings], self.embedding_lr),
            *_groups([p for p in parameters if id(p) not in taken and p.ndim > 1], self.head_lr),
            *_groups([p for p in parameters if id(p) not in taken and p.ndim <= 1], self.vector_lr),
        ]
        optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            coefficients = tuple(COEFFICIENTS[self.iteration](i) for i in range(self.iterations))
            hidden = _groups(matrices, self.lr, weight_decay=self.weight_decay, momentum=self.momentum)
            optimizers.append(self.matrix_optimizer(hidden, coefficients, stacked_rows(modules)))
        if groups:
            optimizers.append(torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, weight_decay=0.0, fused=True))
        return optimizers

    def matrix_optimizer(
        self, groups: list[dict[str, Any]], coefficients: Sequence[Coefficients], rows: Mapping[Tensor, list[int]]
    ) -> MuonOptimizer:
        """Return the optimiser of the hidden matrices; arguments as for `MuonOptimizer`.

        A class that derives from this one may return another.
        """
        return MuonOptimizer(groups, coefficients, rows)


OPTIMIZERS: Registry[OptimizerConfig] = Registry("optimizer", OptimizerConfig)
"""Optimisers by key."""


def moment_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes an optimiser of `OPTIMIZERS` keeps for its parameters after its first update.

    AdamW keeps two moments and a float32 counter a parameter, Muon one momentum; another says it with a method of this
    name.
    """
    if callable(own := getattr(optimizer, "moment_bytes", None)):
        return cast(int, own())
    parameters = [cast(Tensor, p) for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, MuonOptimizer):
        return sum(p.nbytes for p in parameters)
    return sum(2 * p.nbytes + torch.float32.itemsize for p in parameters)


def _parse(value: Any, info: ValidationInfo) -> Any:
    """Validate an optimiser's table by the config of its type; its errors know the field they stand in."""
    if isinstance(value, OptimizerConfig):
        return value
    with at(str(info.field_name)):
        spec = Spec.of({"type": "adamw", **cast(dict[str, Any], value)} if isinstance(value, dict) else value)
        if spec.type not in OPTIMIZERS:
            raise ConfigError([(("type",), f"must be one of {', '.join(OPTIMIZERS)}, got {spec.type!r}")])
        return validate(OPTIMIZERS[spec.type], spec.options)


Optimizer = Annotated[SerializeAsAny[OptimizerConfig], BeforeValidator(_parse)]
"""A config field that takes an optimiser's table, `{"type": "muon", "lr": 0.02}`, or its type alone; or none: AdamW."""


def matrices_and_vectors(modules: Sequence[nn.Module], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups of the trainable matrices, which decay, and of the vectors, which do not."""
    parameters = _parameters(modules)
    return [
        *_groups([p for p in parameters if p.ndim > 1], lr, weight_decay=weight_decay),
        *_groups([p for p in parameters if p.ndim <= 1], lr, weight_decay=0.0),
    ]


def _groups(parameters: list[nn.Parameter], lr: float, **options: float) -> list[dict[str, Any]]:
    """Return a parameter group for each mesh of processes; `initial_lr` is the peak that the schedule multiplies."""
    return [{"params": those, "lr": lr, "initial_lr": lr, **options} for those in by_mesh(parameters)]


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the trainable parameters, each once even if modules share some."""
    return list({id(p): p for module in modules for p in module.parameters() if p.requires_grad}.values())


def stacked_rows(modules: Sequence[nn.Module]) -> dict[Tensor, list[int]]:
    """Return, for each weight that several matrices share, how many of its rows each has."""
    parts = [part for module in modules for part in module.modules() if isinstance(part, StackedLinear)]
    return {part.weight: part.rows for part in parts}


def _hidden_matrices(module: nn.Module) -> Sequence[Tensor]:
    if callable(method := getattr(module, "hidden_matrices", None)):
        return cast(Sequence[Tensor], method())
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
