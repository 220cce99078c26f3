"""Writing an adapted model as a whole one."""

from __future__ import annotations

from pathlib import Path

from axon_core import CheckpointError, to_json
from axon_core.checkpoint import atomic_folder, base_of, claimed_folder, load_config, load_into
from axon_core.generation import PUBLISHED, published_settings
from axon_core.interfaces import Model
from axon_core.text import Tokenizer
from axon_core.training import pinned_model_folder

__all__ = ["merge_adapter"]


def merge_adapter(run: Path, out: Path) -> Model:
    """Write the model of a run with adapters as a whole one, each weight W₀ + s B A rounded once; return it.

    Its outputs are those of the adapted model but for that rounding; it needs neither the base's folder nor the plugin.

    Args:
        run: a run's folder or a model's.
        out: the folder to create; it must be new or empty.

    Raises:
        CheckpointError: the model in `run` has no adapter, its base is missing or has changed, or `out` cannot be
            written to.
        UsageError: `out` is not empty.
    """
    with claimed_folder(out) as place, pinned_model_folder(run) as folder:
        if base_of(folder) is None:
            raise CheckpointError(f"the model in {folder} is whole already: it has no adapter to merge")
        model = load_config(folder, Model)
        load_into(model, folder)
        with atomic_folder(place) as new:
            model.save(new, _tokenizer(folder))
            if published := published_settings(folder)[0]:
                (new / PUBLISHED).write_text(to_json(published), encoding="utf-8")
    return model


def _tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in a model's folder; models of other things than text have none."""
    return Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
