"""Model `unet`: the U-Net of DDPM (arXiv 2006.11239, Appendix B), with a registered attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Literal, Self, TypeVar, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, pad, silu

from axon_core import ATTENTIONS, ConfigError, Count, wide_dtype
from axon_core.interfaces import Attention, Scope
from axon_core.nn import Dropout
from axon_core.registry import Spec, part
from axon_ddpm.denoiser import Denoiser

__all__ = ["AttentionBlock", "Downsample", "ResidualBlock", "UNet", "Upsample", "time_embedding"]

Scopes = dict[int, Scope]
M = TypeVar("M", bound=nn.Module)


def time_embedding(
    t: Int[Tensor, " b"], dim: int, shift: float = 1.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b d"]:
    """Return [sin(t ω) | cos(t ω)] with ω_i = 10000^(−i / (d/2 − shift)), computed in `dtype`."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=dtype, device=t.device) * (-math.log(10000) / (half - shift)))
    angles = t.to(dtype)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), -1)


class ResidualBlock(nn.Module):
    """x + conv(dropout(swish(norm(h)))) with h = conv(swish(norm(x))) + W · time.

    The second convolution starts at 0; the shortcut is a 1×1 convolution where the numbers of channels differ.
    """

    def __init__(self, inputs: int, outputs: int, time: int, groups: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps)
        self.dropout = Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"]) -> Float[Tensor, "b o h w"]:
        """Return the features; `time` is the embedding after its swish."""
        h = self.conv1(_swish(self.norm1(x)))
        h += self.time(time)[:, :, None, None]
        h = self.conv2(self.dropout(_swish(self.norm2(h))))
        h += self.shortcut(x)
        return h


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) over all places of a picture, tokens `(b h·w c)`.

    The attention's output starts at 0 if its last projection is called `out`, as in all of Axon's attentions.
    """

    attention: Attention

    def __init__(self, attention: Attention, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.attention = attention
        if isinstance(out := getattr(attention, "out", None), nn.Linear):
            _zero(out)

    def forward(self, x: Float[Tensor, "b c h w"], scopes: Scopes) -> Float[Tensor, "b c h w"]:
        """Return the features; `scopes` holds the scope of each number of tokens, shared by all blocks."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        if (scope := scopes.get(tokens.shape[1])) is None:
            scope = scopes[tokens.shape[1]] = Scope.over(tokens, causal=False)
        return x + self.attention(tokens, scope).transpose(1, 2).unflatten(2, x.shape[2:])


class ResidualStage(nn.Module):
    """A residual block, followed by an attention if the resolution has one."""

    def __init__(self, residual: ResidualBlock, attention: AttentionBlock | None) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention

    def forward(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"], scopes: Scopes
    ) -> Float[Tensor, "b o h w"]:
        """Return the features."""
        x = self.residual(x, time)
        return x if self.attention is None else self.attention(x, scopes)


class Downsample(nn.Module):
    """Halve the resolution by a 3×3 convolution of stride 2, padded on the right and at the bottom, or on all sides."""

    def __init__(self, channels: int, padding: Literal[0, 1] = 0) -> None:
        super().__init__()
        self.before = (padding, 1, padding, 1)  # left, right, top, bottom
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the features at half the resolution."""
        return self.conv(pad(x, self.before))


class Upsample(nn.Module):
    """Double the resolution by repeating each place, followed by a 3×3 convolution.

    Four of its nine taps see any one place twice or more, so the two steps are computed as one transposed convolution
    of stride 2, of 4×4 taps of which 4 meet in each place: the kernel spread over 2×2 places. This takes about 0.6 of
    the time.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the features at twice the resolution."""
        return conv_transpose2d(x, upsampling_kernel(self.conv.weight), self.conv.bias, stride=2, padding=1)


def upsampling_kernel(kernel: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "c o 4 4"]:
    """Return the kernel whose transposed convolution of stride 2 repeats each place and convolves with `kernel`."""
    padded = pad(kernel.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


class UNet(Denoiser):
    """The U-Net of DDPM `(b c h w), (b) -> (b o h w)`; by default the one for CIFAR-10, with 35,746,307 parameters.

    It has `blocks` residual blocks per resolution on the way down and one more on the way up, each of which also gets
    the features of its counterpart on the way down. A class is embedded and added to the time, with one extra class for
    none. Source: arXiv 2006.11239, Section 4 and Appendix B.

    Raises:
        ConfigError: a size does not fit, or an option of the attention breaks a rule.
        UnknownKey: no installed plugin offers an attention of that name.
    """

    class Config(Denoiser.Config):
        """Sizes of a U-Net, and its attention."""

        width: PositiveInt = 128
        """Channels at the full resolution (Appendix B)."""
        multipliers: tuple[PositiveInt, ...] = Field(default=(1, 2, 2, 2), min_length=1)
        """Channels at each resolution, in units of `width`; each resolution is half the one before."""
        blocks: Count = 2
        """Residual blocks per resolution on the way down (Appendix B)."""
        attention_at: tuple[PositiveInt, ...] = (16,)
        """Resolutions with an attention after each residual block (Appendix B); the middle always has one. The default
        holds for those it meets."""
        attention: Spec = Spec.model_validate({"type": "MHA", "bias": True})
        """The attention over the places of a picture (Appendix B)."""
        n_heads: PositiveInt = 1
        """Heads of each attention."""
        head_dim: PositiveInt | None = None
        """Features of a head; where given, an attention has channels / `head_dim` heads instead of `n_heads`."""
        groups: PositiveInt = 32
        """Groups of the group norms."""
        eps: PositiveFloat = 1e-6
        """What the group norms add to the variance."""
        frequency_shift: float = 1.0
        """s in the frequencies of the time's embedding, ω_i = 10000^(−i / (width/2 − s))."""
        downsample_padding: Literal[0, 1] = 0
        """What is padded before the resolution is halved: the right and the bottom (0), or all sides (1)."""
        dropout: float = Field(default=0.1, ge=0, lt=1)
        """Share of features dropped before the second convolution of a residual block (Appendix B)."""

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.width % 2 or self.width < 4:
                raise ValueError(f"width must be even and at least 4, for sines and cosines, got {self.width}")
            if self.width % self.groups:
                raise ValueError(f"width must be a multiple of groups, got {self.width} and {self.groups}")
            if self.size % (factor := 2 ** (len(self.multipliers) - 1)):
                raise ValueError(
                    f"size must be a multiple of {factor}, because it is halved {len(self.multipliers) - 1} times, got "
                    f"{self.size}; give fewer multipliers, or pictures of another size"
                )
            if self.frequency_shift >= self.width / 2:
                raise ValueError(
                    f"frequency_shift must be less than width/2 = {self.width / 2:g}, got {self.frequency_shift:g}"
                )
            sizes = [self.size // 2**level for level in range(len(self.multipliers))]
            default = type(self).model_fields["attention_at"].default
            if self.attention_at != default and (other := sorted(set(self.attention_at) - set(sizes))):
                raise ValueError(
                    f"attention_at must name resolutions of this U-Net, {', '.join(map(str, sizes))}, got {other[0]}"
                )
            return self._heads_fit(sizes)

        def _heads_fit(self, sizes: list[int]) -> Self:
            if self.head_dim is None:
                return self
            if self.n_heads != 1:
                raise ValueError(f"give n_heads or head_dim, not both, got {self.n_heads} and {self.head_dim}")
            levels = [m for m, size in zip(self.multipliers, sizes, strict=True) if size in self.attention_at]
            for multiplier in (*levels, self.multipliers[-1]):
                if (channels := self.width * multiplier) % self.head_dim:
                    raise ValueError(
                        f"head_dim must divide the {channels} channels of each attention, got {self.head_dim}"
                    )
            return self

    config: Config
    examples = (
        {"size": 8, "width": 8, "groups": 4, "multipliers": (1, 2), "blocks": 1, "attention_at": (4,), "n_classes": 2},
        {"size": 4, "channels": 1, "out_channels": 2, "width": 8, "groups": 8, "multipliers": (1,), "n_heads": 2},
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        time, widths = 4 * c.width, [c.width * multiplier for multiplier in c.multipliers]
        layers = itertools.count()

        def attention(channels: int) -> AttentionBlock:
            n_heads = channels // c.head_dim if c.head_dim else c.n_heads
            built = part(c, "attention", ATTENTIONS, dim=channels, n_heads=n_heads, layer=next(layers), rotary=None)
            if not built.bidirectional:  # pixels have no order
                message = f"{c.attention.type!r} is causal only; choose another, such as 'MHA'"
                raise ConfigError([(("attention",), message)])
            return AttentionBlock(built, channels, c.groups, c.eps)

        def residual(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, time, c.groups, c.eps, c.dropout)

        def stage(inputs: int, outputs: int, size: int) -> ResidualStage:
            return ResidualStage(residual(inputs, outputs), attention(outputs) if size in c.attention_at else None)

        self.time = nn.Sequential(nn.Linear(c.width, time), nn.SiLU(), nn.Linear(time, time))
        self.classes = nn.Embedding(c.n_classes + 1, time) if c.n_classes else None
        self.stem = nn.Conv2d(c.channels, c.width, 3, padding=1)

        kept, size, before = [c.width], c.size, c.width  # channels that the way up gets from the way down
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(c.blocks):
                self.down.append(stage(before, width, size))
                kept.append(before := width)
            if level < len(widths) - 1:
                self.down.append(Downsample(width, c.downsample_padding))
                kept.append(width)
                size //= 2
        self.middle = nn.ModuleList(
            (
                ResidualStage(residual(before, before), attention(before)),
                ResidualStage(residual(before, before), None),
            )
        )
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(c.blocks + 1):
                self.up.append(stage(before + kept.pop(), width, size))
                before = width
            if level:
                self.up.append(Upsample(width))
                size *= 2
        self.norm = nn.GroupNorm(c.groups, before, c.eps)
        self.head = _zero(nn.Conv2d(before, c.out_channels, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], classes: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b o h w"]:
        """Return the prediction for pictures diffused t + 1 times; without `classes`, for no class in particular."""
        dtype = self.stem.weight.dtype
        time = time_embedding(t, self.config.width, self.config.frequency_shift, wide_dtype(dtype))
        time = self.time(time.to(dtype))
        if self.classes is not None:
            none = torch.full_like(t, self.config.n_classes)
            time = time + self.classes(none if classes is None else classes)
        time, scopes = silu(time), Scopes()
        h = self.stem(x).contiguous(memory_format=torch.channels_last)  # both tokens and convolutions use it uncopied
        kept = [h]
        for module in cast("Iterable[ResidualStage | Downsample]", self.down):
            h = module(h, time, scopes) if isinstance(module, ResidualStage) else module(h)
            kept.append(h)
        for module in cast("Iterable[ResidualStage]", self.middle):
            h = module(h, time, scopes)
        for module in cast("Iterable[ResidualStage | Upsample]", self.up):
            if isinstance(module, ResidualStage):
                h = torch.cat((h, kept.pop()), 1)  # rebinds h, so that the previous one is freed
                h = module(h, time, scopes)
            else:
                h = module(h)
        return self.head(_swish(self.norm(h)))


def _swish(x: Tensor) -> Tensor:
    return silu(x, inplace=not torch.is_grad_enabled())


def _zero(module: M) -> M:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
