"""The checks of every attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import Cache
from axon_core.interfaces.scope import Scope
from axon_core.testing import modules
from axon_core.testing.kit import PartUnderTest, Suite, expect, finite, same
from axon_core.testing.modules import LENGTHS, PlainRotary, SqueezedRotary, normal, ragged

SUITE = Suite(Attention)
N = LENGTHS[0]
PACKED = modules.PACKED
LAYERS = (1, 0, 2, 3, 4, 5, 6, 7)
"""Layers in which an attention may use its rotary embedding; all checks build the first one."""


def build(
    part: PartUnderTest, seed: int = 0, base: float = 10000.0, layer: int = 1, kind: type[PlainRotary] = PlainRotary
) -> Attention:
    """Build a small attention, with a rotary embedding of this `kind` if it takes one."""
    config: Any = modules.config_of(part, dim=32, n_heads=4, layer=layer)
    rotary = kind(kind.Config(dim=config.rotary_dim), base) if config.rotary_dim else None
    return modules.built(lambda: part.cls(config, rotary), seed)


def tokens(attention: Attention, seed: int = 1, scale: float = 1.0) -> Float[Tensor, "b n d"]:
    """Return the features of three rows of tokens."""
    return scale * normal(len(LENGTHS), N, attention.config.dim, seed=seed)


def decode(
    attention: Attention,
    x: Float[Tensor, "b n d"],
    sizes: Sequence[int],
    valid: Bool[Tensor, "b n"] | None = None,
    cache: Cache | None = None,
) -> Float[Tensor, "b n d"]:
    """Run `x` in pieces of the given sizes, each after the tokens in the cache."""
    cache = new_cache(attention, x) if cache is None else cache
    masks = [None] * len(sizes) if valid is None else valid.split(list(sizes), 1)
    out: list[Tensor] = []
    with torch.no_grad():
        for piece, mask in zip(x.split(list(sizes), 1), masks, strict=True):
            step = cache.extend(torch.zeros(piece.shape[:2], dtype=torch.long), mask)
            out.append(attention(piece, step.scope, cache=step.layers[0]))
    return torch.cat(out, 1)


def new_cache(attention: Attention, x: Float[Tensor, "b n d"], spare: int = 0) -> Cache:
    """Return a cache of one layer with room for the tokens of `x`, and `spare` more."""
    return Cache([attention.state()], len(x), x.shape[1] + spare, dtype=x.dtype, device=x.device)


def at_once(attention: Attention, x: Float[Tensor, "b n d"], **scope: Any) -> Float[Tensor, "b n d"]:
    """Run whole rows without a cache."""
    with torch.no_grad():
        return attention(x, Scope.over(x, **scope))


@SUITE.check("a reshape that mixes axes, or a hard-wired dtype")
def shape(part: PartUnderTest) -> None:
    """The result has the shape and dtype of the input."""
    attention = build(part)
    for x in (tokens(attention), tokens(attention)[:1, :1]):
        out = at_once(attention, x)
        found = f"{tuple(out.shape)} {out.dtype}"
        expect(out.shape == x.shape and out.dtype == x.dtype, f"{tuple(x.shape)} {x.dtype}", found)


@SUITE.check("a missing mask, a mask aligned to the wrong corner, or a statistic along the sequence")
def causal(part: PartUnderTest) -> None:
    """In a causal scope, no token's result depends on later tokens, in training mode too."""
    attention = build(part)
    x, other = tokens(attention), tokens(attention, seed=2)
    for mode, run in modules.modes(attention, at_once):
        want = run(x)
        for t in (1, N // 2, N - 1):
            changed = torch.cat((x[:, :t], other[:, t:]), 1)
            same(run(changed)[:, :t], want[:, :t], f"tokens from {t} on replaced, in {mode} mode; results before {t}")


@SUITE.check("the scope's mask or positions ignored, or an average that counts padding")
def padding(part: PartUnderTest) -> None:
    """Padding on either side, with any content, changes nothing for valid tokens, in each scope that it is for."""
    attention = build(part)
    x = tokens(attention)
    for side in ("left", "right"):
        valid = ragged(side)
        padded = torch.where(valid.unsqueeze(-1), x, tokens(attention, seed=3, scale=100.0))
        for direction in (True, False) if attention.bidirectional else (True,):
            out = at_once(attention, padded, valid=valid, causal=direction)
            for row, length in enumerate(LENGTHS):
                alone = at_once(attention, x[row : row + 1, valid[row]], causal=direction)
                on = f"a row of {length} tokens padded on the {side} to {N}, {'' if direction else 'not '}causal"
                same(out[row, valid[row]], alone[0], on)


@SUITE.check("the scope's mask ignored, positions counted across documents, or `scope.rotate` not used")
def documents(part: PartUnderTest) -> None:
    """Documents packed into one row give the same results as each alone, even if rotations depend on the length."""
    for kind, on in ((PlainRotary, ""), (SqueezedRotary, f", angles changing past {SqueezedRotary.UNTIL} tokens")):
        attention = build(part, kind=kind)
        x = tokens(attention)
        number = modules.packed(PACKED).expand(len(x), N)
        pieces = at_once(attention, x, documents=number).split(PACKED, 1)
        for i, (got, alone) in enumerate(zip(pieces, x.split(PACKED, 1), strict=True)):
            same(got, at_once(attention, alone), f"document {i + 1} of {PACKED} tokens packed into one row{on}")


@SUITE.check("a statistic over the batch, or positions taken from the first row")
def neighbours(part: PartUnderTest) -> None:
    """A row's result does not depend on the other rows of the batch, in training mode too."""
    attention = build(part)
    x = tokens(attention)
    larger = torch.cat((x[:1], 100 * x[1:]))
    same(at_once(attention, larger)[:1], at_once(attention, x[:1]), "a row beside rows a hundred times larger, alone")
    for mode, run in modules.modes(attention, at_once):
        same(run(larger)[:1], run(x)[:1], f"a row whose neighbours grow a hundred times larger, in {mode} mode")


@SUITE.check("an empty softmax in a row of padding, or 0 / 0 in a normalisation")
def padded_rows_finite(part: PartUnderTest) -> None:
    """Results and gradients are finite even for padding, and for rows of padding alone."""
    attention = build(part)
    valid = ragged("left")
    valid[2] = False
    x = tokens(attention).requires_grad_()
    out = attention(x, Scope.over(x, valid=valid))
    finite(out, "a batch with padding on the left, and a row of padding alone")
    out.sum().backward()
    assert x.grad is not None
    finite(x.grad, "the gradient of a batch with padding on the left, and a row of padding alone")
    finite(decode(attention, x.detach(), [4, 5], valid), "the same batch, decoded")


@SUITE.check("a softmax, an exponential or a sum that is not computed in float32")
def large_logits(part: PartUnderTest) -> None:
    """In half precision, scores beyond its range of 65504 give finite results."""
    attention = build(part).half()
    x = tokens(attention, scale=200.0).half()
    finite(at_once(attention, x), "float16, inputs of size 200")
    finite(decode(attention, x, [5, 3, 1]), "float16, inputs of size 200, decoded")


@SUITE.check("a table or mask in float32 that meets bfloat16 operands, or statistics in bfloat16")
def bfloat16(part: PartUnderTest) -> None:
    """A module in bfloat16 returns bfloat16, close to the results in float32, with a cache too."""
    modules.runs_in(torch.bfloat16, build(part), tokens(build(part)), at_once)
    modules.runs_in(torch.bfloat16, build(part), tokens(build(part)), lambda m, x: decode(m, x, [5, 3, 1]))


@SUITE.check("operands whose dtypes differ under autocast, such as a float32 cache and bfloat16 queries")
def autocast(part: PartUnderTest) -> None:
    """Under autocast to bfloat16 the results are close to those in float32, with a cache too."""
    attention = build(part)
    x = tokens(attention)
    want = at_once(attention, x)
    with torch.autocast("cpu", torch.bfloat16):
        got, decoded = at_once(attention, x), decode(attention, x, [5, 3, 1])
    same(got.float(), want, "autocast", tolerance=0.1)
    same(decoded.float(), want, "autocast, decoded", tolerance=0.1)


@SUITE.check("an unused parameter, or a tensor detached from the graph")
def gradient(part: PartUnderTest) -> None:
    """In float64 every parameter has a gradient; it and the inputs' gradients agree with finite differences."""
    attention = modules.in_float64(build(part))
    inputs = {"x": tokens(attention).double()}
    if attention.cross:  # some parameters may serve cross-attention alone
        inputs["memory"] = tokens(attention, seed=2).double()

    def run() -> Tensor:
        x, memory = inputs["x"], inputs.get("memory")
        out = attention(x, Scope.over(x))
        if memory is None:
            return out
        return torch.stack((out, attention(x, Scope.across(x, ragged("right")), memory=memory)))

    on = f"{tuple(inputs['x'].shape)}, causal{', and cross-attention' * attention.cross}"
    modules.gradients(attention, run, on, inputs)


@SUITE.check("randomness in evaluation mode, or state left from the previous pass")
def deterministic(part: PartUnderTest) -> None:
    """In evaluation mode the same input gives the same result, bit for bit."""
    attention = build(part)
    x = tokens(attention)
    same(at_once(attention, x), at_once(attention, x), "the same input twice", tolerance=0)


@SUITE.check("rotary_dim not overridden by an attention that takes no rotary embedding, or a missing rotation")
def rotary(part: PartUnderTest) -> None:
    """The rotary embedding requested by `rotary_dim` changes the result in at least one of the first layers."""
    asked = 0
    for layer in LAYERS:  # some layers may have none by design
        attention = build(part, layer=layer)
        if attention.rotary is None:
            continue
        x, asked = tokens(attention), attention.config.rotary_dim
        difference = (at_once(build(part, base=10.0, layer=layer), x) - at_once(attention, x)).abs().max()
        if float(difference) > 1e-4:
            return
    layers = f"in layers 0 to {max(LAYERS)}"
    expect(not asked, f"rotary_dim {asked}, with other angles", f"the result is the same {layers}")


@SUITE.check("queries taken from the memory, keys from the input, or the memory's padding ignored")
def cross(part: PartUnderTest) -> None:
    """Unless the class sets `cross = False`, cross-attention sees the valid part of the memory and nothing else."""
    attention = build(part)
    if not attention.cross:
        return
    x, memory, valid = tokens(attention)[:, :4], tokens(attention, seed=2), ragged("right")

    def run(x: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
        with torch.no_grad():
            return attention(x, Scope.across(x, valid), memory=memory)

    want = run(x, memory, valid)
    expect(want.shape == x.shape, f"x {tuple(x.shape)}, memory {tuple(memory.shape)}", f"{tuple(want.shape)}")
    padded = torch.where(valid.unsqueeze(-1), memory, 100.0)
    same(run(x, padded, valid), want, "other values in the memory's padding")
    for row, length in enumerate(LENGTHS):
        alone = run(x[row : row + 1], memory[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        same(want[row : row + 1], alone, f"a memory of {length} valid tokens out of {N}")
    changed = memory.clone()
    changed[:, 0] += 1
    difference = (run(x, changed, valid) - want).abs().amax((1, 2))
    expect(bool((difference > 1e-4).all()), "a valid token of the memory changed", "the result is the same")


@SUITE.check(
    "an in-place operation such as `mul_` on an argument, on a view of it, or on `.float()` of it, which may be it"
)
def inputs_unchanged(part: PartUnderTest) -> None:
    """It does not write to its inputs: tokens, memory, and the tensors that all layers share in the scope."""
    attention = build(part)
    x, memory, valid = tokens(attention), tokens(attention, seed=2), ragged("left")
    scope = Scope.over(x, valid=valid)
    shared = {"scope.positions": scope.positions, "scope.mask": scope.mask(N)}
    if attention.rotary is not None:
        rotation = scope.rotation(attention.rotary, x.dtype)
        shared |= {"cos of scope.rotation": rotation.cos, "sin of scope.rotation": rotation.sin}
    modules.unchanged(lambda: attention(x, scope), "a batch padded on the left", {"x": x, **shared})
    modules.unchanged(lambda: decode(attention, x, [5, 4], valid), "the same batch, decoded", {"x": x, "valid": valid})
    if attention.cross:
        across = Scope.across(x, valid)
        run = partial(attention, x, across, memory=memory)
        modules.unchanged(run, "cross-attention", {"x": x, "memory": memory, "scope.mask": across.mask(N)})


@SUITE.check("a field of a type that JSON lacks, or a default that depends on more than the fields")
def config_json(part: PartUnderTest) -> None:
    """The config round-trips through JSON, and each of its fields has a description."""
    attention = build(part)
    modules.config_round_trip(attention.config)
    modules.fields_described(part.cls.Config)


@SUITE.check("a tensor that affects results but is neither a parameter nor a buffer")
def state_dict(part: PartUnderTest) -> None:
    """The state dict contains everything that a new instance needs to give the same results."""
    x = tokens(build(part))
    modules.state_round_trip(lambda seed: build(part, seed), lambda attention: at_once(attention, x))


@SUITE.check("a buffer or parameter created once for the class or the Python module")
def instances_apart(part: PartUnderTest) -> None:
    """Two instances share no memory."""
    modules.apart(build(part, 0), build(part, 1))
