"""Samplers: ways back from noise to a picture, as generators of (x_t, predicted x_0), in a registry of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from axon_core import ContractError, config
from axon_core.registry import Registry
from axon_ddpm.diffusion import Prediction
from axon_ddpm.process import Process, Spacing

__all__ = ["DDIM", "DDPM", "SAMPLERS", "DPMSolver", "Frame", "Noise", "Predict", "Sampler", "last_frame"]

Predict = Callable[[Tensor, int], Prediction]
"""Returns what a model predicts for x at an index of the process."""
Noise = Callable[[], Tensor]
"""Returns the next standard normal numbers, of the shape of x."""


class Frame(NamedTuple):
    """One step of the way back."""

    x: Float[Tensor, "b c h w"]
    """The pictures after the step; after the last one they are finished."""
    x0: Float[Tensor, "b c h w"]
    """The model's prediction of x_0 before the step."""


class Sampler(ABC):
    """A way from x at the last index of a process, noise or a noisy picture, to a picture.

    The process may be respaced: it knows how long the steps are.
    """

    class Config(config.Config):
        """A sampler's options."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options it is tested with; one variant each."""
    spacing: ClassVar[Spacing] = "trailing"
    """Which steps of a chain it takes by default."""
    uses_variance: ClassVar[bool] = False
    """Whether it adds noise of the variance that the model predicts, which may fit only the model's own steps."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def run(self, process: Process, predict: Predict, x: Float[Tensor, "b c h w"], noise: Noise) -> Generator[Frame]:
        """Yield the pictures after each step, and the model's prediction of x_0 before it."""


class DDPM(Sampler):
    """Ancestral sampling: x_{t−1} = μ̃(x_t, x_0) + σ z, without noise in the last step.

    Source: arXiv 2006.11239, Algorithm 2; σ is the diffusion's `variance`.
    """

    uses_variance = True

    def run(self, process: Process, predict: Predict, x: Float[Tensor, "b c h w"], noise: Noise) -> Generator[Frame]:
        """Yield the pictures after each step, and the model's prediction of x_0 before it."""
        for i in reversed(range(len(process))):
            x0, _, log_variance = predict(x, i)
            x = process.posterior_x0[i].item() * x0 + process.posterior_xt[i].item() * x
            if i:
                x = x + (0.5 * log_variance).exp() * noise()
            yield Frame(x, x0)


class DDIM(Sampler):
    """x' = √ᾱ' x_0 + √(1 − ᾱ' − σ²) ε + σ z, σ = η √β̃ (arXiv 2010.02502, Section 4.1, Eq. 12 and 16)."""

    class Config(Sampler.Config):
        """How much noise is added."""

        eta: float = Field(default=0.0, ge=0, le=1)
        """η: 0 adds no noise; 1 as much as ancestral sampling with the variance β̃."""

    config: Config
    examples = ({}, {"eta": 0.5}, {"eta": 1.0})

    def run(self, process: Process, predict: Predict, x: Float[Tensor, "b c h w"], noise: Noise) -> Generator[Frame]:
        """Yield the pictures after each step, and the model's prediction of x_0 before it."""
        for i in reversed(range(len(process))):
            x0, epsilon, _ = predict(x, i)
            before = process.alphas_bar_before[i].item()
            sigma = self.config.eta * math.sqrt(process.posterior_variance[i].item())
            x = math.sqrt(before) * x0 + math.sqrt(max(1 - before - sigma**2, 0)) * epsilon
            if sigma:
                x = x + sigma * noise()
            yield Frame(x, x0)


class DPMSolver(Sampler):
    """DPM-Solver++, a multistep solver for the noiseless way back: (2M) of arXiv 2211.01095, Algorithm 2, and (3M).

    With a = √ᾱ, s = √(1 − ᾱ), λ = log(a / s), a step of h = λ' − λ and φ = 1 − e^−h, and where x_0 + D₁ u + D₂ u²
    interpolates the last two or three predictions of x_0, at λ + h u,

        x' = s'/s x + a' φ (x_0 + D₁ / 2)                                   (2M)
        x' = s'/s x + a' (φ x_0 + (1 − φ/h) D₁ + (1/2 − (h − φ)/h²) D₂)     (3M)

    The first step and the last, which ends at λ = ∞, take D₁ = D₂ = 0, the second D₂ = 0. (3M) is that of the authors'
    code and diffusers, which give D₂ half of what integrating the parabola would. Its error is smaller than that of
    (2M), but also of second order. It grows with the longest h, most where x_0 is decided, and the last step paints no
    detail finer than the noise it starts from: hence the spacing.
    """

    class Config(Sampler.Config):
        """How far it looks back."""

        order: Literal[2, 3] = 3
        """2 for DPM-Solver++(2M), 3 for (3M), which is more accurate for the same number of predictions."""

    config: Config
    examples = ({}, {"order": 2})
    spacing = "middle"

    def run(self, process: Process, predict: Predict, x: Float[Tensor, "b c h w"], noise: Noise) -> Generator[Frame]:
        """Yield the pictures after each step, and the model's prediction of x_0 before it."""
        a, s = process.signal.tolist(), process.noise.tolist()
        lambdas = (process.snr.log() / 2).tolist()
        known = deque[Tensor](maxlen=self.config.order)  # the last predictions of x_0
        for i in reversed(range(len(process))):
            x0 = predict(x, i).x0
            known.append(x0)
            x = s[i - 1] / s[i] * x + a[i - 1] * _added(known, lambdas[i - 1 :]) if i else x0
            yield Frame(x, x0)


def _added(known: Sequence[Tensor], lambdas: Sequence[float]) -> Tensor:
    """Return what a step adds, over a', from the predictions of x_0 known at its start, the last of which is its own.

    `lambdas` are λ at the step's end, at its start, and at the starts of the steps before.
    """
    h = lambdas[0] - lambdas[1]
    phi, x0 = -math.expm1(-h), known[-1]
    if len(known) == 1:
        return phi * x0
    r0 = (lambdas[1] - lambdas[2]) / h
    slope = (x0 - known[-2]) / r0
    if len(known) == 2:
        return phi * (x0 + slope / 2)
    r1 = (lambdas[2] - lambdas[3]) / h
    curve = (slope - (known[-2] - known[-3]) / r1) / (r0 + r1)
    return phi * x0 + (1 - phi / h) * (slope + r0 * curve) + (0.5 - (h - phi) / h**2) * curve


def last_frame(frames: Iterable[Frame]) -> Float[Tensor, "b c h w"]:
    """Return the pictures after the last step, without keeping any others meanwhile.

    Raises:
        ContractError: there is no frame.
    """
    last = deque(frames, maxlen=1)
    if not last:
        raise ContractError("the sampler yielded no frame; `run` must yield one for each step")
    return last[0].x


SAMPLERS: Registry[Sampler] = Registry("sampler", Sampler)
"""Samplers by key; a plugin adds one in the entry-point group `axon.v1.sampler`."""
