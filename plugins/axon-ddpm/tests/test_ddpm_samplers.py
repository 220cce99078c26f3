"""Every sampler on a mixture of two Gaussians with its optimal denoiser, so that only the sampler can be wrong."""

import weakref

import pytest
import torch

from axon_core.errors import ContractError
from axon_ddpm import NOISE_SCHEDULES, SAMPLERS, Diffusion, Frame, Prediction, Process, spaced
from axon_ddpm.samplers import final

N = 4000
WEIGHTS = torch.tensor([0.3, 0.7])
MEANS = torch.tensor([[-0.6, 0.4], [0.5, -0.3]])
COVARIANCES = torch.tensor([[[0.04, 0.02], [0.02, 0.03]], [[0.02, -0.01], [-0.01, 0.05]]])


def best(process: Process):
    """The optimal prediction for x_0 from the mixture: means of its parts given x_t, weighted by their likelihoods."""
    means, own, weights = MEANS.double(), COVARIANCES.double(), WEIGHTS.double()

    def predict(x, i) -> Prediction:
        bar = process.alphas_bar[i]
        covariances = bar * own + (1 - bar) * torch.eye(2)
        inverse, off = torch.linalg.inv(covariances), x.flatten(1).double()[:, None] - bar.sqrt() * means
        far = torch.einsum("bki,kij,bkj->bk", off, inverse, off)
        share = (weights.log() - 0.5 * (far + covariances.logdet())).softmax(1)
        given = means + torch.einsum("kij,bkj->bki", bar.sqrt() * own @ inverse, off)
        x0 = (share[..., None] * given).sum(1).float().view_as(x)
        t = torch.full((len(x),), i)
        return Prediction(*process.corrected(x0, x, t), process.log_variance_large[i].float().view(1, 1, 1, 1))

    return predict


def painted(sampler, steps, schedule="linear", seed=0):
    way, full = SAMPLERS.build(sampler), Process(NOISE_SCHEDULES.build(schedule).betas())
    process = full.respaced(spaced(steps, full, way.spacing))
    generator = torch.Generator().manual_seed(seed)
    noise = lambda: torch.randn(N, 2, 1, 1, generator=generator)  # noqa: E731
    for frame in way.run(process, best(process), noise(), noise):
        x = frame.x
    return x.flatten(1)


def off(x):
    """The largest errors of weights, means and covariances, the parts told apart by the line between them."""
    first = (x - MEANS[0]).norm(dim=1) < (x - MEANS[1]).norm(dim=1)
    parts = [x[first], x[~first]]
    return (
        abs(first.float().mean() - WEIGHTS[0]).item(),
        max((part.mean(0) - mean).abs().max().item() for part, mean in zip(parts, MEANS, strict=True)),
        max((part.T.cov() - c).abs().max().item() for part, c in zip(parts, COVARIANCES, strict=True)),
    )


SAMPLING = [
    ("ddpm", 250),
    ("ddim", 100),
    ({"type": "ddim", "eta": 0.5}, 150),
    ({"type": "ddim", "eta": 1.0}, 250),
    ("dpm_solver", 20),
]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
@pytest.mark.parametrize(("sampler", "steps"), SAMPLING)
def test_every_sampler_recovers_the_mixture(sampler, steps, schedule):
    weight, mean, covariance = off(painted(sampler, steps, schedule))
    assert (weight < 0.03, mean < 0.03, covariance < 0.006) == (True, True, True), (weight, mean, covariance)


def test_the_samplers_tested_are_all_there_are():
    assert {s if isinstance(s, str) else s["type"] for s, _ in SAMPLING} == {
        entry.key for entry in SAMPLERS.entries() if entry.distribution == "axon-ddpm"
    }


def energy(x, y):
    """Székely's energy distance of two samples: 0 for equal distributions, whatever their shape."""
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def real(seed):
    generator = torch.Generator().manual_seed(seed)
    pick = torch.multinomial(WEIGHTS, N, replacement=True, generator=generator)
    roots = torch.linalg.cholesky(COVARIANCES)
    return MEANS[pick] + torch.einsum("bij,bj->bi", roots[pick], torch.randn(N, 2, generator=generator))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
def test_20_steps_of_the_solver_are_as_good_as_250_ancestral_ones(schedule):
    reference = real(9)
    solver = energy(painted("dpm_solver", 20, schedule), reference)
    ancestral = energy(painted("ddpm", 250, schedule), reference)
    chance = max(energy(real(seed), reference) for seed in range(3))  # what points of the mixture itself are off by
    assert solver <= ancestral + chance, (solver, ancestral, chance)


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

    assert final(frames()).item() == 8
    with pytest.raises(ContractError, match="yielded no frame"):
        final(iter(()))


def test_clipping_comes_before_the_noise_is_derived():
    diffusion = Diffusion.build()
    x, t = torch.full((1, 1, 2, 2), 3.0), torch.tensor([500])
    found = diffusion.read(torch.zeros_like(x), x, t, clip=True)
    assert found.x0.unique().tolist() == [1.0]
    torch.testing.assert_close(diffusion.process.diffuse(found.x0, found.noise, t), x)
