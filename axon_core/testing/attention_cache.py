"""The checks of every attention for decoding with a cache."""

from __future__ import annotations

import torch
from torch import Tensor

from axon_core.interfaces.cache import LayerCache
from axon_core.interfaces.scope import Scope
from axon_core.testing.attention import SUITE, N, at_once, build, decode, new_cache, tokens
from axon_core.testing.kit import Broken, PartUnderTest, expect, same
from axon_core.testing.modules import LENGTHS, ragged

ORDER = [2, 0, 1]


@SUITE.check("keys appended before they are rotated, or a state that is not updated")
def cached_one_pass(part: PartUnderTest) -> None:
    """A pass with an empty cache of any capacity gives the same results as a pass without a cache."""
    attention = build(part)
    x = tokens(attention)
    for spare in (0, 5):
        got = decode(attention, x, [N], cache=new_cache(attention, x, spare))
        same(got, at_once(attention, x), f"{N} tokens in a cache for {N + spare}")


@SUITE.check("a position, slot or window that is off by one")
def cached_steps(part: PartUnderTest) -> None:
    """Decoding token by token gives the same results as one pass."""
    attention = build(part)
    x = tokens(attention)
    same(decode(attention, x, [1] * N), at_once(attention, x), f"{N} single steps")


@SUITE.check("a causal mask aligned to the first key instead of the last, or a window cut before the pass uses it")
def cached_chunks(part: PartUnderTest) -> None:
    """Decoding in chunks gives the same results as one pass."""
    attention = build(part)
    x = tokens(attention)
    for sizes in ([5, 3, 1], [2, 7]):
        same(decode(attention, x, sizes), at_once(attention, x), f"chunks of {sizes}")


@SUITE.check("padding that enters the state, or slots used where positions are meant")
def cached_ragged(part: PartUnderTest) -> None:
    """In a batch padded on the left, every row is decoded as if it were alone."""
    attention = build(part)
    x, valid = tokens(attention), ragged("left")
    for sizes in ([6, 1, 1, 1], [2, 3, 4], [1] * N):
        out = decode(attention, torch.where(valid.unsqueeze(-1), x, 100.0), sizes, valid)
        for row, length in enumerate(LENGTHS):
            alone = at_once(attention, x[row : row + 1, valid[row]])
            same(
                out[row, valid[row]], alone[0], f"a row of {length} tokens padded on the left to {N}, chunks of {sizes}"
            )


@SUITE.check("state kept in the module instead of the cache")
def caches_apart(part: PartUnderTest) -> None:
    """Two caches used in turn affect neither each other nor a pass without a cache."""
    attention = build(part)
    a, b = tokens(attention, seed=1), tokens(attention, seed=2)
    want = [at_once(attention, x) for x in (a, b)]
    caches = [new_cache(attention, x) for x in (a, b)]
    got: list[list[Tensor]] = [[], []]
    for start in range(0, N, 3):
        for i, x in enumerate((a, b)):
            got[i].append(decode(attention, x[:, start : start + 3], [3], cache=caches[i]))
    for i, x in enumerate((a, b)):
        same(torch.cat(got[i], 1), want[i], f"cache {i + 1} of two that take turns")
        same(at_once(attention, x), want[i], "a pass without a cache, after some with one", tolerance=0)


@SUITE.check("state kept outside the declared state, or a state that is not per token and does not start from zero")
def cache_reused(part: PartUnderTest) -> None:
    """The declared state is complete: rows can be reordered (beam search), and a cache can be reset and reused."""
    attention = build(part)
    x, other = tokens(attention), tokens(attention, seed=2)
    cache = new_cache(attention, x)
    decode(attention, x[:, :5], [5], cache=cache)
    cache.reorder(torch.tensor(ORDER))
    rest = decode(attention, x[ORDER][:, 5:], [1, 3], cache=cache)
    same(rest, at_once(attention, x[ORDER])[:, 5:], f"rows reordered to {ORDER} after 5 tokens")
    cache.reset()
    same(decode(attention, other, [4, 5], cache=cache), at_once(attention, other), "a cache after reset")


@SUITE.check("a memory projected again at each step, or a cache of cross-attention filled with the input")
def cached_cross(part: PartUnderTest) -> None:
    """Cross-attention gives the same results with and without a cache, and with one reads the memory only once."""
    attention = build(part)
    if not attention.cross:
        return
    x, memory, valid = tokens(attention), tokens(attention, seed=2), ragged("right")
    cache = LayerCache({}, len(x), 0, x.dtype, x.device)
    pieces = list(x.split([4, 1, 4], 1))
    with torch.no_grad():
        want = attention(x, Scope.across(x, valid), memory=memory)
        got = [attention(pieces[0], Scope.across(pieces[0], valid), memory=memory, cache=cache)]
        for piece in pieces[1:]:
            spoilt = torch.full_like(memory, float("nan"))
            got.append(attention(piece, Scope.across(piece, valid), memory=spoilt, cache=cache))
    same(torch.cat(got, 1), want, "chunks of [4, 1, 4], another memory given after the first")


@SUITE.check("a declared state larger than the used one, or buffers replaced instead of written to")
def state(part: PartUnderTest) -> None:
    """Decoding fills every declared state and needs no further memory."""
    attention = build(part)
    x = tokens(attention)
    unwritten = {name: torch.tensor(True) for name in attention.state()}
    for fill in (0, 1):  # a written value may equal one of them, but not both
        cache = new_cache(attention, x)
        buffers = cache.layers[0].buffers
        before = dict(buffers)  # kept alive, so that no other tensor can reuse their memory
        for name, kept in attention.state().items():
            if kept.per_token:  # the other states start from zero
                buffers[name].fill_(fill)
        start = {name: buffer.clone() for name, buffer in buffers.items()}
        decode(attention, x, [5, 4], cache=cache)
        if strange := buffers.keys() - before:
            raise Broken(f"the cache after {N} tokens", f"it has the undeclared buffers {sorted(strange)}")
        for name, buffer in buffers.items():
            expect(buffer is before[name], _after(name, buffer), "the buffer was replaced by another one")
            entries = (buffer == start[name]).unsqueeze(-1).flatten(1 + attention.state()[name].per_token)
            unwritten[name] = unwritten[name] & entries.all(-1)
    for name, entries in unwritten.items():
        found = f"{int(entries.sum())} of its entries were never written"
        expect(not (entries.any() and before[name].numel()), _after(name, before[name]), found)


@SUITE.check("an example whose window is as long as the kit's rows, so that no token is ever outside it")
def window(part: PartUnderTest) -> None:
    """If a state declares a window, one of the class's examples has a window shorter than the test rows."""
    found = _windows(part)
    others = (_windows(PartUnderTest(part.name, part.cls, example)) for example in part.cls.examples)
    if found and not any(reach < N for windows in (found, *others) for reach in windows.values()):
        windows = ", ".join(f"the window of state {name!r} is {reach}" for name, reach in found.items())
        raise Broken(f"rows of {N} tokens", f"{windows}; give one of `examples` a window below {N}")


def _windows(part: PartUnderTest) -> dict[str, int]:
    return {name: kept.window for name, kept in build(part).state().items() if kept.window is not None}


def _after(name: str, buffer: Tensor) -> str:
    return f"state {name!r} {tuple(buffer.shape)} after {N} tokens"
