"""Training: what is drawn for each picture, the losses, exact resumption, evaluation; and third parties' schedules."""

import json
import math
import textwrap

import pytest
import torch

from axon_core.errors import ConfigError, ContractError, UnknownKey, UsageError
from axon_core.loop import evaluate, evaluation, fit
from axon_core.randomness import Key
from axon_core.registry import refresh
from axon_ddpm import NOISE_SCHEDULES, Diffusion, UNet
from axon_ddpm.bound import places
from axon_ddpm.quality import frechet_distance, nearest


@pytest.fixture
def trainer(recipe, pictures):
    return lambda **options: recipe({"path": str(pictures), "classes": True}, **options).build()


def test_what_a_picture_meets_depends_on_its_number_alone(trainer):
    made = trainer(flip=True, unlabelled=0.5, batch_size=20)
    batch, key = made.batch(3), Key((0, 3))
    whole = made.collect(batch, key)
    part = made.collect({name: rows[5:9] for name, rows in batch.items()}, key)
    for name, rows in part.items():
        assert torch.equal(rows, whole[name][5:9])
    assert whole["t"].unique().numel() > 5 and 0 < (whole["class"] == 3).sum() < 20
    plain = made.data.unit(batch["image"])
    flipped = [torch.equal(x, p.flip(-1)) for x, p in zip(whole["x0"], plain, strict=True)]
    straight = [torch.equal(x, p) for x, p in zip(whole["x0"], plain, strict=True)]
    assert all(a or b for a, b in zip(flipped, straight, strict=True)) and 0 < sum(flipped) < 20
    again = made.collect(made.batch(3), Key((0, 4)))
    assert not torch.equal(again["noise"], whole["noise"])


def test_the_losses_are_what_they_say(trainer):
    made = trainer()
    data = made.collect(made.batch(0), Key((0,)))
    x_t = made.diffusion.process.diffuse(data["x0"], data["noise"], data["t"])
    made.model.eval()
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.1)
        naive = (made.model(x_t, data["t"], data["class"]) - data["noise"]).square().mean(dim=(1, 2, 3)).sum()
        torch.testing.assert_close(made.loss(data)["loss"], naive)


def test_the_hybrid_loss_trains_the_variance_by_the_bound_and_the_rest_by_the_error(trainer):
    made = trainer(loss="hybrid", diffusion={"schedule": {"type": "cosine", "steps": 10}, "variance": "learned_range"})
    simple = trainer()
    data = made.collect(made.batch(0), Key((0,)))
    made.model.eval()
    made.loss(data)["loss"].backward()
    head = made.model.head.bias.grad
    assert made.model.head.bias.shape == (6,) and (head[3:] != 0).all()
    simple.model.eval()
    simple.loss(data)["loss"].backward()
    torch.testing.assert_close(head[:3], simple.model.head.bias.grad)


def test_the_variational_loss_is_an_estimate_of_the_bound(trainer):
    made = trainer(loss="variational")
    steps, b = 10, 6
    data = made.collect(made.batch(0), Key((0,)))
    sums = torch.stack([made.loss({**data, "t": torch.full((b,), t)})["loss"] for t in range(steps)])
    terms = [
        made.diffusion.bound(
            made.model(x := made.diffusion.process.diffuse(data["x0"], data["noise"], tt := torch.full((b,), t)), tt),
            data["x0"],
            x,
            tt,
        ).sum()
        for t in range(steps)
    ]
    made.model.eval()
    torch.testing.assert_close(sums.mean(), torch.stack(terms).sum(), rtol=1e-4, atol=1e-4)


def test_training_goes_on_exactly(trainer, tmp_path):
    options = {"steps": 6, "ema": 0.9, "flip": True, "grid_every": 2, "save_every": 3}
    straight = trainer(**options)
    fit(straight, tmp_path / "straight")
    fit(trainer(**options), tmp_path / "halves", stop_at=3)
    resumed = trainer(**options)
    fit(resumed, tmp_path / "halves", resume=True)
    for (name, a), b in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    for step in (2, 4, 6):
        grids = [(tmp_path / run / f"samples/step-{step}.png").read_bytes() for run in ("straight", "halves")]
        assert grids[0] == grids[1]


def test_micro_batches_change_nothing_but_rounding(trainer):
    ways = [trainer(steps=2, batch_size=8, micro_batches=n) for n in (1, 4)]
    for made in ways:
        for module in made.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        fit(made)
    for a, b in zip(*(made.model.parameters() for made in ways), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_evaluation_reports_bits_and_samples(trainer):
    made = trainer(compared=6, bound_steps=100, unlabelled=0.3)
    first = evaluate(made)
    assert first == evaluate(made)
    assert set(first) >= {"loss", "bits_per_dim", "frechet_distance", "frechet_distance_real", "recognised_real"}
    samples = made.data.train.images
    made.pictures = lambda n, classes: samples[:n]
    copies = evaluate(made)
    assert copies["frechet_distance"] < first["frechet_distance"]
    assert copies["nearest_training"] == 0 < copies["nearest_training_real"] == first["nearest_training_real"]
    del made.pictures
    # a model that says ε = 0: its loss is var(ε), and its bound is known
    loss = first["loss"]
    assert loss == pytest.approx(1.0, abs=0.1)
    torch.manual_seed(0)
    assert evaluate(made) == first and evaluation(made, lambda: made.pictures(3)).shape == (3, 3, 8, 8)


def test_the_bound_over_all_places_is_the_mean_of_its_estimates(trainer):
    every = evaluate(trainer(bound_steps=9))["bits_per_dim"]
    few = [evaluate(trainer(bound_steps=3, seed=seed))["bits_per_dim"] for seed in range(8)]
    assert sum(few) / 8 == pytest.approx(every, rel=0.1)
    for n, total in ((3, 10), (20, 1000), (9, 10), (50, 10), (1, 1)):
        found = places(n, total, Key((0,)), 0)
        assert len(found) == min(n, total - 1)
        assert all(1 <= t < total for t in found.tolist())


def test_frechet_distance_of_known_normals():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(12)
    moved = x * torch.tensor([2.0, 1.0, 1.0])
    scale = x[:, 0].std().item()
    assert frechet_distance(x, moved) == pytest.approx(
        (x.mean(0) - moved.mean(0)).square().sum().item() + scale**2, rel=0.02
    )
    a, b = torch.randn(500, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double(), x[:, :1]
    b = torch.cat((b, b * 0.5, x[:, 1:]), 1)[:500]
    naive = (a.T.cov() @ b.T.cov()).numpy()
    import numpy as np

    root = np.sqrt(np.linalg.eigvals(naive).real.clip(0)).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_nearest():
    among = torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    distance, which = nearest(torch.full((1, 1, 2, 2), 1.25), among, 2)
    assert which.tolist() == [[1, 0]] and distance.tolist() == [[0.25, 1.25]]


def test_wrong_settings(trainer, recipe, pictures):
    for options, message in (
        ({"diffusion": {"variance": "learned_range"}}, "loss 'simple' does not train a variance that is learned_range"),
        ({"loss": "hybrid"}, "loss 'hybrid' trains a learned variance, got 'fixed_large'"),
        ({"diffusion": {"parameterisation": "eps"}}, "diffusion.parameterisation: must be 'epsilon', 'x0', 'v' or"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer(**options)
    with pytest.raises(UnknownKey, match=r"trainer.diffusion.schedule: no noise schedule 'cosin'.*Near it: 'cosine'"):
        trainer(diffusion={"schedule": "cosin"})
    with pytest.raises(ConfigError, match=r"size must be a multiple of 16.*got 8; give fewer multipliers"):
        recipe({"path": str(pictures)}, {"multipliers": [1, 1, 1, 1, 1]}).build()
    with pytest.raises(UsageError, match="between 1 and 10, the length of the chain, got 11"):
        trainer(sampling={"steps": 11})
    with pytest.raises(UsageError, match="guidance 2 exaggerates a class, but the pictures have none"):
        recipe({"path": str(pictures)}, sampling={"guidance": 2}).build()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution of one module, as pip lays it out, until the test is over."""

    def put(name, module, code, group, entries):
        folder = tmp_path / "site"
        info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {module}:{target}" for key, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")
        monkeypatch.syspath_prepend(str(folder))
        refresh()

    yield put
    monkeypatch.undo()
    refresh()


def test_a_third_partys_schedule(install, recipe, pictures, tmp_path):
    module = '''
        """A schedule of equal variances."""
        import torch
        from axon_ddpm import NoiseSchedule

        class Constant(NoiseSchedule):
            """One β for all steps."""
            class Config(NoiseSchedule.Config):
                """Its variance."""
                beta: float = 0.1
                """β."""
            def betas(self):
                return torch.full((self.config.steps,), self.config.beta, dtype=torch.float64)

        class Broken(Constant):
            """Not variances."""
            def betas(self):
                return torch.zeros(self.config.steps, dtype=torch.float64)
    '''
    keys = {"constant": "Constant", "broken": "Broken"}
    install("axon-their-noise", "their_noise", module, "axon.v1.noise_schedule", keys)
    assert "constant" in NOISE_SCHEDULES
    chain = {"schedule": {"type": "constant", "steps": 12, "beta": 0.3}}
    made = recipe({"path": str(pictures)}, diffusion=chain).build()
    assert len(made.diffusion.process) == 12
    fit(made, tmp_path / "run")
    assert json.loads((tmp_path / "run/model/diffusion.json").read_text())["schedule"]["beta"] == 0.3
    assert Diffusion.load(tmp_path / "run/model").process.alphas_bar[-1].item() == pytest.approx(0.7**12)
    with pytest.raises(ContractError, match="between 0 and 1"):
        recipe({"path": str(pictures)}, diffusion={"schedule": "broken"}).build()


@pytest.mark.parametrize("attention", ["GQA", {"type": "MHA", "bias": False}])
def test_any_registered_attention_fits(attention):
    model = UNet.build(size=8, width=8, groups=4, multipliers=(1, 2), attention_at=(4,), attention=attention, n_heads=2)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 5])
    assert (model(x, t) == 0).all()  # the last convolution starts at zero
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.eval()
    out = model(x, t)
    rolled = torch.cat((x[:1], x[1:].flip(-1)))
    torch.testing.assert_close(model(rolled, t)[0], out[0])  # a picture does not see its neighbours
    moved = x.clone()
    moved[0, :, 7, 7] += 1
    assert (model(moved, t)[0, :, 0, 0] != out[0, :, 0, 0]).any()  # every place sees every other: no causal mask
    assert math.isfinite(out.sum().item())


def test_the_levels_come_from_the_data(recipe):
    assert recipe({"path": "digits"}).build().diffusion.config.levels == 17


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_the_error_of_the_noise(trainer, gamma):
    made, plain = trainer(loss="min_snr", gamma=gamma), trainer()
    data = made.collect(made.batch(0), Key((0,)))
    values = {"classes" if name == "class" else name: rows for name, rows in data.items()}
    made.model.eval()
    plain.model.eval()
    weighted, error = made.losses(**values)[0], plain.losses(**values)[0]
    abar = made.diffusion.process.alphas_bar.double()[data["t"]]
    snr = abar / (1 - abar)
    torch.testing.assert_close(weighted.double(), error.double() * snr.clamp(max=gamma) / snr, rtol=1e-5, atol=1e-7)


def test_hybrid_adds_the_bound_by_its_weight(trainer):
    chain = {"schedule": {"type": "cosine", "steps": 10}, "variance": "learned_range"}
    totals = []
    for weight in (0.0, 1.0, 3.0):
        made = trainer(loss="hybrid", bound_weight=weight, diffusion=chain)
        made.model.eval()
        totals.append(made.loss(made.collect(made.batch(0), Key((0,))))["loss"].item())
    assert totals[1] > totals[0] and totals[2] - totals[0] == pytest.approx(3 * (totals[1] - totals[0]), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_of_pictures_without_their_class(trainer, share):
    made = trainer(unlabelled=share, batch_size=600)
    found = (made.collect(made.batch(0), Key((0,)))["class"] == 3).double().mean().item()
    assert found == share if share in (0, 1) else abs(found - share) < 0.06  # 3.7 standard deviations


def test_bits_per_dim_count_the_prior(trainer, monkeypatch):
    made = trainer()
    before = evaluate(made)["bits_per_dim"]
    from axon_ddpm import bound

    prior = bound.prior_term
    monkeypatch.setattr(bound, "prior_term", lambda process, x0: prior(process, x0) + 1)
    assert evaluate(made)["bits_per_dim"] == pytest.approx(before + 1)


def test_grids_are_painted_by_the_averaged_weights(trainer, tmp_path, monkeypatch):
    made = trainer(ema=0.9)
    seen = []
    pictures = made.pictures

    def recorded(n, classes=None):
        seen.append({name: tensor.clone() for name, tensor in made.model.state_dict().items()})
        return pictures(n, classes)

    monkeypatch.setattr(made, "pictures", recorded)
    fit(made, tmp_path / "run")
    exported = UNet.load(tmp_path / "run" / "model").state_dict()  # the average
    assert len(seen) == 1 and all(torch.equal(exported[name], tensor) for name, tensor in seen[0].items())
    plain = trainer()
    fit(plain)
    assert any(not torch.equal(exported[name], tensor) for name, tensor in plain.model.state_dict().items())


def test_samples_are_asked_for_the_classes_they_are_compared_with(trainer, monkeypatch):
    made = trainer(compared=2)
    asked = []
    pictures = made.pictures
    monkeypatch.setattr(made, "pictures", lambda n, classes=None: asked.append(classes) or pictures(n, classes))
    evaluate(made)
    assert asked == [made.data.held_out.labels[:2].tolist()]
