"""Weights of a `unet` with multi-head attention under the names of diffusers' `UNet2DModel`, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from axon_core import UsageError, forked
from axon_core.checkpoint import weightless
from axon_ddpm.diffusers_config import read_options
from axon_ddpm.unet import AttentionBlock, Downsample, ResidualBlock, ResidualStage, UNet, Upsample

__all__ = ["diffusers_options", "diffusers_weights", "load_diffusers"]

_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
_OUTSIDE = {
    "stem": "conv_in",
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "classes": "class_embedding",
    "norm": "conv_norm_out",
    "head": "conv_out",
}
_PROJECTIONS = ("to_q", "to_k", "to_v")
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TIMES = "time_embedding.linear_1.weight"


def diffusers_options(model: UNet) -> dict[str, object]:
    """Return the arguments that make diffusers' `UNet2DModel` the same model."""
    c = model.config
    attended = [c.size // 2**level in c.attention_at for level in range(len(c.multipliers))]
    return {
        "sample_size": c.size,
        "in_channels": c.channels,
        "out_channels": c.out_channels,
        "layers_per_block": c.blocks,
        "block_out_channels": tuple(c.width * multiplier for multiplier in c.multipliers),
        "down_block_types": tuple("AttnDownBlock2D" if yes else "DownBlock2D" for yes in attended),
        "up_block_types": tuple("AttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attended)),
        "attention_head_dim": c.head_dim,
        "norm_num_groups": c.groups,
        "norm_eps": c.eps,
        "downsample_padding": c.downsample_padding,
        "flip_sin_to_cos": False,
        "freq_shift": c.frequency_shift,
        "dropout": c.dropout,
        "num_class_embeds": c.n_classes + 1 if c.n_classes else None,
    }


def diffusers_weights(model: UNet) -> dict[str, Tensor]:
    """Return the model's weights by their names in diffusers, with queries, keys and values separate.

    Raises:
        UsageError: its attention is not multi-head attention with biases, of one head or of heads of `head_dim`.
    """
    if model.config.n_heads != 1:
        raise UsageError(
            "attentions of diffusers' U-Net must have one head or heads of head_dim features, got n_heads "
            f"{model.config.n_heads}; give head_dim instead"
        )
    state, weights = model.state_dict(), dict[str, Tensor]()
    for name, other in _names(model):
        for kind in ("weight", "bias"):
            if (tensor := state.get(f"{name}.{kind}")) is None:
                if ".attention." in name:
                    raise UsageError(
                        f"diffusers' U-Net has multi-head attention with biases, but this model has no {name}.{kind}"
                    )
                continue
            if isinstance(other, str):
                weights[f"{other}.{kind}"] = tensor
            else:
                weights |= {f"{o}.{kind}": rows for o, rows in zip(other, tensor.chunk(3), strict=True)}
    return weights


def load_diffusers(config: Mapping[str, object], weights: Mapping[str, Tensor]) -> UNet:
    """Return the `unet` equal to a `UNet2DModel`: with the same weights, pictures and times it gives the same outputs.

    Classes keep their numbers. The last of them stands for no class in `unet`, which diffusers does not have.

    Args:
        config: the model's `config`, or what its `config.json` says; options left out have diffusers' defaults.
        weights: its `state_dict`; attentions may have the names of diffusers' first files (`query`, `proj_attn`).

    Raises:
        ConfigError: `unet` cannot compute what an option says; the message names the option.
        UsageError: a name or a shape does not fit, or it is the config of another class.
        CheckpointError: the sizes are those of a much larger model than the weights are of.
    """
    options = read_options(config)
    weights = {_renamed(name): tensor for name, tensor in weights.items()}
    with weightless([tensor.numel() for tensor in weights.values()]), forked("cpu"):
        _check(diffusers_weights(UNet.build(**options.sizes())), weights)
    with forked("cpu"):  # the initial weights are drawn, then replaced
        model = UNet.build(**options.sizes())
    with torch.no_grad():
        for name, tensor in diffusers_weights(model).items():
            half = tensor.shape[-1] // 2
            flipped = options.flip_sin_to_cos and name == _TIMES  # their columns are those of [cos | sin]
            tensor.copy_(weights[name].roll(half, 1) if flipped else weights[name])  # a view of the model's own
    return model


def _check(known: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wrong := sorted(n for n in known.keys() | shapes.keys() if n not in known or shapes.get(n) != known[n].shape):
        raise UsageError(
            f"the weights must fit this U-Net, but {wrong[0]} is {shapes.get(wrong[0], 'missing')} there and "
            f"{tuple(known[wrong[0]].shape) if wrong[0] in known else 'missing'} here"
        )


def _renamed(name: str) -> str:
    """Return the current name of a weight of an attention."""
    block, dot, rest = name.partition(".attentions.")
    index, _, inner = rest.partition(".")
    module, _, kind = inner.rpartition(".")
    return f"{block}{dot}{index}.{_FORMER[module]}.{kind}" if module in _FORMER else name


def _names(model: UNet) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    """Yield each module with weights: its name here, and its name, or its three names, in diffusers."""
    yield from _OUTSIDE.items()
    for side, ends in (("down", Downsample), ("up", Upsample)):
        level = index = 0
        for i, module in enumerate(getattr(model, side)):
            if isinstance(module, ends):
                yield f"{side}.{i}.conv", f"{side}_blocks.{level}.{side}samplers.0.conv"
                level, index = level + 1, 0
            else:
                yield from _stage(module, f"{side}.{i}", f"{side}_blocks.{level}", index)
                index += 1
    for i, module in enumerate(model.middle):
        yield from _stage(module, f"middle.{i}", "mid_block", i)


def _stage(stage: nn.Module, name: str, other: str, index: int) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    if not isinstance(stage, ResidualStage) or not isinstance(stage.residual, ResidualBlock):
        raise UsageError(f"{name} is not a stage of a U-Net")
    for own, theirs in _RESIDUAL.items():
        yield f"{name}.residual.{own}", f"{other}.resnets.{index}.{theirs}"
    if isinstance(stage.attention, AttentionBlock):
        inner, their = f"{name}.attention", f"{other}.attentions.{index}"
        yield f"{inner}.norm", f"{their}.group_norm"
        yield f"{inner}.attention.qkv.projection", tuple(f"{their}.{p}" for p in _PROJECTIONS)
        yield f"{inner}.attention.out", f"{their}.to_out.0"
