"""Training: what is drawn for each picture, the losses, exact resumption, evaluation; and third parties' schedules."""

import json
import math
import textwrap

import pytest
import torch

from axon_core import ATTENTIONS, ConfigError, ContractError, Key, UnknownKey, UsageError
from axon_core.registry import refresh
from axon_core.training import build_trainer, fit
from axon_ddpm import NOISE_SCHEDULES, Diffusion, UNet
from axon_ddpm.unet import AttentionBlock, ResidualBlock


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


def test_the_variational_loss_is_an_estimate_of_the_bound(trainer, stirred, naive_term):
    made = trainer(loss="variational", unlabelled=0.5)
    stirred(made.model).eval()
    data, q = made.collect(made.batch(0), Key((0,))), made.diffusion.process
    assert 0 < (data["class"] == 3).sum() < 6
    for step in range(10):
        t = torch.full((6,), step)
        x_t = q.diffuse(data["x0"], data["noise"], t)
        with torch.no_grad():
            output = made.model(x_t, t, data["class"])
        term = naive_term(q.betas, output.double(), data["x0"].double(), x_t.double(), step, clip=False)
        found = made.loss({**data, "t": t})["loss"].double()
        torch.testing.assert_close(found, 10 * term.sum(), rtol=1e-4, atol=0)  # the mean of 10 t is then their sum


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
    models = [(tmp_path / run / "model/model.safetensors").read_bytes() for run in ("straight", "halves")]
    assert models[0] == models[1]  # of the average


def test_micro_batches_change_nothing_but_rounding(trainer):
    ways = [trainer(steps=2, batch_size=8, micro_batches=n) for n in (1, 4)]
    for made in ways:
        assert made.model.config.dropout
        fit(made)
    for a, b in zip(*(made.model.parameters() for made in ways), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_wrong_settings(trainer, recipe, pictures):
    for options, message in (
        ({"diffusion": {"variance": "learned_range"}}, "loss 'simple' does not train a variance that is learned_range"),
        ({"loss": "hybrid"}, "loss 'hybrid' trains a learned variance, got 'fixed_large'"),
        ({"gamma": 3}, "gamma belongs to the loss 'min_snr', got gamma 3 with 'simple'; set trainer.loss=min_snr"),
        ({"bound_weight": 1, "loss": "min_snr"}, "bound_weight belongs to the loss 'hybrid', got bound_weight 1 with"),
        ({"diffusion": {"levels": 17}}, r"trainer.diffusion.levels: must be 256, by the data.*, got 17"),
        ({"diffusion": {"unlabelled": False}}, r"trainer.diffusion.unlabelled: must be True, by the data.*, got False"),
        ({"diffusion": {"levels": 1}}, r"diffusion.levels: must be greater than or equal to 2, got 1"),
        ({"diffusion": {"parameterisation": "eps"}}, "diffusion.parameterisation: must be 'epsilon', 'x0', 'v' or"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer(**options)
    with pytest.raises(UnknownKey, match=r"trainer.diffusion.schedule: no noise schedule 'cosin'.*Near it: 'cosine'"):
        trainer(diffusion={"schedule": "cosin"})
    with pytest.raises(ConfigError, match=r"size must be a multiple of 16.*got 8; give fewer multipliers"):
        build_trainer(recipe({"path": str(pictures)}, {"multipliers": [1, 1, 1, 1, 1]}))
    with pytest.raises(ConfigError, match=r"attention_at must name resolutions of this U-Net, 8, 4, got 5"):
        build_trainer(recipe({"path": str(pictures)}, {"attention_at": [4, 5]}))
    with pytest.raises(ConfigError, match="levels: must be greater than or equal to 2, got 1"):
        Diffusion.build(levels=1)
    for guidance in (0, 2):
        with pytest.raises(UsageError, match=rf"guidance {guidance} needs; set it to 1, or train with"):
            trainer(unlabelled=0, sampling={"guidance": guidance})
    assert trainer(unlabelled=0).pictures(2).shape == (2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"trainer.unlabelled 1 hides every class.*; lower it"):
        trainer(unlabelled=1)
    with pytest.raises(UsageError, match="between 1 and 10, the length of the chain, got 11"):
        trainer(sampling={"steps": 11})
    with pytest.raises(UsageError, match="guidance 2 amplifies a class, but the pictures have none"):
        build_trainer(recipe({"path": str(pictures)}, sampling={"guidance": 2}))


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
    made = build_trainer(recipe({"path": str(pictures)}, diffusion=chain))
    assert len(made.diffusion.process) == 12
    fit(made, tmp_path / "run")
    assert json.loads((tmp_path / "run/model/diffusion.json").read_text())["schedule"]["beta"] == 0.3
    assert Diffusion.load(tmp_path / "run/model").process.alphas_bar[-1].item() == pytest.approx(0.7**12)
    with pytest.raises(ContractError, match="between 0 and 1"):
        build_trainer(recipe({"path": str(pictures)}, diffusion={"schedule": "broken"}))


class OutFirst(ATTENTIONS["MHA"]):
    """An attention whose last projection is not the one that was made last."""

    def __init__(self, config, rotary=None):
        super().__init__(config, rotary)
        self.later = torch.nn.Linear(config.dim, config.dim)

    def forward(self, x, scope, **more):
        """Return the attention of what `later` makes of the tokens."""
        return super().forward(self.later(x), scope, **more)


def test_every_residual_block_and_attention_starts_as_nothing():
    with ATTENTIONS.override(out_first=OutFirst):
        for attention in ({"type": "MHA", "bias": True}, "GQA", "out_first"):
            model = UNet.build(size=8, width=8, groups=4, multipliers=(1, 2), attention_at=(8, 4), attention=attention,
                               n_heads=2)  # fmt: skip
            zero = {name for name, tensor in model.named_parameters() if not tensor.any()}
            blocks = {name: module for name, module in model.named_modules() if isinstance(module, ResidualBlock)}
            attended = {name: module for name, module in model.named_modules() if isinstance(module, AttentionBlock)}
            outs = [f"{name}.conv2" for name in blocks] + [f"{name}.attention.out" for name in attended] + ["head"]
            assert len(blocks) == 12 and len(attended) == 11
            weights = [f"{name}.weight" for name in outs]
            assert zero >= set(weights) and not any(name.endswith("weight") for name in zero - set(weights))
            assert zero >= {f"{name}.bias" for name in outs} & dict(model.named_parameters()).keys()


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
    assert build_trainer(recipe({"path": "digits"})).diffusion.config.levels == 17


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


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_the_share_of_pictures_without_their_class(trainer, share):
    made = trainer(unlabelled=share, batch_size=600)
    found = (made.collect(made.batch(0), Key((0,)))["class"] == 3).double().mean().item()
    assert abs(found - share) < (0.06 if share else 1e-9)  # 3.7 standard deviations
    assert made.diffusion.config.unlabelled == (share > 0)
