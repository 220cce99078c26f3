"""Rotary settings of Hugging Face's `config.json`, in the spelling of transformers 4 and of 5, and X-Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any, cast

from axon_core import ROTARY_EMBEDDINGS, CheckpointError
from axon_xllama.checkpoints.layout import real
from axon_xllama.model import XLlama


@dataclass(frozen=True)
class Scaling:
    """A rope type: what computes it here, and what its settings are called there and here."""

    rotary: str
    """The rotary embedding, qualified by its plugin."""
    required: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings that `config.json` must have, each with the option here."""
    optional: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings that have a default."""

    @property
    def key(self) -> str:
        """The rotary embedding's name, without its plugin."""
        return self.rotary.rpartition(":")[2]


_FACTOR = {"factor": "factor"}
_ORIGINAL = "original_max_position_embeddings"
_BY_PARTS = {_ORIGINAL: "original_context"}
_YARN = {name: name for name in ("attention_factor", "beta_fast", "beta_slow", "truncate")}
_LLAMA3 = {name: name for name in ("low_freq_factor", "high_freq_factor")}
SCALINGS: Mapping[str, Scaling] = {
    "default": Scaling("axon-roformer:rotary"),
    "linear": Scaling("axon-roformer:linear", _FACTOR),
    "dynamic": Scaling("axon-roformer:dynamic", _FACTOR),
    "yarn": Scaling("axon-yarn:yarn", _FACTOR, _BY_PARTS | _YARN),
    "llama3": Scaling("axon-yarn:llama3", _FACTOR | _LLAMA3, _BY_PARTS),
}
"""The rope types of transformers that a registered rotary embedding computes."""


def rotary_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary spec that a `config.json` describes, by the rules of transformers 5.

    `rope_scaling`, which earlier versions wrote, takes precedence over `rope_parameters` if there are both. What
    neither says is read from beside them (transformers' `RotaryEmbeddingConfigMixin`).

    Raises:
        CheckpointError: a setting is malformed or missing, or nothing here computes the type.
    """
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope: Any = values.get(name) or {}
    malformed = CheckpointError(f"{name} must be one object of numbers and texts, for all layers, got {rope!r}")
    if not isinstance(rope, dict):
        raise malformed
    rope = cast("dict[str, Any]", rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = SCALINGS.get(kind) if isinstance(kind, str) else None
    if scaling is None:
        raise CheckpointError(f"rope scaling {kind!r} is not supported; known: {', '.join(SCALINGS)}")
    if any(isinstance(value, dict | list) for value in rope.values()):
        raise malformed
    if (part := rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1))) != 1:
        raise CheckpointError(f"partial_rotary_factor must be 1, got {part}")
    given = rope.keys() if kind == "yarn" else {name for name, value in rope.items() if value is not None}
    if missing := [theirs for theirs in scaling.required if theirs not in given]:
        article = "a" if missing[0] == "factor" else "the setting"
        raise CheckpointError(f"rope scaling {kind!r} must have {article} {missing[0]}")
    found = dict(rope)
    if kind == "yarn":
        _complete_yarn(found, values)
    names = {**scaling.required, **scaling.optional}
    options = {ours: real(found[theirs]) for theirs, ours in names.items() if found.get(theirs) is not None}
    base = real(rope.get("rope_theta", values.get("rope_theta", 10000.0)))
    return {"type": scaling.key, "base": base, **options}


def rotary_to(model: XLlama) -> dict[str, Any]:
    """Return the settings in `config.json` of a model whose rotary embedding is one of `SCALINGS`.

    transformers 5 reads `rope_parameters`; earlier versions, and other programs, read the others.
    """
    found = ROTARY_EMBEDDINGS.entry(model.config.rotary.type).qualified
    kind, scaling = next((kind, scaling) for kind, scaling in SCALINGS.items() if scaling.rotary == found)
    config = cast(Any, model.rotaries[0]).config
    options = {theirs: getattr(config, ours) for theirs, ours in {**scaling.required, **scaling.optional}.items()}
    if _ORIGINAL in options:
        options[_ORIGINAL] = options[_ORIGINAL] or config.context
    given = {name: value for name, value in options.items() if value is not None}
    return {
        "rope_parameters": {"rope_theta": config.base, "rope_type": kind, **given},
        "rope_theta": config.base,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, "type": kind, **given},
        **({"max_position_embeddings": model.context} if _ORIGINAL in options else {}),
    }


def _complete_yarn(rope: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Add what transformers computes from other settings, as DeepSeek's models need it."""
    longest, original = values.get("max_position_embeddings"), rope.get(_ORIGINAL)
    if rope["factor"] is None:
        if not (isinstance(longest, int) and isinstance(original, int) and original > 0):
            raise CheckpointError(f"rope scaling 'yarn' must have a factor, or max_position_embeddings and {_ORIGINAL}")
        rope["factor"] = longest / original
    for name in ("beta_fast", "beta_slow"):
        rope[name] = rope.get(name) or None  # as transformers, which takes its default for zero
    shares, factor = (rope.get("mscale"), rope.get("mscale_all_dim")), rope["factor"]
    if rope.get("attention_factor") is None and all(isinstance(s, int | float) and s > 0 for s in shares):
        if isinstance(factor, int | float) and factor > 1:
            numerator, denominator = (0.1 * float(cast(float, share)) * log(factor) + 1 for share in shares)
            rope["attention_factor"] = numerator / denominator
