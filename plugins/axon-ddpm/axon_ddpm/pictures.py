"""Pictures as tensors: to and from files, laid out in a grid, and as an animation."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from axon_core import DataError, UsageError
from axon_core.checkpoint import atomic_file, writing

__all__ = ["encoded", "encoded_gif", "fitted", "grid", "read_picture", "save_gif", "save_png", "to_bytes", "to_unit"]

_CAPTION = 14  # height of a line of text, in pixels
_MODES = {1: "L", 3: "RGB"}
_DAMAGED = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    Image.DecompressionBombError,
)  # how pillow reports a damaged picture, its metadata included


def to_unit(images: UInt8[Tensor, "... c h w"], levels: int = 256) -> Float[Tensor, "... c h w"]:
    """Return values 0 … levels − 1 over [−1, 1]."""
    return images.float() * (2 / (levels - 1)) - 1


def to_bytes(images: Float[Tensor, "... c h w"]) -> UInt8[Tensor, "... c h w"]:
    """Return values over [−1, 1] as 0 … 255; values beyond are clipped."""
    return (images.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)


def grid(
    images: UInt8[Tensor, "b c h w"],
    columns: int | None = None,
    *,
    together: int = 1,
    cell: int = 48,
    captions: Sequence[str] = (),
) -> UInt8[Tensor, "c height width"]:
    """Return the pictures side by side, in rows of `columns`, with a white line between them.

    Small pictures are enlarged to about `cell` pixels, each pixel becoming a square. By default there are about as many
    rows as columns, where `together` adjacent pictures count as one column. `captions`, if given, are one per picture,
    and are written below it in black on white; text wider than the picture is cut off.

    Raises:
        UsageError: there are captions, but not one for each picture.
    """
    b, c, h, w = images.shape
    if captions and len(captions) != b:
        raise UsageError(f"captions must be one for each picture, got {len(captions)} for {b}")
    columns = columns or together * math.ceil(math.sqrt(b / together))
    rows, scale = math.ceil(b / columns), max(1, round(cell / h))
    high, wide, strip = h * scale, w * scale, _CAPTION if captions else 0
    sheet = torch.full((rows, columns, c, high + strip + 1, wide + 1), 255, dtype=torch.uint8)
    cells = sheet.flatten(0, 1)
    cells[:b, :, :high, :wide] = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    for place, text in zip(cells, captions, strict=False):
        place[:, high : high + strip, :wide] = _caption(text, wide)
    return sheet.permute(2, 0, 3, 1, 4).reshape(c, rows * (high + strip + 1), columns * (wide + 1))[:, :-1, :-1]


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return matplotlib's font, which covers many languages, or pillow's own if it is not installed."""
    found = find_spec("matplotlib")
    for place in (found.submodule_search_locations or ()) if found else ():
        with suppress(OSError, ImportError):
            return ImageFont.truetype(Path(place, "mpl-data/fonts/ttf/DejaVuSans.ttf"), 10)
    return ImageFont.load_default()


@cache
def _caption(text: str, width: int) -> UInt8[Tensor, "height width"]:
    """Return a line of text, centred on a white strip."""
    image = Image.new("L", (width, _CAPTION), 255)
    draw, font = ImageDraw.Draw(image), _font()
    if isinstance(font, ImageFont.ImageFont):  # pillow without FreeType, whose font has only Latin letters
        text = text.encode("latin-1", "replace").decode("latin-1")
    while text and draw.textlength(text, font=font) > width:
        text = text[:-1]
    draw.text(((width - draw.textlength(text, font=font)) // 2, 0), text, fill=0, font=font)
    return torch.from_numpy(np.array(image))


def save_png(picture: UInt8[Tensor, "c h w"], path: Path) -> None:
    """Write a PNG. Raises `CheckpointError` if it cannot be written."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)  # not those above: a run that was moved is not made again
    with atomic_file(path) as draft:
        draft.write_bytes(encoded(picture))


def save_gif(frames: Sequence[UInt8[Tensor, "c h w"]], path: Path, *, milliseconds: int = 80) -> None:
    """Write an animation that rests on its last frame. Raises `CheckpointError` if it cannot be written."""
    data = encoded_gif(frames, milliseconds=milliseconds)
    with writing(path):
        path.parent.mkdir(exist_ok=True)  # not those above: a run that was moved is not made again
    with atomic_file(path) as draft:
        draft.write_bytes(data)


def encoded(picture: UInt8[Tensor, "c h w"]) -> bytes:
    """Return the bytes of a PNG."""
    data = io.BytesIO()
    _image(picture).save(data, format="PNG")
    return data.getvalue()


def encoded_gif(frames: Sequence[UInt8[Tensor, "c h w"]], *, milliseconds: int = 80) -> bytes:
    """Return the bytes of an animation that rests on its last frame."""
    first, *rest = map(_image, frames)
    durations, data = [milliseconds] * len(rest) + [2000], io.BytesIO()
    first.save(data, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return data.getvalue()


def read_picture(path: Path, channels: int | None = None, size: int | None = None) -> UInt8[Tensor, "c h w"]:
    """Return the picture in a file, with 1 channel (grey) or 3 (colour), the way up that its camera recorded.

    Transparent pixels become white; 16-bit grey values keep their upper 8 bits.

    Args:
        path: a PNG, JPEG or any other file pillow reads.
        channels: how many the result has; by default as many as the file.
        size: see `fitted`; by default the picture keeps its size.

    Raises:
        DataError: the file is missing, is not a picture, has channels other than grey or colour, or has 32-bit values.
    """
    try:
        with Image.open(path) as opened:
            mode = opened.palette.mode if opened.mode == "P" and opened.palette else opened.mode
            clear = opened.mode == "P" and "transparency" in opened.info
            image = ImageOps.exif_transpose(opened.convert("RGBA" if clear else mode))
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged or not a picture"
        raise DataError(f"cannot read the picture {path}: {reason}; repair or remove it") from None
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} has values of 32 bits, which have no defined white; save it with 8 or 16 bits per channel"
        )
    if channels is None:
        channels = {"L": 1, "1": 1, "RGB": 3}.get(image.mode if mode.startswith("I;16") else mode)
        if channels is None:
            raise DataError(f"{path} must be grey or RGB, got the mode {mode}; convert it, or set channels to 1 or 3")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(_MODES[channels])
    return _tensor(image if size is None else fitted(image, size))


def fitted(image: Image.Image, size: int) -> Image.Image:
    """Return the picture resized so that its shorter side is `size`, then cropped to the square in its middle."""
    w, h = image.size
    factor = size / min(w, h)
    resized = image.resize((max(size, round(w * factor)), max(size, round(h * factor))), Image.Resampling.LANCZOS)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def resized(picture: UInt8[Tensor, "c h w"], size: int) -> UInt8[Tensor, "c s s"]:
    """Return the picture `fitted` to a size."""
    return _tensor(fitted(_image(picture), size))


def _image(picture: UInt8[Tensor, "c h w"]) -> Image.Image:
    array = picture.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _tensor(image: Image.Image) -> UInt8[Tensor, "c h w"]:
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
