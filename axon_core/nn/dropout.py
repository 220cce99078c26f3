"""Dropout whose masks belong to examples: what is dropped of one depends neither on its batch nor on its process."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from axon_core.randomness import Key

__all__ = ["Dropout", "drop", "dropout_rows", "replayed_dropout"]

_CALLS = 64  # calls whose random words are made at once
_GOLDEN = -0x61C8864680B583EB
_MIX_64 = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1))
_MIX_32 = ((16, -0x7A143595), (13, -0x3D4D51CB), (16, 1))


class Dropout(nn.Module):
    """Set a share `p` of the features to zero while training, the others to x / (1 − p): `(b …) -> (b …)`.

    See `drop` for the source, and for what the choice depends on.

    Raises:
        ValueError: `p` is not from 0 to below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the share of features to drop must be at least 0 and below 1, got {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return `x` with some of its features zero; in evaluation mode, `x` itself."""
        return drop(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"p={self.p}"


def drop(x: Float[Tensor, "b ..."], p: float) -> Float[Tensor, "b ..."]:
    """Return `x` with each number zero with probability `p`, and divided by 1 − p otherwise (Srivastava et al., 2014).

    Within `dropout_rows`, whether a number is dropped depends on its example, on its place within the example, and on
    which call of the pass this is: not on the other rows, so not on how a batch is cut. The first axis counts the
    examples, or several rows of each, one after another. Elsewhere, or with another first axis, torch's generator
    decides (`torch.nn.functional.dropout`).
    """
    if p == 0:
        return x
    rows = _active.rows
    if rows is None or not len(rows.seeds) or len(x) % len(rows.seeds):
        return functional.dropout(x, p)
    return x * rows.kept(x, p).to(x.dtype).mul_(1 / (1 - p))


@contextmanager
def dropout_rows(key: Key, numbers: Int[Tensor, " b"]) -> Generator[None]:
    """Within the block, a forward pass over b examples, `drop` draws for each by its number, a seed and the call.

    Args:
        key: what the masks derive from, with the numbers; another one for each update.
        numbers: of the examples, each its own, on the device of the pass.
    """
    with _resumed(_Rows(key, numbers), 0):
        yield


def replayed_dropout() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts in which a part of a pass runs, and runs again with the same masks.

    It is the `context_fn` of `torch.utils.checkpoint.checkpoint`, without its reentrant form. A compiled pass needs
    nothing: its kernels compute the masks again.
    """
    rows = _active.rows
    return nullcontext(), nullcontext() if rows is None else _resumed(rows, rows.calls)


class _Active(threading.local):
    """The examples of the forward pass in progress, if its loop has told."""

    rows: _Rows | None = None


_active = _Active()


@contextmanager
def _resumed(rows: _Rows, calls: int) -> Generator[None]:
    """Within the block `rows` are those of the pass, in which `calls` calls have been made."""
    before, made = _active.rows, rows.calls
    _active.rows, rows.calls = rows, calls
    try:
        yield
    finally:
        _active.rows, rows.calls = before, made


class _Rows:
    """The examples of a forward pass: number j of row i is kept in a call if (a_i h_j + c_i) mod 2³² is large enough.

    a and c are two random words of each row and call, h one of each place: for two places of a row, or two rows, the
    values are independent (multiply-add hashing; Dietzfelbinger, 1996). All words are hashes of counters, so that
    nothing is drawn one after another: a and c by the mixing function of SplitMix64 (Steele, Lea and Flood, 2014), h by
    that of MurmurHash3. h is computed in 32 bits throughout: PyTorch 2.13 compiles the conversion from 64 into a kernel
    that writes beyond its output.
    """

    def __init__(self, key: Key, numbers: Int[Tensor, " b"]) -> None:
        self.calls = 0
        self.seeds = _mixed(numbers.long() * _GOLDEN + key.seed, _MIX_64)
        self._words = [self._block(0)]
        self._made: dict[tuple[Sequence[int], Sequence[int]], Tensor] = {}

    def kept(self, x: Float[Tensor, "b ..."], p: float) -> Bool[Tensor, "b ..."]:
        """Return which numbers of `x` the next call keeps."""
        block, call = divmod(self.calls, _CALLS)
        self.calls += 1
        if block == len(self._words):
            self._words.append(self._block(block))
        b = len(self.seeds)
        row = x.unflatten(0, (b, -1))[0]
        factor, summand = (word.view(b, *[1] * row.ndim) for word in self._words[block][call].unbind(-1))
        drawn = (factor * self._places(row)).add_(summand).flatten(0, 1)
        return drawn >= round(p * 2**32) - 2**31

    def _places(self, row: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Return a word for each place of a row, in its order in memory; a pass that is not compiled keeps it."""
        kind = (row.shape, row.stride())
        if (words := self._made.get(kind)) is None:
            words = _mixed(torch.arange(row.numel(), dtype=torch.int32, device=row.device), _MIX_32).view(row.shape)
            words = torch.empty_like(row, dtype=torch.int32).copy_(words)
            if not torch.compiler.is_compiling():
                self._made[kind] = words
        return words

    def _block(self, number: int) -> Int[Tensor, "calls b 2"]:
        """Return two words of 32 bits for each row, for each of some calls."""
        calls = torch.arange(number * _CALLS, (number + 1) * _CALLS, device=self.seeds.device)
        words = _mixed(self.seeds + calls[:, None] * _GOLDEN, _MIX_64)
        return words.view(torch.int32).unflatten(-1, (-1, 2))


def _mixed(x: Int[Tensor, "*any"], rounds: Sequence[tuple[int, int]]) -> Int[Tensor, "*any"]:
    """Return random-looking bits for each integer, no two of them equal: x ← (x ⊕ (x ≫ s)) f for each shift and factor.

    The shift fills up with zeros.
    """
    bits = 8 * x.itemsize
    for shift, factor in rounds:
        x = (x ^ ((x >> shift) & ((1 << (bits - shift)) - 1))) * factor
    return x
