"""Shapes of Llamas, and models of one shape with the same weights in each library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axon_xllama import XLlama
from axon_xllama.checkpoints.hugging_face import config_to_hugging_face, to_hugging_face


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; nothing is tied."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vocab_size: int
    context: int = 2048

    @property
    def streamed(self) -> int:
        """How many weights a token reads: all but the embedding table, of which it reads one row."""
        attention = 2 * self.dim * self.dim * (self.n_heads + self.n_kv_heads) // self.n_heads
        layer = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        return self.n_layers * layer + self.dim + self.dim * self.vocab_size

    def axon(self, device: str = "cpu") -> XLlama:
        """Return Axon's model in float32, with the weights that all others of this shape are given."""
        torch.manual_seed(0)
        with torch.device(device):
            return XLlama.build(
                vocab_size=self.vocab_size,
                context=self.context,
                dim=self.dim,
                n_layers=self.n_layers,
                n_heads=self.n_heads,
                hidden_dim=self.hidden_dim,
                attention={"type": "GQA", "n_kv_heads": self.n_kv_heads},
            )


SHAPES = {
    "125m": Shape(dim=768, n_layers=12, n_heads=12, n_kv_heads=4, hidden_dim=2048, vocab_size=32000),
    "1.1b": Shape(dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, hidden_dim=5632, vocab_size=32000),
    "7b": Shape(dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, hidden_dim=11008, vocab_size=32000),
}


def transformers_like(model: XLlama) -> nn.Module:
    """Return transformers' model that computes what `model` does, and whose weights are views of its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    weight = model.embedding.weight
    settings: dict[str, Any] = config_to_hugging_face(model, torch.float32, None)
    with torch.device(weight.device), no_init_weights():
        theirs = LlamaForCausalLM(LlamaConfig(**settings))
    theirs.load_state_dict(to_hugging_face(model.state_dict(), model.config), assign=True)
    return theirs
