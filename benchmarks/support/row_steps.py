"""One decoding step of several sequences at once: axon-eet's pass, and llama.cpp through `llama_decode`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from axon_core.nn import pack_products, quantize
from axon_eet.blocks import blocks_for
from axon_eet.packed import PackedCache
from axon_eet.passes import compiled_pass, eager_pass
from support.decoders import QUANTIZED
from support.llama_cpp_batch import LlamaBatch, Token
from support.shapes import Shape

Steps = Callable[[int, int], list[float]]
"""Takes the rows and the steps, and returns the seconds of each: from tokens to the scores of the next ones."""

PAST = 64  # tokens before the steps that are timed


def packed_steps(shape: Shape, precision: str, threads: int, most: int, rows: int, compiled: bool) -> Steps:
    """Return the steps of the pass that `Engine` runs, for up to `rows` texts of up to `most` tokens."""
    torch.set_num_threads(threads)
    model = shape.axon().to(torch.float32 if precision == "fp32" else torch.bfloat16).eval()
    layers = [layer.states for layer in model.new_cache(1, 1).layers]
    dtype = model.embedding.weight.dtype
    model = pack_products(quantize(model, QUANTIZED[precision]) if precision in QUANTIZED else model).eval()
    width = blocks_for(most)
    cache = PackedCache(layers, rows * width + 1, dtype, "cpu")
    run = compiled_pass(model, cache, spare=rows * width) if compiled else eager_pass(model, cache)
    tables = torch.randperm(rows * width).view(rows, width).tolist()

    def steps(rows: int, number: int) -> list[float]:
        tokens, seconds = [5 + i for i in range(rows)], list[float]()
        with torch.inference_mode():
            for at in range(PAST, PAST + number):
                start = time.perf_counter()
                texts = [
                    ([token], at, table[: blocks_for(at + 1)]) for token, table in zip(tokens, tables, strict=False)
                ]
                scores = run(texts, range(rows))
                seconds.append(time.perf_counter() - start)
                tokens = scores.argmax(-1).tolist()
        return seconds

    return steps


def llama_steps(shape: Shape, precision: str, threads: int, most: int, rows: int) -> Steps:
    """Return the steps of llama.cpp, whose context has `rows` sequences of up to `most` tokens.

    Raises:
        ModuleNotFoundError: llama-cpp-python or gguf is not installed.
    """
    llama = LlamaBatch(shape, precision, threads, most, rows)
    for row in range(rows):
        llama.load([Token(5 + at, at, row, at == PAST - 1) for at in range(PAST)])
        llama.decode()

    def steps(rows: int, number: int) -> list[float]:
        for row in range(rows):
            llama.shorten(row, PAST)
        tokens, seconds = [5 + i for i in range(rows)], list[float]()
        for at in range(PAST, PAST + number):
            llama.load([Token(token, at, row, True) for row, token in enumerate(tokens)])
            start = time.perf_counter()
            llama.decode()
            seconds.append(time.perf_counter() - start)
            tokens = [llama.likeliest(i) for i in range(rows)]
        return seconds

    return steps
