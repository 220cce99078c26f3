"""Picture data from a folder, an .npz file or scikit-learn's digits: split, and sampled in a resumable order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, PositiveInt
from torch import Tensor

from axon_core import DataError, Key, check_unpacked, config, data_files, expanded, printable
from axon_core.checkpoint import digest
from axon_core.registry import install_line
from axon_ddpm.classes import in_order, listed
from axon_ddpm.pictures import read_picture, resized, to_unit

__all__ = ["PictureConfig", "PictureData"]

_log = logging.getLogger("axon")

_NAMES = ("names", "label_names")
_MEMBERS = tuple(f"{member}.npy" for member in ("images", "labels", *_NAMES))
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"})


class PictureConfig(config.Config):
    """The `[data]` table of a recipe whose data are pictures."""

    path: str
    """A folder of pictures; an .npz file with `images` (n h w c or n h w, uint8) and, with classes, `labels` and
    perhaps `names` or `label_names`, a text for each class; or the word `digits`, for scikit-learn's (a folder of that
    name is `./digits`). `~` and `$VARIABLES` are filled in."""
    size: PositiveInt | None = None
    """Height and width: pictures are resized by their shorter side, and their middle is cut out. Left out, all must be
    squares of one size."""
    channels: Literal[1, 3] | None = None
    """Grey or colour, to which the pictures of a folder are converted; left out, all must have as many as the first.
    Other pictures are not converted."""
    classes: bool = False
    """Whether the pictures have classes: `labels` in an .npz file, the subfolder in a folder, the digit of digits.
    Subfolders are numbered in the order of their names: whole numbers by value, then the others as text."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the pictures, chosen at random, that is held out of training and used for evaluation."""
    validation: float | None = Field(default=None, gt=0, lt=1)
    """The share of the others that is not trained on either and that evaluation reads instead of those held out, which
    then take no part: to choose settings by. Left out, none."""


@dataclass(frozen=True)
class _Raw:
    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None = None
    names: tuple[str, ...] = ()
    levels: int = 256


@dataclass(frozen=True)
class PictureSplit:
    """Some of the pictures."""

    images: UInt8[Tensor, "n c h w"]
    """Values 0 … levels − 1."""
    labels: Int[Tensor, " n"]
    """Their classes; all 0 if there are none."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PictureData:
    """Square pictures of one size: those to train on and those held out.

    Attributes:
        train: the pictures to train on.
        held_out: the others.
        names: names of the classes by number; empty if there are none.
        levels: how many values a channel of a pixel can take.
    """

    train: PictureSplit
    held_out: PictureSplit
    names: tuple[str, ...]
    levels: int

    @property
    def size(self) -> int:
        """Height and width."""
        return self.train.images.shape[-1]

    @property
    def channels(self) -> int:
        """Channels of a picture."""
        return self.train.images.shape[1]

    @property
    def digest(self) -> str:
        """A checksum that changes with the pictures or their classes."""
        parts = ((part.images, part.labels) for part in (self.train, self.held_out))
        return digest(*parts, self.names, self.levels)

    @classmethod
    def load(cls, config: PictureConfig, names: Sequence[str] = ()) -> Self:
        """Read the pictures.

        `names` are the classes that a model already knows, by number; equal names keep their numbers.

        Raises:
            DataError: they are missing, unreadable, too few, or of several sizes or channels; or they have no classes,
                or one that is not in `names`.
        """
        raw = _digits() if config.path == "digits" else _read(config)
        images, labels = raw.images, raw.labels
        if config.channels not in (None, images.shape[1]):
            raise DataError(
                f"data.channels {config.channels} converts only pictures of a folder, and those of {config.path} "
                f"have {images.shape[1]}; leave it out"
            )
        if config.size is not None and images.shape[-2:] != (config.size, config.size):
            images = torch.stack([resized(image, config.size) for image in images]).clamp(max=raw.levels - 1)
        if images.shape[-1] != images.shape[-2]:
            raise DataError(
                f"pictures must be squares, but those of {config.path} are {images.shape[-1]}×{images.shape[-2]}; "
                "set data.size to crop and resize them"
            )
        if config.classes and labels is None:
            raise DataError(
                f"{config.path} has no classes: an .npz file needs `labels`, a folder a subfolder for each class; "
                "set data.classes to false to train without classes"
            )
        if labels is None or not config.classes:
            labels, raw = torch.zeros(len(images), dtype=torch.long), _Raw(images, levels=raw.levels)
        labels, known = _renumbered(labels, raw.names, names, config.path) if names else (labels, raw.names)
        order = torch.randperm(len(images), generator=Key(("held out",)).generator())
        evaluated, trained = _divided(order, config, "held_out")
        if config.validation is not None:
            evaluated, trained = _divided(trained, config, "validation")
        parts = [PictureSplit(images[part], labels[part]) for part in (trained, evaluated)]
        return cls(*parts, names=known, levels=raw.levels)

    def unit(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return pictures over [−1, 1]."""
        return to_unit(images, self.levels)


def _divided(
    order: Int[Tensor, " n"], config: PictureConfig, name: Literal["held_out", "validation"]
) -> tuple[Int[Tensor, " m"], Int[Tensor, " k"]]:
    """Return the first pictures in an order, the share that the setting `name` says, and the others."""
    share = getattr(config, name)
    size = round(share * len(order))
    if not 0 < size < len(order):
        raise DataError(
            f"{config.path} has {len(order)} pictures, of which {name} {share:g} leaves {len(order) - size} to train "
            f"on and {size} to evaluate; give more pictures"
        )
    return order[:size], order[size:]


def _renumbered(
    labels: Int[Tensor, " n"], names: Sequence[str], known: Sequence[str], path: str
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Return the labels as indices into `known` instead of `names`."""
    if other := next((name for name in names if name not in known), None):
        raise DataError(
            f"{path} has a class {other!r}, but the model was trained with {listed(known)}; remove it, or start a "
            "new run"
        )
    if not names:
        raise DataError(f"the model was trained with the classes {listed(known)}, but data.classes is now false")
    return torch.tensor([known.index(name) for name in names])[labels], tuple(known)


def _digits() -> _Raw:
    if Path("digits").is_dir():
        _log.warning("data.path digits means scikit-learn's digits; the folder of that name here is ./digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            f"the digits are scikit-learn's, which is not installed: {install_line('axon-ddpm', 'digits')}"
        ) from None
    found: Any = load_digits()
    images = torch.from_numpy(found.images.astype(np.uint8))[:, None]
    return _Raw(images, torch.from_numpy(found.target).long(), tuple("0123456789"), levels=17)


def _read(config: PictureConfig) -> _Raw:
    place = expanded(config.path)
    if not place.exists():
        raise DataError(f"no such file or folder: {place} (current folder: {Path.cwd()})")
    return _folder(place, config) if place.is_dir() else _npz(place, classes=config.classes)


def _npz(file: Path, *, classes: bool) -> _Raw:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files") or "images" not in arrays:
                raise DataError(f"{file} must be an .npz file with an array `images`")
            sizes = [info.file_size for info in arrays.zip.infolist() if info.filename in _MEMBERS]
            check_unpacked(sum(sizes), file.stat().st_size, file)
            images = arrays["images"]
            labels = arrays["labels"] if classes and "labels" in arrays else None
            names = next((arrays[name] for name in _NAMES if classes and name in arrays), None)
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile report a damaged file in a dozen ways
        raise DataError(
            f"cannot read {file}: {str(error) or 'it is damaged'}; give an .npz file with an array `images`, or a "
            "folder"
        ) from None
    if not all(isinstance(array, np.ndarray) for array in (images, labels, names) if array is not None):
        raise DataError(f"cannot read {file}: a member is damaged; give an .npz file with an array `images`")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"`images` of {file} must be uint8 of shape (n, h, w) or (n, h, w, c), got {images.dtype} {images.shape}"
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise DataError(f"the pictures of {file} must have 1 or 3 channels, the last axis, got {images.shape[-1]}")
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    if labels is None:
        return _Raw(tensor)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(f"`labels` of {file} must be {len(images)} integers from 0, got {labels.dtype} {labels.shape}")
    if (known := len(np.unique(labels))) != int(labels.max()) + 1:
        raise DataError(
            f"`labels` of {file} must be numbered from 0 without gaps, got {known} different ones up to {labels.max()}"
        )
    return _Raw(tensor, torch.from_numpy(labels.astype(np.int64)), _class_names(names, known, file))


def _class_names(given: np.ndarray | None, number: int, file: Path) -> tuple[str, ...]:
    """Return the class names of an .npz file, by number: those it holds, or else the numbers."""
    if given is None:
        return tuple(map(str, range(number)))
    if given.dtype.kind not in "US" or given.shape != (number,):
        raise DataError(
            f"`names` of {file} must be a text for each of the {number} classes, got {given.dtype} {given.shape}"
        )
    names = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in given.tolist())
    if odd := next((name for name in names if not name or not name.isprintable() or names.count(name) > 1), None):
        raise DataError(f"`names` of {file} must be printable and different, got {printable(odd)!r}")
    return names


def _folder(folder: Path, config: PictureConfig) -> _Raw:
    files = data_files(folder, "pictures", _SUFFIXES)
    images: list[Tensor] = []
    for file in files:
        image = read_picture(file, config.channels, config.size)
        if images and image.shape != images[0].shape:
            what = "channels" if image.shape[0] != images[0].shape[0] else "size"
            raise DataError(
                f"all pictures must have the same {'number of ' if what == 'channels' else ''}{what}, but {file} is "
                f"{_shape(image)} and {files[0]} {_shape(images[0])}; set data.{what} to convert them"
            )
        images.append(image)
    parents = [file.relative_to(folder).parts[0] if file.parent != folder else None for file in files]
    if None in parents:
        return _Raw(torch.stack(images))
    names = in_order(map(str, parents))
    if config.classes and (odd := next((name for name in names if not name.isprintable()), None)):
        raise DataError(f"the name of a class must be printable, got {printable(odd)!r} in {folder}; rename the folder")
    number = {name: i for i, name in enumerate(names)}
    return _Raw(torch.stack(images), torch.tensor([number[str(name)] for name in parents]), names)


def _shape(image: Tensor) -> str:
    c, h, w = image.shape
    return f"{w}×{h} with {c} channel{'s' if c > 1 else ''}"
