"""The checks of every norm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.interfaces.norm import Norm
from axon_core.testing import modules
from axon_core.testing.kit import PartUnderTest, Suite, expect, finite, same
from axon_core.testing.modules import normal

SUITE = Suite(Norm)
DIM = 32


def build(part: PartUnderTest, seed: int = 0) -> Norm:
    """Build a norm of 32 features."""
    return modules.built(lambda: part.cls(modules.config_of(part, dim=DIM)), seed)


def run(norm: Norm, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Normalise without a gradient."""
    with torch.no_grad():
        return norm(x)


@SUITE.check("a fixed number of axes, or a result left in float32")
def shape(part: PartUnderTest) -> None:
    """The result has the shape and dtype of the input, for any number of axes."""
    norm = build(part)
    for x in (normal(DIM), normal(5, DIM), normal(2, 3, 4, DIM), normal(5, DIM).bfloat16()):
        out = run(norm.to(x.dtype), x)
        found = f"{tuple(out.shape)} {out.dtype}"
        expect(out.shape == x.shape and out.dtype == x.dtype, f"{tuple(x.shape)} {x.dtype}", found)


@SUITE.check("a statistic over the batch or the sequence")
def vectors_apart(part: PartUnderTest) -> None:
    """Each vector is normalised by itself, in training mode too."""
    norm = build(part)
    x = normal(3, 4, DIM)
    larger = 100 * x
    larger[0, 0] = x[0, 0]
    same(run(norm, larger)[0, 0], run(norm, x[:1, :1])[0, 0], "a vector beside others a hundred times larger, alone")
    for mode, call in modules.modes(norm, run):
        on = f"a vector whose neighbours grow a hundred times larger, in {mode} mode"
        same(call(larger)[0, 0], call(x)[0, 0], on)


@SUITE.check("squares summed in the dtype of the input")
def statistics_in_float32(part: PartUnderTest) -> None:
    """In half precision, large and small vectors give results close to those in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        norm = build(part).to(dtype)
        for size in (1e-3, 1.0, 1e4):
            x = (size * normal(5, DIM)).clamp(-6e4, 6e4).to(dtype)
            got = run(norm, x).float()
            same(got, run(norm.float(), x.float()), f"{dtype}, values of size {size:g}", tolerance=0.02)
            norm.to(dtype)


@SUITE.check("a missing ε, or an ε added after the square root")
def zero(part: PartUnderTest) -> None:
    """A vector of zeros has a finite result and a finite gradient."""
    norm = build(part)
    x = torch.zeros(2, DIM, requires_grad=True)
    out = norm(x)
    finite(out, "a vector of zeros")
    out.sum().backward()
    assert x.grad is not None
    finite(x.grad, "the gradient at a vector of zeros")


@SUITE.check("an unused parameter, or a statistic detached from the graph")
def gradient(part: PartUnderTest) -> None:
    """In float64 every parameter has a gradient; it and the input's gradient agree with finite differences."""
    norm, x = modules.in_float64(build(part)), normal(5, DIM).double()
    modules.gradients(norm, lambda: norm(x), f"(5, {DIM})", {"x": x})


@SUITE.check("a parameter in float32 that meets bfloat16 operands")
def autocast(part: PartUnderTest) -> None:
    """Under autocast to bfloat16 the results are close to those in float32."""
    norm, x = build(part), normal(5, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(norm, x)
    same(got.float(), run(norm, x), "autocast", tolerance=0.02)


@SUITE.check(
    "an in-place operation such as `mul_` on an argument, on a view of it, or on `.float()` of it, which may be it"
)
def inputs_unchanged(part: PartUnderTest) -> None:
    """It does not write to its input, in any dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        norm, x = build(part).to(dtype), normal(5, DIM).to(dtype)
        modules.unchanged(lambda norm=norm, x=x: norm(x), f"{tuple(x.shape)} {dtype}", {"x": x})


@SUITE.check("a field of a type that JSON lacks, or a default that depends on more than the fields")
def config_json(part: PartUnderTest) -> None:
    """The config round-trips through JSON, and each of its fields has a description."""
    modules.config_round_trip(build(part).config)
    modules.fields_described(part.cls.Config)


@SUITE.check("a tensor that affects results but is neither a parameter nor a buffer")
def state_dict(part: PartUnderTest) -> None:
    """The state dict contains everything that a new instance needs to give the same results."""
    modules.state_round_trip(lambda seed: build(part, seed), lambda norm: run(norm, normal(5, DIM)))


@SUITE.check("a buffer or parameter created once for the class or the Python module")
def instances_apart(part: PartUnderTest) -> None:
    """Two instances share no memory."""
    modules.apart(build(part, 0), build(part, 1))
