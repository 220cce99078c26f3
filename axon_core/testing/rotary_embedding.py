"""The checks of every rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.interfaces.rotary_embedding import Layout, RotaryEmbedding, Rotation
from axon_core.interfaces.scope import Scope
from axon_core.testing import modules
from axon_core.testing.kit import Broken, PartUnderTest, Suite, expect, same
from axon_core.testing.modules import normal

SUITE = Suite(RotaryEmbedding)
DIM, CONTEXT, FAR = 16, 32, 8191


def build(part: PartUnderTest, layout: str = "half", seed: int = 0) -> RotaryEmbedding:
    """Build a rotary embedding of 16 features, for a model trained with 32 tokens."""
    config: Any = modules.config_of(part, dim=DIM, context=CONTEXT, layout=layout)
    return modules.built(lambda: part.cls(config), seed)


def rotation(rotary: RotaryEmbedding, *rows: Sequence[int]) -> Rotation:
    """Return the rotation at the positions of the given rows."""
    with torch.no_grad():
        return rotary(torch.tensor(rows))


def phases(rotary: RotaryEmbedding, *rows: Sequence[int]) -> Float[Tensor, "b n r2"]:
    """Return cos θ + i sin θ of every pair of features."""
    table = rotation(rotary, *rows)
    first, second = pairs(table.layout, table.cos.shape[-1])
    return torch.complex(table.cos[..., first].double(), table.sin[..., second].double())


def pairs(layout: str, r: int) -> tuple[slice, slice]:
    """Return the slices with the first and the second features of all pairs."""
    return (slice(0, r // 2), slice(r // 2, r)) if layout == "half" else (slice(0, r, 2), slice(1, r, 2))


def length(rotary: RotaryEmbedding) -> int:
    """Return a sequence length up to which rotations must be constant; beyond the context if there is no limit."""
    return 4 * CONTEXT if rotary.constant_until is None else rotary.constant_until


@SUITE.check("tables with a wrong dtype or number of features")
def shape(part: PartUnderTest) -> None:
    """The tables are float32, with one entry per position and feature; a rotated tensor keeps its shape and dtype."""
    rotary = build(part)
    table = rotation(rotary, range(5), range(5, 10))
    for name, values in (("cos", table.cos), ("sin", table.sin)):
        found = f"{tuple(values.shape)} {values.dtype}"
        expect(values.shape == (2, 5, DIM) and values.dtype == torch.float32, f"{name} of (2, 5) positions", found)
    x = normal(2, 5, 3, DIM + 4).bfloat16()
    out = table(x)
    expect(out.shape == x.shape and out.dtype == x.dtype, "bfloat16 heads", f"{tuple(out.shape)} {out.dtype}")
    same(out[..., DIM:].float(), x[..., DIM:].float(), "features beyond the rotated ones", tolerance=0)


@SUITE.check("cos and sin of different angles, or a factor in the tables that is not `scale`")
def norm_preserving(part: PartUnderTest) -> None:
    """A rotation does not change the length of a vector, but for the factor `scale`."""
    rotary = build(part)
    n = length(rotary)
    x = normal(1, n, 1, DIM)
    same(rotation(rotary, range(n))(x).norm(dim=-1), rotary.scale * x.norm(dim=-1), f"positions 0 to {n - 1}")


@SUITE.check("angles that are not proportional to positions")
def relative(part: PartUnderTest) -> None:
    """The score of a rotated query and key depends on their distance alone."""
    rotary = build(part)
    n = length(rotary)
    table = rotation(rotary, range(n))
    q, k = (normal(DIM, seed=s).expand(1, n, 1, DIM) for s in (2, 3))
    scores = torch.einsum("bnhd,bmhd->nm", table(q), table(k)) / (q[0, 0].norm() * k[0, 0].norm())
    for distance in {min(d, n - 1) for d in (0, 1, 7)}:
        cosines = scores.diagonal(-distance)
        spread = float(cosines.max() - cosines.min())
        expect(
            spread < 1e-3,
            f"one query and key at distance {distance}",
            f"the cosine of their angle varies by {spread:.3g}",
        )


@SUITE.check("frequencies of zero, or positions that are not used")
def positions_differ(part: PartUnderTest) -> None:
    """Different positions within the context have different rotations, independent of their place in the row."""
    rotary = build(part)
    table = phases(rotary, range(CONTEXT))[0]
    gap = (table[:, None] - table[None]).abs().amax(-1) + torch.eye(CONTEXT)
    at = divmod(int(gap.argmin()), CONTEXT)
    expect(
        float(gap.min()) > 1e-3, f"positions 0 to {CONTEXT - 1}", f"positions {at[0]} and {at[1]} are rotated equally"
    )
    padding = [-1] * 3
    padded, back = phases(rotary, [*padding, *range(CONTEXT)], [*reversed(range(CONTEXT)), *padding])
    for got, on in ((padded[3:], "after 3 of padding"), (back[:CONTEXT].flip(0), "in reverse")):
        rows = torch.view_as_real(got), torch.view_as_real(table)
        same(*rows, f"positions 0 to {CONTEXT - 1} {on}, [position, pair, cos and sin]", tolerance=1e-6)


@SUITE.check("frequencies in a buffer that `.bfloat16()` rounds, or a matrix product that autocast rounds")
def float32_angles(part: PartUnderTest) -> None:
    """Angles are computed in float32, for any dtype of the module and under autocast."""
    near = [0, 1, 2, FAR - 1, FAR]
    want = rotation(build(part), near)
    for dtype in (torch.bfloat16, torch.float16):
        got = rotation(build(part).to(dtype), near)
        _same_tables(got, want, f"positions up to {FAR}, the module in {dtype}", 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        got = rotation(build(part), near)
    _same_tables(got, want, f"positions up to {FAR}, under autocast", 1e-3)
    z = phases(build(part), near)[0]
    error = float((z[4] - z[3] * z[1] / z[0]).abs().max())
    expect(error < 4e-3, f"position {FAR}, as position {FAR - 1} turned once more", f"off by {error:.3g}")


@SUITE.check("a length or a table computed for the whole batch")
def rows_apart(part: PartUnderTest) -> None:
    """A row's rotation does not depend on the other rows of the batch."""
    rotary = build(part)
    short, long = list(range(8)), list(range(4 * CONTEXT, 4 * CONTEXT + 8))
    both, alone = rotation(rotary, short, long), rotation(rotary, short)
    _same_tables(Rotation(both.cos[:1], both.sin[:1], both.layout), alone, "a short row beside a long one", 1e-6)


@SUITE.check("a length taken from the number of columns, or from the first or the last column")
def documents(part: PartUnderTest) -> None:
    """A document packed into a row with others has the same rotations as in a row of its own."""
    rotary = build(part)
    for sizes in ((5, 3 * CONTEXT, 8), (4 * CONTEXT, 1, CONTEXT + 1)):
        number = modules.packed(sizes)
        table = Scope.over(number, documents=number).rotation(rotary, torch.float32)
        for i, (cos, sin) in enumerate(zip(table.cos.split(sizes, 1), table.sin.split(sizes, 1), strict=True)):
            on = f"document {i + 1} of {sizes} positions packed into one row"
            _same_tables(Rotation(cos, sin, table.layout), rotation(rotary, range(sizes[i])), on, 1e-5)


@SUITE.check("a table or a base kept from a longer sequence")
def no_memory(part: PartUnderTest) -> None:
    """A rotation does not depend on previous calls."""
    rotary = build(part)
    want = rotation(rotary, range(8))
    rotation(rotary, range(8 * CONTEXT))
    _same_tables(rotation(rotary, range(8)), want, "a short sequence after a long one", 0)


@SUITE.check("a scaling that depends on the sequence length, without `constant_until`")
def constant_until(part: PartUnderTest) -> None:
    """Up to the length `constant_until`, or for any length if it is None, a position's rotation never changes."""
    rotary = build(part)
    n = length(rotary)
    whole = rotation(rotary, range(n))
    for k in {min(k, n) for k in (1, CONTEXT // 2, CONTEXT, n)}:
        cut = Rotation(whole.cos[:, :k], whole.sin[:, :k], whole.layout)
        _same_tables(rotation(rotary, range(k)), cut, f"the first {k} of {n} positions", 1e-6)
    last = Rotation(whole.cos[:, -1:], whole.sin[:, -1:], whole.layout)
    _same_tables(rotation(rotary, [n - 1]), last, f"position {n - 1} alone", 1e-6)
    found = f"context {rotary.context}, constant_until {rotary.constant_until}"
    expect(rotary.context >= CONTEXT, f"a model trained with {CONTEXT} tokens", found)


@SUITE.check("a buffer or table created once for the class, or a cached table whose key lacks a setting")
def instances_apart(part: PartUnderTest) -> None:
    """Two instances share no memory, and each rotates by its own settings, independent of the other's calls."""
    first, second = build(part), build(part)
    modules.apart(first, second)
    constant = min(CONTEXT, length(first))
    whole = rotation(first, range(constant))
    for name in ("cos", "sin"):
        one, two = getattr(whole, name), getattr(rotation(second, range(constant)), name)
        same_memory = one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()
        expect(not same_memory, "two instances of the same config", f"both return the same table as {name}")
    for i, (name, config) in enumerate(modules.doubled(first.config)):
        n = max(constant - 1 - i, 1)  # a new length each time, because the first caller fills a table kept by length
        want = Rotation(whole.cos[:, :n], whole.sin[:, :n], whole.layout)
        on = f"another instance with {name} {getattr(config, name)}"
        other = part.cls(config).eval()
        table = rotation(other, range(n))
        expect(table.cos.shape[-1] == config.dim, on, f"tables of {table.cos.shape[-1]} features, not {config.dim}")
        rotation(other, [4 * FAR])  # beyond any table
        _same_tables(rotation(build(part), range(n)), want, f"{n} positions after a call of {on}", 1e-6)


@SUITE.check("a table that depends on the config, registered without `persistent=False`")
def state_dict(part: PartUnderTest) -> None:
    """The state dict has no buffers, so that trained weights load with another rotary embedding or context."""
    rotary = build(part)
    learned = {name for name, _ in rotary.named_parameters()}
    buffers = sorted(rotary.state_dict().keys() - learned)
    expect(not buffers, "the state dict", f"it has the buffers {', '.join(buffers)}")
    modules.state_round_trip(lambda seed: build(part, seed=seed), lambda module: rotation(module, range(CONTEXT)).cos)


@SUITE.check("an in-place operation such as `sub_` on an argument or on a view of it")
def inputs_unchanged(part: PartUnderTest) -> None:
    """It writes neither to the positions nor to the rotated heads."""
    rotary, positions, x = build(part), torch.arange(-1, 4 * CONTEXT - 1).repeat(2, 1), normal(2, 4 * CONTEXT, 3, DIM)
    given = {"positions": positions, "heads": x}
    modules.unchanged(lambda: rotary(positions)(x), "positions from −1, which is padding", given)


@SUITE.check("tables built for one layout and labelled with the other")
def layout(part: PartUnderTest) -> None:
    """The tables pair the features their layout names, and both layouts rotate by the same angles."""
    angles: list[Tensor] = []
    for name in get_args(Layout):
        rotary = build(part, name)
        table = rotation(rotary, range(5))
        expect(table.layout == name, f"layout {name!r} in the config", f"a rotation labelled {table.layout!r}")
        first, second = pairs(name, DIM)
        on = f"layout {name!r}, the two features of a pair"
        same(table.cos[..., first], table.cos[..., second], f"{on}, cosines", tolerance=1e-6)
        same(table.sin[..., first], -table.sin[..., second], f"{on}, sines", tolerance=1e-6)
        angles.append(torch.view_as_real(phases(rotary, range(5))))
    same(angles[0], angles[1], "the angles of both layouts", tolerance=1e-6)


@SUITE.check("a field of a type that JSON lacks, or a default that depends on more than the fields")
def config_json(part: PartUnderTest) -> None:
    """The config round-trips through JSON, and each of its fields has a description."""
    modules.config_round_trip(build(part).config)
    modules.fields_described(part.cls.Config)


def _same_tables(got: Rotation, want: Rotation, on: str, tolerance: float) -> None:
    if got.layout != want.layout:
        raise Broken(on, f"layout {got.layout!r} instead of {want.layout!r}")
    for name in ("cos", "sin"):
        same(
            getattr(got, name), getattr(want, name).expand_as(getattr(got, name)), f"{on}, {name}", tolerance=tolerance
        )
