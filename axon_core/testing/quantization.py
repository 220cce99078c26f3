"""The checks of every quantisation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core.checkpoint.weights import weightless
from axon_core.errors import UsageError
from axon_core.nn.linear import StackedLinear, TiedLinear
from axon_core.nn.packed import pack_products
from axon_core.nn.quantization import Quantization, QuantizedLinear
from axon_core.nn.row_dependence import rows_depend
from axon_core.testing import modules
from axon_core.testing.kit import Broken, PartUnderTest, Suite, expect, same
from axon_core.testing.modules import normal

SUITE = Suite(Quantization)
DIM, OUTPUTS = 64, 24


def build(part: PartUnderTest) -> Quantization:
    """Build the quantisation."""
    return part.cls(modules.config_of(part))


def linear(part: PartUnderTest, *, bias: bool = False, dim: int = DIM) -> tuple[nn.Linear, QuantizedLinear]:
    """Return a linear map of normal weights, and what the quantisation makes of it."""
    original = nn.Linear(dim, OUTPUTS, bias=bias).requires_grad_(False)
    original.weight.copy_(normal(OUTPUTS, dim, seed=2))
    return original, build(part).quantize(original)


def run(module: nn.Module, x: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
    """Compute the outputs without a gradient."""
    with torch.no_grad():
        return module(x)


@SUITE.check("levels that do not reach the largest weights, or scales of other blocks")
def error(part: PartUnderTest) -> None:
    """The rounded weight differs from a normal one by less than a quarter of its size, on average."""
    for dim in (DIM, 40, 7):
        original, rounded = linear(part, dim=dim)
        wide = rounded.widened()
        expect(wide.shape == original.weight.shape, f"a weight of {tuple(original.weight.shape)}", str(wide.shape))
        share = float((wide - original.weight).square().mean().sqrt())
        expect(share < 0.25, f"normal weights, {OUTPUTS} × {dim}", f"a root mean square error of {share:.3g}")


@SUITE.check("inputs rounded too coarsely, or a scale of another row")
def product(part: PartUnderTest) -> None:
    """The outputs are the product with the rounded weight, plus the bias, in the input's dtype."""
    for dim in (DIM, 40, 7):
        for bias in (False, True):
            _, rounded = linear(part, bias=bias, dim=dim)
            added = 0 if rounded.bias is None else rounded.bias
            for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.03)):
                for n in (1, 3, 40):
                    x = normal(n, dim).to(dtype)
                    got = run(rounded.to(dtype), x)
                    expect(got.dtype == dtype, f"{tuple(x.shape)} {dtype}", str(got.dtype))
                    want = x.float() @ rounded.widened().T + added
                    same(got.float(), want, f"{tuple(x.shape)} {dtype}", tolerance=tolerance)


@SUITE.check("rows of another map, or a result that is not split")
def stacked(part: PartUnderTest) -> None:
    """Made from a `StackedLinear`, it returns the outputs of each map, and `compute_maps` those of some."""
    original = StackedLinear(DIM, (3, 5, 8)).requires_grad_(False)
    rounded = build(part).quantize(original)
    x = normal(2, 4, DIM)
    whole = run(rounded, x)
    expect([y.shape[-1] for y in whole] == [3, 5, 8], "maps of 3, 5 and 8 outputs", f"{len(whole)} results")
    with torch.no_grad():
        same(rounded.compute_maps(x, 1, 3), torch.cat(list(whole[1:]), -1), "the last two maps of three")


@SUITE.check("an original's weight that is kept, or a rounded embedding")
def tied(part: PartUnderTest) -> None:
    """A head that shares the embedding's weight is replaced, and the embedding keeps its own."""
    embedding = nn.Embedding(OUTPUTS, DIM)
    before = embedding.weight.detach().clone()
    rounded = build(part).quantize(TiedLinear(embedding))
    same(run(rounded, normal(2, DIM)), normal(2, DIM) @ rounded.widened().T, "a tied head", tolerance=1e-3)
    expect(torch.equal(embedding.weight, before), "a tied head", "the embedding has changed")


@SUITE.check("a tensor that is made in the constructor, not in `take`")
def loaded(part: PartUnderTest) -> None:
    """Made from a map without weights, it rounds the weight when it is loaded, to the same numbers."""
    original, rounded = linear(part, bias=True)
    with weightless():
        bare = nn.Linear(DIM, OUTPUTS)
    late = build(part).quantize(bare)
    for name, tensor in original.state_dict().items():
        late.load_state_dict({name: tensor}, strict=False, assign=True)
    same(run(late, normal(3, DIM)), run(rounded, normal(3, DIM)), "a weight that is loaded later", tolerance=0)


@SUITE.check("scales that are cast with the model")
def cast(part: PartUnderTest) -> None:
    """Cast to another dtype, it has the same weight."""
    for dtype in (torch.bfloat16, torch.float16):
        _, rounded = linear(part)
        before = rounded.widened()
        same(rounded.to(dtype).widened(), before, f"cast to {dtype}", tolerance=0)


@SUITE.check("an operator without a derivative, or the rounded weight transposed")
def gradient(part: PartUnderTest) -> None:
    """The gradient of the input is the gradient of the output times the rounded weight; the weight has none."""
    _, rounded = linear(part, bias=True)
    x, given = normal(5, DIM).requires_grad_(), normal(5, OUTPUTS, seed=3)
    rounded(x).backward(given)
    if x.grad is None:
        raise Broken(f"(5, {DIM})", "no gradient")
    same(x.grad, given @ rounded.widened(), f"the gradient of (5, {DIM})", tolerance=1e-3)


@SUITE.check("a library's product, which chooses the order of its sums by the number of rows")
def rows_apart(part: PartUnderTest) -> None:
    """Packed, either every row has the same bits in any company, or `rows_depend` names it."""
    _, rounded = linear(part)
    packed, x = pack_products(nn.Sequential(rounded)), normal(9, DIM)
    if not rows_depend(packed, lambda: run(packed, x)):
        for n in (1, 2, 5):
            same(run(packed, x[:n]), run(packed, x)[:n], f"{n} rows of 9", tolerance=0)


@SUITE.check("a missing `_save_to_state_dict`, whose files nothing could read")
def not_saved(part: PartUnderTest) -> None:
    """Saving it is refused: the original is what is saved."""
    try:
        linear(part)[1].state_dict()
    except UsageError:
        return
    raise Broken("state_dict()", "no UsageError")


@SUITE.check("an in-place operation on the input")
def inputs_unchanged(part: PartUnderTest) -> None:
    """It does not write to its input, in any dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        _, rounded = linear(part)
        x = normal(5, DIM).to(dtype)
        modules.unchanged(lambda rounded=rounded, x=x: run(rounded, x), f"{tuple(x.shape)} {dtype}", {"x": x})


@SUITE.check("a field of a type that JSON lacks, or a default that depends on more than the fields")
def config_json(part: PartUnderTest) -> None:
    """The config round-trips through JSON, and each of its fields has a description."""
    modules.config_round_trip(build(part).config)
    modules.fields_described(part.cls.Config)
