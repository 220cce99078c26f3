"""Every sampler on mixtures of Gaussians with their optimal denoisers, so that only the sampler can be wrong."""

import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from axon_core import ContractError
from axon_ddpm import NOISE_SCHEDULES, SAMPLERS, Diffusion, Frame, Prediction, Process, spaced
from axon_ddpm.samplers import last_frame

SCHEDULES = ["linear", "cosine", "scaled_linear"]


class Mixture(NamedTuple):
    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, weights, means, covariances):
        return cls(*(torch.tensor(values, dtype=torch.float64) for values in (weights, means, covariances)))

    def within(self, x, signal: float = 1.0, variance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Of signal · x_0 + √variance · noise at x: each part's share, and the mean of x_0 if x_0 is of that part."""
        noisy = signal**2 * self.covariances + variance * torch.eye(2)
        scores, given = [], []
        parts = zip(self.weights, self.means, self.covariances, noisy, noisy.inverse(), strict=True)
        for weight, mean, covariance, wide, inverse in parts:
            off = x - signal * mean
            far = off @ inverse
            scores.append(weight.log() - ((far * off).sum(1) + wide.logdet()) / 2)
            given.append(mean + signal * far @ covariance)
        return torch.stack(scores).softmax(0), torch.stack(given)

    def off(self, x) -> tuple[float, float, float]:
        """The largest errors of weights, means and covariances, each x counted to all parts by their shares in it.

        The shares of points of the mixture have the true ones as their expectations, however its parts overlap.
        """
        shares, _ = self.within(x)
        weights = shares.mean(1)
        means = shares @ x / shares.sum(1, keepdim=True)
        apart = x - means[:, None]
        covariances = torch.einsum("kb,kbi,kbj->kij", shares, apart, apart) / shares.sum(1)[:, None, None]
        pairs = zip((weights, means, covariances), self, strict=True)
        weight, mean, covariance = ((found - true).abs().max().item() for found, true in pairs)
        return weight, mean, covariance


MIXTURES = {
    "two parts": Mixture.of(
        [0.3, 0.7], [[-0.6, 0.4], [0.5, -0.3]], [[[0.04, 0.02], [0.02, 0.03]], [[0.02, -0.01], [-0.01, 0.05]]]
    ),
    "three narrow parts": Mixture.of(
        [0.2, 0.5, 0.3],
        [[-0.6, 0.4], [0.5, -0.3], [0.5, 0.6]],
        [[[0.06, 0.03], [0.03, 0.02]], [[0.01, 0.0], [0.0, 0.06]], [[0.03, -0.02], [-0.02, 0.02]]],
    ),
}
EACH = pytest.mark.parametrize(("mixture", "schedule"), [(MIXTURES[m], s) for m in MIXTURES for s in SCHEDULES],
                               ids=[f"{m}, {s}" for m in MIXTURES for s in SCHEDULES])  # fmt: skip


def best(process: Process, mixture: Mixture = MIXTURES["two parts"]):
    """The optimal prediction of x_0: the means of its parts given x_t, weighted by their shares."""

    def predict(x, i) -> Prediction:
        bar = process.alphas_bar[i].item()
        shares, given = mixture.within(x.flatten(1).double(), bar**0.5, 1 - bar)
        x0 = (shares[..., None] * given).sum(0).view_as(x)
        noise = (x - bar**0.5 * x0) / (1 - bar) ** 0.5
        return Prediction(x0.to(x), noise.to(x), process.log_variance_large[i].to(x).view(1, 1, 1, 1))

    return predict


def painted(sampler, steps, schedule, mixture, n, spacing=None):
    """Pictures of two dots that begin on a Sobol sequence of noise: what is off is then the sampler, not chance."""
    way, full = SAMPLERS.build(sampler), Process(NOISE_SCHEDULES.build(schedule).betas())
    process = full.respaced(spaced(steps, full, spacing or way.spacing))
    start = SobolEngine(2, scramble=True, seed=0).draw(n, dtype=torch.float64)
    start = start.clamp(1e-9, 1 - 1e-9).mul(2).sub(1).erfinv().mul(2**0.5)[..., None, None]
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(start.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return last_frame(way.run(process, best(process, mixture), start, noise)).flatten(1)


SAMPLING = [
    ("ddpm", 250),
    ("ddim", 100),
    ({"type": "ddim", "eta": 0.5}, 150),
    ({"type": "ddim", "eta": 1.0}, 250),
    ("dpm_solver", 20),
    ({"type": "dpm_solver", "order": 2}, 20),
]


@EACH
@pytest.mark.parametrize(("sampler", "steps"), SAMPLING)
def test_every_sampler_recovers_the_mixture(sampler, steps, mixture, schedule):
    weight, mean, covariance = mixture.off(painted(sampler, steps, schedule, mixture, 4096))
    assert (weight < 0.015, mean < 0.02, covariance < 0.006) == (True, True, True), (weight, mean, covariance)


def test_the_samplers_tested_are_all_there_are():
    assert {s if isinstance(s, str) else s["type"] for s, _ in SAMPLING} == {
        entry.key for entry in SAMPLERS.entries() if entry.distribution == "axon-ddpm"
    }


N = 2**16  # of which 250 ancestral steps are off in the covariances by 0.0003 more or less by chance


@EACH
def test_20_steps_of_the_solver_are_as_good_as_250_ancestral_ones(mixture, schedule):
    """In the covariances; in weights and means to 0.003 and 0.006, a hundredth of the distance of two parts."""
    *_, ancestral = mixture.off(painted("ddpm", 250, schedule, mixture, N))
    weight, mean, covariance = mixture.off(painted("dpm_solver", 20, schedule, mixture, N))
    bound = 1.25 * ancestral
    assert (weight < 0.003, mean < 0.006, covariance < bound) == (True, True, True), (weight, mean, covariance, bound)
    in_time = mixture.off(painted("dpm_solver", 20, schedule, mixture, N, "trailing"))[2]
    assert in_time > 2 * bound, (in_time, bound)  # steps that are equal in time are not
    if len(mixture.weights) == 3:
        second = mixture.off(painted({"type": "dpm_solver", "order": 2}, 20, schedule, mixture, N, "log_snr"))[2]
        assert second > bound, (second, bound)  # nor is (2M) with equal steps of λ


def test_half_the_solvers_step_leaves_a_quarter_of_its_error_and_three_points_half_as_much():
    def error(order, n):
        levels = torch.linspace(5, -12, n + 1, dtype=torch.float64)  # λ, after the last of which x_0 is taken
        bars = (2 * levels).sigmoid()
        process = Process(1 - bars / torch.cat((torch.ones_like(bars[:1]), bars[:-1])))

        def predict(x, i):  # of x_0 ~ N(0, 1/4)
            bar = process.alphas_bar[i].item()
            x0 = bar**0.5 / 4 / (bar / 4 + 1 - bar) * x
            return Prediction(x0, x0, x0)

        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        *_, before, _ = SAMPLERS.build({"type": "dpm_solver", "order": order}).run(process, predict, x, lambda: x)
        spread = (process.alphas_bar[[0, -1]] / 4 + 1 - process.alphas_bar[[0, -1]]).sqrt()
        return abs(before.x.item() - (spread[0] / spread[1]).item())  # the noiseless way scales by the deviations

    for n in (80, 160):
        for order in (2, 3):
            assert error(order, n) / error(order, 2 * n) == pytest.approx(4, rel=0.15)
        assert error(3, n) < 0.5 * error(2, n), (error(3, n), error(2, n))


def test_eta_one_is_ancestral_sampling_with_the_small_variance():
    q = Process(NOISE_SCHEDULES.build({"type": "linear", "steps": 100}).betas())
    q = q.respaced(spaced(10, q))
    predict = best(q)

    def small(x, i):
        found = predict(x, i)
        return found._replace(log_variance=q.log_variance_small[i].float().view(1, 1, 1, 1))

    start = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    ways = []
    for sampler in ("ddpm", {"type": "ddim", "eta": 1.0}):
        generator = torch.Generator().manual_seed(1)
        run = SAMPLERS.build(sampler).run(q, small, start, lambda g=generator: torch.randn(5, 2, 1, 1, generator=g))
        ways.append([frame.x for frame in run])
    for a, b in zip(*ways, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_frames_are_every_step_and_end_on_the_picture():
    q = Process(NOISE_SCHEDULES.build({"type": "linear", "steps": 100}).betas())
    q = q.respaced(spaced(7, q))
    x = torch.randn(2, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    for sampler, _ in SAMPLING:
        frames = list(SAMPLERS.build(sampler).run(q, best(q), x, lambda: torch.ones(2, 2, 1, 1)))
        assert len(frames) == 7
        assert (frames[-2].x - frames[-2].x0).abs().min() > 1e-4  # and the last step adds no noise
        torch.testing.assert_close(frames[-1].x, frames[-1].x0)


def test_the_last_frame_is_all_that_is_kept():
    alive = []

    def frames():
        for step in range(9):
            x = torch.full((1,), float(step))
            alive.append(weakref.ref(x))
            yield Frame(x, x)
            del x
            assert sum(reference() is not None for reference in alive) <= 1

    assert last_frame(frames()).item() == 8
    with pytest.raises(ContractError, match="yielded no frame"):
        last_frame(iter(()))


def test_clipping_comes_before_the_noise_is_derived():
    diffusion = Diffusion.build()
    x, t = torch.full((1, 1, 2, 2), 3.0), torch.tensor([500])
    found = diffusion.read(torch.zeros_like(x), x, t, clip=True)
    assert found.x0.unique().tolist() == [1.0]
    torch.testing.assert_close(diffusion.process.diffuse(found.x0, found.noise, t), x)
