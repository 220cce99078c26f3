"""Adapters as a section of a recipe: `[adapter] type = "lora"`, for any registered model and any trainer."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jaxtyping import Shaped
from pydantic import ConfigDict
from torch import Tensor, nn

from axon_core import ConfigError, Key, config
from axon_core.checkpoint import WeightChange, load_into
from axon_core.interfaces import Model, Overlay
from axon_core.registry import Registry, Spec
from axon_core.training import RecipeSection

if TYPE_CHECKING:
    from axon_core.training import Trainer

__all__ = ["ADAPTERS", "SECTION", "Adapter", "AdapterSection", "set_tensor", "tensor_of"]

M = TypeVar("M", bound=Model)

_log = logging.getLogger("axon")

SECTION = "adapter"
"""The table of a recipe that adapters are for."""
_KEY = Key((0, SECTION))


class Adapter(ABC):
    """What is trained instead of a model's weights, by the `type` of the table `[adapter]`.

    A plugin offers one in the entry-point group `axon.v1.adapter`.

    Attributes:
        config: its options.
    """

    class Config(config.Config):
        """Its options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self, model: M, folder: Path) -> M:
        """Return a saved model, built without its weights, with those in `folder`: by default in float32.

        Raises:
            CheckpointError: they are damaged.
        """
        load_into(model, folder)
        return model.float()

    @abstractmethod
    def adapt(self, model: Model, key: Key) -> Collection[str]:
        """Change a model, whose parameters are frozen, and return the names of the tensors that are trained in it.

        Raises:
            ConfigError: the adapter does not suit the model.
        """

    @abstractmethod
    def weight_change(self, model: Model, tensors: Mapping[str, Tensor]) -> WeightChange:
        """Return what makes each weight of `model` of the saved one; see `RecipeSection.weight_change`."""


ADAPTERS: Registry[Adapter] = Registry("adapter", Adapter)
"""Adapters by key."""


class AdapterSection(RecipeSection):
    """The table `[adapter]`: the adapter of its `type`, with its options (arXiv 2106.09685, Section 4).

    Every model that the trainer trains is adapted, and nothing else in it is trained. What of a role was not read from
    a folder, such as the new head of a reward model, is trained as it is.
    """

    class Config(RecipeSection.Config):
        """The `type`, and the options of that adapter."""

        model_config = ConfigDict(extra="allow")

        type: str = "lora"
        """The registered adapter."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.adapter = ADAPTERS.build(Spec.of({"type": config.type, **(config.model_extra or {})}))

    @property
    def options(self) -> dict[str, Any]:
        """The `type` and all options of the adapter, so that other defaults of another version change nothing."""
        return {"type": self.config.type, **self.adapter.config.model_dump(mode="json")}

    def load(self, model: M, folder: Path) -> M:
        """Return a saved model with its weights as the adapter wants them."""
        return self.adapter.load(model, folder)

    def apply(self, trainer: Trainer) -> None:
        """Adapt the models that the trainer trains. Raises `ConfigError` if the adapter does not suit them."""
        if trainer.config.parallel.tensor > 1:
            raise ConfigError([((), "adapters cannot be divided within matrices; leave out trainer.parallel.tensor")])
        for role in trainer.trainable:
            for model in _models(role, trainer.models[role]):
                if model.overlay is None:  # roles may share a model
                    if model.loaded_from is None:
                        _log.warning("the %s is new: its frozen weights are random; model.init names a saved one", role)
                    self.attach(model, Key((trainer.config.seed, SECTION, role)))

    def attach(self, model: Model, key: Key = _KEY) -> None:
        """Adapt one model: its parameters are frozen, and saving it writes what is trained instead.

        Raises:
            ConfigError: the adapter does not suit the model, or something else is trained instead of its weights.
        """
        if model.overlay is not None:
            rule = f"the model is changed by [{model.overlay.section}] already; save it, and load it, to adapt that"
            raise ConfigError([((), rule)])
        model.requires_grad_(False)
        names = self.adapter.adapt(model, key)
        for name in names:
            tensor_of(model, name).requires_grad_(True)
        model.overlay = Overlay(SECTION, self.options, model.loaded_from, frozenset(names))

    def weight_change(self, model: Model, tensors: Mapping[str, Tensor]) -> WeightChange:
        """Return what makes each weight of the saved one, as the adapter says."""
        return self.adapter.weight_change(model, tensors)


def tensor_of(model: nn.Module, name: str) -> Shaped[Tensor, "*any"]:
    """Return the tensor of this name in a model."""
    path, _, attribute = name.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(path), attribute))


def set_tensor(model: nn.Module, name: str, tensor: Shaped[Tensor, "*any"]) -> None:
    """Let a parameter of a model, which may have no memory, be another tensor."""
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, nn.Parameter(tensor))


def _models(role: str, module: nn.Module) -> list[Model]:
    """Return what is adapted of a role: the models in it that were read from a folder; else all models in it."""
    models = [part for part in module.modules() if isinstance(part, Model)]
    chosen = [model for model in models if model.loaded_from is not None] or models
    if not chosen:
        raise ConfigError([((), f"adapters are for registered models, but the {role} is a {type(module).__name__}")])
    inner = {id(part) for model in chosen for part in model.modules() if part is not model}
    return [model for model in chosen if id(model) not in inner]
