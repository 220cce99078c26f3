"""What every registered class must be, whatever its interface."""

from __future__ import annotations

from typing import Any


def breaches(component: Any, interface: type) -> list[str]:
    """Return what keeps `component` from being a concrete subclass of `interface` with a `Config`; empty if nothing."""
    from axon_core.config import Config  # deferred: pydantic is slow to import, and listing needs neither

    if not isinstance(component, type):
        return [f"it is not a class but an object of type {type(component).__name__}"]
    found: list[str] = []
    if not issubclass(component, interface):
        found.append(f"it is not a subclass of {interface.__module__}.{interface.__qualname__}")
    if abstract := sorted(getattr(component, "__abstractmethods__", ())):
        found.append(f"it does not define {', '.join(abstract)}")
    config = getattr(component, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Config)):
        found.append("it has no nested class Config that derives from axon_core.Config")
    return found
