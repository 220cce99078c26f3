"""The `.bin` files of llama2.c, version 0: seven numbers, then all weights in float32.

The numbers are dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, context, as 32-bit integers; vocab_size is
negative where the head has weights of its own. Each kind of weight is stored for all layers consecutively. Features are
rotated in pairs (2i, 2i + 1), as in Meta's checkpoints. Source: karpathy/llama2.c, `legacy_export` in export.py.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import torch

from axon_core import CheckpointError
from axon_xllama.checkpoints.layout import Stored, configured
from axon_xllama.model import XLlama

_HEADER = struct.Struct("<7i")
_MAGIC = 0x616B3432  # "ak42", of the later versions
_LAYER = "layers.{}."


def open_llama2c(file: Path) -> tuple[XLlama.Config, dict[str, Stored]]:
    """Return the config and the tensors, named as in Meta's checkpoints, of a llama2.c file.

    Raises:
        CheckpointError: the file is of another version or damaged.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise CheckpointError(f"{file} is not a llama2.c checkpoint: it has {len(head)} bytes, fewer than a header")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab, context = _HEADER.unpack(head)
    if dim == _MAGIC:
        raise CheckpointError(f"{file} is a llama2.c file of version {hidden_dim}; only version 0 can be read")
    numbers = {"dim": dim, "hidden_dim": hidden_dim, "n_layers": n_layers, "n_heads": n_heads, "context": context}
    if min(*numbers.values(), n_kv_heads, abs(vocab)) < 1 or dim % n_heads or dim // n_heads % 2:
        raise CheckpointError(f"{file} is not a llama2.c checkpoint: its header reads {_HEADER.unpack(head)}")
    config = configured(
        str(file),
        **numbers,
        vocab_size=abs(vocab),
        attention={"type": "GQA", "n_kv_heads": n_kv_heads},
        rotary={"type": "rotary", "layout": "interleaved"},
        norm={"type": "rmsnorm", "eps": 1e-5},
        tie_embeddings=vocab > 0,
    )
    order = _order(config, n_kv_heads)
    size = _HEADER.size + 4 * sum(prod(shape) * layers for _, shape, layers in order)
    if file.stat().st_size != size:
        raise CheckpointError(f"{file} must have {size:,} bytes by its header, got {file.stat().st_size:,}")
    # The header is as long as seven numbers of the weights, so the whole file can be viewed as an array of them.
    numbers_in_file = torch.from_file(str(file), shared=False, size=size // 4, dtype=torch.float32)
    offset = _HEADER.size // 4
    return config, {
        name: Stored.of(numbers_in_file[offset + start : offset + start + prod(shape)].view(shape))
        for name, (start, shape) in _places(order).items()
    }


def _order(c: XLlama.Config, n_kv_heads: int) -> list[tuple[str, tuple[int, ...], int]]:
    """Return the tensors as they stand in the file: name, shape, and how many layers have one."""
    rows = c.dim // c.n_heads * n_kv_heads
    order = [
        ("tok_embeddings.weight", (c.vocab_size, c.dim)),
        (f"{_LAYER}attention_norm.weight", (c.dim,)),
        (f"{_LAYER}attention.wq.weight", (c.dim, c.dim)),
        (f"{_LAYER}attention.wk.weight", (rows, c.dim)),
        (f"{_LAYER}attention.wv.weight", (rows, c.dim)),
        (f"{_LAYER}attention.wo.weight", (c.dim, c.dim)),
        (f"{_LAYER}ffn_norm.weight", (c.dim,)),
        (f"{_LAYER}feed_forward.w1.weight", (c.hidden_dim, c.dim)),
        (f"{_LAYER}feed_forward.w2.weight", (c.dim, c.hidden_dim)),
        (f"{_LAYER}feed_forward.w3.weight", (c.hidden_dim, c.dim)),
        ("norm.weight", (c.dim,)),
        ("rope", (c.context, c.dim // c.n_heads)),  # cos and sin, each half as wide; X-Llama computes them
        ("output.weight", (c.vocab_size, c.dim)),
    ]
    return [
        (name, shape, c.n_layers if "{}" in name else 1) for name, shape in order[: -1 if c.tie_embeddings else None]
    ]


def _places(order: list[tuple[str, tuple[int, ...], int]]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return each tensor's first number, counted after the header, and its shape."""
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    start = 0
    for pattern, shape, layers in order:
        for layer in range(layers):
            places[pattern.format(layer)] = start, shape
            start += prod(shape)
    del places["rope"]
    return places
