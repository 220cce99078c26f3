"""The U-Net and the samplers against diffusers, with the same weights and the same random numbers."""

import copy

import pytest
import torch

from axon_core import UsageError
from axon_ddpm import SAMPLERS, Diffusion, UNet, spaced
from axon_ddpm.interop import diffusers_options, diffusers_weights, load_diffusers
from axon_ddpm.unet import time_embedding, upsampling_kernel

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "scaled_linear": "scaled_linear"}
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = 2, 3, 4, 4


@pytest.fixture(scope="module")
def diffusers():
    import diffusers

    return diffusers


def gradients(model):
    """The gradients of a model's weights, by their names in diffusers."""
    slopes = copy.deepcopy(model)
    for slope, parameter in zip(slopes.parameters(), model.parameters(), strict=True):
        slope.data = parameter.grad
    return diffusers_weights(slopes)


SIZES = [
    {"size": 16, "width": 32, "multipliers": (1, 2), "blocks": 1, "attention_at": (8,)},
    {
        "size": 8,
        "channels": 1,
        "width": 16,
        "groups": 8,
        "multipliers": (1, 2, 2),
        "attention_at": (8, 4),
        "n_classes": 3,
    },
    {
        "size": 8,
        "width": 16,
        "groups": 4,
        "multipliers": (1, 3),
        "blocks": 1,
        "attention_at": (4,),
        "head_dim": 8,
        "eps": 1e-3,
        "frequency_shift": 0,
        "downsample_padding": 1,
    },
]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_unet_is_that_of_diffusers(diffusers, stirred, sizes):
    model = stirred(UNet.build(**sizes)).eval()
    theirs = diffusers.UNet2DModel(**diffusers_options(model)).eval()
    theirs.load_state_dict(diffusers_weights(model))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, model.config.channels, model.config.size, model.config.size, generator=generator)
    t = torch.tensor([0, 7, 999])
    classes = torch.tensor([0, 2, 3]) if model.config.n_classes else None
    x.requires_grad_(True)
    (model(x, t, classes) ** 3).mean().backward()
    mine, x.grad = {"x": x.grad, **gradients(model)}, None
    (theirs(x, t, class_labels=classes).sample ** 3).mean().backward()
    other = {"x": x.grad, **{name: parameter.grad for name, parameter in theirs.named_parameters()}}
    with torch.no_grad():
        expected = theirs(x, t, class_labels=classes).sample
        torch.testing.assert_close(model(x, t, classes), expected, rtol=0, atol=1e-5)
    assert mine.keys() == other.keys()
    whole = torch.stack([gradient.norm() for gradient in other.values()]).norm()
    for name, gradient in other.items():
        off, size = (mine[name] - gradient).norm(), gradient.norm()
        nothing = size < 1e-7 * whole  # what a norm or a softmax takes away again has no gradient but rounding
        assert off <= (1e-7 * whole if nothing else 3e-5 * size), (name, off / size)
    again = load_diffusers(theirs.config, theirs.state_dict()).eval()
    assert again.config == model.config
    with torch.no_grad():
        torch.testing.assert_close(again(x, t, classes), expected, rtol=0, atol=1e-5)


def test_the_papers_unet_has_the_papers_number_of_parameters(diffusers):
    model = UNet.build(size=32)
    assert model.n_parameters == 35_746_307
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**diffusers_options(model))
    assert {n: p.shape for n, p in theirs.named_parameters()} == {
        n: w.shape for n, w in diffusers_weights(model).items()
    }


def test_other_weights_are_refused():
    model = UNet.build(**SIZES[0])
    weights = diffusers_weights(model)
    with pytest.raises(UsageError, match=r"must fit this U-Net, but conv_in.bias is missing there and \(32,\) here"):
        load_diffusers(diffusers_options(model), {name: w for name, w in weights.items() if name != "conv_in.bias"})
    with pytest.raises(UsageError, match="have one head or heads of head_dim features, got n_heads 2; give head_dim"):
        diffusers_weights(UNet.build(**SIZES[0], n_heads=2))
    with pytest.raises(UsageError, match="multi-head attention with biases"):
        diffusers_weights(UNet.build(**SIZES[0], attention="MHA"))


def test_the_upsampling_kernel_is_repeating_and_convolving():
    x, kernel = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = torch.nn.functional.conv2d(repeated, kernel, padding=1)
    found = torch.nn.functional.conv_transpose2d(x, upsampling_kernel(kernel), stride=2, padding=1)
    torch.testing.assert_close(found, expected)


def test_the_time_embedding():
    found = time_embedding(torch.tensor([3]), 8)[0]
    angles = torch.tensor([3 * 10000 ** (-i / 3) for i in range(4)])  # divided by half − 1, not half
    torch.testing.assert_close(found, torch.cat((angles.sin(), angles.cos())))


def model(x, t, schedule):
    """A model that knows noise from picture, as a trained one does, so that x_0 = (x − s ε)/a stays small."""
    process = Diffusion.build(schedule=schedule).process
    return process.noise[t].item() * x + process.signal[t].item() * torch.tanh(2 * x.flip(-1))


def ours(
    sampler, schedule, parameterisation, timesteps, *, variance="fixed_small", clip=True, start, noise, double=False
):
    diffusion = Diffusion.build(schedule=schedule, parameterisation=parameterisation, variance=variance)
    chain = diffusion.process.respaced(torch.tensor(sorted(timesteps)))

    def predict(x, i):
        t, index = int(chain.timesteps[i]), torch.full((len(x),), i)
        output = said(x, t, schedule, double)
        return diffusion.read(output, x, torch.full_like(index, t), clip=clip, within=chain, index=index)

    return [frame.x for frame in SAMPLERS.build(sampler).run(chain, predict, start, noise)]


def theirs(scheduler, schedule, *, start, double=False, **step):
    """What diffusers' scheduler makes in float64 of the outputs that a model in float32 gives it."""
    x, frames = start.double(), []
    for t in scheduler.timesteps:
        x = scheduler.step(said(x.float(), t, schedule, double).double(), t, x, **step).prev_sample
        frames.append(x.float())
    return frames


def said(x, t, schedule, double):
    return torch.cat((model(x, t, schedule), torch.tanh(x)), 1) if double else model(x, t, schedule)


def options(schedule, parameterisation, **more):
    return {
        "beta_schedule": SCHEDULES[schedule],
        "prediction_type": PREDICTIONS[parameterisation],
        "beta_start": 1e-4,
        "beta_end": 0.02,
        **more,
    }


def exact(scheduler, schedule):
    """Check the scheduler's tables, and take their rounding away, so that it computes in float64.

    In float32 it is off by more than 1e-5 itself where ᾱ is near 0, which x_0 = (x − s ε)/a divides by.
    """
    process = Diffusion.build(schedule=schedule).process
    torch.testing.assert_close(scheduler.betas, process.betas.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scheduler.alphas_cumprod, process.alphas_bar.float(), rtol=1e-4, atol=1e-7)
    scheduler.alphas_cumprod = process.alphas_bar
    return scheduler


@pytest.fixture
def noise(diffusers, monkeypatch):
    """The same float32 numbers for both, though diffusers computes in float64."""
    mine, other = (torch.Generator().manual_seed(5) for _ in range(2))
    for module in (diffusers.schedulers.scheduling_ddpm, diffusers.schedulers.scheduling_ddim):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.randn(shape, generator=other).double())
    return lambda: torch.randn(SHAPE, generator=mine)


def same(found, expected):
    """Equal to 1e-5, step by step."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings(diffusers, kind, spacing):
    process = Diffusion.build().process
    scheduler = getattr(diffusers, kind)(timestep_spacing=spacing)
    # Not 48, say: places in the middle of two are rounded by what diffusers' sums of strides leave of them. And not 1,
    # of which its "linspace" is the step that sees no noise.
    for n in (2, 3, 7, 10, 16, 50, 250, 333, 999, 1000):
        scheduler.set_timesteps(n)
        assert spaced(n, process, spacing).tolist() == scheduler.timesteps.tolist()[::-1], n


START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
EACH = pytest.mark.parametrize(
    ("schedule", "parameterisation"), [(schedule, kind) for schedule in SCHEDULES for kind in PREDICTIONS]
)


@EACH
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm(diffusers, noise, schedule, parameterisation, variance):
    # "leading" ends at t = 0; where a list ends before, diffusers adds noise to the finished picture
    scheduler = diffusers.DDPMScheduler(
        **options(schedule, parameterisation, variance_type=variance, timestep_spacing="leading")
    )
    exact(scheduler, schedule).set_timesteps(12)
    double = variance == "learned_range"
    found = ours("ddpm", schedule, parameterisation, scheduler.timesteps.tolist(), variance=variance, start=START,
                 noise=noise, double=double)  # fmt: skip
    same(found, theirs(scheduler, schedule, start=START, double=double))


@EACH
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim(diffusers, noise, schedule, parameterisation, eta, spacing):
    scheduler = diffusers.DDIMScheduler(**options(schedule, parameterisation, timestep_spacing=spacing))
    exact(scheduler, schedule).set_timesteps(10)
    if spacing == "linspace":  # there diffusers takes the step before from the length alone, not from the list
        scheduler.set_timesteps(1000 // 111)
        scheduler.timesteps = torch.arange(999, -1, -111)
    found = ours({"type": "ddim", "eta": eta}, schedule, parameterisation, scheduler.timesteps.tolist(), start=START,
                 noise=noise)  # fmt: skip
    same(found, theirs(scheduler, schedule, start=START, eta=eta, use_clipped_model_output=True))


@EACH
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("order", "steps"), [(2, 3), (2, 20), (3, 3), (3, 8), (3, 20)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, of numpy
def test_dpm_solver(diffusers, noise, schedule, parameterisation, spacing, order, steps):
    # with "lower_order_final" the last step but one of fewer than 15 would be of second order
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **options(schedule, parameterisation, timestep_spacing=spacing, solver_order=order, lower_order_final=False)
    )
    exact(scheduler, schedule).set_timesteps(steps)
    bars = scheduler.alphas_cumprod[scheduler.timesteps]
    torch.testing.assert_close(scheduler.sigmas[:-1], ((1 - bars) / bars).sqrt().float(), rtol=1e-6, atol=0)
    scheduler.sigmas = torch.cat((((1 - bars) / bars).sqrt(), torch.zeros(1)))
    found = ours({"type": "dpm_solver", "order": order}, schedule, parameterisation, scheduler.timesteps.tolist(),
                 clip=False, start=START, noise=noise)  # fmt: skip
    same(found, theirs(scheduler, schedule, start=START))
