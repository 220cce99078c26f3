"""llama.cpp through llama-cpp-python's low-level API: one call of `llama_decode` a step, nothing of Python between."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.shapes import Shape


class Token(NamedTuple):
    """A token of a batch."""

    token: int
    position: int
    sequence: int
    scored: bool
    """Whether the scores of the token after it are wanted."""


def _has_amx() -> bool:
    """Whether llama.cpp lays quantised weights out for AMX, where llama-cpp-python 0.3.36 crashes in `llama_decode`."""
    file = Path("/proc/cpuinfo")
    return file.exists() and "amx_int8" in file.read_text("utf-8")


class LlamaBatch:
    """A model of llama.cpp with the weights of a shape, and its memory for some sequences.

    Args:
        shape: the model's sizes.
        precision: `fp32`, `bf16`, `q8_0` or `q4_0`.
        threads: how many compute.
        longest: tokens of a sequence.
        sequences: how many there are.

    Raises:
        ModuleNotFoundError: llama-cpp-python or gguf is not installed.
    """

    def __init__(self, shape: Shape, precision: str, threads: int, longest: int, sequences: int = 1) -> None:
        import llama_cpp as api

        from support.gguf_file import write_gguf

        self._api: Any = api
        self._vocab = shape.vocab_size
        self._quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._quiet, None)
        api.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            write_gguf(file, shape.axon(), precision)
            load = api.llama_model_default_params()
            load.use_extra_bufts = not _has_amx()  # with AMX, its layout of 8 and 4 bits ends the process
            self._model = api.llama_model_load_from_file(str(file).encode(), load)
        options = api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = longest * sequences, 512, 512, sequences
        options.n_threads = options.n_threads_batch = threads
        self._context: Any = api.llama_init_from_model(self._model, options)
        self._batch = api.llama_batch_init(512, 0, 1)

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def shorten(self, sequence: int, tokens: int) -> None:
        """Forget what follows the first so many tokens of a sequence."""
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), sequence, tokens, -1)

    def load(self, tokens: Sequence[Token]) -> None:
        """Write the tokens of the next `decode`, at most 512."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, scored) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, scored
            batch.seq_id[i][0] = sequence

    def decode(self) -> None:
        """Compute the batch that `load` wrote.

        Raises:
            RuntimeError: llama.cpp reports a failure.
        """
        if self._api.llama_decode(self._context, self._batch):
            raise RuntimeError("llama_decode failed")
        self._api.llama_synchronize(self._context)

    def likeliest(self, i: int) -> int:
        """Return the likeliest token after the batch's token i."""
        import numpy as np

        row = self._api.llama_get_logits_ith(self._context, i)
        return int(np.ctypeslib.as_array(row, (self._vocab,)).argmax())
