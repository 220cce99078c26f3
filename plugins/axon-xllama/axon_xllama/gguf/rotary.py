"""How a GGUF file says that a rotary embedding is scaled: as the `rope_parameters` of a `config.json`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import log, tau
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from axon_core import CheckpointError
from axon_xllama.gguf.keys import Keys

__all__ = ["rope_parameters"]

_CLOSE = 1e-4
"""By what share a factor may differ: files hold it in float32."""
_LOW, _HIGH = 1.0, 4.0
"""Llama's own knees."""


def rope_parameters(
    keys: Keys, architecture: str, context: int, head_dim: int, factors: np.ndarray | None
) -> dict[str, Any]:
    """Return the rotary settings in the terms of Hugging Face.

    Without a type, a factor means `linear`, as in llama.cpp.

    Args:
        keys: of the file.
        architecture: the prefix of its keys.
        context: the model's.
        head_dim: the features of a head.
        factors: the tensor `rope_freqs.weight`, by which frequencies are divided, if there is one.

    Raises:
        CheckpointError: a setting is malformed, or nothing here computes them.
    """
    rope = f"{architecture}.rope"
    base, factor = keys.number(f"{rope}.freq_base"), keys.number(f"{rope}.scaling.factor")
    given: dict[str, Any] = {"rope_theta": 10000.0 if base is None else base}
    kind = keys.text(f"{rope}.scaling.type") or ("none" if factor is None else "linear")
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{rope}.scaling.type must be none, linear or yarn, got {kind!r:.60}")
    if factors is not None:
        if kind != "none":
            raise CheckpointError(
                f"a file with rope_freqs.weight must have no {rope}.scaling.type {kind!r}: both scale"
            )
        return {**given, **_by_wavelength(factors, given["rope_theta"], head_dim)}
    if kind == "none":
        return {**given, "rope_type": "default"}
    if factor is None:
        raise CheckpointError(f"{rope}.scaling.type is {kind!r}, but {rope}.scaling.factor is missing")
    found = {**given, "rope_type": kind, "factor": factor}
    return found if kind == "linear" else {**found, **_yarn(keys, f"{rope}.scaling", context)}


def _yarn(keys: Keys, scaling: str, context: int) -> dict[str, Any]:
    factor, share = keys.number(f"{scaling}.factor", least=1), keys.number(f"{scaling}.attn_factor")
    found = {
        "original_max_position_embeddings": keys.count(f"{scaling}.original_context_length") or context,
        "beta_fast": keys.number(f"{scaling}.yarn_beta_fast"),
        "beta_slow": keys.number(f"{scaling}.yarn_beta_slow"),
    }
    if share not in (None, 1) and factor:
        found["attention_factor"] = share * (0.1 * log(factor) + 1)
    return found


class _Knees(NamedTuple):
    """Within a context of `context` tokens a pair of up to `low` turns is interpolated, one of `high` is not."""

    context: int
    low: float
    high: float

    def factors(self, theta: np.ndarray, factor: float) -> np.ndarray:
        """Return by what the frequencies `theta` are divided."""
        u = np.clip((self.context * theta / tau - self.low) / (self.high - self.low), 0, 1)
        return 1 / ((1 - u) / factor + u)


def _by_wavelength(factors: np.ndarray, base: float, head_dim: int) -> dict[str, Any]:
    """Return the `llama3` scaling whose factors these are.

    1 / factors = (1 − u) / factor + u, where u rises linearly with the frequency from 0 to 1. The factor is that of the
    slowest pair. Context and knees are not all determined, since only the frequencies of the knees matter.
    """
    if factors.dtype != np.float32 or factors.shape != (head_dim // 2,):
        raise CheckpointError(
            f"rope_freqs.weight must be {head_dim // 2} numbers in F32, half of a head, got {factors.size} as "
            f"{factors.dtype}"
        )
    factors = factors.astype(np.float64)
    theta = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if np.allclose(factors, 1, rtol=_CLOSE, atol=0):
        return {"rope_type": "default"}
    factor = float(f"{factors[-1]:.7g}")
    if factor > 1 + _CLOSE and bool((factors > 0).all()):
        u = (1 / factors - 1 / factor) / (1 - 1 / factor)
        for knees in _candidates(u, theta, 1e-6 * factor / (factor - 1)):
            if np.allclose(knees.factors(theta, factor), factors, rtol=_CLOSE, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": knees.low,
                    "high_freq_factor": knees.high,
                    "original_max_position_embeddings": knees.context,
                }
    raise CheckpointError(
        "rope_freqs.weight holds factors that llama3's scaling does not give, with any factor, context and knees"
    )


def _candidates(u: np.ndarray, theta: np.ndarray, tolerance: float) -> Iterator[_Knees]:
    """Yield what may have given the ramp `u`: with Llama's own knees, and through two points of the ramp."""
    ramp = [(float(t), float(w)) for t, w in zip(theta, u, strict=True) if tolerance < w < 1 - tolerance]
    contexts = [(_LOW + w * (_HIGH - _LOW)) * tau / t for t, w in ramp]
    yield _Knees(max(1, round(median(contexts))) if contexts else 8192, _LOW, _HIGH)
    slow, fast = theta[u <= tolerance], theta[u >= 1 - tolerance]
    first = (float(slow.max()), 0.0)
    last = (float(fast.min()) if fast.size else 2 * float(theta.max()), 1.0)
    for (t, w), (other_t, other_w) in pairwise([first, *ramp[-1:], *ramp[:-1][:1], last]):
        slope = (other_w - w) / (other_t - t) if other_t > t and other_w > w else 0.0
        if slope <= 0 or (start := t - w / slope) <= 0:
            continue
        context = max(1, round(tau / start))  # the lower knee is about one turn
        low, high = (context * knee / tau for knee in (start, start + 1 / slope))
        if high - low > 0.01:
            yield _Knees(context, round(low, 3), round(high, 3))
        yield _Knees(context, low, high)
