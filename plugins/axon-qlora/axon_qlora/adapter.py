"""Adapters on a model whose weights are in 4 bits: `[adapter] type = "qlora"`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor, nn

from axon_core import ConfigError, Key
from axon_core.checkpoint import load_into
from axon_core.interfaces import Model
from axon_core.nn import QUANTIZATIONS, copy_replacing
from axon_core.registry import Spec
from axon_lora import LoRA, linear_maps

__all__ = ["QLoRA"]

M = TypeVar("M", bound=Model)


class QLoRA(LoRA):
    """LoRA on weights in NF4, which are widened for each product: y = x Wᵀ + s B A x (arXiv 2305.14314, Section 3).

    Every linear map but the output head is stored in 4 bits, as its weight is read: the weights are never in memory
    whole. Embeddings, norms and head stay as they are. What is trained and saved is LoRA's.
    """

    class Config(LoRA.Config):
        """LoRA's options, and what the weights are stored in."""

        quantization: Spec = Field(
            default_factory=lambda: Spec.of({"type": "nf4", "double": True}), validate_default=True
        )
        """The registered quantisation of the frozen weights: `nf4` with double quantisation (Section 3)."""

    config: Config

    def load(self, model: M, folder: Path) -> M:
        """Return a saved model whose linear maps hold the weights in `folder` in few bits, and the rest in float32.

        Raises:
            CheckpointError: the weights are damaged.
            UnknownKey: no quantisation of that name is installed.
        """
        quantization = QUANTIZATIONS.build(self.config.quantization)
        maps = [part for part in linear_maps(model).values() if isinstance(part, nn.Linear)]
        into = copy_replacing(model, {part: quantization.quantize(part) for part in maps})
        load_into(model, folder, into)
        return into.float()

    def adapt(self, model: Model, key: Key) -> Collection[str]:
        """Attach updates as LoRA does.

        Raises:
            ConfigError: the model's weights are not in few bits, as those of a new model: what is saved would be
                another one than was trained.
        """
        if wide := [name for name, part in linear_maps(model).items() if isinstance(part, nn.Linear)]:
            rule = f"qlora is for saved models, whose weights are read into few bits, and {wide[0]} is new; use init"
            raise ConfigError([(("type",), rule)])
        return super().adapt(model, key)

    def base_weight(self, model: Model, name: str, weight: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
        """Return what the stored numbers of a weight stand for, in float32: the updates were trained beside those."""
        if name.removesuffix(".weight") not in linear_maps(model):
            return weight
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return QUANTIZATIONS.build(self.config.quantization).quantize(linear).widened()
