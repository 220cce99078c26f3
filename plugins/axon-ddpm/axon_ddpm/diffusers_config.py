"""The options of diffusers' `UNet2DModel` that `unet` supports, and the options of `unet` they correspond to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from axon_core import UsageError, at, config, validate

__all__ = ["UNet2DOptions", "read_options"]

_CLASS = "UNet2DModel"
_DOWN, _UP = ({kind: "Attn" in kind for kind in (f"{way}Block2D", f"Attn{way}Block2D")} for way in ("Down", "Up"))
"""Whether a block has attentions, by its name in diffusers."""


class UNet2DOptions(config.Config):
    """The options of a `UNet2DModel` as far as `unet` computes them; the defaults are those of diffusers 0.42.

    If an option's type is a single value, `unet` computes nothing else.
    """

    sample_size: PositiveInt
    """Height and width of the pictures. diffusers leaves it open by default; a pair must be square."""
    in_channels: PositiveInt = 3
    """Channels of a picture."""
    out_channels: PositiveInt = 3
    """Channels of the output."""
    center_input_sample: Literal[False] = False
    """Whether pictures over [0, 1] are brought to [−1, 1]."""
    time_embedding_type: Literal["positional"] = "positional"
    """How the time is embedded: by sines and cosines."""
    time_embedding_dim: PositiveInt | None = None
    """Features of the embedded time: four times the first of `block_out_channels`."""
    freq_shift: float = 0.0
    """s in ω_i = 10000^(−i / (d/2 − s))."""
    flip_sin_to_cos: bool = True
    """Whether the cosines come before the sines."""
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    """At which resolutions there are attentions on the way down."""
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    """What is in the middle."""
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    """At which resolutions there are attentions on the way up: the same."""
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (224, 448, 672, 896)
    """Channels at each resolution: multiples of the first."""
    layers_per_block: PositiveInt = 2
    """Residual blocks per resolution on the way down."""
    mid_block_scale_factor: Literal[1] = 1
    """What the sums in the middle are divided by."""
    downsample_padding: Literal[0, 1] = 1
    """What is padded before the resolution is halved: the right and the bottom (0), or all sides (1)."""
    downsample_type: Literal["conv"] = "conv"
    """How blocks with attentions halve the resolution."""
    upsample_type: Literal["conv"] = "conv"
    """How blocks with attentions double it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of features dropped in training."""
    act_fn: Literal["silu", "swish"] = "silu"
    """The activation of residual blocks; both are x · σ(x)."""
    attention_head_dim: PositiveInt | None = 8
    """Features of a head; None for one head."""
    norm_num_groups: PositiveInt = 32
    """Groups of the group norms."""
    attn_norm_num_groups: PositiveInt | None = None
    """Those of the middle's attention: the same."""
    norm_eps: PositiveFloat = 1e-5
    """What the group norms add to the variance."""
    resnet_time_scale_shift: Literal["default"] = "default"
    """How a residual block takes the time: it is added."""
    add_attention: Literal[True] = True
    """Whether the middle has an attention."""
    class_embed_type: None = None
    """What embeds a class: a table, of `num_class_embeds`."""
    num_class_embeds: Annotated[int, Field(ge=2)] | None = None
    """Classes; in `unet` the last of them stands for none."""
    num_train_timesteps: int | None = None
    """Not used with sines and cosines."""

    @field_validator("sample_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:  # pyright: ignore[reportUnknownArgumentType]
            return value[0]  # pyright: ignore[reportUnknownVariableType]
        if value is None or isinstance(value, list | tuple):
            raise ValueError(f"must be the height and width of square pictures, got {value!r}; set it in the config")
        return value

    @field_validator("mid_block_scale_factor", "downsample_padding", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("down_block_types", "up_block_types", mode="before")
    @classmethod
    def _today(cls, value: Any) -> Any:
        """Accept the original names of blocks, such as `UNetResDownBlock2D`."""
        return [str(kind).removeprefix("UNetRes") for kind in value] if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if problems := list(self._problems()):
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong with options that depend on each other."""
        width, levels = self.block_out_channels[0], len(self.block_out_channels)
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            kinds = getattr(self, name)
            if len(kinds) != levels:
                yield f"{name} must be as many as block_out_channels, {levels}, got {len(kinds)}"
            if other := next((kind for kind in kinds if kind not in known), None):
                yield f"{name} must be {' or '.join(known)}, got {other!r}"
        if [_DOWN.get(kind) for kind in self.down_block_types] != [_UP.get(k) for k in reversed(self.up_block_types)]:
            yield "up_block_types must have attentions at the places of down_block_types, in reverse order"
        if width % 2 or width < 4 or any(channels % width for channels in self.block_out_channels):
            yield (
                "block_out_channels must be multiples of the first, which is even and at least 4, got "
                f"{self.block_out_channels}"
            )
        if width % self.norm_num_groups:
            yield f"norm_num_groups must divide block_out_channels, got {self.norm_num_groups}"
        if self.attn_norm_num_groups not in (None, self.norm_num_groups):
            yield f"attn_norm_num_groups must be norm_num_groups, got {self.attn_norm_num_groups}"
        if self.time_embedding_dim not in (None, 4 * width):
            yield f"time_embedding_dim must be four times the width, {4 * width}, got {self.time_embedding_dim}"
        if self.freq_shift >= width / 2:
            yield f"freq_shift must be less than half the width, {width / 2:g}, got {self.freq_shift:g}"
        if self.sample_size % 2 ** (levels - 1):
            yield f"sample_size must be a multiple of {2 ** (levels - 1)}, got {self.sample_size}"
        if self.attention_head_dim and (bad := [c for c in self._attended() if c % self.attention_head_dim]):
            yield f"attention_head_dim must divide the channels of attentions, {bad[0]}, got {self.attention_head_dim}"

    def _attended(self) -> list[int]:
        """Return the channels of the attentions."""
        pairs = zip(self.block_out_channels, self.down_block_types, strict=False)
        return [*(channels for channels, kind in pairs if _DOWN.get(kind)), self.block_out_channels[-1]]

    def sizes(self) -> dict[str, Any]:
        """Return the options of `unet`."""
        width = self.block_out_channels[0]
        return {
            "size": self.sample_size,
            "channels": self.in_channels,
            "out_channels": self.out_channels,
            "n_classes": self.num_class_embeds - 1 if self.num_class_embeds else 0,
            "width": width,
            "multipliers": tuple(channels // width for channels in self.block_out_channels),
            "blocks": self.layers_per_block,
            "attention_at": tuple(
                self.sample_size // 2**level for level, kind in enumerate(self.down_block_types) if _DOWN[kind]
            ),
            "head_dim": self.attention_head_dim,
            "groups": self.norm_num_groups,
            "eps": self.norm_eps,
            "frequency_shift": self.freq_shift,
            "downsample_padding": self.downsample_padding,
            "dropout": self.dropout,
        }


def read_options(values: Mapping[str, object]) -> UNet2DOptions:
    """Return the options in a `UNet2DModel`'s `config`, or in its `config.json`.

    Raises:
        ConfigError: `unet` cannot compute what an option says, or there is an option that diffusers 0.42 does not have.
        UsageError: it is the config of another class.
    """
    if (kind := values.get("_class_name", _CLASS)) != _CLASS:
        raise UsageError(f"the config must be of a {_CLASS}, got one of a {kind}")
    given = {name: value for name, value in values.items() if not name.startswith("_")}  # `_…`: diffusers' own notes
    with at(source="the config of diffusers' U-Net"):
        return validate(UNet2DOptions, given)
