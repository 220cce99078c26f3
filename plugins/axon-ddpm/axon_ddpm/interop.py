"""Weights of a `unet` with multi-head attention under the names of diffusers' `UNet2DModel`, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from axon_core.errors import UsageError
from axon_ddpm.unet import AttentionBlock, Downsample, ResidualBlock, Stage, UNet, Upsample

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


def diffusers_options(model: UNet) -> dict[str, object]:
    """Return the arguments with which diffusers' `UNet2DModel` is the same model."""
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
        "attention_head_dim": None,
        "norm_num_groups": c.groups,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "dropout": c.dropout,
        "num_class_embeds": c.n_classes + 1 if c.n_classes else None,
    }


def diffusers_weights(model: UNet) -> dict[str, Tensor]:
    """Return the model's weights by their names in diffusers, queries, keys and values apart.

    Raises:
        UsageError: its attention is not multi-head attention with biases, of one head.
    """
    if model.config.n_heads != 1:
        raise UsageError(f"the attention of this U-Net must have one head to be diffusers', got {model.config.n_heads}")
    state, weights = model.state_dict(), dict[str, Tensor]()
    for name, other in _names(model):
        for kind in ("weight", "bias"):
            if (tensor := state.get(f"{name}.{kind}")) is None:
                if ".attention." in name:
                    raise UsageError(f"diffusers' U-Net has multi-head attention with biases; here is no {name}.{kind}")
                continue
            if isinstance(other, str):
                weights[f"{other}.{kind}"] = tensor
            else:
                weights |= {f"{o}.{kind}": rows for o, rows in zip(other, tensor.chunk(3), strict=True)}
    return weights


def load_diffusers(model: UNet, weights: Mapping[str, Tensor]) -> None:
    """Give the model the weights of a `UNet2DModel`. Raises `UsageError` where a name or a shape does not fit."""
    known = diffusers_weights(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wrong := sorted(n for n in known.keys() | shapes.keys() if n not in known or shapes.get(n) != known[n].shape):
        raise UsageError(
            f"these are the weights of another U-Net: {wrong[0]} is {shapes.get(wrong[0], 'missing')} there and "
            f"{tuple(known[wrong[0]].shape) if wrong[0] in known else 'missing'} here"
        )
    with torch.no_grad():
        for name, tensor in known.items():
            tensor.copy_(weights[name])  # views of the model's own


def _names(model: UNet) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    """Yield each module with weights: its name here, and its name there, or its three names."""
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
    if not isinstance(stage, Stage) or not isinstance(stage.residual, ResidualBlock):
        raise UsageError(f"{name} is no stage of a U-Net")
    for own, theirs in _RESIDUAL.items():
        yield f"{name}.residual.{own}", f"{other}.resnets.{index}.{theirs}"
    if isinstance(stage.attention, AttentionBlock):
        inner, their = f"{name}.attention", f"{other}.attentions.{index}"
        yield f"{inner}.norm", f"{their}.group_norm"
        yield f"{inner}.attention.qkv.projection", tuple(f"{their}.{p}" for p in _PROJECTIONS)
        yield f"{inner}.attention.out", f"{their}.to_out.0"
