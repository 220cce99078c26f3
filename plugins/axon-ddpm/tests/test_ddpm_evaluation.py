"""What an evaluation reports, the distances it is made of, and the grids that a training leaves."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from axon_core import Key, UsageError
from axon_core.training import build_trainer, evaluate, fit, run_evaluation
from axon_ddpm import UNet
from axon_ddpm.bound import places
from axon_ddpm.pictures import read_picture, to_bytes, to_unit
from axon_ddpm.quality import FRECHET, frechet_distance, nearest_neighbours


def test_evaluation_reports_bits_and_samples(trainer):
    made = trainer(compared=6, bound_steps=100, unlabelled=0.3)
    first = evaluate(made)
    assert first == evaluate(made)
    assert set(first) >= {"loss", "bits_per_dim", FRECHET, f"{FRECHET}_real", "recognised_real"}
    samples = made.data.train.images
    made.pictures = lambda n, classes: samples[:n]
    copies = evaluate(made)
    assert copies[FRECHET] < first[FRECHET]
    assert copies["nearest_training"] == 0 < copies["nearest_training_real"] == first["nearest_training_real"]
    del made.pictures
    # a model that says ε = 0: its loss is var(ε), and its bound is known
    loss = first["loss"]
    assert loss == pytest.approx(1.0, abs=0.1)
    torch.manual_seed(0)
    assert evaluate(made) == first and run_evaluation(made, lambda: made.pictures(3)).shape == (3, 3, 8, 8)


@pytest.mark.parametrize(("n", "held_out", "compared"), [(6, 0.1, 1000), (14, 0.5, 1), (3, 0.67, 1000), (2, 0.5, 1000)])
def test_few_pictures_are_compared_as_far_as_they_can_be(recipe, pictures, tmp_path, n, held_out, compared):
    with np.load(pictures) as arrays:
        np.savez(tmp_path / "few.npz", images=arrays["images"][:n], labels=arrays["labels"][:n] % 2)
    data = {"path": str(tmp_path / "few.npz"), "classes": True, "held_out": held_out}
    found = fit(build_trainer(recipe(data, compared=compared)), tmp_path / "run").metrics
    assert {name for name in found if name != "loss"} == {"bits_per_dim", "nearest_training", "nearest_training_real"}
    assert all(math.isfinite(value) for value in found.values())


def test_a_frechet_distance_needs_two():
    with pytest.raises(UsageError, match="sets of at least 2 pictures, got 1"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("bound_steps", [9, 50])
def test_bits_per_dim_are_the_sum_of_all_terms(trainer, stirred, naive_term, bound_steps):
    made = trainer(bound_steps=bound_steps)
    stirred(made.model)
    part, q = made.data.held_out, made.diffusion.process
    x0, key, bits, errors = part.images / 127.5 - 1, Key((0, "bound", "noise")), [], []
    for t, i in itertools.product(range(10), range(len(part))):
        noise, picture = key.normal([10 * i + t], (3, 8, 8)), x0[i : i + 1]
        x_t = q.alphas_bar[t].sqrt().float() * picture + (1 - q.alphas_bar[t]).sqrt().float() * noise
        output = run_evaluation(made, lambda x=x_t, t=t, i=i: made.model(x, torch.tensor([t]), part.labels[i : i + 1]))
        bits.append(naive_term(q.betas, output.double(), picture.double(), x_t.double(), t, clip=True))
        errors.append((output.double() - noise).square().mean())
    last, start = q.alphas_bar[-1], x0.double()
    prior = kl_divergence(Normal(last.sqrt() * start, (1 - last).sqrt()), Normal(torch.zeros_like(start), 1.0)).mean()
    found = evaluate(made)
    expected = torch.cat(bits).sum() / len(part) + prior / math.log(2)
    assert found["bits_per_dim"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["loss"] == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_bf16_rounds_the_model_and_nothing_else(trainer, stirred):
    made = trainer(precision="bf16")
    stirred(made.model)
    drawn = made.collect(made.batch(0), Key((0,)))
    data, kinds = {"classes" if name == "class" else name: rows for name, rows in drawn.items()}, []
    made.model.stem.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    error, output, x_t = run_evaluation(made, lambda: made.losses(**data))
    made.model.eval()
    with torch.no_grad():
        _, exact, x_exact = made.losses(**data)
    assert kinds == [torch.bfloat16, torch.float32] and output.dtype == torch.float32
    assert torch.equal(x_t, x_exact) and 0 < (output - exact).abs().max() < 0.1
    torch.testing.assert_close(error, (output - data["noise"]).square().mean(dim=(1, 2, 3)))
    diffusion, t = made.diffusion, data["t"]
    read = lambda: (diffusion.bound(output, data["x0"], x_t, t), *diffusion.read(output, x_t, t))  # noqa: E731
    for inside, outside in zip(run_evaluation(made, read), read(), strict=True):
        assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    fit(made)
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}


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
    root = np.sqrt(np.linalg.eigvals(naive).real.clip(0)).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_nearest():
    among = torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    distance, which = nearest_neighbours(torch.full((1, 1, 2, 2), 1.25), among, 2)
    assert which.tolist() == [[1, 0]] and distance.tolist() == [[0.25, 1.25]]


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


def test_samples_are_shown_beside_the_nearest_training_pictures(trainer, tmp_path):
    made = trainer(compared=2, grid=1)
    fit(made, tmp_path / "run")
    assert made.beside is not None
    beside, captions = made.beside
    assert beside.shape == (2, 3, 8, 8)
    assert captions == [made.data.names[made.data.held_out.labels[0]], "nearest"]
    first = to_unit(made.pictures(2, made.data.held_out.labels[:2].tolist()))[:1]
    train = to_unit(made.data.train.images)
    assert torch.equal(beside[0], to_bytes(first[0]))
    assert torch.equal(beside[1], made.data.train.images[(train - first).square().sum(dim=(1, 2, 3)).argmin()])
    sheet = read_picture(tmp_path / "run/samples/nearest-4.png")
    assert torch.equal(sheet[:, :48:6, :48:6], beside[0]) and torch.equal(sheet[:, :48:6, 49:97:6], beside[1])


@pytest.mark.parametrize("grid_every", [None, 3, 2])
def test_a_training_that_stops_early_leaves_a_last_grid(trainer, tmp_path, monkeypatch, grid_every):
    made = trainer(steps=50, eval_every=1, patience=2, optimizer={"type": "adamw", "lr": 1e-12}, grid_every=grid_every)
    pictures, painted = made.pictures, []
    monkeypatch.setattr(made, "pictures", lambda *given: painted.append(given) or pictures(*given))
    assert fit(made, tmp_path / "run").status == "stopped"
    found = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert found == (["step-2.png", "step-3.png"] if grid_every == 2 else ["step-3.png"])
    assert len(painted) == len(found)
