"""The held-out loss and the variational bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axon_core import Key, sum_numbers
from axon_core.training import track_own
from axon_ddpm.diffusion import Diffusion
from axon_ddpm.losses import prior_term

__all__ = ["Losses", "held_out", "places"]

Losses = Callable[
    [Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Int[Tensor, " b"], Int[Tensor, " b"]],
    tuple[Float[Tensor, " b"], Float[Tensor, "b o h w"], Float[Tensor, "b c h w"]],
]
"""Maps pictures, noise, places in the chain and classes to each picture's loss, the model's output, and x_t."""

_ROWS = 256


def places(n: int, total: int, key: Key, picture: int) -> Int[Tensor, " n"]:
    """Return one random place in the chain from each of n equal strata of 1 … total − 1, or all if there are fewer."""
    last = total - 1
    if n >= last:
        return torch.arange(1, total)
    within = torch.rand(n, generator=key(picture).generator(), dtype=torch.float64)
    return 1 + ((torch.arange(n) + within) * last / n).long().clamp(max=last - 1)


def held_out(
    losses: Losses,
    diffusion: Diffusion,
    pictures: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    steps: int,
    key: Key,
    device: str | torch.device,
) -> dict[str, float]:
    """Return the mean `loss` and `bits_per_dim` of held-out pictures, each with its class.

    bits/dim = prior + L_0 + Σ_{t ≥ 1} L_t. The first two are computed exactly. The sum is estimated without bias as
    T − 1 times the mean over `steps` places, one drawn at random from each of as many strata, others for each picture.
    """
    n, total = len(pictures), len(diffusion.process)
    chosen = [torch.cat((torch.zeros(1).long(), places(steps, total, key("t"), i))) for i in range(n)]
    each = len(chosen[0]) - 1
    share = (total - 1) / (each * total) if each else 0.0
    weights = torch.tensor([1 / total] + [share] * each, dtype=torch.float64)
    rows, t = torch.arange(n).repeat_interleave(each + 1), torch.cat(chosen)
    weight, loss, bits = weights.repeat(n), 0.0, 0.0
    for pick in track_own(torch.arange(len(rows)).split(_ROWS), len(rows), len):
        x0 = pictures[rows[pick]]
        noise = key("noise").normal(pick.tolist(), tuple(x0.shape[1:])).to(x0.dtype)
        data = [tensor.to(device) for tensor in (x0, noise, t[pick], labels[rows[pick]])]
        given, output, x_t = losses(*data)
        terms = diffusion.bound(output, data[0], x_t, data[2], clip=diffusion.config.clip)
        loss += (given.cpu().double() * weight[pick]).sum().item()
        bits += (terms.cpu().double() * weight[pick]).sum().item() * total
    sums = sum_numbers({"loss": loss, "bits": bits})
    prior = prior_term(diffusion.process, pictures).double().mean().item()
    return {"loss": sums["loss"] / n, "bits_per_dim": sums["bits"] / n + prior}
