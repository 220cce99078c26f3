"""What all formats have in common: which of their tensors make up each of X-Llama's, and the two rotary layouts.

X-Llama keeps the query, key and value projections in one matrix, and the feed-forward's two input matrices in another.
Other projects keep them apart, as *parts*: the rows of X-Llama's matrix, one part after another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from axon_core import ATTENTIONS, CheckpointError, ConfigError, first_line, validate
from axon_core.checkpoint import weightless
from axon_core.interfaces import Attention, Layout
from axon_core.nn import QKV, StackedLinear
from axon_core.registry import part_config
from axon_xllama.model import XLlama

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Notice = Callable[[str], object]
"""Called with a sentence that says what a checkpoint holds that is not imported as it stands."""

Bias = bool | Literal["qkv"]
"""Which projections of an attention add a bias: all, those of queries, keys and values, or none."""

Names = Mapping[str, Sequence[str]]
"""X-Llama's modules, those of a block without `blocks.<i>.`, and the tensors that their weight consists of in another
format, or their bias, by the module's name with `.bias`; `{}` stands for the layer."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, which is read on demand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Shaped[Tensor, ...]) -> Stored:
        """Return a tensor that is in memory already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def to(self, dtype: torch.dtype) -> Stored:
        """Return the tensor in another dtype."""
        return Stored(self.shape, dtype, lambda: self.read().to(dtype))


@dataclass(frozen=True)
class TensorPart:
    """A tensor of another format, and where it is in X-Llama's."""

    theirs: str
    """Its name in the other format."""
    ours: str
    """The tensor of X-Llama that it is a part of."""
    rows: slice
    """Its rows there."""
    shape: tuple[int, ...]
    heads: int | None
    """The number of heads, where the rotary layout orders its rows: of a projection, or of its norm, which is one."""


@dataclass(frozen=True)
class Settings:
    """The settings of the parts of a Llama, as far as other formats record them."""

    n_kv_heads: int
    head_dim: int
    eps: float
    base: float
    layout: Layout
    qk_eps: float | None
    """ε of the norm of query and key heads, where there is one."""
    bias: Bias

    @classmethod
    def of(cls, model: XLlama) -> Settings:
        """Return the settings of a model whose parts are MHA, GQA or MQA, RMSNorm and a rotary embedding."""
        attention, norm = (cast(Any, model.get_submodule(name)).config for name in ("blocks.0.attention", "norm"))
        rotary = cast(Any, model.rotaries[0]).config
        return cls(
            n_kv_heads=getattr(attention, "n_kv_heads", attention.n_heads),
            head_dim=attention.head_dim,
            eps=norm.eps,
            base=rotary.base,
            layout=rotary.layout,
            qk_eps=cast(Any, model.get_submodule("blocks.0.attention.q_norm")).config.eps
            if attention.qk_norm
            else None,
            bias=getattr(attention, "bias", False),
        )


def skeleton(config: XLlama.Config, within: Collection[int] | None = None) -> XLlama:
    """Return the model of `config` without weights; `within` are the sizes of the tensors that it is to hold.

    Raises:
        CheckpointError: no model has such a config, or it is much larger than `within`.
    """
    try:
        with _fitting(), weightless(within):
            return XLlama(config)
    except (RuntimeError, OverflowError) as error:  # more numbers than a tensor can have
        raise CheckpointError(f"no model can have the checkpoint's sizes: {first_line(error)}") from None


def configured(source: str, **values: object) -> XLlama.Config:
    """Return the config with `values`, which come from `source`. Raises `CheckpointError` if one is wrong."""
    for name, value in values.items():
        if isinstance(value, int) and value >= 1 << 63:
            raise CheckpointError(
                f"{source} does not describe a Llama: {name} must fit 64 bits, got {str(value)[:20]}…"
            )
    try:
        return validate(XLlama.Config, values)
    except ConfigError as error:
        raise CheckpointError(f"{source} does not describe a Llama: {error}") from None


def real(value: Any) -> Any:
    """Return a number of any size that is not a count as a float; the config's checks see everything else as it is."""
    return float(value) if type(value) is int and abs(value) < 10**300 else value


def checkpoint_tensors(model: XLlama, names: Names) -> Iterator[TensorPart]:
    """Yield the tensors that a checkpoint of `model` consists of in the format with these `names`.

    Raises:
        CheckpointError: the model has a tensor that no Llama checkpoint has.
    """
    modules = dict(model.named_modules())
    stacks = {name: module.rows for name, module in modules.items() if isinstance(module, StackedLinear)}
    heads = {f"{name}.projection": module.heads for name, module in modules.items() if isinstance(module, QKV)}
    for name, tensor in model.state_dict().items():
        key = name.removesuffix(".weight")
        module = key.removesuffix(".bias")
        if module == "head" and model.config.tie_embeddings:
            continue
        in_block = re.fullmatch(r"blocks\.(\d+)\.(.*)", key)
        layer, inner = in_block.groups() if in_block else ("", key)
        if inner not in names:
            raise CheckpointError(f"the model has a tensor {name!r}, which a Llama checkpoint cannot store")
        theirs, start = [pattern.format(layer) for pattern in names[inner]], 0
        rotated: list[int | None] = [*heads[module][:2], None] if module in heads else [None] * len(theirs)
        if inner in ("attention.q_norm", "attention.k_norm"):  # one gain for each feature of a head
            rotated = [1]
        for part, rows, n_heads in zip(theirs, stacks.get(module) or [tensor.shape[0]], rotated, strict=True):
            yield TensorPart(part, name, slice(start, start + rows), (rows, *tensor.shape[1:]), n_heads)
            start += rows


def checked(
    tensors: Mapping[str, Stored], config: XLlama.Config, names: Names
) -> tuple[XLlama, dict[str, list[Stored]]]:
    """Return the model of `config` without weights, and its tensors, each with the parts that become its rows.

    Raises:
        CheckpointError: no model has such a config, or a tensor is missing, of a wrong shape or dtype, or not one that
            a Llama has.
    """
    _check_sizes(tensors, config, names)
    model = skeleton(config, [prod(tensor.shape) for tensor in tensors.values()])
    found: dict[str, list[Stored]] = {}
    known: set[str] = set()
    for part in checkpoint_tensors(model, names):
        tensor = _shaped(tensors, part.theirs, part.shape)
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{part.theirs!r} is {_name(tensor.dtype)}, but weights must be float32, float16 or bfloat16; save the "
                "model in float32 first (in transformers: model.float().save_pretrained(…))"
            )
        found.setdefault(part.ours, []).append(tensor)
        known.add(part.theirs)
    if unknown := sorted(tensors.keys() - known):
        raise CheckpointError(f"the checkpoint has a tensor {unknown[0]!r}, which is not part of a Llama")
    return model, {name: _alike(parts) for name, parts in found.items()}


def relayout(weight: Float[Tensor, "hr ..."], n_heads: int, layout: Layout) -> Float[Tensor, "hr ..."]:
    """Return a query or key projection, or its norm's gain, of the other rotary layout with its rows in that order.

    `half` rotates the features (i, i + r/2) of a head, `interleaved` (2i, 2i + 1): row 2i + j of a head goes to row
    j · r/2 + i, or back. For keys `n_heads` is the number of key/value heads.
    """
    split = (n_heads, -1, 2) if layout == "half" else (n_heads, 2, weight.shape[0] // n_heads // 2)
    return weight.unflatten(0, split).transpose(1, 2).flatten(0, 2)


def _alike(parts: list[Stored]) -> list[Stored]:
    """Return parts of one matrix in the narrowest dtype that holds all their numbers exactly."""
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return [part if part.dtype == dtype else part.to(dtype) for part in parts]


def _check_sizes(tensors: Mapping[str, Stored], config: XLlama.Config, names: Names) -> None:
    """Check that tensors are as many and as large as `config` says before a model of its sizes is built.

    The message then names the tensor; what this check misses, `weightless` catches.
    """
    c = config
    layers = [pattern for patterns in names.values() for pattern in patterns if "{}" in pattern]
    for layer in range(c.n_layers):
        for pattern in layers:
            _stored(tensors, pattern.format(layer))
    with _fitting():
        attention = part_config(c, "attention", ATTENTIONS, Attention.Config, dim=c.dim, n_heads=c.n_heads)
    shapes = {
        "embedding": (c.vocab_size, c.dim),
        "attention.out": (c.dim, c.n_heads * attention.head_dim),
        "feed_forward.gate_up": (c.hidden_dim, c.dim),
        "feed_forward.experts.0.gate_up": (c.hidden_dim, c.dim),
    }
    for module in (name for name in shapes if name in names):
        _shaped(tensors, names[module][0].format(0), shapes[module])


def _shaped(tensors: Mapping[str, Stored], name: str, shape: tuple[int, ...]) -> Stored:
    tensor = _stored(tensors, name)
    if tensor.shape != shape:
        raise CheckpointError(
            f"the shape of {name!r} must be {shape} by the checkpoint's config, got {tensor.shape}; "
            "is a file missing or from another model?"
        )
    return tensor


def _stored(tensors: Mapping[str, Stored], name: str) -> Stored:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no tensor {name!r}; is a file missing?")
    return tensors[name]


@contextmanager
def _fitting() -> Generator[None]:
    """Report options of a part that break a rule as the checkpoint's."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's sizes are inconsistent: {error}") from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
