"""Specs: which registered component to use, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import model_validator

from axon_core.config import Chosen
from axon_core.registry.keys import key_of

__all__ = ["Spec"]


class Spec(Chosen):
    """Which registered component to use, and its options: `{"type": "mynorm", "eps": 1e-6}`.

    A plain name (`"mynorm"`) and a registered class (`NORMS["mynorm"]`) are accepted as short forms. The options are
    validated by the component's own `Config` when it is built.
    """

    @model_validator(mode="before")
    @classmethod
    def _registered(cls, value: Any) -> Any:
        if isinstance(value, type):
            value = {"type": value}
        if isinstance(value, Mapping):
            fields = cast(Mapping[str, Any], value)
            if isinstance(component := fields.get("type"), type):
                return {**fields, "type": key_of(component)}
        return cast(Any, value)
