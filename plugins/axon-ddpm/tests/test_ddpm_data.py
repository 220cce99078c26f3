"""Pictures from files: what is read, how it is split and ordered, and what is wrong with bad ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from axon_core import CheckpointError, DataError, validate
from axon_ddpm.data import PictureConfig, PictureData
from axon_ddpm.pictures import grid, read_picture, save_gif, save_png, to_bytes, to_unit


def load(path, **options) -> PictureData:
    return PictureData.load(validate(PictureConfig, {"path": str(path), "held_out": 0.25, **options}))


def put(folder, name, size=(6, 6), mode="RGB", colour=200):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, size, (colour,) * bands if bands > 1 else colour).save(path)
    return path


def test_levels_go_to_the_unit_range_and_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(to_unit(values)), values)
    assert to_unit(torch.tensor([0, 8, 16]), 17).tolist() == [-1, 0, 1]
    assert to_bytes(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def test_digits():
    data = PictureData.load(PictureConfig(path="digits", classes=True))
    assert (len(data.train), len(data.held_out)) == (1617, 180)
    assert data.levels == 17 and data.size == 8 and data.channels == 1 and data.names == tuple("0123456789")
    assert data.train.images.max() == 16 and data.unit(data.train.images).max() == 1
    assert data.held_out.labels.bincount(minlength=10).min() > 5


def test_a_validation_part_of_pictures_has_none_that_are_held_out():
    plain = PictureData.load(PictureConfig(path="digits"))
    data = PictureData.load(PictureConfig(path="digits", validation=0.1))
    assert (len(data.train), len(data.held_out)) == (1455, 162)
    together = torch.cat([data.held_out.images, data.train.images])
    assert torch.equal(together, plain.train.images) and data.digest != plain.digest
    with pytest.raises(DataError, match=r"of which validation 0.0001 leaves 1617 to train on and 0 to evaluate"):
        PictureData.load(PictureConfig(path="digits", validation=0.0001))


def test_a_folder_with_a_subfolder_for_each_class(tmp_path, caplog):
    for i in range(4):
        put(tmp_path, f"cats/{i}.png", colour=10 + i)
        put(tmp_path, f"dogs/{i}.jpg", colour=200 + i)
    put(tmp_path, ".hidden/x.png", (3, 3))
    (tmp_path / "notes.txt").write_text("not a picture")
    data = load(tmp_path, classes=True)
    assert [record.getMessage().partition(" left")[0] for record in caplog.records] == [f"{tmp_path}: notes.txt"]
    assert data.names == ("cats", "dogs") and len(data.train) == 6 and len(data.held_out) == 2
    bright = data.train.images.float().mean(dim=(1, 2, 3)) > 100
    assert torch.equal(bright.long(), data.train.labels)
    assert load(tmp_path).names == ()


def test_the_middle_is_cut_out_and_what_is_transparent_becomes_white(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 250
    Image.fromarray(wide).save(tmp_path / "wide.png")
    middle = read_picture(tmp_path / "wide.png", size=10)
    assert middle.shape == (3, 10, 10) and middle[:, :, 2:8].min() > 200
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png", 3).min() == 255
    assert read_picture(tmp_path / "wide.png", 1).shape == (1, 10, 30)


def test_bad_pictures_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="environment variable that is not set"):
        load("$NO_SUCH_VARIABLE/x.npz")
    with pytest.raises(DataError, match=r"has no pictures: .*\.png.*, but there is no visible file"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(DataError, match=r"there is only notes\.txt"):
        load(tmp_path)
    put(tmp_path, "a.png")
    put(tmp_path, "b.png", (6, 8))
    with pytest.raises(DataError, match=r"b.png is 6×8 with 3 channels and .*a.png 6×6 .*; set data.size"):
        load(tmp_path)
    assert load(tmp_path, size=4, held_out=0.5).size == 4
    put(tmp_path, "b.png", mode="L")
    with pytest.raises(DataError, match=r"number of channels, but .*b.png is 6×6 with 1 channel .*set data.channels"):
        load(tmp_path)
    assert load(tmp_path, channels=1, held_out=0.5).channels == 1
    put(tmp_path, "b.png", mode="RGBA")
    with pytest.raises(DataError, match=r"b.png must be grey or RGB, got the mode RGBA; .*set channels to 1 or 3"):
        load(tmp_path)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"cannot read the picture .*b.png: it is damaged or not a picture"):
        load(tmp_path)
    whole = put(tmp_path, "c.png", (64, 64)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b.png: it is damaged"):
        load(tmp_path)
    for name in ("b.png", "c.png"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"has 1 pictures, of which held_out 0.25 leaves 1 to train on and 0"):
        load(tmp_path)
    put(tmp_path, "b.png")
    with pytest.raises(DataError, match="has no classes"):
        load(tmp_path, classes=True)
    put(tmp_path, "a.png", (6, 8)), put(tmp_path, "b.png", (6, 8))
    with pytest.raises(DataError, match=r"must be squares, but those of .* are 6×8; set data.size"):
        load(tmp_path)


def test_bad_npz_files_are_named(tmp_path):
    file = tmp_path / "x.npz"
    good = np.zeros((8, 4, 4, 3), np.uint8)
    for arrays, message in (
        ({"pictures": good}, "must be an .npz file with an array `images`"),
        ({"images": good.astype(float)}, r"must be uint8 of shape .*got float64 \(8, 4, 4, 3\)"),
        ({"images": good[0, 0]}, r"got uint8 \(4, 3\)"),
        ({"images": good[..., :2]}, "must have 1 or 3 channels, the last axis, got 2"),
        ({"images": good[:0]}, r"got uint8 \(0, 4, 4, 3\)"),
        ({"images": good, "labels": np.zeros(3, int)}, r"must be 8 integers from 0, got int64 \(3,\)"),
        ({"images": good, "labels": np.full(8, -1)}, "must be 8 integers from 0"),
        ({"images": good, "labels": np.arange(1, 9)}, "numbered from 0 without gaps, got 8 different ones up to 8"),
        ({"images": np.array([{}], object)}, "cannot read"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(DataError, match=message):
            load(file, classes=True)
        if "labels" in arrays:  # which nobody asked for
            assert load(file).names == ()
    file.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match="cannot read"):
        load(file)
    np.savez(file, images=good[..., 0])
    assert load(file).channels == 1


def test_grids_and_animations(tmp_path):
    images = torch.arange(5, dtype=torch.uint8).mul(40).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    sheet = grid(images, cell=6)
    assert sheet.shape == (3, 13, 20)  # two rows of three: cells of 6 and lines of 1
    assert sheet[0, 7, 7] == 160 and sheet[0, 0, 6] == 255 and sheet[0, 7, 14] == 255
    save_png(sheet, tmp_path / "deep/grid.png")
    assert torch.equal(read_picture(tmp_path / "deep/grid.png"), sheet)
    with pytest.raises(CheckpointError):  # of a run that was moved, no folder is made again
        save_png(sheet, tmp_path / "moved/samples/grid.png")
    assert not (tmp_path / "moved").exists()
    save_gif([sheet, 255 - sheet, sheet], tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as animation:
        assert animation.n_frames == 3 and animation.size == (20, 13)


def test_grey_pictures_of_16_bits_keep_their_upper_8(tmp_path):
    array = np.array([[0, 128 * 256], [255 * 256 + 255, 77 * 256 + 200]], np.uint16)
    Image.fromarray(array).save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").tolist() == [[[0, 128], [255, 77]]]
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "y.tif")
    with pytest.raises(DataError, match="has values of 32 bits"):
        read_picture(tmp_path / "y.tif", 1)


def test_a_picture_stands_the_way_up_that_its_camera_noted(tmp_path):
    picture = Image.new("RGB", (16, 8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").shape == (3, 16, 8)


def test_resized_digits_stay_within_their_levels():
    data = PictureData.load(PictureConfig(path="digits", size=16))
    assert int(data.train.images.max()) == 16 and float(data.unit(data.train.images).max()) == 1


def test_a_failed_write_leaves_the_picture_that_was_there(tmp_path, monkeypatch):
    place = tmp_path / "x.png"
    place.write_bytes(b"a picture")
    monkeypatch.setattr(Image.Image, "save", lambda self, path, **options: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CheckpointError, match=r"cannot write .*x\.png"):
        save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), place)
    assert place.read_bytes() == b"a picture" and list(tmp_path.iterdir()) == [place]


def test_a_palette_with_transparent_entries(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "some.png", transparency=bytes([255, 0]))
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "none.png")
    red, green = [200, 10, 10], [10, 200, 10]
    for name, second in (("some", [255] * 3), ("one", [255] * 3), ("none", green)):
        for channels in (None, 3):
            found = read_picture(tmp_path / f"{name}.png", channels)
            assert found.permute(1, 2, 0).tolist() == [[red, second]], name


def test_notes_of_a_camera_that_are_cut_off_are_named(tmp_path):
    picture = Image.new("RGB", (16, 8))
    exif = picture.getexif()
    exif[0x0112] = 6
    for end in range(7, 14):  # within their head
        picture.save(tmp_path / "x.jpg", exif=exif.tobytes()[:end])
        with pytest.raises(DataError, match=r"x.jpg: it is damaged"):
            read_picture(tmp_path / "x.jpg")


def test_options_that_cannot_apply_are_refused_or_told(tmp_path, monkeypatch, caplog):
    np.savez(tmp_path / "x.npz", images=np.zeros((8, 4, 4), np.uint8))
    assert load(tmp_path / "x.npz", channels=1).channels == 1
    for path in (tmp_path / "x.npz", "digits"):
        with pytest.raises(
            DataError, match=r"data.channels 3 converts only .* a folder, and those of .* have 1; leave"
        ):
            load(path, channels=3)
    monkeypatch.chdir(tmp_path)
    assert load("digits").levels == 17 and not caplog.records
    for i in range(4):
        put(tmp_path, f"digits/{i}.png")
    assert load("digits").levels == 17 and "the folder of that name here is ./digits" in caplog.text
    assert load("./digits").levels == 256


def test_damaged_and_gappy_npz_files_are_named(tmp_path):
    file, images = tmp_path / "x.npz", np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez_compressed(file, images=images)
    whole = file.read_bytes()
    for place in range(60, len(whole) - 200, 97):
        file.write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
        try:
            PictureData.load(PictureConfig(path=str(file)))
        except DataError as error:
            assert "x.npz" in str(error)
    np.savez(file, images=images, labels=np.array([0, 100_000] * 20))
    with pytest.raises(DataError, match="numbered from 0 without gaps, got 2 different ones up to 100000"):
        PictureData.load(PictureConfig(path=str(file), classes=True))
