"""Architectures of Hugging Face transformers that an X-Llama can be: the interface, the registry, Llamas and Qwens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from axon_core import ATTENTIONS, CheckpointError, config
from axon_core.registry import Registry
from axon_xllama.checkpoints.layout import Bias, Names, Settings, configured, real
from axon_xllama.checkpoints.rope import rotary_from, rotary_to
from axon_xllama.embedding import EMBEDDINGS
from axon_xllama.feed_forward import FEED_FORWARDS
from axon_xllama.mixing import TOKEN_MIXERS
from axon_xllama.model import XLlama
from axon_xllama.residual import RESIDUAL_STREAMS

__all__ = ["CHECKPOINT_FAMILIES", "CheckpointFamily", "LlamaFamily", "Qwen2Family", "Qwen3Family"]

_LAYER = "model.layers.{}."
_LLAMA: Names = {
    "embedding": ["model.embed_tokens.weight"],
    "attention.qkv.projection": [f"{_LAYER}self_attn.{part}_proj.weight" for part in "qkv"],
    "attention.out": [f"{_LAYER}self_attn.o_proj.weight"],
    "attention_norm": [f"{_LAYER}input_layernorm.weight"],
    "feed_forward.gate_up": [f"{_LAYER}mlp.gate_proj.weight", f"{_LAYER}mlp.up_proj.weight"],
    "feed_forward.down": [f"{_LAYER}mlp.down_proj.weight"],
    "feed_forward_norm": [f"{_LAYER}post_attention_layernorm.weight"],
    "norm": ["model.norm.weight"],
    "head": ["lm_head.weight"],
}
_QK_NORM: Names = {f"attention.{part}_norm": [f"{_LAYER}self_attn.{part}_norm.weight"] for part in "qk"}
_QKV_BIAS: Names = {"attention.qkv.projection.bias": [f"{_LAYER}self_attn.{part}_proj.bias" for part in "qkv"]}
_OUT_BIAS: Names = {"attention.out.bias": [f"{_LAYER}self_attn.o_proj.bias"]}
_BIASES: Mapping[Bias, Names] = {False: {}, "qkv": _QKV_BIAS, True: {**_QKV_BIAS, **_OUT_BIAS}}

SIZES: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "context": ("max_position_embeddings", "max_sequence_length"),  # the latter in conversions of early 2023
    "dim": ("hidden_size",),
    "n_layers": ("num_hidden_layers",),
    "n_heads": ("num_attention_heads",),
    "hidden_dim": ("intermediate_size",),
}
"""X-Llama's sizes, and what `config.json` calls them; the first is written."""


class CheckpointFamily(ABC):
    """An architecture of Hugging Face transformers that an X-Llama can be.

    A plugin offers it in the entry-point group `axon.v1.checkpoint_family`, under the `model_type` of its
    `config.json`. `axon import` then reads its folders, and `axon export` writes the models that it computes. One that
    differs from Llama in a few settings derives from `LlamaFamily`.
    """

    class Config(config.Config):
        """A family has no options."""

    architecture: ClassVar[str]
    """The class of transformers that computes it."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    @abstractmethod
    def read(self, values: Mapping[str, Any]) -> XLlama.Config:
        """Return the X-Llama that a `config.json` describes.

        Raises:
            CheckpointError: a setting is missing or wrong, or X-Llama does not compute what it says.
        """

    @abstractmethod
    def misfit(self, model: XLlama) -> str | None:
        """Return why this family does not compute what `model` does; None if it does."""

    @abstractmethod
    def write(self, model: XLlama) -> dict[str, Any]:
        """Return the settings in `config.json` of a model that fits, but for dtype and markers."""

    @abstractmethod
    def names(self, config: XLlama.Config) -> Names:
        """Return what a checkpoint of an X-Llama that `read` returned calls its tensors."""


class LlamaFamily(CheckpointFamily):
    """Llama 1 to 3, SmolLM2 and TinyLlama; families that differ by the settings below derive from it.

    Source of the settings: `LlamaConfig` of transformers 5.
    """

    architecture = "LlamaForCausalLM"
    model_type: ClassVar[str] = "llama"
    """Its name in `config.json`."""
    qk_norm: ClassVar[bool] = False
    """Whether every query and key head is normalised, with the ε of the other norms."""
    bias: ClassVar[Bias | None] = None
    """Which projections of attention have a bias; None where `attention_bias` says it."""
    head_dim: ClassVar[int | None] = None
    """Features of a head if `config.json` does not say; None for dim / n_heads."""
    off: ClassVar[Mapping[str, str]] = {"mlp_bias": "X-Llama's feed-forward has no bias"}
    """Settings that must be false, each with the reason."""
    attentions: ClassVar[tuple[str, ...]] = ("axon-gqa:GQA", "axon-gqa:MQA", "axon-transformer:MHA")
    """The attentions that compute what it does, qualified by their plugins: others may have the same name."""
    feed_forwards: ClassVar[tuple[str, ...]] = ("axon-xllama:swiglu",)
    """The feed-forwards that do."""

    def read(self, values: Mapping[str, Any]) -> XLlama.Config:
        """Return the X-Llama that a `config.json` describes.

        What the first conversions of Llama left out has the default of transformers: `rms_norm_eps` is 1e-6.

        Raises:
            CheckpointError: a setting is missing or wrong, or X-Llama does not compute what it says, such as another
                rope scaling.
        """
        self._check_computes(values)
        sizes = {ours: _size(values, names) for ours, names in SIZES.items()}
        eps = real(values.get("rms_norm_eps", 1e-6))
        return configured(
            "config.json",
            **sizes,
            attention=self._attention(values, sizes["n_heads"], eps),
            rotary=rotary_from(values),
            norm={"type": "rmsnorm", "eps": eps},
            tie_embeddings=values.get("tie_word_embeddings", False),
        )

    def misfit(self, model: XLlama) -> str | None:
        """Return why this family does not compute what `model` does; None if it does."""
        config = model.config
        if config.layers:
            return "all layers have the same parts"
        if not model.rotaries:
            return "there is a rotary embedding"
        for registry, spec, known in (
            (EMBEDDINGS, config.embedding, ("axon-xllama:token",)),
            (RESIDUAL_STREAMS, config.residual, ("axon-xllama:plain",)),
            (TOKEN_MIXERS, config.token_mixer, ("axon-xllama:none",)),
            (ATTENTIONS, config.attention, self.attentions),
            (FEED_FORWARDS, config.feed_forward, self.feed_forwards),
        ):
            if (found := registry.entry(spec.type).qualified) not in known:
                return f"the {registry.name} must be {' or '.join(known)}, got {found}"
        settings = Settings.of(model)
        if self.qk_norm != (settings.qk_eps is not None):
            return "every query and key head has a norm" if self.qk_norm else "no query or key head has a norm"
        if (self.bias == "qkv") != (settings.bias == "qkv"):
            return "q, k and v have a bias" if self.bias else "all four projections have a bias, or none"
        return None

    def write(self, model: XLlama) -> dict[str, Any]:
        """Return the settings in `config.json` of a model that fits, but for dtype and markers."""
        settings = Settings.of(model)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{theirs: getattr(model.config, ours) for ours, (theirs, *_) in SIZES.items()},
            "num_key_value_heads": settings.n_kv_heads,
            "head_dim": settings.head_dim,
            "hidden_act": "silu",
            **({"attention_bias": settings.bias} if self.bias is None else {}),
            **dict.fromkeys(self.off, False),
            "rms_norm_eps": settings.eps,
            "tie_word_embeddings": model.config.tie_embeddings,
            **rotary_to(model),
        }

    def names(self, config: XLlama.Config) -> Names:
        """Return what a checkpoint of an X-Llama that `read` returned calls its tensors."""
        bias: Bias = config.attention.options.get("bias", False)
        return {**_LLAMA, **(_QK_NORM if self.qk_norm else {}), **_BIASES[bias]}

    def _attention(self, values: Mapping[str, Any], n_heads: Any, eps: Any) -> dict[str, Any]:
        given = values.get("num_key_value_heads")
        attention: dict[str, Any] = {"type": "GQA", "n_kv_heads": n_heads if given is None else given}
        if head_dim := values.get("head_dim") or self.head_dim:
            attention["head_dim"] = head_dim
        biased = values.get("attention_bias", False)
        if not isinstance(biased, bool):
            raise CheckpointError(f"attention_bias must be true or false in config.json, got {biased!r:.60}")
        if bias := self.bias or biased:
            attention["bias"] = bias
        if self.qk_norm:
            attention["qk_norm"] = {"type": "rmsnorm", "eps": eps}
        return attention

    def _check_computes(self, values: Mapping[str, Any]) -> None:
        """Check the settings that change what a model computes and for which X-Llama has no option."""
        if values.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
            raise CheckpointError(f"hidden_act must be 'silu', got {values['hidden_act']!r}")
        for field, reason in self.off.items():
            if values.get(field):
                raise CheckpointError(f"{field} must be false: {reason}")
        kinds: Any = values.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise CheckpointError(f"layer_types must all be 'full_attention', got {kinds!r:.100}")
        if values.get("quantization_config"):
            raise CheckpointError("quantization_config must be absent; use the checkpoint before quantisation")


class _QwenFamily(LlamaFamily):
    """A Qwen, whose later layers may have a window: `max_window_layers` says how many have none."""

    off: ClassVar[Mapping[str, str]] = {}

    def write(self, model: XLlama) -> dict[str, Any]:
        """Return the settings in `config.json` of a model that fits, but for dtype and markers."""
        return {**super().write(model), "use_sliding_window": False}

    def _check_computes(self, values: Mapping[str, Any]) -> None:
        """Check that no layer has a window: without `layer_types`, by the rule of transformers' `Qwen2Config`."""
        super()._check_computes(values)
        if not values.get("use_sliding_window") or values.get("layer_types"):
            return
        window, layers = values.get("sliding_window", 4096), _size(values, SIZES["n_layers"])
        whole = values.get("max_window_layers", 28)
        if window is None or (isinstance(whole, int) and isinstance(layers, int) and whole >= layers):
            return
        raise CheckpointError(
            f"use_sliding_window must be false, or max_window_layers at least num_hidden_layers, {layers!r:.20}, got "
            f"{whole!r:.20}: the later layers have a window and the others none, and the import gives all layers the "
            "same attention"
        )


class Qwen2Family(_QwenFamily):
    """Qwen2 and Qwen2.5: queries, keys and values have a bias, the output has none."""

    architecture = "Qwen2ForCausalLM"
    model_type = "qwen2"
    bias = "qkv"


class Qwen3Family(_QwenFamily):
    """Qwen3: query and key heads are normalised; they have 128 features unless the config says otherwise."""

    architecture = "Qwen3ForCausalLM"
    model_type = "qwen3"
    qk_norm = True
    head_dim = 128


CHECKPOINT_FAMILIES: Registry[CheckpointFamily] = Registry("checkpoint_family", CheckpointFamily)
"""Families by `model_type`; a plugin adds one in the entry-point group `axon.v1.checkpoint_family`."""


_GEMMA = "its embeddings are multiplied by √dim, its norms by 1 + w, and its gate is a GELU"
_REFUSED = dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), _GEMMA)
"""Architectures that look like a Llama's, and why they are none."""


def family_named(model_type: object) -> CheckpointFamily:
    """Return the family of a `model_type`. Raises `CheckpointError` if no installed plugin has it."""
    if isinstance(model_type, str) and model_type in _REFUSED and model_type not in CHECKPOINT_FAMILIES:
        raise CheckpointError(f"a {model_type} is not an X-Llama: {_REFUSED[model_type]}")
    if not isinstance(model_type, str) or model_type not in CHECKPOINT_FAMILIES:
        *others, last = map(repr, CHECKPOINT_FAMILIES)
        known = f"{', '.join(others)} or {last}"
        raise CheckpointError(f"model_type must be {known} to become an X-Llama, got {model_type!r}")
    return CHECKPOINT_FAMILIES.build(model_type)


def family_of(model: XLlama) -> CheckpointFamily:
    """Return the family that computes what `model` does: of several, one of axon-xllama's own.

    Raises:
        CheckpointError: there is none; the message says for each family what it has.
    """
    entries = sorted(CHECKPOINT_FAMILIES.entries(), key=lambda entry: entry.distribution != "axon-xllama")
    misfits: dict[str, list[str]] = {}
    for entry in entries:
        family = CHECKPOINT_FAMILIES.build(entry.qualified)
        if (reason := family.misfit(model)) is None:
            return family
        misfits.setdefault(reason, []).append(entry.key)
    reasons = "; ".join(f"in {', '.join(names)} {reason}" for reason, names in misfits.items())
    raise CheckpointError(f"no family of checkpoints computes what the model does: {reasons}")


def _size(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first of the settings `names` that is present."""
    for name in names:
        if values.get(name) is not None:
            return values[name]
    remedy = "; --context sets it" if names == SIZES["context"] else ""
    raise CheckpointError(f"config.json must contain {names[0]}, but does not{remedy}")
