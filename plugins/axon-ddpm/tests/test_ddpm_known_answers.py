"""The process, its parameterisations and losses against known numbers and naive float64 arithmetic."""

import itertools
import math

import pytest
import torch

from axon_core import ConfigError, ContractError, UsageError
from axon_ddpm import NOISE_SCHEDULES, SAMPLERS, Diffusion, Prediction, Process, spaced
from axon_ddpm.losses import bound_term, discretised_log_likelihood, min_snr_weight, normal_kl, prior_term
from axon_ddpm.parameterisation import PARAMETERISATIONS, log_variance, target, unmix
from axon_ddpm.process import SPACINGS

SCHEDULES = ["linear", "cosine", "scaled_linear"]


def process(schedule="linear", **options) -> Process:
    return Process(NOISE_SCHEDULES.build({"type": schedule, **options}).betas())


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def every(n, b):
    return torch.full((b,), n)


def test_the_linear_chain_ends_in_noise_whatever_its_length():
    assert process().alphas_bar[-1].item() == pytest.approx(4.036e-5, rel=1e-3)
    assert process().posterior_variance[487].item() == pytest.approx(0.00979, abs=1e-5)
    assert process(steps=100).alphas_bar[-1].item() == pytest.approx(2.0390e-5, rel=1e-4)  # unscaled it would be 0.364
    assert process().betas.dtype == torch.float64


def test_schedules_follow_their_formulas():
    t = torch.arange(1001, dtype=torch.float64) / 1000
    bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    cosine = process("cosine")
    expected = (bar / bar[0])[1:-1]  # the last step is where the bound of 0.999 bites
    torch.testing.assert_close(cosine.alphas_bar[:-1], expected, rtol=1e-9, atol=1e-15)
    assert cosine.betas[-1] == 0.999
    scaled = process("scaled_linear", start=0.00085, end=0.012)
    assert scaled.betas[0].item() == pytest.approx(0.00085)
    assert scaled.betas[500].item() == pytest.approx((0.00085**0.5 + 500 / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_is_what_bayes_says(schedule):
    q = process(schedule, steps=50)
    for t in (1, 20, 49):  # product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0), as functions of x_{t-1}
        beta, before = q.betas[t], q.alphas_bar[t - 1]
        precision = (1 - beta) / beta + 1 / (1 - before)
        mean = lambda x0, x: ((1 - beta).sqrt() / beta * x + before.sqrt() / (1 - before) * x0) / precision  # noqa: B023, E731
        assert q.posterior_variance[t].item() == pytest.approx(1 / precision.item(), rel=1e-9)
        x0, x = normal(2, 1, 2, 2, seed=1), normal(2, 1, 2, 2, seed=2)
        torch.testing.assert_close(q.posterior_mean(x0, x, every(t, 2)), mean(x0.double(), x.double()).float())
    assert q.posterior_variance[0] == 0 and q.posterior_x0[0].item() == pytest.approx(1, abs=1e-12)


def test_respacing_keeps_the_levels_and_composes_the_steps():
    q = process()
    kept = torch.tensor([3, 50, 51, 700, 999])
    fewer = q.respaced(kept)
    torch.testing.assert_close(fewer.alphas_bar, q.alphas_bar[kept])
    steps = [q.alphas_bar[3], *(q.alphas_bar[b] / q.alphas_bar[a] for a, b in itertools.pairwise(kept))]
    torch.testing.assert_close(1 - fewer.betas, torch.stack(steps))
    assert fewer.timesteps.tolist() == kept.tolist()
    assert fewer.respaced(torch.tensor([1, 3])).timesteps.tolist() == [50, 700]


def test_spacings():
    for spacing, schedule in itertools.product(SPACINGS, SCHEDULES):
        for n, total in ((1, 30), (1, 1000), (7, 1000), (50, 1000), (999, 1000), (1000, 1000), (3, 30)):
            q = process(schedule, steps=total)
            found = spaced(n, q, spacing).tolist()
            assert len(set(found)) == n and found == sorted(found) and 0 <= found[0] <= found[-1] < total
            if spacing != "leading":  # which alone does not begin in noise
                assert found[-1] == total - 1 or q.snr[found[-1]] < 1e-4
    assert spaced(50, process())[-1] == 999 and spaced(50, process(), "leading")[0] == 0
    for wrong in (0, 1001, -3):
        with pytest.raises(UsageError, match=f"between 1 and 1000, the length of the chain, got {wrong}"):
            spaced(wrong, process())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_strides_of_log_snr_are_shorter_in_the_middle(schedule):
    q = process(schedule)
    levels = q.snr[spaced(9, q, "middle")].log().sub(2).div(10).atan()
    ends = [q.snr[0].log().item(), max(math.log(4e-5), q.snr[-1].log().item())]
    wanted = torch.linspace(*(math.atan((end - 2) / 10) for end in ends), 9, dtype=torch.float64)
    torch.testing.assert_close(levels, wanted, rtol=0, atol=0.03)  # a stride is 0.17
    strides = -q.snr[spaced(9, q, "middle")].log().diff()
    assert strides[4] < 0.8 * min(strides[0], strides[-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equal_strides_of_log_snr(schedule):
    q = process(schedule)
    levels, end = q.snr[spaced(10, q, "log_snr")].log(), max(math.log(4e-5), q.snr[-1].log().item())
    wanted = torch.linspace(q.snr[0].log().item(), end, 10, dtype=torch.float64)
    # one step of the chain is at most log 2, the first: there is one within half of that
    torch.testing.assert_close(levels, wanted, rtol=0, atol=math.log(2) / 2 + 0.01)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_output_gives_picture_and_noise_back(kind, schedule):
    q = process(schedule)
    x0, noise = normal(4, 2, 3, 3, dtype=torch.float64).clamp(-1, 1), normal(4, 2, 3, 3, seed=1, dtype=torch.float64)
    for places in ([0, 1, 10, 300], [500, 700, 900, 998], [999] * 4):
        t = torch.tensor(places)
        a, s = (table[t].view(-1, 1, 1, 1) for table in (q.signal, q.noise))
        x_t = a * x0 + s * noise
        p, r = (table[t].view(-1, 1, 1, 1) for table in PARAMETERISATIONS[kind](q))
        output = p * x0 + r * noise
        torch.testing.assert_close(target(kind, q, x0.float(), noise.float(), t).double(), output, rtol=0, atol=1e-6)
        if kind == "mean":
            torch.testing.assert_close(output, q.posterior_mean(x0, x_t, t), rtol=0, atol=1e-6)
        picture, left = unmix(kind, q, output, x_t, t)  # whose factors are float32
        torch.testing.assert_close(picture, x0, rtol=0, atol=2e-5 if kind == "mean" else 1e-6)
        torch.testing.assert_close(left, noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_picture_and_noise_are_as_exact_as_float32_can_say(kind, schedule):
    """From the same float32 numbers float64 gets the same answer, even where a ≈ 0."""
    q = process(schedule)
    x0, noise = normal(4, 2, 3, 3).clamp(-1, 1), normal(4, 2, 3, 3, seed=1)
    close = {"rtol": 1e-6, "atol": 2e-5 if kind == "mean" else 1e-6}  # μ̃ holds little of x_0 late in the chain
    for places in ([0, 1, 10, 300], [500, 900, 998, 999]):
        t = torch.tensor(places)
        a, s = (table[t].view(-1, 1, 1, 1) for table in (q.signal, q.noise))
        p, r = (table[t].view(-1, 1, 1, 1) for table in PARAMETERISATIONS[kind](q))
        x_t = q.diffuse(x0, noise, t)
        output, d = target(kind, q, x0, noise, t), s * p - a * r
        exact = (s * output.double() - r * x_t) / d, (p * x_t - a * output.double()) / d
        for found, right in zip(unmix(kind, q, output, x_t, t), exact, strict=True):
            torch.testing.assert_close(found.double(), right, **close)
        found, right = q.corrected(x0, x_t, t)[1], (x_t.double() - a * x0) / s
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)


def test_min_snr_weights_are_those_of_the_paper():
    q, t = process(), torch.tensor([0, 100, 400, 900])
    snr = q.snr[t]
    capped = snr.clamp(max=5)
    for kind, expected in (("epsilon", capped / snr), ("x0", capped), ("v", capped / (snr + 1))):
        torch.testing.assert_close(min_snr_weight(kind, q, t, 5.0), expected.float())
    # the same weighting of the error of x_0, whatever is predicted: shift x_0 and compare
    x0, noise, shift = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1), 0.1
    x_t = q.diffuse(x0, noise, t)
    for kind in PARAMETERISATIONS:
        wrong = x0 + shift
        other = target(kind, q, wrong, q.corrected(wrong, x_t, t)[1], t)
        error = (other - target(kind, q, x0, noise, t)).square().flatten(1).mean(1)
        weighted = (error * min_snr_weight(kind, q, t, 5.0))[1:]
        torch.testing.assert_close(weighted, (capped * shift**2).float()[1:], rtol=2e-2, atol=1e-9)


def test_the_discretised_likelihood_is_a_distribution_over_the_levels():
    for levels in (2, 17, 256):
        values = torch.linspace(-1, 1, levels)
        for mean, log in ((0.3, -1.0), (-0.99, -6.0), (1.4, 0.5), (0.0, -9.0)):
            logs = discretised_log_likelihood(values, torch.tensor(mean), torch.tensor(log), levels)
            assert logs.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
            normal_ = torch.distributions.Normal(torch.tensor(mean).double(), math.exp(log / 2))
            half = 1 / (levels - 1)
            naive = normal_.cdf(values.double() + half) - normal_.cdf(values.double() - half)
            inner = slice(1, -1)
            torch.testing.assert_close(logs.exp()[inner], naive[inner].float(), rtol=1e-3, atol=1e-6)
    far = discretised_log_likelihood(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0]), torch.tensor(-10.0))
    assert far.isfinite().all() and (far < -1000).all()


def test_kl_and_prior():
    a, b = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-0.2, 1.4)
    mine = normal_kl(a.mean, 2 * a.stddev.log(), b.mean, 2 * b.stddev.log())
    torch.testing.assert_close(mine, torch.distributions.kl_divergence(a, b))
    assert prior_term(process(), torch.ones(1, 1, 2, 2)).item() == pytest.approx(2.9e-5, rel=0.02)


def test_terms_of_the_bound():
    q, x0, noise = process(), normal(3, 1, 4, 4).clamp(-1, 1), normal(3, 1, 4, 4, seed=1)
    t = torch.tensor([0, 5, 600])
    x_t, small = q.diffuse(x0, noise, t), log_variance("fixed_small", q, None, t)
    perfect = bound_term(q, x0, x_t, t, q.posterior_mean(x0, x_t, t), small)
    torch.testing.assert_close(perfect[1:], torch.zeros(2), rtol=0, atol=1e-6)
    # ε off by one everywhere: β² / (2 σ² α (1 − ᾱ)), the weight of Eq. 12
    wrong = unmix("epsilon", q, noise + 1, x_t, t)[0]
    terms = bound_term(q, x0, x_t, t, q.posterior_mean(wrong, x_t, t), small)[1:] * math.log(2)
    b, bar = q.betas[t[1:]], q.alphas_bar[t[1:]]
    expected = b**2 / (2 * q.posterior_variance[t[1:]] * (1 - b) * (1 - bar))
    torch.testing.assert_close(terms, expected.float(), rtol=1e-3, atol=0)


def test_variances():
    q, t = process(steps=100), torch.tensor([0, 1, 50])
    small, large = (log_variance(kind, q, None, t).flatten() for kind in ("fixed_small", "fixed_large"))
    assert small[0] == small[1] == large[0]  # log β̃ is −∞ at t = 0
    torch.testing.assert_close(large[1:], q.betas[1:][[0, 49]].log().float())
    for raw, expected in ((-1.0, small), (1.0, q.betas[t].log().float())):
        found = log_variance("learned_range", q, torch.full((3, 1, 1, 1), raw), t).flatten()
        torch.testing.assert_close(found, expected)
    assert log_variance("learned", q, torch.full((3, 1, 1, 1), 0.7), t).unique().tolist() == pytest.approx([0.7])
    alone = Process(torch.tensor([0.5], dtype=torch.float64))
    assert alone.log_variance_small.isfinite().all() and alone.log_variance_large.isfinite().all()


def test_bad_variances_are_refused():
    with pytest.raises(ConfigError, match=r"must be below 1, got 1; give more steps than 20"):
        process(steps=20)
    with pytest.raises(ContractError, match="between 0 and 1"):
        Process(torch.tensor([0.1, 1.0]))
    with pytest.raises(ContractError, match="between 0 and 1"):
        Process(torch.tensor([]))


# A model that says s · t / (t + 1), on a fixed picture: the sums that diffusers' own tests expect of its schedulers.


def oracle(parameterisation, sampler, n, noise=None):
    diffusion = Diffusion.build(parameterisation=parameterisation, variance="fixed_small")
    b, c, h, w = shape = 4, 3, 8, 8
    x = torch.arange(b * c * h * w).reshape(c, h, w, b).div(b * c * h * w).permute(3, 0, 1, 2)
    chain = diffusion.process.respaced(spaced(n, diffusion.process, "leading"))

    def predict(x, i) -> Prediction:
        t = int(chain.timesteps[i])
        return diffusion.read(x * t / (t + 1), x, every(t, b), clip=True, within=chain, index=every(i, b))

    for frame in SAMPLERS.build(sampler).run(chain, predict, x, lambda: torch.randn(shape, generator=noise)):
        x = frame.x
    return x.abs().sum().item()


def test_sums_of_the_oracle_of_diffusers():
    assert oracle("epsilon", "ddim", 10) == pytest.approx(172.0067, abs=1e-2)
    assert oracle("v", "ddim", 10) == pytest.approx(52.5302, abs=1e-2)
    assert oracle("epsilon", "ddpm", 1000, torch.Generator().manual_seed(0)) == pytest.approx(258.9606, abs=1e-2)


# Exact Gaussian data x_0 ~ N(0, s²): the optimal ε is √(1 − ᾱ) x / (ᾱ s² + 1 − ᾱ).


def final_variance(s2, variance):
    """The variance after ancestral sampling, exactly: every step is linear in x_T and in the noise of each step.

    Picture number k of the batch gets a 1 in place of the k-th of these numbers, and 0 for all others: it ends as what
    that number is multiplied by.
    """
    q = process()
    logs = {"fixed_small": q.log_variance_small, "fixed_large": q.log_variance_large}[variance]
    impulses = iter(torch.eye(1000, dtype=torch.float64).view(1000, 1000, 1, 1, 1))

    def predict(x, i) -> Prediction:
        bar = q.alphas_bar[i]
        noise = q.noise[i] * x / (bar * s2 + 1 - bar)
        return Prediction((x - q.noise[i] * noise) / q.signal[i], noise, logs[i].view(1, 1, 1, 1))

    for frame in SAMPLERS.build("ddpm").run(q, predict, next(impulses), lambda: next(impulses)):
        x = frame.x
    assert next(impulses, None) is None
    return x.square().sum().item()


@pytest.mark.parametrize(
    ("s2", "large", "small"), [(0.25, 0.250752, 0.246125), (1.0, 0.9999, 0.99107)], ids=["quarter", "one"]
)
def test_the_final_variance_of_gaussian_data(s2, large, small):
    assert final_variance(s2, "fixed_large") == pytest.approx(large, abs=2e-6 if s2 < 1 else 5e-5)
    assert final_variance(s2, "fixed_small") == pytest.approx(small, abs=2e-6 if s2 < 1 else 5e-5)


def test_the_optimal_error_of_gaussian_data():
    q, s2 = process(), 0.25
    optimal = 1 - (1 - q.alphas_bar) / (q.alphas_bar * s2 + 1 - q.alphas_bar)  # var(ε) − cov² / var(x_t)
    assert optimal.mean().item() == pytest.approx(0.17305, abs=5e-6)
