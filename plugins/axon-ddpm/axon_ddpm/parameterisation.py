"""What a model's output means: noise, picture, velocity or posterior mean; and the variance beside it.

Every parameterisation is a mixture of picture and noise, output = p(t) x_0 + q(t) ε. With x_t = a x_0 + s ε, a = √ᾱ and
s = √(1 − ᾱ), the two equations give x_0 and ε back, and with them everything that training and sampling need.
Source: arXiv 2006.11239, Section 3.2; for the velocity arXiv 2202.00512.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from axon_ddpm.process import Process, extract

__all__ = ["PARAMETERISATIONS", "Parameterisation", "Variance", "log_variance", "mixture", "target", "unmix"]

Parameterisation = Literal["epsilon", "x0", "v", "mean"]
Variance = Literal["fixed_small", "fixed_large", "learned_range", "learned"]

StepTable = Float64[Tensor, " t"]

PARAMETERISATIONS: dict[Parameterisation, Callable[[Process], tuple[StepTable, StepTable]]] = {
    "epsilon": lambda q: (torch.zeros_like(q.betas), torch.ones_like(q.betas)),
    "x0": lambda q: (torch.ones_like(q.betas), torch.zeros_like(q.betas)),
    "v": lambda q: (-q.noise, q.signal),
    "mean": lambda q: (q.posterior_x0 + q.posterior_xt * q.signal, q.posterior_xt * q.noise),
}
"""The factors p and q of picture and noise: ε, x_0 and μ̃ of arXiv 2006.11239 (Section 3.2), v of arXiv 2202.00512."""


def mixture(kind: Parameterisation, process: Process) -> tuple[StepTable, StepTable]:
    """Return the factors p and q of picture and noise in an output of this kind."""
    return PARAMETERISATIONS[kind](process)


def target(
    kind: Parameterisation,
    process: Process,
    x0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """Return the output that a perfect model would give, p x_0 + q ε."""
    p, q = mixture(kind, process)
    return extract(p, t, x0.dtype) * x0 + extract(q, t, noise.dtype) * noise


def unmix(
    kind: Parameterisation,
    process: Process,
    output: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Return the picture and the noise that `output` stands for.

    x_0 = (s · output − q x_t) / d and ε = (p x_t − a · output) / d, with d = s p − a q.
    """
    (p, q), a, s = mixture(kind, process), process.signal, process.noise
    d, dtype = s * p - a * q, output.dtype
    return (
        extract(s / d, t, dtype) * _less(output, q / s, x_t, t),
        extract(-a / d, t, dtype) * _less(output, p / a, x_t, t),
    )


def _less(output: Tensor, ratio: StepTable, x_t: Tensor, t: Tensor) -> Tensor:
    """Return output − ratio · x_t, exact even where the two nearly cancel, as for the noise where a ≈ 0.

    There the ratio is almost a whole number, 1: that many x_t are subtracted without rounding, and then the rest.
    """
    whole = ratio.round()
    return output - extract(whole, t, x_t.dtype) * x_t - extract(ratio - whole, t, x_t.dtype) * x_t


def log_variance(
    kind: Variance,
    process: Process,
    raw: Float[Tensor, "b c h w"] | None,
    t: Int[Tensor, " b"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b _ _ _"]:
    """Return log σ² of the reverse step; `raw` is the second half of the output where the variance is learned.

    Where it is fixed, the result is in `dtype`.

    fixed_small    log β̃                                  (arXiv 2006.11239, Section 3.2)
    fixed_large    log β                                   (likewise)
    learned_range  v log β + (1 − v) log β̃, v = (raw + 1)/2  (arXiv 2102.09672, Section 3.1, Eq. 15)
    learned        raw
    """
    small, large = (extract(table, t, dtype) for table in (process.log_variance_small, process.log_variance_large))
    if raw is None:
        return large if kind == "fixed_large" else small
    if kind == "learned":
        return raw
    share = (raw + 1) / 2
    return share * extract(process.betas.log(), t, dtype) + (1 - share) * small
