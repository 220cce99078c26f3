"""`axon sample` and `axon evaluate`, as they are called."""

import json
import weakref

import pytest
import torch
from PIL import Image

from axon_core import ContractError
from axon_core.cli import main
from axon_core.training import Recipe, RunFolder, build_trainer
from axon_ddpm import Dali, Frame, UNet
from axon_ddpm.cli import _paint
from axon_ddpm.pictures import read_picture, save_png, to_bytes


@pytest.fixture
def sample(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["sample", str(run), "--steps", "4", *map(str, arguments)])
        found = capsys.readouterr()
        return code, found.out + found.err

    return call


def test_a_grid_and_an_animation(sample, tmp_path):
    code, said = sample("--n", 5, "--class", 1, "--guidance", 2, "--gif", "way.gif", "--out", "a.png")
    assert code == 0 and "5 pictures in a.png" in said and "4 frames in way.gif" in said
    first = read_picture(tmp_path / "a.png")
    assert first.shape == (3, 2 * (49 + 14) - 1, 3 * 49 - 1)  # a caption of 14 dots below each
    assert "1 picture in grid.png" in sample("--n", 1)[1]
    with Image.open("way.gif") as animation:
        assert animation.n_frames == 4
    sample("--n", 5, "--class", 1, "--guidance", 2, "--batch-size", 2, "--out", "b.png")
    assert (read_picture(tmp_path / "b.png").int() - first.int()).abs().max() <= 1
    sample("--n", 5, "--class", 1, "--guidance", 2, "--seed", 1, "--out", "c.png")
    assert (read_picture(tmp_path / "c.png").int() - first.int()).abs().max() > 5


@pytest.mark.parametrize("sampler", [["ddpm"], ["ddim", "--set", "eta=1"], ["dpm_solver", "--spacing", "linspace"],
    ["dpm_solver", "--set", "order=2", "--spacing", "middle"]])  # fmt: skip
def test_samplers(sample, sampler):
    code, said = sample("--n", 2, "--sampler", *sampler)
    assert code == 0 and "2 pictures in grid.png" in said


def test_variations_masks_and_ways_between(sample, tmp_path):
    for name, value in (("one", 40), ("two", 220)):
        save_png(torch.full((3, 8, 8), value, dtype=torch.uint8), tmp_path / f"{name}.png")
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[..., 4:] = 255
    save_png(mask, tmp_path / "mask.png")
    assert sample("--image", "one.png", "--n", 4, "--strength", 0.25)[0] == 0
    assert sample("--image", "one.png", "--to", "two.png", "--n", 5, "--batch-size", 2, "--columns", 5)[0] == 0
    assert sample("--image", "one.png", "--mask", "mask.png", "--n", 1, "--class", 0)[0] == 0
    assert (read_picture(tmp_path / "grid.png")[:, :48, :24] == 40).all()
    save_png(torch.full((1, 8, 8), 255, dtype=torch.uint8), tmp_path / "white.png")
    code, said = sample("--image", "one.png", "--mask", "white.png", "--n", 1)
    assert code == 0 and "white.png is white everywhere, so nothing of one.png is kept" in said
    assert "white everywhere" not in sample("--image", "one.png", "--mask", "mask.png", "--n", 1)[1]


def test_pictures_beside_the_nearest_training_pictures(sample, run, tmp_path):
    code, said = sample("--n", 3, "--out", "a.png", "--nearest", "b.png", "--columns", 3)
    assert code == 0 and "3 pictures beside the nearest training pictures in b.png" in said
    painted, pairs = read_picture(tmp_path / "a.png"), read_picture(tmp_path / "b.png")
    assert pairs.shape == (3, 2 * (49 + 14) - 1, 4 * 49 - 1)  # two pairs in a row
    train = build_trainer(Recipe.of(RunFolder.open(run).recipe().tables, "tiny", "a test")).data.train.images
    for i in range(3):
        x, (row, column) = painted[:, :48:6, 49 * i : 49 * i + 48 : 6], (63 * (i // 2), 98 * (i % 2))
        own, other = (pairs[:, row : row + 48 : 6, column + d : column + d + 48 : 6] for d in (0, 49))
        assert torch.equal(own, x)
        assert torch.equal(other, train[(train.float() - x).square().sum(dim=(1, 2, 3)).argmin()])
    assert main(["sample", str(run / "model"), "--nearest", "b.png"]) == 1  # a model alone does not know its data


def test_wrong_requests(sample, tmp_path):
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "one.png")
    save_png(torch.zeros(1, 4, 8, dtype=torch.uint8), tmp_path / "mask.png")
    save_png(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "black.png")
    for arguments, message in (
        (("--sampler", "dmd"), "no sampler 'dmd' is installed"),
        (("--steps", 11), "between 1 and 10, the length of the chain, got 11"),
        (("--class", 7), "classes of this model are 0, 1, 2, got '7'"),
        (("--mask", "mask.png"), "need --image"),
        (("--image", "one.png", "--mask", "mask.png"), "the mask must have the picture's size, 8×8, got 4×8"),
        (
            ("--image", "one.png", "--mask", "mask.png", "--to", "one.png"),
            "--mask repaints from noise and excludes --to and --strength",
        ),
        (("--image", "one.png", "--mask", "black.png"), "the mask marks nothing to repaint"),
        (("--guidance", 0, "--class", 2), "--guidance 0 ignores the class, so --class 2 has no effect"),
        (("--set", "eta"), "--set takes"),
        (("--sampler", "dpm_solver", "--set", "order=4"), "order: must be 2 or 3, got 4"),
        (("--image", "one.png", "--strength", "nan"), "strength must be above 0 and at most 1, got nan"),
        (("--image", "one.png", "--strength", "inf"), "strength must be above 0 and at most 1, got inf"),
        (("--set", "eta=3"), "eta: must be less than or equal to 1"),
        (("--sampler", "ddpm", "--set", "eta=1"), "unknown field 'eta' (known: none)"),
        (("--nearest", "./grid.png"), "each output must be a file that no other option names, got 'grid.png' twice"),
        (("--image", "grid.png"), "each output must be a file that no other option names, got 'grid.png' twice"),
        (
            ("--image", "a.gif", "--gif", "a.gif"),
            "each output must be a file that no other option names, got 'a.gif' twice",
        ),
    ):
        code, said = sample(*arguments)
        assert code == 2 and message in said and "Traceback" not in said, said
    code, said = sample("--image", "none.png")
    assert code == 1 and "cannot read the picture none.png: No such file" in said


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["sample", str(tmp_path)]) == 1
    assert "is not a run folder" in capsys.readouterr().err


def test_evaluate(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_dim"] > 0


def test_evaluate_with_other_settings(run, capsys):
    def measured(*overrides):
        code = main(["evaluate", str(run), "--json", *(word for text in overrides for word in ("--set", text))])
        found = capsys.readouterr()
        return json.loads(found.out) if code == 0 else found.err

    plain, compared = measured(), measured("trainer.compared=2", "trainer.sampling.steps=2")
    assert not any("frechet" in name or "nearest" in name for name in plain)  # the run compares no samples
    assert compared["bits_per_dim"] == plain["bits_per_dim"] and compared["nearest_training"] > 0
    assert measured("trainer.bound_steps=9")["bits_per_dim"] != plain["bits_per_dim"]
    for override, message in (
        ("trainer.diffusion.parameterisation=v", "parameterisation was 'epsilon' and is now 'v'; restore it"),
        ("trainer.diffusion.schedule.steps=11", "a trained model keeps its diffusion: trainer.diffusion.schedule was"),
        ("trainer.sampling.steps=11", "between 1 and 10, the length of the chain, got 11"),
        ("trainer.samples=3", "unknown field 'samples'"),
    ):
        assert message in measured(override)


def test_spacing_and_device_reach_the_sampler(sample, monkeypatch, tmp_path):
    given = []
    load = Dali.load
    monkeypatch.setattr(Dali, "load", lambda folder, **settings: given.append(settings) or load(folder, **settings))
    assert sample("--n", 1, "--spacing", "linspace", "--device", "cpu")[0] == 0
    assert given[0]["spacing"] == "linspace"
    moved = []
    monkeypatch.setattr(UNet, "to", lambda model, device: moved.append(device) or model)
    assert sample("--n", 1, "--device", "cpu:0")[0] == 0
    assert moved == ["cpu:0"]


@pytest.mark.parametrize(("each", "every"), [(9, 9), (100, 3)])
def test_only_frames_that_are_shown_are_kept(each, every):
    alive = []

    def batch(first, count):
        for step in range(each):
            x = torch.full((count, 1, 1, 1), step / each)
            alive.append(weakref.ref(x))
            yield Frame(x, x)
            del x
            assert sum(reference() is not None for reference in alive) <= 1

    found = _paint(batch, 5, 2, each, every)
    steps = range(each)[::-1][::every][::-1]
    assert len(found) == len(steps) and all(len(frame) == 5 for frame in found)
    assert [frame[4].item() for frame in found] == [to_bytes(torch.tensor(step / each)).item() for step in steps]
    with pytest.raises(ContractError, match=f"must yield one frame for each of {each + 1} steps, got {each}"):
        _paint(batch, 1, 2, each + 1, every)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.jpg"], "--out must end in .png, got 'a.jpg'"),
        (["--gif", "b.png"], "--gif must end in .gif, got 'b.png'"),
        (["--nearest", "b.gif"], "--nearest must end in .png, got 'b.gif'"),
        (["--nearest", "folder.png"], "cannot write folder.png: Is a directory"),
        (["--out", "folder.png"], "cannot write folder.png: Is a directory"),
        (["--gif", "folder.gif"], "cannot write folder.gif: Is a directory"),
        (["--device", "moon"], "device must be auto or a device that PyTorch finds here, got 'moon'"),
        (["--guidance", "nan"], "guidance: must be a finite number, got nan"),
    ],
)
def test_what_cannot_be_written_or_used_shows_before_the_work(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("folder.png", "folder.gif"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("axon_ddpm.cli._paint", lambda *given, **options: pytest.fail("the work began"))
    assert main(["sample", str(run), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.gif", "folder.png"]
