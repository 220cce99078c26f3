"""Sheets of samples say of which class each picture is."""

import json

import numpy as np
import pytest
import torch

from axon_core import DataError, UsageError
from axon_core.cli import main
from axon_core.training import build_trainer, fit
from axon_ddpm.data import PictureConfig, PictureData
from axon_ddpm.pictures import grid, read_picture

CELL, LINE = 48, 14


def strips(sheet, columns, captions):
    """Return what stands below each picture of a sheet, and check that all else is as without captions."""
    rows = (sheet.shape[1] + 1) // (CELL + LINE + 1)
    found = []
    for i in range(captions):
        top, left = i // columns * (CELL + LINE + 1) + CELL, i % columns * (CELL + 1)
        found.append(sheet[:, top : top + LINE, left : left + CELL])
    assert sheet.shape[1:] == (rows * (CELL + LINE + 1) - 1, columns * (CELL + 1) - 1)
    return found


def test_each_picture_has_its_caption_below_it():
    images = torch.full((5, 3, 8, 8), 128, dtype=torch.uint8)
    names = ["cats", "dogs", "cats", "", "a name far too long for its picture"]
    sheet = grid(images, 3, captions=names)
    below = strips(sheet, 3, 5)
    assert all(torch.equal(strip[0], strip[1]) and torch.equal(strip[0], strip[2]) for strip in below)  # grey
    dark = [(strip[0] < 128).sum().item() for strip in below]
    assert dark[0] > 20 and dark[1] > 20 and dark[3] == 0
    assert torch.equal(below[0], below[2]) and not torch.equal(below[0], below[1])
    assert dark[4] > dark[0] and (below[4][0, :, 0] < 255).sum() <= LINE  # cut off, not drawn over the next
    plain = grid(images, 3)
    for row in range(2):
        top = row * (CELL + LINE + 1)
        assert torch.equal(sheet[:, top : top + CELL], plain[:, row * (CELL + 1) : row * (CELL + 1) + CELL])
    with pytest.raises(UsageError, match="captions must be one for each picture, got 2 for 5"):
        grid(images, captions=["a", "b"])
    assert grid(images[:, :1], captions=["猫"] * 5).shape[0] == 1  # whatever the font has of it


@pytest.fixture(scope="module")
def named(pictures, tmp_path_factory):
    """The pictures of three classes, with the classes' names."""
    with np.load(pictures) as arrays:
        found = dict(arrays)
    path = tmp_path_factory.mktemp("named") / "named.npz"
    np.savez(path, **found, label_names=np.array(["red", "green", "blue"]))
    return path


def test_an_npz_file_may_name_its_classes(named, tmp_path):
    assert PictureData.load(PictureConfig(path=str(named), classes=True)).names == ("red", "green", "blue")
    assert PictureData.load(PictureConfig(path=str(named))).names == ()
    with np.load(named) as arrays:
        found = dict(arrays)
    found.pop("label_names")
    for names, message in (
        (["a", "b"], r"a text for each of the 3 classes, got <U1 \(2,\)"),
        ([1, 2, 3], "a text for each of the 3 classes, got int64"),
        (["a", "b", "a"], "must be printable and different, got 'a'"),
        (["a", "b", "c\x1b"], "must be printable and different"),
    ):
        np.savez(tmp_path / "x.npz", **found, names=np.array(names))
        with pytest.raises(DataError, match=message):
            PictureData.load(PictureConfig(path=str(tmp_path / "x.npz"), classes=True))
    np.savez(tmp_path / "x.npz", **found, names=np.array([b"r", b"g", b"b"]))
    assert PictureData.load(PictureConfig(path=str(tmp_path / "x.npz"), classes=True)).names == ("r", "g", "b")


def test_sheets_of_a_training_and_of_sample_are_captioned(named, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = recipe({"path": str(named), "classes": True}, steps=1, compared=4, grid=4)
    trainer = build_trainer(made)
    run = fit(trainer, tmp_path / "run", recipe={"name": "tiny", **made.tables}).run
    assert run is not None
    expected = strips(grid(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), captions=["red", "green", "blue", "red"]), 2, 4)
    sheet = read_picture(run.path / "samples/step-1.png")
    assert all(map(torch.equal, strips(sheet, 2, 4), expected))
    (beside,) = (run.path / "samples").glob("nearest-*.png")
    asked = [trainer.data.names[label] for label in trainer.data.held_out.labels.tolist()]
    captions = [text for name in asked for text in (name, "nearest")]
    blank = torch.zeros(len(captions), 3, 8, 8, dtype=torch.uint8)
    columns = (read_picture(beside).shape[2] + 1) // (CELL + 1)
    assert all(
        map(
            torch.equal,
            strips(read_picture(beside), columns, len(captions)),
            strips(grid(blank, columns, captions=captions), columns, len(captions)),
        )
    )
    assert main(["sample", "run", "--n", "4", "--steps", "2"]) == 0
    assert all(map(torch.equal, strips(read_picture(tmp_path / "grid.png"), 2, 4), expected))
    assert main(["sample", "run", "--n", "4", "--steps", "2", "--class", "blue"]) == 0
    blue = strips(grid(blank[:1], captions=["blue"]), 1, 1) * 4
    assert all(map(torch.equal, strips(read_picture(tmp_path / "grid.png"), 2, 4), blue))
    assert main(["sample", "run", "--n", "4", "--steps", "2", "--guidance", "0"]) == 0
    assert read_picture(tmp_path / "grid.png").shape == (3, 2 * 49 - 1, 2 * 49 - 1)  # no class was asked for


def test_info_of_a_run_shows_what_the_numbers_of_classes_stand_for(named, recipe, tmp_path, capsys):
    made = recipe({"path": str(named), "classes": True}, steps=1)
    fit(build_trainer(made), tmp_path / "run", recipe={"name": "tiny", **made.tables})
    assert main(["info", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "of the recipe tiny" in said and "model: UNet, " in said
    rows = [line.split() for line in said[said.index("number") :].splitlines() if line]
    assert [row for row in rows if row[0].isdecimal()] == [["0", "red"], ["1", "green"], ["2", "blue"]]
    assert main(["info", str(tmp_path / "run"), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["names"] == {"classes": ["red", "green", "blue"]} and record["model"]["config"]["n_classes"] == 3
