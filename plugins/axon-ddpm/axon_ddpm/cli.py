"""`axon sample`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import click
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from axon_core import ContractError, UsageError, validate
from axon_core.checkpoint import claimed_file, writing
from axon_core.cli import ProgressLine, device_option, echo, report_device
from axon_core.training import RunFolder, override, pinned_model_folder
from axon_ddpm.classes import Classes, captions, class_number, listed
from axon_ddpm.dali import Dali
from axon_ddpm.data import PictureConfig, PictureData
from axon_ddpm.pictures import grid, read_picture, save_gif, save_png, to_bytes, to_unit
from axon_ddpm.process import SPACINGS
from axon_ddpm.quality import with_nearest, with_nearest_captions
from axon_ddpm.samplers import Frame

_ANIMATED = 40  # maximum number of frames in an animation
Batch = Callable[[int, int], Generator[Frame]]
"""Yields the frames of a batch, given the number of its first picture and its size."""


@click.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--n", default=64, show_default=True, type=click.IntRange(1), help="How many pictures.")
@click.option("--steps", type=int, help="Steps from noise to picture; by default 50, or all if there are fewer.")
@click.option(
    "--sampler", default="ddim", show_default=True, help="ddpm, ddim, dpm_solver or another installed sampler."
)
@click.option(
    "--set", "options", metavar="A=B", multiple=True, help="An option of the sampler, such as eta=1; repeatable."
)
@click.option(
    "--spacing",
    type=click.Choice([*SPACINGS]),
    help="Which steps to take: equal strides from the end, from the start, end to end, or in log SNR; or strides in "
    "log SNR that are shorter in the middle. By default the sampler decides.",
)
@click.option("--guidance", default=1.0, show_default=True, help="Strength of guidance towards the class; 1 is none.")
@click.option(
    "--class",
    "label",
    metavar="NAME",
    help="The class of all pictures, by name or, unless a name is itself a number, by number; by default each class in "
    "turn. The output and the error for an unknown name list the classes.",
)
@click.option("--image", type=click.Path(path_type=Path), help="A picture to vary.")
@click.option("--mask", type=click.Path(path_type=Path), help="With --image: a picture, white where to repaint.")
@click.option("--to", "other", type=click.Path(path_type=Path), help="With --image: a picture to interpolate to.")
@click.option("--strength", type=float, help="With --image: the share of the steps to run; by default 0.5.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal pictures, for any batch size.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Pictures per batch.")
@click.option("--columns", type=click.IntRange(1), help="Pictures per row; by default the grid is about square.")
@device_option
@click.option(
    "--out", default=Path("grid.png"), show_default=True, type=click.Path(path_type=Path), help="File for the grid."
)
@click.option(
    "--nearest", type=click.Path(path_type=Path), help="Also write each picture beside the nearest training picture."
)
@click.option("--gif", type=click.Path(path_type=Path), help="Also write the sampling as an animation.")
def command(
    run: Path,
    n: int,
    steps: int | None,
    sampler: str,
    options: Sequence[str],
    spacing: str | None,
    guidance: float,
    label: str | None,
    image: Path | None,
    mask: Path | None,
    other: Path | None,
    strength: float | None,
    seed: int,
    batch_size: int,
    columns: int | None,
    device: str,
    out: Path,
    nearest: Path | None,
    gif: Path | None,
) -> None:
    """Paint pictures with the diffusion model in RUN, a run folder or a model folder.

    With --image they are variations of that picture. With --mask too, only the white part of the mask is repainted.
    With --to, they interpolate between the two pictures.
    """
    _check_inputs(image, mask, other, strength)
    _check_outputs({"--out": out, "--nearest": nearest, "--gif": gif}, [image, mask, other])
    if label is not None and guidance == 0:
        raise UsageError(f"--guidance 0 ignores the class, so --class {label} has no effect; leave one of them out")
    how = override({"type": sampler}, options)
    settings = {"sampler": how, "steps": steps, "spacing": spacing, "guidance": guidance}
    report_device(device)
    context = click.get_current_context()
    dali = Dali.load(context.with_resource(pinned_model_folder(run)), seed=seed, **settings)
    dali.model.to(device)
    share = 1.0 if image is None or mask else 0.5 if strength is None else strength
    batch, steps_back = _batch(dali, n, label, image, mask, other, share), dali.steps_back(share)
    train = None if nearest is None else _training_pictures(run)
    for path in (out, nearest, gif):
        if path is not None:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            context.with_resource(claimed_file(path))
    every = -(-steps_back // _ANIMATED) if gif is not None else steps_back
    animation = _paint(batch, n, batch_size, steps_back, every)
    names = [] if guidance == 0 or (label is None and other is not None) else captions(n, dali.class_names, label)
    save_png(grid(animation[-1], columns, captions=names), out)
    echo(f"{_counted(n, 'picture')} in {out}{_of_classes(dali, n, label, in_turn=other is None)}")
    if nearest is not None and train is not None:
        pairs = with_nearest(to_unit(animation[-1]), train)
        save_png(grid(pairs, together=2, captions=with_nearest_captions(names)), nearest)
        echo(f"{_counted(n, 'picture')} beside the nearest training pictures in {nearest}")
    if gif is not None:
        save_gif([grid(frame, columns, captions=names) for frame in animation], gif)
        echo(f"{_counted(len(animation), 'frame')} in {gif}")


def _check_inputs(image: Path | None, mask: Path | None, other: Path | None, strength: float | None) -> None:
    if image is None and (mask or other or strength is not None):
        raise UsageError("--mask, --to and --strength need --image")
    if mask and (other or strength is not None):
        raise UsageError("--mask repaints from noise and excludes --to and --strength; leave them out")


def _check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path | None]) -> None:
    for option, path in outputs.items():
        suffix = ".gif" if option == "--gif" else ".png"
        if path is not None and path.suffix.lower() != suffix:
            raise UsageError(f"{option} must end in {suffix}, got {str(path)!r}")
    files = [path.resolve() for path in (*outputs.values(), *inputs) if path is not None]
    if twice := next((path for path in outputs.values() if path and files.count(path.resolve()) > 1), None):
        raise UsageError(f"each output must be a file that no other option names, got {str(twice)!r} twice")


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}"


def _of_classes(dali: Dali, n: int, label: str | None, *, in_turn: bool) -> str:
    """Return the names of the painted classes, as the end of a sentence."""
    names = dali.class_names
    if label is not None:
        return f", of class {names[class_number(label, names)]}"
    return f", row by row of the classes {listed(names[:n])} in turn" if names and in_turn else ""


def _batch(
    dali: Dali, n: int, label: str | None, image: Path | None, mask: Path | None, other: Path | None, strength: float
) -> Batch:
    """Return the function that paints one batch."""
    known = dali.model.config.n_classes

    def classes(first: int, count: int) -> Classes | None:
        in_turn = label is None and known and other is None
        return [number % known for number in range(first, first + count)] if in_turn else label

    if image is None:
        return lambda first, count: dali.sample(count, classes(first, count), first=first)
    picture = _picture(image, dali)
    if mask is not None:
        white = read_picture(mask, 1)[0] > 127
        if white.shape == picture.shape[-2:] and bool(white.all()):
            echo(f"{mask} is white everywhere, so nothing of {image} is kept", err=True)
        return lambda first, count: dali.inpaint(picture, white, count, classes(first, count), first=first)
    if other is not None:
        end, shares = _picture(other, dali), torch.linspace(0, 1, n, dtype=torch.float32)
        return lambda first, count: dali.interpolate(
            picture, end, shares[first : first + count].tolist(), strength, classes(first, count)
        )
    return lambda first, count: dali.vary(picture, count, strength, classes(first, count), first=first)


def _picture(path: Path, dali: Dali) -> Float[Tensor, "c h w"]:
    return to_unit(read_picture(path, dali.shape[0]))


def _training_pictures(run: Path) -> Float[Tensor, "n c h w"]:
    """Return the training pictures of a run."""
    data = PictureData.load(validate(PictureConfig, RunFolder.open(run).recipe().data))
    return data.unit(data.train.images)


def _paint(batch: Batch, n: int, size: int, each: int, every: int) -> list[UInt8[Tensor, "n c h w"]]:
    """Return the pictures after every `every`-th of `each` steps, including the last; no other frames are stored.

    Raises:
        ContractError: the sampler yields a wrong number of frames.
    """
    starts, done = range(0, n, size), list[list[Tensor]]()
    tell = ProgressLine("painting")
    tell(0, len(starts) * each)
    for number, first in enumerate(starts):
        shown, count = list[Tensor](), 0
        for count, frame in enumerate(batch(first, min(size, n - first)), 1):
            if (each - count) % every == 0:
                shown.append(to_bytes(frame.x).cpu())
            tell(number * each + count, len(starts) * each)
        if count != each:
            raise ContractError(f"`run` of a sampler must yield one frame for each of {each} steps, got {count}")
        done.append(shown)
    return [torch.cat(pieces) for pieces in zip(*done, strict=True)]
