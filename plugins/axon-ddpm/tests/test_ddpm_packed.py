"""An .npz file of any content is refused with a message."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from axon_core import DataError
from axon_ddpm.data import PictureConfig, PictureData


def load(file: Path) -> PictureData:
    return PictureData.load(PictureConfig(path=str(file)))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, images=np.zeros((100_000, 28, 28), np.uint8))
    with pytest.raises(DataError, match="100 times"):
        load(file)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\0" * 200, b"x"])
def test_members_that_are_empty_or_damaged_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("images.npy", content)
    with pytest.raises(DataError, match=r"x\.npz"):
        load(file)


@pytest.mark.parametrize(
    "shape", ["(1000000000000, 1000, 1000)", "(-1, 2, 2)", "(2, 0, 0)", "()", "[[[[[", "(10**40,)"]
)
def test_shapes_that_are_none_are_named(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    stream = io.BytesIO(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8)
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("images.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"x\.npz"):
        load(file)
