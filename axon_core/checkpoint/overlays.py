"""Models that are saved as what they add to a saved model, whose weights stay in its own folder."""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor, nn

from axon_core.errors import ContractError
from axon_core.interfaces.overlay import Overlay

__all__ = ["WeightChange", "overlaid", "overlays", "own_state"]

WeightChange = Callable[[str, Tensor], Tensor]
"""Returns what becomes of a weight, given its name in the model and the saved numbers."""


def overlaid(module: nn.Module) -> tuple[str, nn.Module, Overlay] | None:
    """Return the model that has a saved base, the module itself or within it, after the prefix of its tensors' names.

    Raises:
        ContractError: there are several.
    """
    found = [item for item in overlays(module) if item[2].base is not None]
    if len(found) > 1:
        names = ", ".join(prefix.rstrip(".") or "the model" for prefix, *_ in found)
        raise ContractError(f"a model can have one part that is saved as an overlay, got {names}")
    return found[0] if found else None


def overlays(module: nn.Module) -> Generator[tuple[str, nn.Module, Overlay]]:
    """Yield the models in a module, itself included, that have an overlay, with it, after their tensors' prefix."""
    for name, part in module.named_modules():
        if isinstance(overlay := getattr(part, "overlay", None), Overlay):
            yield f"{name}." if name else "", part, overlay


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `state_dict(keep_vars=True)` but for those that are in the folder of an overlay's base."""
    if (found := overlaid(module)) is None:
        return module.state_dict(keep_vars=True)
    prefix, model, overlay = found
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {f"{prefix}{name}": tensors[name] for name in sorted(overlay.names)}
    return {**_state_around(module, model, ""), **own}


def _state_around(module: nn.Module, inner: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of `module` that do not belong to `inner`, whose own way of saving may not be called."""
    if module is inner:
        return {}
    found: dict[str, Tensor] = {}
    module._save_to_state_dict(found, prefix, keep_vars=True)  # pyright: ignore[reportPrivateUsage]
    for name, child in module.named_children():
        found |= _state_around(child, inner, f"{prefix}{name}.")
    return found
