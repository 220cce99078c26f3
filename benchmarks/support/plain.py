"""Models in plain PyTorch, as a short training script has them: a GPT, and a Llama."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from support.shapes import Shape


class GPTBlock(nn.Module):
    """A pre-norm GPT layer."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after this layer."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A GPT with learned positions and a tied head, as nanoGPT's (github karpathy/nanoGPT, model.py)."""

    def __init__(self, vocab_size: int, context: int, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(GPTBlock(dim, n_heads) for _ in range(n_layers)))
        self.norm, self.head = nn.LayerNorm(dim, bias=False), nn.Linear(dim, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 1 / math.sqrt(2 * n_layers) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 * scale)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the next token's scores."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class LlamaBlock(nn.Module):
    """A Llama layer; its parameters have the shapes and the order of X-Llama's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, self.head_dim = shape.dim, shape.dim // shape.n_heads
        self.heads = [shape.n_heads, shape.n_kv_heads, shape.n_kv_heads]
        self.qkv = nn.Linear(d, sum(self.heads) * self.head_dim, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.norm1 = nn.RMSNorm(d, eps=1e-5)
        self.gate_up = nn.Linear(d, 2 * shape.hidden_dim, bias=False)
        self.down = nn.Linear(shape.hidden_dim, d, bias=False)
        self.norm2 = nn.RMSNorm(d, eps=1e-5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the features after this layer."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split(self.heads, 1)
        q, k = (_rotated(part, cos, sin) for part in (q, k))
        grouped = self.heads[0] != self.heads[1]
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(silu(gate) * up)


class Llama(nn.Module):
    """A Llama, with X-Llama's parameters in X-Llama's order."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.dim)
        self.blocks = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.head = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        half = shape.dim // shape.n_heads // 2
        angles = torch.outer(torch.arange(shape.context), 10000 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the next token's scores."""
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin
