"""What PEFT's `adapter_config.json` says, and what of it can be computed here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from axon_core import CheckpointError, ConfigError, to_json, validate

__all__ = ["PEFTConfig", "read_peft_config"]

_IGNORED = frozenset(
    "auto_mapping base_model_name_or_path exclude_modules fan_in_fan_out inference_mode layers_pattern "
    "layers_to_transform megatron_core peft_version qalora_group_size revision task_type target_modules".split()
)
"""They say which modules have an adapter, which its tensors tell, or do not concern a linear map of a Llama."""
_NEUTRAL = (None, False, "none", [], {}, "")
_INITIAL = (True, False, "gaussian", "orthogonal", "eva", "lora_ga")
"""Ways of drawing A and B that leave the base's weights alone."""


class PEFTConfig(BaseModel):
    """The settings of a LoRA that change what is computed."""

    model_config = ConfigDict(extra="ignore")

    peft_type: Literal["LORA"]
    r: PositiveInt = 8
    lora_alpha: PositiveFloat = 8
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    alpha_pattern: dict[str, PositiveFloat] = Field(default_factory=dict)
    modules_to_save: list[str] | None = None

    def rank_of(self, module: str) -> int:
        """Return r of a module: that of the first pattern which is its name or the end of it.

        Raises:
            CheckpointError: a pattern is no regular expression.
        """
        return _of(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> float:
        """Return α of a module, likewise.

        Raises:
            CheckpointError: a pattern is no regular expression.
        """
        return _of(self.alpha_pattern, module, self.lora_alpha)


def _of(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    try:
        found = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module))
        return next(found, otherwise)
    except re.error as error:
        raise CheckpointError(f"a pattern of adapter_config.json is no regular expression: {error}") from None


def read_peft_config(values: Any) -> PEFTConfig:
    """Return what an `adapter_config.json` says.

    Raises:
        CheckpointError: it is not a LoRA's, or has a setting that is not computed here; the message names it.
    """
    if not isinstance(values, dict):
        raise CheckpointError("adapter_config.json must hold an object")
    if (kind := values.get("peft_type")) != "LORA":
        raise CheckpointError(f"only LoRA adapters can be imported, and peft_type is {to_json(kind)}")
    known = {*PEFTConfig.model_fields, *_IGNORED, "init_lora_weights", "runtime_config"}
    for name, value in values.items():
        if name not in known and value not in _NEUTRAL:
            raise CheckpointError(f"adapter_config.json has {name} = {to_json(value)}, which is not computed here")
    if (initial := values.get("init_lora_weights", True)) not in _INITIAL:
        raise CheckpointError(
            f"init_lora_weights is {to_json(initial)}, which changes the weights of the base before training: save the "
            "adapter with path_initial_model_for_weight_conversion, or merge it in PEFT"
        )
    if values.get("fan_in_fan_out"):
        raise CheckpointError("fan_in_fan_out is for maps whose weights are transposed, which no Llama has")
    try:
        return validate(PEFTConfig, {name: value for name, value in values.items() if value is not None})
    except ConfigError as error:
        raise CheckpointError(f"adapter_config.json is damaged: {error}") from None
