"""The matrices that Hugging Face transformers keeps apart, and where each of them is in an X-Llama."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from axon_xllama.checkpoints.families import family_of
from axon_xllama.checkpoints.layout import Settings, checkpoint_tensors, relayout
from axon_xllama.model import XLlama

__all__ = ["Matrix", "matrices"]


@dataclass(frozen=True)
class Matrix:
    """A weight of transformers, for what belongs to one, such as an adapter.

    Attributes:
        theirs: the module it is in, as transformers calls it.
        ours: the module of the X-Llama.
        first: the first row of its weight that belongs to this one.
        outputs: how many do.
        heads: the number of heads, if the two order the rows of each differently.
    """

    theirs: str
    ours: str
    first: int
    outputs: int
    heads: int | None

    def exported(self, rows: Float[Tensor, "o ..."]) -> Float[Tensor, "o ..."]:
        """Return what belongs to each row, in transformers' order."""
        return rows if self.heads is None else relayout(rows, self.heads, "half")

    def imported(self, rows: Float[Tensor, "o ..."]) -> Float[Tensor, "o ..."]:
        """Return what belongs to each row, in the X-Llama's order."""
        return rows if self.heads is None else relayout(rows, self.heads, "interleaved")


def matrices(model: XLlama) -> Iterator[Matrix]:
    """Yield the matrices of a model's weights; it may have none.

    Raises:
        CheckpointError: transformers has no family that computes what the model does.
    """
    permuted = Settings.of(model).layout != "half"
    for part in checkpoint_tensors(model, family_of(model).names(model.config)):
        if part.theirs.endswith(".weight") and len(part.shape) == 2:
            heads = part.heads if permuted else None
            yield Matrix(
                part.theirs.removesuffix(".weight"),
                part.ours.removesuffix(".weight"),
                part.rows.start,
                part.shape[0],
                heads,
            )
