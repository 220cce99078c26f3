"""The two layouts of rotated features, and the conversion of a projection's weights between them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def interleaved_to_half(weight: Float[Tensor, "hr ..."], n_heads: int) -> Float[Tensor, "hr ..."]:
    """Return a query or key projection for layout `half` that computes what `weight` does for `interleaved`.

    Row 2i + j of each head goes to row j · r/2 + i. `weight` is a matrix (h·r d) or a bias (h·r). For keys, `n_heads`
    is the number of key/value heads. Original Llama checkpoints are interleaved, Hugging Face's are half.

    Raises:
        ValueError: the rows cannot be split into `n_heads` heads of an even number of features.
    """
    return weight.unflatten(0, (n_heads, _pairs(weight, n_heads), 2)).transpose(1, 2).flatten(0, 2)


def half_to_interleaved(weight: Float[Tensor, "hr ..."], n_heads: int) -> Float[Tensor, "hr ..."]:
    """Return a query or key projection for layout `interleaved`: the inverse of `interleaved_to_half`.

    Raises:
        ValueError: the rows cannot be split into `n_heads` heads of an even number of features.
    """
    return weight.unflatten(0, (n_heads, 2, _pairs(weight, n_heads))).transpose(1, 2).flatten(0, 2)


def _pairs(weight: Tensor, n_heads: int) -> int:
    """Feature pairs of one head."""
    rows = weight.shape[0]
    if n_heads < 1 or rows % (2 * n_heads):
        raise ValueError(
            f"the rows must form n_heads heads of an even number of features, but {rows} rows do not "
            f"form {n_heads}; for keys give the number of key/value heads"
        )
    return rows // (2 * n_heads)
