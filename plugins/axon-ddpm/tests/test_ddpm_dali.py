"""What a trained model paints: seeds, batches, guidance, variations, inpainting, interpolation; and wrong requests."""

import pytest
import torch

from axon_core import CheckpointError, ConfigError, UnknownKey, UsageError
from axon_ddpm import SAMPLERS, Dali, Diffusion, Prediction, UNet, spaced
from axon_ddpm.dali import filling, predictor
from axon_ddpm.parameterisation import log_variance

WAYS = ["ddpm", "ddim", {"type": "ddim", "eta": 0.7}, "dpm_solver", {"type": "dpm_solver", "order": 2}]


def last(frames):
    for frame in frames:
        found = frame
    return found.x


@pytest.fixture
def dali(run):
    def load(**settings):
        seed = settings.pop("seed", 0)
        return Dali.load(run / "model", seed=seed, **{"steps": 5, **settings})

    return load


@pytest.mark.parametrize("sampler", WAYS)
def test_a_picture_depends_on_seed_and_number_alone(dali, sampler):
    """By a model in float64: in float32 a batch of another size rounds otherwise, and x_0 = (x − s ε)/a shows it."""

    def painted(n, classes, first=0, seed=0):
        painter = dali(sampler=sampler, seed=seed)
        forward = painter.model.double().forward
        painter.model.forward = lambda x, t, classes: forward(x.double(), t, classes).float()
        return last(painter.sample(n, classes, first=first))

    classes = [0, 1, 2, 0, 1]
    whole = painted(5, classes)
    parts = torch.cat([painted(2, classes[:2]), painted(3, classes[2:], first=2)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert torch.equal(painted(5, classes), whole)
    assert not torch.isclose(painted(5, classes, seed=1), whole, atol=1e-2).all(dim=(1, 2, 3)).any()
    assert whole.shape == (5, 3, 8, 8) and whole.abs().max() <= 1


def test_guidance_goes_from_without_to_with_and_beyond(run):
    model, diffusion = UNet.load(run / "model").eval(), Diffusion.load(run / "model")
    x, classes, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 2]), torch.full((2,), 4)
    chain = diffusion.process
    with torch.no_grad():
        without, given = model(x, t), model(x, t, classes)
    for guidance in (0.0, 1.0, 2.5):
        expected = diffusion.read(without + guidance * (given - without), x, t, clip=True)
        found = predictor(model, diffusion, chain, classes, guidance)(x, 4)
        torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=1e-5)
    assert (given - without).abs().max() > 1e-3


def test_guidance_leaves_a_learned_variance_as_the_class_has_it():
    diffusion = Diffusion.build(variance="learned_range", schedule={"type": "cosine", "steps": 10})
    sizes = {"size": 8, "width": 8, "groups": 4, "multipliers": (1,), "attention_at": (), "out_channels": 6}
    model = UNet.build(**sizes, n_classes=3).eval()
    x, classes, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 2]), torch.full((2,), 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        without, given = (diffusion.read(model(x, t, c), x, t) for c in (None, classes))
        for guidance in (0.0, 1.0, 4.0):
            found = predictor(model, diffusion, diffusion.process, classes, guidance)(x, 4)
            expected = (given if guidance else without).log_variance
            torch.testing.assert_close(found.log_variance, expected, rtol=0, atol=1e-5)
    assert (given.log_variance - without.log_variance).abs().max() > 1e-3


def test_a_model_that_saw_the_class_of_every_picture_needs_one():
    diffusion = Diffusion.build(unlabelled=False, schedule={"type": "cosine", "steps": 10})
    model = UNet.build(size=8, width=8, groups=4, multipliers=(1,), attention_at=(), n_classes=3).eval()
    for guidance in (0.0, 2.0):
        with pytest.raises(UsageError, match=f"has no unlabelled mode, which guidance {guidance:g} needs; set it"):
            Dali(model, diffusion, Dali.Config(guidance=guidance))
    assert last(Dali(model, diffusion, Dali.Config()).sample(2, 1)).isfinite().all()
    with pytest.raises(UsageError, match="has no unlabelled mode; give one of 0, 1, 2, or train with"):
        Dali(model, diffusion, Dali.Config()).sample(2)
    plain = UNet.build(size=8, width=8, groups=4, multipliers=(1,), attention_at=()).eval()
    assert last(Dali(plain, diffusion, Dali.Config()).sample(2)).isfinite().all()


@pytest.mark.parametrize("sampler", WAYS)
def test_inpainting_keeps_what_the_mask_leaves(dali, sampler):
    picture = torch.rand(3, 8, 8) * 2 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    found = last(dali(sampler=sampler).inpaint(picture, mask, 3, 1))
    torch.testing.assert_close(found[..., :4], picture[..., :4].expand(3, 3, 8, 4))
    assert (found[0, ..., 4:] - found[1, ..., 4:]).abs().max() > 1e-3
    everything = last(dali(sampler=sampler).inpaint(picture, torch.ones(8, 8, dtype=torch.bool), 3, 1))
    torch.testing.assert_close(everything, last(dali(sampler=sampler).sample(3, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("kept", [20, 8])
def test_what_is_known_is_diffused_as_the_forward_process_would(variance, kept):
    """With all of a picture known, x_t on the way back has the mean √ᾱ x_0 and the variance 1 − ᾱ of q(x_t | x_0)."""
    whole = Diffusion.build(schedule={"type": "cosine", "steps": 20}).process
    chain, picture = whole.respaced(spaced(kept, whole)), torch.full((1, 1, 1), 0.6)

    def nothing(x, i):
        t = torch.full((len(x),), i)
        return Prediction(torch.zeros_like(x), x, log_variance(variance, chain, None, t))

    predict = filling(nothing, chain, picture, torch.zeros(1, 1, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(20000, 1, 1, 1, generator=generator)  # noqa: E731
    for i, frame in zip(reversed(range(kept)), SAMPLERS.build("ddpm").run(chain, predict, noise(), noise), strict=True):
        bar = chain.alphas_bar_before[i].item()
        assert frame.x.mean().item() == pytest.approx(0.6 * bar**0.5, abs=0.03)
        assert frame.x.var().item() == pytest.approx(1 - bar, abs=0.03)


def test_variations_are_closer_the_weaker(dali):
    picture = torch.rand(3, 8, 8) * 2 - 1
    off = [
        (last(dali(steps=10).vary(picture, 4, strength)) - picture).square().mean().item() for strength in (0.1, 0.9)
    ]
    assert off[0] < 0.5 * off[1]
    frames = list(dali(steps=10).vary(picture, 2, 0.3))
    assert len(frames) == 3  # the last three of ten steps


def test_interpolation_goes_from_one_to_the_other(dali):
    one, other = torch.full((3, 8, 8), -0.8), torch.full((3, 8, 8), 0.8)
    way = last(dali(steps=10, sampler="ddpm").interpolate(one, other, [0.0, 0.5, 1.0], 0.3))
    alone = last(dali(steps=10, sampler="ddpm").interpolate(one, other, [0.5], 0.3))
    torch.testing.assert_close(way[1:2], alone, rtol=0, atol=1e-5)
    means = way.mean(dim=(1, 2, 3)).tolist()
    assert means == sorted(means) and means[2] - means[0] > 0.3
    torch.testing.assert_close(way[:1], last(dali(steps=10, sampler="ddpm").vary(one, 1, 0.3)), rtol=0, atol=1e-5)


def test_wrong_requests(dali, run, tmp_path):
    with pytest.raises(UnknownKey, match=r"no sampler 'ddmi' is installed.*Near it: .*'ddim'"):
        dali(sampler="ddmi")
    with pytest.raises(UsageError, match="between 1 and 10, the length of the chain, got 11"):
        dali(steps=11)
    with pytest.raises(ConfigError, match=r"sampler.eta: must be less than or equal to 1, got 2"):
        dali(sampler={"type": "ddim", "eta": 2})
    with pytest.raises(ConfigError, match=r"sampler: unknown field 'eta'|sampler.eta: unknown field 'eta'"):
        dali(sampler={"type": "dpm_solver", "eta": 1})
    with pytest.raises(UsageError, match="number of pictures must be at least 1, got 0"):
        dali().sample(0)
    with pytest.raises(UsageError, match="classes of this model are 0, 1, 2, numbered 0 to 2, got 3"):
        dali().sample(1, 3)
    with pytest.raises(UsageError, match="one for each of the 3 pictures, got 2"):
        dali().sample(3, [0, 1])
    with pytest.raises(UsageError, match="guidance 2 amplifies a class, so it needs one"):
        dali(guidance=2.0).sample(1)
    with pytest.raises(UsageError, match=r"the model's shape \(channels, height, width\) \(3, 8, 8\), got \(1, 8, 8\)"):
        dali().vary(torch.zeros(1, 8, 8), 1)
    with pytest.raises(UsageError, match=r"the mask must have the picture's size, 8×8, got 4×8"):
        dali().inpaint(torch.zeros(3, 8, 8), torch.ones(4, 8, dtype=torch.bool), 1)
    for strength in (0, 1.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"strength must be above 0 and at most 1, got {strength}"):
            dali().vary(torch.zeros(3, 8, 8), 1, strength)
    with pytest.raises(CheckpointError, match="no model folder"):
        Dali.load(tmp_path / "none")
    unconditional = Dali(
        UNet.build(size=8, width=8, groups=4, multipliers=(1,)), Diffusion.build(), Dali.Config(steps=2)
    )
    with pytest.raises(UsageError, match="trained without classes"):
        unconditional.sample(1, 0)
    learned = Diffusion.build(variance="learned", schedule={"type": "linear", "steps": 100})
    model = UNet.build(size=8, width=8, groups=4, multipliers=(1,), out_channels=6)
    with pytest.raises(UsageError, match="the sampler ddpm cannot take 5"):
        Dali(model, learned, Dali.Config(steps=5, sampler="ddpm"))
    assert last(Dali(model, learned, Dali.Config(sampler="ddpm", steps=100)).sample(1)).isfinite().all()


def test_pictures_masks_and_shares_that_are_none(dali):
    picture, mask = torch.zeros(3, 8, 8), torch.zeros(8, 8)
    mask[2:4] = 1
    worse = picture.clone()
    worse[1, 2, 3] = float("nan")
    ways = (
        lambda x: dali().vary(x, 1),
        lambda x: dali().inpaint(x, mask, 1),
        lambda x: dali().interpolate(x, picture, [0.5]),
        lambda x: dali().interpolate(picture, x, [0.5]),
    )
    for way in ways:
        for x, said in ((worse, "float32 from nan to nan"), (picture + 127, "float32 from 127 to 127"),
                        (picture.to(torch.uint8), "uint8 from 0 to 0"), (picture - torch.inf, "-inf")):  # fmt: skip
            with pytest.raises(UsageError, match=f"floating-point numbers from −1 to 1, got .*{said}"):
                way(x)
        way(picture + 1.00001)  # rounding
    for value in (0.5, 255.0, float("nan"), -1.0):
        with pytest.raises(UsageError, match=f"the mask must be True or False everywhere, got {value:g}; compare"):
            dali().inpaint(picture, torch.where(mask == 1, value, 0.0), 1)
    with pytest.raises(UsageError, match="the mask marks nothing to repaint"):
        dali().inpaint(picture, mask * 0, 1)
    assert torch.equal(last(dali().inpaint(picture, mask, 2)), last(dali().inpaint(picture, mask.bool(), 2)))
    for shares, said in (([0.5, 1.5], "and 1, got 1.5"), ([float("nan")], "got nan"), ([], "at least one share")):
        with pytest.raises(UsageError, match=said):
            dali().interpolate(picture, picture, shares)


def test_a_damaged_export(run, tmp_path):
    import shutil

    folder = shutil.copytree(run / "model", tmp_path / "model")
    (folder / "diffusion.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"diffusion.json was changed after it was written"):
        Dali.load(folder)
    (folder / "diffusion.json").unlink()
    with pytest.raises(CheckpointError, match=r"does not contain a diffusion model: diffusion.json cannot be read"):
        Dali.load(folder)
