"""One decoding step of several sequences at once: Axon's packed model, and llama.cpp through `llama_decode`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_core.interfaces import Scope
from axon_core.nn import attend_blocks, pack_products, quantize
from axon_xllama import XLlama
from support.shapes import Shape

Steps = Callable[[int, int], list[float]]
"""Takes the rows and the steps, and returns the seconds of each: from tokens to the scores of the next ones."""

SIZE = 16  # tokens of a block
PAST = 64  # tokens before the steps that are timed


def packed_steps(shape: Shape, precision: str, compiled: bool, threads: int, most: int) -> Steps:
    """Return the steps of a packed X-Llama with keys and values in blocks, for up to `most` tokens a row."""
    torch.set_num_threads(threads)
    model = shape.axon().to(torch.float32 if precision == "fp32" else torch.bfloat16).eval()
    model = pack_products(quantize(model) if precision == "int8" else model)
    run = torch.compile(step, dynamic=True) if compiled else step

    def steps(rows: int, number: int) -> list[float]:
        width = -(-most // SIZE)
        c = model.blocks[0].attention.config
        pools = torch.zeros(shape.n_layers, 2, rows * width, SIZE, c.n_kv_heads, c.head_dim).to(model.embedding.weight)
        tables = torch.randperm(rows * width).view(rows, width)
        sequences, tokens = torch.arange(rows, dtype=torch.int32), torch.randint(3, shape.vocab_size, (rows,))
        seconds: list[float] = []
        with torch.inference_mode():
            for at in range(PAST, PAST + number):
                positions, slots = torch.full((rows,), at), tables[:, at // SIZE] * SIZE + at % SIZE
                start = time.perf_counter()
                scores = run(model, tokens, positions, tables.int(), sequences, slots, pools)
                seconds.append(time.perf_counter() - start)
                tokens = scores.argmax(-1)
        return seconds

    return steps


def step(
    model: XLlama, tokens: Tensor, positions: Tensor, tables: Tensor, sequences: Tensor, slots: Tensor, pools: Tensor
) -> Tensor:
    """Return the scores of the next tokens, `(n v)`; the tokens' keys and values go to `slots` of `pools`."""
    x, scope, seen = model.embedding(tokens)[None], Scope(positions[None], causal=True), positions.int() + 1
    for block, (keys, values) in zip(model.blocks, pools, strict=True):
        attention: Any = block.attention
        q, k, v = attention.qkv(block.attention_norm(x))
        q, k = scope.rotate(attention.rotary, q, k)
        for pool, new in ((keys, k), (values, v)):
            pool.view(-1, *pool.shape[2:])[slots] = new[0]
        found = attend_blocks(q[0], keys, values, tables, sequences, seen)
        h = x + attention.out(found.flatten(-2)[None])
        x = h + block.feed_forward(block.feed_forward_norm(h))
    return model.logits(model.norm(x))[0]


def llama_steps(shape: Shape, precision: str, threads: int, most: int, rows: int) -> Steps:
    """Return the steps of llama.cpp, whose context has `rows` sequences of up to `most` tokens.

    Raises:
        ModuleNotFoundError: llama-cpp-python or gguf is not installed.
    """
    import llama_cpp as api
    import numpy as np

    from support.gguf_file import write_gguf

    api.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write_gguf(file, shape.axon(), precision)
        model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
    options = api.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = most * rows, 512, 512, rows
    options.n_threads = options.n_threads_batch = threads
    context: Any = api.llama_init_from_model(model, options)
    batch = api.llama_batch_init(rows, 0, 1)

    def decode(tokens: Any, at: int) -> float:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, at, 1, i, 1
        start = time.perf_counter()
        if api.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        api.llama_synchronize(context)
        return time.perf_counter() - start

    def steps(rows: int, number: int) -> list[float]:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        tokens, seconds = [5 + i for i in range(rows)], []
        for at in range(PAST + number):
            seconds.append(decode(tokens, at))
            scores = [api.llama_get_logits_ith(context, i) for i in range(rows)]
            tokens = [int(np.ctypeslib.as_array(row, (shape.vocab_size,)).argmax()) for row in scores]
        return seconds[PAST:]

    return steps
