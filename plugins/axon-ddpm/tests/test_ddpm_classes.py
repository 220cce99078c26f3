"""Classes keep their meaning: the order of their names, in the data, the saved model, a resumed run and `--class`."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from axon_core import ConfigError, DataError, UsageError, validate
from axon_core.cli import main
from axon_core.training import build_trainer, fit
from axon_ddpm import Dali, Diffusion, UNet
from axon_ddpm.classes import class_number, in_order, listed
from axon_ddpm.data import PictureConfig, PictureData


def folders(place, names):
    """Make a folder of grey pictures for each name, brighter by 20 with each."""
    for brightness, name in enumerate(names):
        (place / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 20 * brightness, np.uint8)).save(place / name / f"{i}.png")
    return place


def load(place, names=(), **options):
    config = {"path": str(place), "classes": True, "held_out": 0.3, **options}
    return PictureData.load(validate(PictureConfig, config), names)


def brightness(data):
    """Return which picture has which label: label -> brightness."""
    images = torch.cat((data.train.images, data.held_out.images))[:, 0, 0, 0] // 20
    return dict(zip(torch.cat((data.train.labels, data.held_out.labels)).tolist(), images.tolist(), strict=True))


def test_whole_numbers_are_in_the_order_of_their_values():
    assert in_order(map(str, range(120))) == tuple(map(str, range(120)))
    assert in_order(["b10", "10", "a", "-1", "02", "2", "1.5", "2"]) == ("-1", "02", "2", "10", "1.5", "a", "b10")


def test_the_folder_of_a_number_has_that_label(tmp_path):
    data = load(folders(tmp_path, [str(i) for i in range(12)]))
    assert data.names == tuple(map(str, range(12)))
    assert brightness(data) == {i: i for i in range(12)}


def test_names_of_a_trained_model_keep_their_numbers(tmp_path):
    folders(tmp_path, ["a", "b", "c"])
    data = load(tmp_path, ("x", "c", "a", "b"))
    assert data.names == ("x", "c", "a", "b") and brightness(data) == {2: 0, 3: 1, 1: 2}
    with pytest.raises(DataError, match="has a class 'b', but the model was trained with a, c; remove it, or start"):
        load(tmp_path, ("a", "c"))
    with pytest.raises(DataError, match=r"trained with the classes a, b, c, but data\.classes is now false"):
        load(tmp_path, ("a", "b", "c"), classes=False)


def test_a_name_that_cannot_be_written_is_refused(tmp_path):
    folders(tmp_path, ["a", "b\x1b[2J"])
    with pytest.raises(DataError, match=re.escape(r"the name of a class must be printable, got")):
        load(tmp_path)
    assert load(tmp_path, classes=False).names == ()


def test_a_class_is_found_by_name_and_by_number_only_where_that_is_clear():
    pets, years = ("cats", "dogs"), ("1", "2", "10")
    assert [class_number(label, pets) for label in ("dogs", "1", 1, "0")] == [1, 1, 1, 0]
    assert [class_number(label, years) for label in ("1", "10", 0)] == [0, 2, 0]
    for label, names, message in (
        ("0", years, "the classes of this model are 1, 2, 10, got '0'"),
        (3, years, "the classes of this model are 1, 2, 10, numbered 0 to 2, got 3"),
        (-1, pets, "the classes of this model are cats, dogs, numbered 0 to 1, got -1"),
        ("2", pets, "numbered 0 to 1, got 2"),
        ("cat", pets, "the classes of this model are cats, dogs, got 'cat'; did you mean 'cats'?"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            class_number(label, names)
    assert listed([str(i) for i in range(1000)]).endswith("18, 19 and 980 more")


def test_names_are_saved_kept_on_resume_shown_and_accepted(recipe, tmp_path, capsys, monkeypatch):
    data, run = folders(tmp_path / "data", ["dogs", "ants", "cats"]), tmp_path / "run"
    plan = recipe({"path": str(data), "classes": True, "held_out": 0.3})
    fit(build_trainer(plan), run, recipe={"name": plan.name, **plan.tables}, stop_at=2)
    model = next((run / "checkpoints").glob("step-*")) / "model"
    saved = json.loads((model / "diffusion.json").read_text())
    assert saved["class_names"] == ["ants", "cats", "dogs"]
    assert build_trainer(plan, model).data.names == ("ants", "cats", "dogs")

    other = shutil.copytree(model, tmp_path / "other")
    (other / "manifest.json").unlink()
    (other / "diffusion.json").write_text(json.dumps({**saved, "class_names": ["dogs", "ants", "cats"]}))
    again = build_trainer(plan, other)  # as it was trained, whatever the order would be today
    assert again.data.names == again.diffusion.config.class_names == ("dogs", "ants", "cats")
    assert brightness(again.data) == {0: 0, 1: 1, 2: 2}

    fit(build_trainer(plan), run, recipe={"name": plan.name, **plan.tables}, resume=True)
    monkeypatch.chdir(tmp_path)

    def sample(*arguments):
        code = main(["sample", str(run), "--steps", "2", *arguments])
        found = capsys.readouterr()
        return code, found.out + found.err

    code, said = sample("--n", "2", "--class", "cats", "--out", "name.png")
    assert code == 0 and "2 pictures in name.png, of class cats" in said
    code, said = sample("--n", "2", "--class", "1", "--out", "number.png")
    assert code == 0 and "2 pictures in number.png, of class cats" in said
    assert (tmp_path / "name.png").read_bytes() == (tmp_path / "number.png").read_bytes()
    code, said = sample("--n", "2")
    assert code == 0 and "2 pictures in grid.png, row by row of the classes ants, cats in turn" in said
    code, said = sample("--class", "birds")
    assert code == 2 and "the classes of this model are ants, cats, dogs, got 'birds'" in said


def test_names_that_do_not_fit_the_model_are_refused(stirred):
    model = stirred(UNet.build(size=8, width=8, groups=4, multipliers=(1,), n_classes=2)).eval()
    chain = {"type": "cosine", "steps": 4}
    with pytest.raises(UsageError, match="as many classes as the model has, 2, got 3 class_names"):
        Dali(model, Diffusion.build(schedule=chain, class_names=("a", "b", "c")), Dali.Config())
    with pytest.raises(ConfigError, match="each class must have its own name, got 'a' more than once"):
        Diffusion.build(class_names=("a", "a"))
    assert Dali(model, Diffusion.build(schedule=chain), Dali.Config()).class_names == ("0", "1")
    dali = Dali(model, Diffusion.build(schedule=chain, class_names=("a", "b")), Dali.Config(steps=2))
    by_name, by_number = ([frame.x for frame in dali.sample(2, label)][-1] for label in (["b", "a"], [1, 0]))
    assert torch.equal(by_name, by_number)
    assert not torch.equal(by_name, [frame.x for frame in dali.sample(2, "a")][-1])
