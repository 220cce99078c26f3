"""Shared by the checks of all interfaces: small parts, their inputs, and rules that hold for any module."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from axon_core.config import Config, validate
from axon_core.errors import ConfigError
from axon_core.interfaces.rotary_embedding import RotaryEmbedding, Rotation
from axon_core.json_text import to_json
from axon_core.testing.kit import Broken, PartUnderTest, expect, finite, same

LENGTHS = (9, 6, 3)
"""Valid tokens of the rows in ragged batches."""
PACKED = (6, 1, 2)
"""Tokens of the documents packed into one row."""
_DIRECTIONS = 4
_STEP, _SHRINK, _LEVELS, _ENOUGH = 0.1, 4, 8, 1e-6
"""Finite differences: the first step, the factor between steps, their largest number, and the target relative error."""
_TOLERANCE, _NOISE = 1e-3, 0.1
"""Allowed error of a gradient relative to the largest, and allowed share of the measurement's own error beyond that."""


class PlainRotary(RotaryEmbedding):
    """The plain rotation used to check attentions: θ_i = position · base^(−2i / r)."""

    def __init__(self, config: RotaryEmbedding.Config, base: float = 10000.0) -> None:
        super().__init__(config)
        self.base = base

    def forward(self, positions: Int[Tensor, "b n"]) -> Rotation:
        """Return the rotation for tokens at `positions`."""
        return self.turned(positions)

    def turned(self, positions: Shaped[Tensor, "b n"]) -> Rotation:
        """Return the rotation at positions, which can be fractions."""
        dim = self.config.dim
        frequencies = self.base ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
        return Rotation.of(positions.unsqueeze(-1) * frequencies, self.config.layout)


class SqueezedRotary(PlainRotary):
    """The plain rotation, with the positions of rows longer than `UNTIL` tokens squeezed into that length."""

    UNTIL = 4

    @property
    def constant_until(self) -> int | None:
        """The sequence length up to which a position's rotation never changes."""
        return self.UNTIL

    def forward(self, positions: Int[Tensor, "b n"]) -> Rotation:
        """Return the rotation for tokens at `positions`."""
        length = positions.amax(1, keepdim=True) + 1
        return self.turned(positions / (length / self.UNTIL).clamp(min=1))


def config_of(part: PartUnderTest, **sizes: Any) -> Config:
    """Return the part's config: its options, and small `sizes` for other fields that it has.

    Raises `Broken` if they break a rule of the config.
    """
    values = {**{k: v for k, v in sizes.items() if k in part.cls.Config.model_fields}, **part.options}
    try:
        return validate(part.cls.Config, values)
    except ConfigError as error:
        raise Broken(
            f"the options {values}", f"{error}; give working options in the class attribute `examples`"
        ) from None


def built(make: Callable[[], Any], seed: int = 0) -> Any:
    """Return the module that `make` makes with this seed, in evaluation mode and with `stirred` parameters."""
    torch.manual_seed(seed)
    module = make()
    stirred(module)
    return module.eval()


def stirred(module: nn.Module) -> None:
    """Perturb all parameters at random, because a parameter of zeros or ones hides mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float32))


def modes(module: nn.Module, run: Callable[[Any, Tensor], Tensor]) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield evaluation and training mode, each with a function that runs an input in that mode.

    Every run uses a copy of the module and the same random numbers. So even with dropout, results depend on the input
    alone, and inputs of the same shape can be compared.
    """

    def alone(training: bool, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return run(copy.deepcopy(module).train(training), x)

    yield "evaluation", partial(alone, False)
    yield "training", partial(alone, True)


def normal(*shape: int, seed: int = 1) -> Float[Tensor, ...]:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def ragged(side: str) -> Bool[Tensor, "b n"]:
    """Return which tokens are valid in a batch of rows with `LENGTHS`, padded on the `left` or the `right`."""
    index, lengths = torch.arange(LENGTHS[0]), torch.tensor(LENGTHS)[:, None]
    return index < lengths if side == "right" else index >= LENGTHS[0] - lengths


def packed(sizes: Sequence[int]) -> Int[Tensor, "1 n"]:
    """Return the number of each token's document in a row of documents of the given sizes."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).unsqueeze(0)


def config_round_trip(config: Config) -> None:
    """Raise `Broken` unless a config is the same after a round trip through JSON."""
    text = to_json(config.model_dump(mode="json"))
    again = type(config).model_validate(json.loads(text))
    if again != config:
        changed = [n for n in type(config).model_fields if getattr(again, n) != getattr(config, n)]
        values = ", ".join(f"{n}: {getattr(config, n)!r} became {getattr(again, n)!r}" for n in changed)
        raise Broken(f"the config as JSON, {text}", values or "the two are not equal")


def doubled(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield each config that differs from this one by doubling a single number, with the number's name."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                yield name, validate(type(config), {**values, name: 2 * value})
            except ConfigError:  # the number has bounds
                continue


def fields_described(config: type[Config]) -> None:
    """Raise `Broken` unless every field of a config has a description."""
    if missing := [name for name, field in config.model_fields.items() if not field.description]:
        raise Broken(f"the fields of {config.__qualname__}", f"no description of {', '.join(missing)}")


def state_round_trip(make: Callable[[int], nn.Module], run: Callable[[Any], Tensor]) -> None:
    """Raise `Broken` unless a new module gives the same results, bit for bit, after `load_state_dict`.

    `make` takes a seed.
    """
    first, second = make(0), make(1)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        want, got = run(first), run(second)
    same(got, want, "a second instance, from another seed, with the state dict of the first", tolerance=0)


def in_float64(module: Any) -> Any:
    """Return a copy of the module in float64."""
    return copy.deepcopy(module).double()


def gradients(
    module: nn.Module, run: Callable[[], Float[Tensor, ...]], on: str, inputs: Mapping[str, Float[Tensor, ...]]
) -> None:
    """Raise `Broken` unless the gradient of a random weighting of the result of `run` is correct.

    It must be finite and nonzero for every parameter. For all parameters together, and for each of the named
    `inputs`, it must agree with finite differences, which a detached path does not. Module and inputs are in float64.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for leaf in (*trained.values(), *inputs.values()):
        leaf.grad = None
        leaf.requires_grad_()
    weight = normal(*run().shape, seed=7).double()

    def weighted() -> Float[Tensor, ""]:
        return (run() * weight).sum()

    if (total := weighted()).requires_grad:
        total.backward()
    for name, parameter in trained.items():
        if parameter.grad is None or not parameter.grad.any():
            raise Broken(on, f"parameter {name!r} {tuple(parameter.shape)} has no gradient")
        finite(parameter.grad, f"{on}; gradient of parameter {name!r}")
    groups = {"all parameters": list(trained.values()), **{name: [leaf] for name, leaf in inputs.items()}}
    for name, leaves in groups.items():
        if leaves:
            _directions(weighted, leaves, f"{on}; the derivatives by {name} in {_DIRECTIONS} directions")


def _directions(total: Callable[[], Float[Tensor, ""]], leaves: Sequence[Tensor], on: str) -> None:
    """Check the gradients of `leaves` against measured derivatives of `total` along random directions."""
    got: list[float] = []
    measured: list[tuple[float, float]] = []
    before = [leaf.detach().clone() for leaf in leaves]
    for seed in range(_DIRECTIONS):
        ways = [normal(*leaf.shape, seed=100 * seed + i).double() for i, leaf in enumerate(leaves)]
        size = float(torch.stack([way.square().sum() for way in ways]).sum().sqrt())
        ways = [way / size for way in ways]
        got.append(
            sum(float((way * leaf.grad).sum()) for leaf, way in zip(leaves, ways, strict=True) if leaf.grad is not None)
        )

        def along(step: float, ways: Sequence[Tensor] = ways) -> float:
            with torch.no_grad():
                for leaf, start, way in zip(leaves, before, ways, strict=True):
                    leaf.copy_(start + step * way)
                return float(total())

        measured.append(derivative(along))
    with torch.no_grad():
        for leaf, start in zip(leaves, before, strict=True):
            leaf.copy_(start)
    largest = max(abs(value) for value, _ in measured)
    for i, (slope, (value, error)) in enumerate(zip(got, measured, strict=True)):
        allowed = _TOLERANCE * largest + min(error, _NOISE * largest) + 1e-9
        found = f"{slope:.6g} instead of {value:.6g} in direction {i}; allowed {allowed:.3g}"
        expect(abs(slope - value) <= allowed, f"{on}, against finite differences", found)


def derivative(function: Callable[[float], float]) -> tuple[float, float]:
    """Return f′(0) and an estimate of its error: central differences, extrapolated to a step of zero (Richardson).

    The error of a central difference is a series in the square of its step, so each pair of steps cancels one more
    term. The extrapolation that changes least is returned, with that change: smaller steps add rounding error if the
    function is computed in a lower precision than float64.
    """
    best, least = 0.0, float("inf")
    earlier: list[float] = []
    for level in range(_LEVELS):
        step = _STEP / _SHRINK**level
        row = [(function(step) - function(-step)) / (2 * step)]
        for order, coarser in enumerate(earlier, 1):
            row.append(row[-1] + (row[-1] - coarser) / (_SHRINK ** (2 * order) - 1))
            error = max(abs(row[-1] - row[-2]), abs(row[-1] - coarser))
            if error < least:
                best, least = row[-1], error
        if least <= _ENOUGH * abs(best):
            break
        earlier = row
    return best, least


def apart(first: nn.Module, second: nn.Module) -> None:
    """Raise `Broken` if two instances share a parameter, a buffer or another tensor of theirs or of their classes."""
    theirs = {t.untyped_storage().data_ptr() for _, t in _tensors(first) if t.numel()}
    for name, tensor in _tensors(second):
        if tensor.numel() and tensor.untyped_storage().data_ptr() in theirs:
            raise Broken("two instances of the same config", f"both use the same memory for {name!r}")


def unchanged(run: Callable[[], object], on: str, inputs: Mapping[str, Tensor]) -> None:
    """Raise `Broken` if `run` writes to one of its input tensors, given by name in `inputs`."""
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    with torch.no_grad():
        run()
    for name, tensor in inputs.items():
        same(tensor, before[name], f"{on}: {name} after the call, against {name} before it", tolerance=0)


def runs_in(dtype: torch.dtype, module: nn.Module, x: Float[Tensor, ...], run: Callable[[Any, Tensor], Tensor]) -> None:
    """Raise `Broken` unless the module, converted to `dtype`, returns that dtype, close to the results in float32."""
    with torch.no_grad():
        want = run(module, x)
        got = run(module.to(dtype), x.to(dtype))
    on = f"the module and its input in {dtype}"
    if got.dtype != dtype:
        raise Broken(on, f"the result is {got.dtype}")
    same(got, want, on, tolerance=0.1)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    for path, inner in module.named_modules():
        kept = [pair for holder in (inner, *type(inner).__mro__) for pair in vars(holder).items()]
        named += [(f"{path}.{name}".lstrip("."), value) for name, value in kept if isinstance(value, Tensor)]
    return named
