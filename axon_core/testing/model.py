"""The checks of every model, and the further checks of every causal language model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from axon_core.errors import UsageError
from axon_core.interfaces.cache import Cache
from axon_core.interfaces.model import CausalLM, Model
from axon_core.registries import ROTARY_EMBEDDINGS
from axon_core.registry.spec import Spec
from axon_core.testing import modules
from axon_core.testing.kit import Broken, PartUnderTest, Suite, expect, same
from axon_core.testing.modules import LENGTHS, SqueezedRotary, ragged

MODEL = Suite(Model)
CAUSAL_LM = Suite(CausalLM)
SUITES = (CAUSAL_LM, MODEL)
N, PACKED = LENGTHS[0], modules.PACKED
SQUEEZED = f"a rotary embedding whose angles change past {SqueezedRotary.UNTIL} tokens"
SIZES = {"vocab_size": 61, "context": 16, "dim": 32, "n_layers": 2, "n_heads": 4}


def build(part: PartUnderTest, seed: int = 0) -> Any:
    """Build a small model."""
    return modules.built(lambda: part.cls(modules.config_of(part, **SIZES)), seed)


def squeezed(part: PartUnderTest) -> Any:
    """Build a small model with a `SqueezedRotary`, or return None if its config has no rotary embedding."""
    if not isinstance(getattr(modules.config_of(part, **SIZES), "rotary", None), Spec):
        return None
    with ROTARY_EMBEDDINGS.override(squeezed=SqueezedRotary):
        return build(replace(part, options={**part.options, "rotary": Spec(type="squeezed")}))


def text(model: CausalLM, seed: int = 1) -> Int[Tensor, "b n"]:
    """Return three rows of random tokens from the model's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (len(LENGTHS), N), generator=generator)


def others(model: CausalLM, tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Return a different token of the vocabulary for each token."""
    return (tokens + 1) % model.config.vocab_size


def scores(model: CausalLM, tokens: Int[Tensor, "b n"], **more: Any) -> Float[Tensor, "b n v"]:
    """Return the logits without a gradient."""
    with torch.no_grad():
        return model(tokens, **more)


def decode(
    model: CausalLM,
    tokens: Int[Tensor, "b n"],
    sizes: Sequence[int],
    valid: Bool[Tensor, "b n"] | None = None,
    cache: Cache | None = None,
) -> Float[Tensor, "b n v"]:
    """Run `tokens` in pieces of the given sizes, each after the tokens in the cache."""
    cache = model.new_cache(*tokens.shape) if cache is None else cache
    masks = [None] * len(sizes) if valid is None else valid.split(list(sizes), 1)
    pieces = zip(tokens.split(list(sizes), 1), masks, strict=True)
    return torch.cat([scores(model, piece, valid=mask, cache=cache) for piece, mask in pieces], 1)


@CAUSAL_LM.check("logits of the last position alone, or a head whose size is not the vocabulary's")
def shape(part: PartUnderTest) -> None:
    """There is one score for each position and token, and `logits(features(…))` gives the same scores."""
    model = build(part)
    tokens = text(model)
    out = scores(model, tokens)
    size = model.config.vocab_size
    expect(
        out.shape == (*tokens.shape, size), f"tokens {tuple(tokens.shape)}, vocabulary {size}", f"{tuple(out.shape)}"
    )
    with torch.no_grad():
        same(model.logits(model.features(tokens)), out, "logits of features, against the forward pass")


@CAUSAL_LM.check("a missing mask, or a statistic along the sequence")
def causal(part: PartUnderTest) -> None:
    """No score depends on later tokens, in training mode too."""
    model = build(part)
    tokens = text(model)
    for mode, run in modules.modes(model, scores):
        want = run(tokens)
        for t in (1, N // 2, N - 1):
            changed = torch.cat((tokens[:, :t], others(model, tokens[:, t:])), 1)
            same(run(changed)[:, :t], want[:, :t], f"tokens from {t} on replaced, in {mode} mode; scores before {t}")


@CAUSAL_LM.check("`valid` not passed on, or a padding id looked up in the embedding")
def padding(part: PartUnderTest) -> None:
    """Padding on either side, with any id such as −1, changes nothing for valid tokens."""
    model = build(part)
    tokens = text(model)
    for side in ("left", "right"):
        valid = ragged(side)
        out = scores(model, tokens.masked_fill(~valid, -1), valid=valid)
        for row, length in enumerate(LENGTHS):
            alone = scores(model, tokens[row : row + 1, valid[row]])
            same(out[row, valid[row]], alone[0], f"a row of {length} tokens padded on the {side} to {N}")


@CAUSAL_LM.check("`documents` not passed on, or a rotation taken at positions instead of by `scope.rotate`")
def documents(part: PartUnderTest) -> None:
    """Documents packed into one row give the same results as each alone, even if rotations depend on the length."""
    for model, on in ((build(part), ""), (squeezed(part), f"; {SQUEEZED}")):
        if model is None:
            continue
        tokens = text(model)
        pieces = scores(model, tokens, documents=modules.packed(PACKED).expand_as(tokens)).split(PACKED, 1)
        for i, (got, alone) in enumerate(zip(pieces, tokens.split(PACKED, 1), strict=True)):
            same(got, scores(model, alone), f"document {i + 1} of {PACKED} tokens packed into one row{on}")


@CAUSAL_LM.check("a statistic over the batch")
def neighbours(part: PartUnderTest) -> None:
    """A row's scores do not depend on the other rows of the batch, in training mode too."""
    model = build(part)
    tokens = text(model)
    changed = torch.cat((tokens[:1], others(model, tokens[1:])))
    same(scores(model, tokens)[:1], scores(model, tokens[:1]), "a row beside others, and alone")
    for mode, run in modules.modes(model, scores):
        same(run(changed)[:1], run(tokens)[:1], f"a row whose neighbours are replaced, in {mode} mode")


@CAUSAL_LM.check("a layer that does not get its cache, or positions that start again at each step")
def cached(part: PartUnderTest) -> None:
    """Decoding at once, token by token and in chunks gives the same results as one pass."""
    model = build(part)
    tokens = text(model)
    want = scores(model, tokens)
    for sizes in ([N], [1] * N, [5, 3, 1]):
        same(decode(model, tokens, sizes), want, f"chunks of {sizes}")


@CAUSAL_LM.check("`valid` not passed to the cache")
def cached_ragged(part: PartUnderTest) -> None:
    """In a batch padded on the left, every row is decoded as if it were alone; other padding raises an error."""
    model, valid = build(part), ragged("left")
    tokens = text(model)
    try:
        decode(model, tokens, [N], ragged("right"))
    except UsageError:
        pass
    else:
        raise Broken("rows padded on the right, with a cache", "no error; pass `valid` to `cache.extend`")
    for sizes in ([6, 1, 1, 1], [2, 3, 4]):
        out = decode(model, tokens.masked_fill(~valid, -1), sizes, valid)
        for row, length in enumerate(LENGTHS):
            alone = scores(model, tokens[row : row + 1, valid[row]])
            same(
                out[row, valid[row]], alone[0], f"a row of {length} tokens padded on the left to {N}, chunks of {sizes}"
            )


@CAUSAL_LM.check("a cache without a horizon, or results for whole rows instead of the new tokens")
def horizon(part: PartUnderTest) -> None:
    """Beyond the rotary embedding's `constant_until` too, decoding gives the same results as one pass so far."""
    model = squeezed(part)
    if model is None:
        return
    tokens = text(model)
    whole, left = torch.ones_like(tokens, dtype=torch.bool), ragged("left")
    for kept, rows in ((whole, "no padding"), (left, "rows padded on the left")):
        given, valid = tokens.masked_fill(~kept, -1), None if kept is whole else kept
        for sizes in ([1] * N, [3, 4, 2]):
            cache, start = model.new_cache(*tokens.shape), 0
            for size in sizes:
                new, so_far = slice(start, start + size), slice(start + size)
                got = decode(model, given[:, new], [size], None if valid is None else valid[:, new], cache)
                want = scores(model, given[:, so_far], valid=None if valid is None else valid[:, so_far])[:, new]
                at = f"{SQUEEZED}; {rows}, chunks of {sizes}, the chunk from token {start} on"
                expect(got.shape == want.shape, at, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}")
                same(got[kept[:, new]], want[kept[:, new]], at)
                start += size


@CAUSAL_LM.check("decoding state kept in the model")
def caches_apart(part: PartUnderTest) -> None:
    """Two caches used in turn do not affect each other."""
    model = build(part)
    a, b = text(model, 1), text(model, 2)
    first, second = model.new_cache(*a.shape), model.new_cache(*b.shape)
    decode(model, a[:, :4], [4], cache=first)
    decode(model, b[:, :6], [6], cache=second)
    same(decode(model, a[:, 4:], [5], cache=first), scores(model, a)[:, 4:], "the first of two caches")
    same(decode(model, b[:, 6:], [3], cache=second), scores(model, b)[:, 6:], "the second of two caches")


@CAUSAL_LM.check("a float32 table or cache that meets bfloat16 operands")
def bfloat16(part: PartUnderTest) -> None:
    """In bfloat16 and under autocast to it, the results are close to those in float32, with a cache too."""
    model = build(part)
    tokens = text(model)
    want = scores(model, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        same(scores(model, tokens).float(), want, "autocast", tolerance=0.1)
        same(decode(model, tokens, [5, 4]).float(), want, "autocast, decoded", tolerance=0.1)
    model = model.bfloat16()
    same(scores(model, tokens).float(), want, "the model in bfloat16", tolerance=0.1)
    same(decode(model, tokens, [5, 4]).float(), want, "the model in bfloat16, decoded", tolerance=0.1)


@CAUSAL_LM.check("an unused parameter, or a tensor detached from the graph")
def gradient(part: PartUnderTest) -> None:
    """In float64 every parameter has a gradient that agrees with finite differences."""
    model = modules.in_float64(build(part))
    tokens = text(model)
    modules.gradients(model, lambda: model(tokens), f"tokens {tuple(tokens.shape)}", {})


@CAUSAL_LM.check("an in-place operation such as `masked_fill_` on an argument or on a view of it")
def inputs_unchanged(part: PartUnderTest) -> None:
    """It does not write to its inputs: tokens, `valid` and `documents`."""
    model, valid = build(part), ragged("left")
    tokens = text(model)
    modules.unchanged(
        lambda: model(tokens, valid=valid), "a batch padded on the left", {"tokens": tokens, "valid": valid}
    )
    decoding = partial(decode, model, tokens, [5, 4], valid)
    modules.unchanged(decoding, "the same batch, decoded", {"tokens": tokens, "valid": valid})
    packed, number = text(model), torch.arange(N).div(4, rounding_mode="floor").repeat(len(tokens), 1)
    modules.unchanged(
        lambda: model(packed, documents=number), "packed documents", {"tokens": packed, "documents": number}
    )


@CAUSAL_LM.check("a tensor that affects results but is neither a parameter nor a buffer")
def saved(part: PartUnderTest) -> None:
    """A saved and loaded model gives the same scores, bit for bit."""
    model = build(part)
    tokens = text(model)
    same(scores(_reloaded(model), tokens), scores(model, tokens), "the model saved and loaded", tolerance=0)


@MODEL.check("a tensor that is neither a parameter nor a buffer, or an incomplete config")
def saved_state(part: PartUnderTest) -> None:
    """A saved and loaded model has the same state dict, bit for bit."""
    model = build(part)
    want, got = model.state_dict(), _reloaded(model).state_dict()
    expect(want.keys() == got.keys(), "the state dict, saved and loaded", f"{sorted(want.keys() ^ got.keys())} differ")
    for name, tensor in want.items():
        same(got[name], tensor, f"state {name!r}, saved and loaded", tolerance=0)


def config_json(part: PartUnderTest) -> None:
    """The config round-trips through JSON, builds the same model again, and has a description for each field."""
    model = build(part)
    modules.config_round_trip(model.config)
    modules.fields_described(part.cls.Config)


def hidden_matrices(part: PartUnderTest) -> None:
    """`hidden_matrices` are matrices among the model's parameters, each listed once."""
    model: Model = build(part)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[int] = set()
    for i, matrix in enumerate(model.hidden_matrices()):
        on = f"hidden matrix {i}, {names.get(id(matrix), 'not a parameter of the model')}"
        expect(isinstance(matrix, nn.Parameter) and id(matrix) in names, on, "it is not one of the parameters")
        expect(matrix.ndim == 2, on, f"it has shape {tuple(matrix.shape)}")
        expect(id(matrix) not in seen, on, "it is listed twice")
        seen.add(id(matrix))


def instances_apart(part: PartUnderTest) -> None:
    """Two instances share no memory."""
    modules.apart(build(part, 0), build(part, 1))


for _suite in SUITES:
    _suite.check("a field of a type that JSON lacks, or a default that depends on more than the fields")(config_json)
    _suite.check("copies or transposes returned instead of the parameters")(hidden_matrices)
    _suite.check("a buffer or parameter created once for the class or the Python module")(instances_apart)


def _reloaded(model: Model) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        again = type(model).load(folder).eval()
    if type(again) is not type(model):
        raise Broken("the model saved and loaded", f"it is a {type(again).__qualname__}")
    return again
