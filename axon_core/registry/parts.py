"""The parts of a model: components that fields of its config name, built from their registries."""

from __future__ import annotations

from typing import Any, TypeVar

from axon_core import config
from axon_core.config import at
from axon_core.errors import ContractError
from axon_core.registry.registry import Registry
from axon_core.registry.spec import Spec

__all__ = ["part", "part_config"]

Component = TypeVar("Component")
Sizes = TypeVar("Sizes", bound=config.Config)


def part(config: config.Config, name: str, registry: Registry[Component], **given: Any) -> Component:
    """Build the component that the field `name` of `config` asks for; errors name the field.

    `given` is what the model passes down (`Registry.build`).
    """
    spec: Spec = getattr(config, name)
    with at(name):
        return registry.build(spec, **given)


def part_config(
    config: config.Config, name: str, registry: Registry[Component], kind: type[Sizes], **given: Any
) -> Sizes:
    """Return the config of the component that `part` would build with the same arguments.

    Raises:
        ContractError: it is not a `kind`.
    """
    spec: Spec = getattr(config, name)
    with at(name):
        found = registry.config(spec, **given)
    if not isinstance(found, kind):
        raise ContractError(f"the Config of {spec.type!r} must be a subclass of {kind.__qualname__}")
    return found
