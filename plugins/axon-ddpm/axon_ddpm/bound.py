"""The held-out loss and the variational bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from axon_core.evaluating import tracked
from axon_core.randomness import Key
from axon_ddpm.losses import prior_term

if TYPE_CHECKING:
    from axon_ddpm.data import Part
    from axon_ddpm.trainer import DDPMTrainer

__all__ = ["held_out", "places"]

_ROWS = 256


def places(n: int, total: int, key: Key, picture: int) -> Int[Tensor, " n"]:
    """Return one place of the chain at random from each of n equal strata of 1 … total − 1; all if those are fewer."""
    last = total - 1
    if n >= last:
        return torch.arange(1, total)
    within = torch.rand(n, generator=key(picture).generator(), dtype=torch.float64)
    return 1 + ((torch.arange(n) + within) * last / n).long().clamp(max=last - 1)


def held_out(trainer: DDPMTrainer, part: Part) -> dict[str, float]:
    """Return the mean `loss` and `bits_per_dim` of held-out pictures, each with its class.

    bits/dim = prior + L_0 + Σ_{t ≥ 1} L_t. The first two are taken as they are; the sum is T − 1 times the mean over
    `bound_steps` places, one at random from each of as many strata, others for each picture: an unbiased estimate.
    """
    diffusion, config = trainer.diffusion, trainer.config
    total, key = len(diffusion.process), Key((config.seed, "bound"))
    chosen = [
        torch.cat((torch.zeros(1).long(), places(config.bound_steps, total, key("t"), i))) for i in range(len(part))
    ]
    each = len(chosen[0]) - 1
    share = (total - 1) / (each * total) if each else 0.0
    weights = torch.tensor([1 / total] + [share] * each, dtype=torch.float64)
    rows, t = torch.arange(len(part)).repeat_interleave(each + 1), torch.cat(chosen)
    weight, loss, bits = weights.repeat(len(part)), 0.0, 0.0
    for pick in tracked(torch.arange(len(rows)).split(_ROWS), len(rows), len):
        x0 = trainer.data.unit(part.images[rows[pick]])
        noise = key("noise").normal(pick.tolist(), tuple(x0.shape[1:]))
        data = [tensor.to(config.device) for tensor in (x0, noise, t[pick], part.labels[rows[pick]])]
        losses, output, x_t = trainer.losses(*data)
        terms = diffusion.bound(output, data[0], x_t, data[2], clip=diffusion.config.clip)
        loss += (losses.cpu().double() * weight[pick]).sum().item()
        bits += (terms.cpu().double() * weight[pick]).sum().item() * total
    prior = prior_term(diffusion.process, trainer.data.unit(part.images)).double().mean().item()
    return {"loss": loss / len(part), "bits_per_dim": bits / len(part) + prior}
