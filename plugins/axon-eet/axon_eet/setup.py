"""How an engine serves a model: what its attentions keep, what memory that takes, and what a trial pass shows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from axon_core import CausalLM, StateSpec, UsageError
from axon_core.interfaces import Between
from axon_core.nn import pack_products, rows_depend
from axon_eet.blocks import Blocks
from axon_eet.packed import Packed, PackedCache, block_bytes
from axon_eet.passes import Pass, compiled_pass, eager_pass
from axon_eet.runners import BlockRunner, CacheRunner, Limits, Runner, state_bytes

__all__ = ["make_runner", "parse_size"]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(size: int | str) -> int:
    """Return a size in bytes, given as such or as a text.

    >>> parse_size("2GB"), parse_size("512 MiB"), parse_size("1e9")
    (2000000000, 536870912, 1000000000)

    Raises:
        UsageError: it is not a positive size.
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([KMG]i?B)?\s*", str(size))
    try:
        number = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    except ValueError:
        number = 0.0
    if not 1 <= number < 2**60:
        raise UsageError(f"memory is a number of bytes such as '2GB', '512MiB' or 1000000000, got {size!r}")
    return int(number)


def make_runner(
    model: CausalLM, limits: Limits, memory: int | str | None, notes: list[str], *, compile: bool = False
) -> Runner:
    """Return what computes this model's texts, and add to `notes` what users must know.

    Raises:
        UsageError: the memory is not a size, or holds no block.
    """
    probe = model.new_cache(1, 1)
    layers = [layer.states for layer in probe.layers]
    device = probe.positions.device
    dtype = next(model.parameters()).dtype
    wanted = limits.rows * state_bytes(layers, model.context, dtype)
    total = min(wanted, _free(device) // 4) if memory is None else parse_size(memory)
    states = [state for layer in layers for state in layer.values()]
    model = pack_products(model).eval()
    whole = any(not state.per_token for state in states)
    if not whole and probe.horizon is None:
        size = block_bytes(layers, dtype)
        spare = int(compile)  # a block for tokens of no text
        n = total // size - spare if size else 0
        if n < 1:
            raise UsageError(f"a block of 16 tokens needs {size:,} bytes, got {total:,} for all; give the engine more")
        trial = _try_packed(model, layers, dtype, device)
        if trial is not None:
            depending, direct = trial
            if depending:
                notes.append(
                    "its tokens may depend on the questions beside them, because some of its products do: "
                    f"{', '.join(depending)}"
                )
            windows = [state.window for state in states]
            window = max(w for w in windows if w) if all(windows) else None
            cache = PackedCache(layers, n + spare, dtype, device, gathers=not direct)
            scores = _compile_or_note(model, cache, n, notes) if compile else eager_pass(model, cache)
            return BlockRunner(model.context, scores, cache, Blocks(n), size, limits, window)
        notes.append("its attention is computed for one text at a time, because it does not use the core's kernels")
    elif probe.horizon is not None:
        notes.append(
            f"beyond {probe.horizon} tokens its rotary embedding turns all earlier tokens again, so that each text is "
            "decoded by itself"
        )
    else:
        notes.append("its attention keeps a state for the whole text, so that each text is computed by itself")
    if compile:
        notes.append("its passes run uncompiled, because only passes over many texts are compiled")
    return CacheRunner(model, layers, dtype, probe.horizon, total, limits)


def _free(device: torch.device) -> int:
    """Return the bytes of memory that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Watched(PackedCache):
    """Blocks that notice whether attentions read them, or something computed of them."""

    direct = True

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None,
        narrow: Between | None,
        bias: Between | None,
    ) -> Tensor:
        """Return what it returns."""
        known = {buffer.data_ptr() for layer in self.blocks for buffer in layer.buffers.values()}
        self.direct = self.direct and all(part.is_contiguous() and part.data_ptr() in known for part in (k, v))
        return super().attend(q, k, v, scale=scale, narrow=narrow, bias=bias)


def _try_packed(
    model: CausalLM, layers: Sequence[Mapping[str, StateSpec]], dtype: torch.dtype, device: torch.device
) -> tuple[list[str], bool] | None:
    """Run two short texts in one pass, and each by itself.

    Return the products in that pass whose rows may depend on their number (`rows_depend`), and whether all attentions
    read the blocks themselves; None if the results differ, or if the model cannot do it.
    """
    one = 1 % model.config.vocab_size
    texts = [[one, 0, one], [0, 0]]
    cache = _Watched(layers, 2, dtype, device)
    row = torch.tensor([[*texts[0], *texts[1]]], device=device)
    found: list[torch.Tensor] = []

    def beside() -> None:
        cache.load(Packed.of([(text, 0, [block]) for block, text in enumerate(texts)], device))
        found.append(model(row, cache=cache)[0])

    try:
        with torch.inference_mode():
            depending = rows_depend(model, beside)
            alone = torch.cat([model(torch.tensor([t], device=device), cache=model.new_cache(1, 3))[0] for t in texts])
    except Exception:  # whatever an attention does with what it does not expect
        return None
    tolerance = (1e-3 if dtype.itemsize >= 4 else 0.1) * alone.abs().max()
    if not bool((found[0] - alone).abs().max() <= tolerance):
        return None
    return depending, cache.direct


def _compile_or_note(model: CausalLM, cache: PackedCache, spare: int, notes: list[str]) -> Pass:
    """Return the compiled pass, or the eager one and the reason in `notes` where it cannot be compiled."""
    try:
        return compiled_pass(model, cache, spare)
    except Exception as error:  # PyTorch's compiler raises errors of many kinds
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])  # the second has the cause
        notes.append(f"its passes run uncompiled: {reason}")
        return eager_pass(model, cache)
