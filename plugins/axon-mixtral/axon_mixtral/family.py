"""Checkpoints of Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from axon_core import CheckpointError
from axon_xllama.checkpoints.families import LlamaFamily
from axon_xllama.checkpoints.layout import Names, configured
from axon_xllama.feed_forward import FEED_FORWARDS
from axon_xllama.model import XLlama

__all__ = ["MixtralFamily"]

_SPARSE = "model.layers.{}.block_sparse_moe"
_THETA, _MOST = 1e6, 4096


class MixtralFamily(LlamaFamily):
    """Mixtral: a Llama whose feed-forwards are mixtures of experts; without `rope_theta`, its base is a million.

    Source of the settings: `MixtralConfig` of transformers 5. Its `router_aux_loss_coef` is not taken over: that loss
    is a mean over layers and batch, which is not the one that `moe` trains with.
    """

    architecture = "MixtralForCausalLM"
    model_type = "mixtral"
    bias = False
    off: ClassVar[Mapping[str, str]] = {"sliding_window": "the attention of a Mixtral sees the whole text"}
    feed_forwards = ("axon-mixtral:moe",)

    def read(self, values: Mapping[str, Any]) -> XLlama.Config:
        """Return the X-Llama that a `config.json` describes.

        Raises:
            CheckpointError: a setting is missing or wrong, or X-Llama does not compute what it says.
        """
        theta = {} if values.get("rope_parameters") else {"rope_theta": _THETA}
        config = super().read({**theta, **values})
        moe: dict[str, Any] = {"type": "moe"}
        for ours, theirs in (("n_experts", "num_local_experts"), ("top_k", "num_experts_per_tok")):
            if values.get(theirs) is None:
                raise CheckpointError(f"config.json must contain {theirs}, but does not")
            moe[ours] = values[theirs]
        if isinstance(moe["n_experts"], int) and moe["n_experts"] > _MOST:  # before the names of all are written down
            raise CheckpointError(f"num_local_experts must be at most {_MOST:,}, got {str(moe['n_experts'])[:20]}")
        return configured("config.json", **{**config.model_dump(), "feed_forward": moe})

    def misfit(self, model: XLlama) -> str | None:
        """Return why this family does not compute what `model` does; None if it does."""
        if reason := super().misfit(model):
            return reason
        expert = FEED_FORWARDS.entry(_mixture(model).config.expert.type).qualified
        return None if expert in LlamaFamily.feed_forwards else f"the experts must be swiglu, got {expert}"

    def write(self, model: XLlama) -> dict[str, Any]:
        """Return the settings in `config.json` of a model that fits, but for dtype and markers."""
        config = _mixture(model).config
        written = {**super().write(model), "num_local_experts": config.n_experts, "num_experts_per_tok": config.top_k}
        return {**written, "sliding_window": None}

    def names(self, config: XLlama.Config) -> Names:
        """Return what a checkpoint of an X-Llama that `read` returned calls its tensors."""
        dense = {ours: theirs for ours, theirs in super().names(config).items() if not ours.startswith("feed_forward.")}
        sparse: Names = {"feed_forward.router": [f"{_SPARSE}.gate.weight"]}
        for expert in range(config.feed_forward.options.get("n_experts", 8)):
            gate, down, up = (f"{_SPARSE}.experts.{expert}.w{number}.weight" for number in (1, 2, 3))
            sparse |= {f"feed_forward.experts.{expert}.gate_up": [gate, up]}
            sparse |= {f"feed_forward.experts.{expert}.down": [down]}
        return {**dense, **sparse}


def _mixture(model: XLlama) -> Any:
    return cast(Any, model.get_submodule("blocks.0.feed_forward"))
