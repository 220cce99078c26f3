"""Low-rank updates of a weight, and linear maps that compute with one beside their own weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axon_core import Key
from axon_core.nn import Dropout, affine

__all__ = [
    "LowRank",
    "LowRankUpdate",
    "adapt",
    "decomposed_weight",
    "low_rank_scale",
    "merged_weight",
    "updated_weight",
]


def low_rank_scale(alpha: float, rank: int, *, stabilized: bool = False) -> float:
    """Return what B A is multiplied by: s = α / r (arXiv 2106.09685, Section 4.1), or α / √r (rsLoRA, 2312.03732)."""
    return alpha / (rank**0.5 if stabilized else rank)


def updated_weight(
    weight: Float[Tensor, "o i"], a: Float[Tensor, "r i"], b: Float[Tensor, "o r"], scale: float
) -> Float[Tensor, "o i"]:
    """Return W₀ + s B A in float32, or float64 for float64 (arXiv 2106.09685, Section 4.1, Eq. 3)."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)


def decomposed_weight(weight: Float[Tensor, "o i"], magnitude: Float[Tensor, " o"]) -> Float[Tensor, "o i"]:
    """Return m W / ‖W‖, where each row of W, of one output, has its own norm and magnitude.

    A row of zeros stays one. Source: DoRA, arXiv 2402.09353, Eq. 5. The paper speaks of columns; its authors' code
    takes one magnitude an output.
    """
    return weight * (magnitude / _row_norms(weight)).unsqueeze(1)


def _row_norms(weight: Float[Tensor, "o i"]) -> Float[Tensor, " o"]:
    """Return what rows are divided by: their norms, and for a row of zeros the smallest number, as 0 / 0 is none."""
    return torch.linalg.vector_norm(weight, dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True)
class LowRankUpdate:
    """Where the update of one matrix is, and its size.

    Attributes:
        part: the matrix's number among those that a `StackedLinear` holds; 0 of any other map.
        rows: where its outputs are among the weight's rows.
        rank: r.
        scale: s, what B A is multiplied by.
    """

    part: int
    rows: slice
    rank: int
    scale: float

    @property
    def outputs(self) -> int:
        """How many outputs it has."""
        return self.rows.stop - self.rows.start


def merged_weight(
    weight: Float[Tensor, "o i"],
    updates: Sequence[LowRankUpdate],
    a: Float[Tensor, "ar i"],
    b: Sequence[Float[Tensor, "_ r"]],
    magnitude: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "o i"]:
    """Return the weight that computes what a map does with its updates, rounded once, to its own dtype.

    Source: arXiv 2106.09685, Section 4.1.

    Args:
        weight: W₀, the matrices of a stack one below the other.
        updates: which of them have one.
        a: the A of each, one below the other.
        b: the B of each.
        magnitude: m of each updated output (`decomposed_weight`), if there are any.
    """
    result = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    sizes = [update.outputs for update in updates]
    m = [None] * len(sizes) if magnitude is None else magnitude.split(sizes)
    for update, own_a, own_b, own_m in zip(updates, a.split([u.rank for u in updates]), b, m, strict=True):
        found = updated_weight(result[update.rows], own_a, own_b, update.scale)
        result[update.rows] = found if own_m is None else decomposed_weight(found, own_m.to(found.dtype))
    return result.to(weight.dtype)


class LowRank(nn.Module):
    """Low-rank updates of the matrices of a linear map, or of some of those that a `StackedLinear` holds.

    Each matrix has an A `(r i)` and a B `(o r)` of its own; the A's lie in one matrix, so that x is read once. A is
    drawn from U(±1/√i), as `loralib` and PEFT do it (the paper's Section 4.1 says Gaussian), and B is zero: at first
    the map computes what it did.

    Args:
        inputs: features i of x.
        updates: the matrices that have one, in their order.
        dropout: the share of x's features that the updates do not see while training.
        magnitudes: whether each output has a magnitude m (DoRA); `start_magnitudes` sets it.
        key: what A is drawn from.
    """

    magnitude: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        updates: Sequence[LowRankUpdate],
        *,
        dropout: float = 0.0,
        magnitudes: bool = False,
        key: Key | None = None,
    ) -> None:
        super().__init__()
        self.updates = list(updates)
        generator = None if key is None else key.generator()
        drawn = torch.empty(sum(update.rank for update in updates), inputs, dtype=torch.float32)
        self.a = nn.Parameter(drawn.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator))
        self.b = nn.ParameterList(torch.zeros(u.outputs, u.rank, dtype=torch.float32) for u in updates)
        self.dropout = Dropout(dropout)
        m = torch.ones(sum(update.outputs for update in updates), dtype=torch.float32) if magnitudes else None
        self.magnitude = None if m is None else nn.Parameter(m)

    def add(
        self, y: Float[Tensor, "n o"], x: Float[Tensor, "... i"], rows: slice, base: _Adapted
    ) -> Float[Tensor, "n o"]:
        """Return W₀ x + s B A x for rows of the weight, those of whole matrices (arXiv 2106.09685, Section 4.1).

        y is W₀ x with its rows one below the other, and is overwritten.
        """
        mine = [i for i, u in enumerate(self.updates) if rows.start <= u.rows.start and u.rows.stop <= rows.stop]
        if not mine:
            return y
        ranks = [update.rank for update in self.updates]
        a = self.a if len(mine) == len(ranks) else torch.cat([self.a.split(ranks)[i] for i in mine])
        h = affine(self.dropout(x), a.to(x.dtype)).to(y.dtype).flatten(0, -2)
        terms = [
            _Term(slice(u.rows.start - rows.start, u.rows.stop - rows.start), u.scale)
            for u in (self.updates[i] for i in mine)
        ]
        b = [self.b[i].to(y.dtype) for i in mine]
        result = _add(y, terms, h.split([ranks[i] for i in mine], -1), b)
        return result if self.magnitude is None else self._scaled(result, rows, base)

    def _scaled(self, y: Float[Tensor, "n o"], rows: slice, base: _Adapted) -> Float[Tensor, "n o"]:
        """Return m / ‖W₀ + s B A‖ times the product; a bias is not part of it. No gradient goes through the norm."""
        assert self.magnitude is not None
        m, before, pieces = self.magnitude.split([u.outputs for u in self.updates]), rows.start, list[Tensor]()
        for update, a, b, own in zip(
            self.updates, self.a.split([u.rank for u in self.updates]), self.b, m, strict=True
        ):
            if not (rows.start <= update.rows.start and update.rows.stop <= rows.stop):
                continue
            with torch.no_grad():  # Section 4.3
                whole = updated_weight(base.plain_weight()[update.rows], a, b, update.scale)
                norm = _row_norms(whole)
            pieces += [own.new_ones(update.rows.start - before), own / norm]
            before = update.rows.stop
        factor = torch.cat([*pieces, m[0].new_ones(rows.stop - before)]).to(y.dtype)
        bias = None if base.bias is None else base.bias[rows].to(y.dtype)
        return y * factor if bias is None else (y - bias) * factor + bias

    @torch.no_grad()
    def start_magnitudes(self, weight: Float[Tensor, "o i"]) -> None:
        """Set each output's magnitude to the norm of its row of W₀, so that the map computes what it did."""
        if self.magnitude is not None and not (weight.is_meta or self.magnitude.is_meta):
            norms = torch.linalg.vector_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=1)
            self.magnitude.copy_(torch.cat([norms[update.rows] for update in self.updates]))

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return ", ".join(f"part {u.part}: rank={u.rank}, scale={u.scale:g}" for u in self.updates)


class _Term(NamedTuple):
    """Where a term s B h is added, and its s."""

    columns: slice
    scale: float


def _add(
    y: Float[Tensor, "n o"], terms: Sequence[_Term], h: Sequence[Tensor], b: Sequence[Tensor]
) -> Float[Tensor, "n o"]:
    """Return y with s h Bᵀ added to the columns of each term. Where it may, it writes into y, which is not copied."""
    if torch.compiler.is_compiling() or y._is_view():
        pieces, before = list[Tensor](), 0
        for term, half, own in zip(terms, h, b, strict=True):
            place = term.columns
            pieces += [y[:, before : place.start], torch.addmm(y[:, place], half, own.T, alpha=term.scale)]
            before = place.stop
        return torch.cat([*pieces, y[:, before:]], -1)
    return cast(Tensor, _AddInPlace.apply(y, terms, *h, *b))


class _AddInPlace(torch.autograd.Function):
    """y ← y + s h Bᵀ in the columns of each term; only the h and B are kept for the gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, terms: Sequence[_Term], *factors: Tensor) -> Tensor:
        n = len(terms)
        for term, half, own in zip(terms, factors[:n], factors[n:], strict=True):
            y[:, term.columns].addmm_(half, own.T, alpha=term.scale)
        ctx.save_for_backward(*factors)
        ctx.terms = terms
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), n, factors = gradients, len(ctx.terms), ctx.saved_tensors
        parts = [(gradient[:, term.columns], term.scale) for term in ctx.terms]
        of_h = [(part @ own).mul_(scale) for (part, scale), own in zip(parts, factors[n:], strict=True)]
        of_b = [(part.T @ half).mul_(scale) for (part, scale), half in zip(parts, factors[:n], strict=True)]
        return gradient, None, *of_h, *of_b


class _Adapted(nn.Module):
    """What a linear map becomes: its own class computes the base's part, from a weight that keeps its name."""

    adapter: LowRank
    bias: Tensor | None
    local_rows: list[int]

    def plain_weight(self) -> Float[Tensor, "o i"]:
        """Return W₀ as numbers, also where it is stored in fewer bits."""
        widened = getattr(super(), "widened", None)
        return cast(Tensor, self.weight if widened is None else widened())

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"] | tuple[Float[Tensor, "... _"], ...]:
        rows = cast("list[int] | None", getattr(self, "local_rows", None))
        if rows is None:
            y = cast(Any, super()).forward(x.flatten(0, -2))  # not the outputs: a view could not be overwritten
            return self.adapter.add(y, x, slice(0, y.shape[-1]), self).view(*x.shape[:-1], y.shape[-1])
        return self.compute_maps(x, 0, len(rows)).split(rows, -1)

    def compute_maps(self, x: Float[Tensor, "... i"], first: int, last: int) -> Float[Tensor, "... r"]:
        """Return the outputs of the maps from `first` to before `last` alone, side by side."""
        y = cast(Any, super()).compute_maps(x.flatten(0, -2), first, last)
        before = sum(self.local_rows[:first])
        result = self.adapter.add(y, x, slice(before, before + y.shape[-1]), self)
        return result.view(*x.shape[:-1], y.shape[-1])


@cache
def _adapted_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Adapted{kind.__name__}", (_Adapted, kind), {"__module__": __name__})


def adapt(linear: nn.Module, adapter: LowRank) -> None:
    """Let a linear map, a stacked or a quantised one, compute with updates beside its weight, which keeps its name."""
    linear.adapter = adapter
    linear.__class__ = _adapted_class(type(linear))
    adapter.start_magnitudes(cast(_Adapted, linear).plain_weight())
