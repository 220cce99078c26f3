"""Sections of a recipe besides `model`, `trainer` and `data`: what plugins do to the models of any training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from axon_core import config
from axon_core.checkpoint.model_folder import base_of, fingerprint
from axon_core.checkpoint.models import load_into
from axon_core.checkpoint.overlays import WeightChange
from axon_core.config import at, validate
from axon_core.interfaces.model import Model
from axon_core.training.recipe_sections import RECIPE_SECTIONS

if TYPE_CHECKING:
    from axon_core.training.trainer import Trainer

__all__ = ["RecipeSection", "build_sections", "in_sections", "read_weights"]

M = TypeVar("M", bound=Model)


class RecipeSection(ABC):
    """A table of a recipe that changes the models of a training, whatever its trainer: its key is the table's name.

    The core builds the trainer; meanwhile, `load` reads the weights of saved models. Then `apply` changes the models,
    for instance by adapters, and notes in `Model.overlay` what is trained instead of their weights. When such a model
    is loaded, `weight_change` makes its weights of the saved ones.

    Attributes:
        config: the table.
    """

    class Config(config.Config):
        """The table's fields."""

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Tables that it can be built from, as small as can be."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def options(self) -> dict[str, Any]:
        """The table as it is saved with a model."""
        return self.config.model_dump(mode="json")

    def load(self, model: M, folder: Path) -> M:
        """Return a saved model, built without its weights, with those in `folder`: by default in float32.

        Raises:
            CheckpointError: they are damaged.
        """
        load_into(model, folder)
        return model.float()

    @abstractmethod
    def apply(self, trainer: Trainer) -> None:
        """Change the models of a trainer that was just built; they may have no weights (`weightless`).

        Raises:
            ConfigError: the section does not suit the models.
            UsageError: it cannot be applied to this training.
        """

    @abstractmethod
    def weight_change(self, model: Model, tensors: Mapping[str, Tensor]) -> WeightChange:
        """Return what makes each weight of `model` of the saved one, given the tensors that were trained instead.

        `model` may have no weights. Names are those in the model as it was before `apply`.

        Raises:
            CheckpointError: the tensors do not fit the model.
        """


_active: ContextVar[tuple[Sequence[RecipeSection], Path | None]] = ContextVar("sections", default=((), None))


def build_sections(tables: Mapping[str, Mapping[str, Any]]) -> list[RecipeSection]:
    """Return the sections of a recipe.

    Raises:
        ConfigError: a table breaks a rule.
        UnknownKey: no plugin offers a section of that name.
    """
    found: list[RecipeSection] = []
    for name, table in tables.items():
        with at(name):
            kind = RECIPE_SECTIONS[name]
            found.append(kind(validate(kind.Config, table)))
    return found


@contextmanager
def in_sections(sections: Sequence[RecipeSection], saved: Path | None) -> Generator[None]:
    """Within the block, models are read as the sections say; `saved` is what the run to be resumed exported."""
    token = _active.set((sections, saved))
    try:
        yield
    finally:
        _active.reset(token)


def read_weights(model: M, folder: Path) -> M:
    """Return a saved model, built without its weights, with those in `folder`, to be trained further.

    They are in float32, which half precision is too coarse for, unless a section of the recipe says otherwise. Of a run
    that is resumed, the model is what it was before the sections changed it: their tensors are in the checkpoint.

    Raises:
        CheckpointError: the weights are damaged.
    """
    sections, saved = _active.get()
    if sections and saved is not None and folder == saved:
        folder = base_of(folder) or folder
    loaded_as = fingerprint(folder)
    changing = [section for section in sections if type(section).load is not RecipeSection.load]
    if changing:
        model = changing[-1].load(model, folder)
    else:
        load_into(model, folder)
        model = model.float()
    model.loaded_from, model.loaded_as = folder, loaded_as
    return model
