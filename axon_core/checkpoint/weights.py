"""Weights without waste: models built before their weights are there, and files read one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

from axon_core.checkpoint.overlays import WeightChange
from axon_core.checkpoint.sizes import Bound
from axon_core.checkpoint.tensor_files import read_header

__all__ = ["dtypes", "give", "load_weights", "misfit", "read_tensor", "sizes", "tensors_once", "weightless"]


@contextmanager
def weightless(within: Collection[int] | None = None) -> Generator[None]:
    """Build modules whose parameters have a shape but no memory: they are on the meta device, and never initialised.

    Only parameters are: a buffer or a constant that a module computes for itself, and that no file holds, is real.
    With `within`, the numbers of each tensor in a file, a model much larger than those is refused (`Bound`).

    Raises:
        CheckpointError: in the block, if the model outgrows `within`.

    >>> with weightless():
    ...     layer = nn.Linear(1000, 1000)
    >>> layer.weight.device
    device(type='meta')
    """
    moved = WeakTensorKeyDictionary()  # a parameter of two modules stays one
    bound = None if within is None else Bound(within)

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        if parameter not in moved:
            moved[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            if bound is not None:
                bound.count(parameter)
        return moved[parameter]

    handle = register_module_parameter_registration_hook(to_meta)  # pyright: ignore[reportArgumentType] - it may return
    try:
        with bound or nullcontext():
            yield
    finally:
        handle.remove()


def misfit(model: nn.Module, file: Path) -> str | None:
    """Return in words how the tensors of a safetensors file are not the model's, or None. Reads the header alone.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: it is damaged or cut off.
    """
    _, entries, _ = read_header(file)
    for names, tensor in _shared(model):
        kept = next((name for name in names if name in entries), None)
        if kept is None:
            return f"{names[0]} is missing"
        if (shape := tuple(entries.pop(kept)["shape"])) != tensor.shape:
            return f"{kept} must have the shape {tuple(tensor.shape)}, got {shape}"
    return f"{min(entries)} is not among its tensors" if entries else None


def dtypes(file: Path) -> list[str]:
    """Return the dtypes of the tensors in a safetensors file, by the names that it has for them: `BF16`, `F32`.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: it is damaged or cut off.
    """
    return sorted({entry["dtype"] for entry in read_header(file)[1].values()})


def sizes(file: Path) -> list[int]:
    """Return how many numbers each tensor in a safetensors file has. Reads the header alone.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: it is damaged or cut off.
    """
    return [prod(entry["shape"]) for entry in read_header(file)[1].values()]


def load_weights(
    model: nn.Module, file: Path, into: nn.Module | None = None, change: WeightChange | None = None
) -> str:
    """Give `model`, as `weightless` builds it, the tensors of a safetensors file that fits it (`misfit`).

    They keep the dtype they have there. Tensors that are one and the same in the model, such as tied weights, stay so;
    the file holds them once. Memory: the model, and one tensor.

    Args:
        model: what the tensors are named after.
        file: the safetensors file, read once.
        into: what takes the tensors instead of `model`: a model of the same names, such as `quantize` makes of it.
        change: what makes the weight of each tensor, given its name in the file.

    Returns:
        The SHA-256 of what was read, which is the file's.

    Raises:
        SafetensorError: the file is damaged.
        RuntimeError: a tensor holds something else than the model's numbers.
    """
    header, entries, _ = read_header(file)
    names = {name: (same, tensor) for same, tensor in _shared(model) for name in same}
    digest = hashlib.sha256(header)
    with ThreadPoolExecutor(1) as pool:
        for stored in sorted(entries, key=lambda name: entries[name]["data_offsets"]):  # without gaps, as is checked
            with safe_open(file, "pt") as opened:  # for each, so that what was read does not stay in memory
                mapped: Tensor = opened.get_tensor(stored)
            hashed = pool.submit(digest.update, mapped.flatten().view(torch.uint8).numpy().data)
            tensor = mapped if change is None else change(stored, mapped)
            give(model if into is None else into, *names[stored], tensor)
            hashed.result()
    return digest.hexdigest()


def tensors_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that a file of the model's weights holds, each under one name, and the other names' name."""
    once = {min(names): (names, tensor) for names, tensor in _shared(model)}
    tied = {name: kept for kept, (names, _) in once.items() for name in names if name != kept}
    return {kept: tensor for kept, (_, tensor) in once.items()}, tied


def read_tensor(file: Path, name: str, rows: slice | None = None) -> Shaped[Tensor, ...]:
    """Return a tensor of a safetensors file, or some of its rows, in memory of its own.

    The file is opened for each call, so that the part of it that was read does not stay in memory beside the tensor.
    """
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]
        return tensor.clone()


def give(model: nn.Module, names: list[str], own: Shaped[Tensor, "*any"], mapped: Shaped[Tensor, "*any"]) -> None:
    """Give the modules that have a tensor `own` under these names, or something made of it, the numbers of a file."""
    kept: Tensor | None = None
    for name in names:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        tensor = mapped  # for a module that makes something else of it: nothing of the file stays in memory
        if isinstance(getattr(owner, attribute), nn.Parameter) == isinstance(own, nn.Parameter):
            if kept is None:
                kept = mapped.clone()
                kept = nn.Parameter(kept, own.requires_grad) if isinstance(own, nn.Parameter) else kept
            tensor = kept
        owner.load_state_dict({attribute: tensor}, strict=False, assign=True)


def _shared(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return the tensors that a file of the model's weights holds, each with all its names."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())
