"""Sinusoidal positions: known values, wavelengths, and the shift that is linear."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axon_core import ConfigError
from axon_transformer import sinusoids


def test_known_values_alternate_sine_and_cosine() -> None:
    expected = [[0.0, 1.0, 0.0, 1.0], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    torch.testing.assert_close(sinusoids(torch.tensor([0, 1]), 4), torch.tensor(expected))


@given(st.integers(0, 5000), st.sampled_from([2, 6, 64]), st.sampled_from([10_000.0, 500.0]))
def test_every_feature_is_the_formula(position: int, dim: int, base: float) -> None:
    encoded = sinusoids(torch.tensor([position]), dim, base=base)[0]
    for i in range(dim // 2):
        angle = position / base ** (2 * i / dim)
        assert encoded[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-3)
        assert encoded[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-3)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 500))
def test_the_dot_product_of_two_positions_depends_on_their_distance_alone(p: int, q: int, shift: int) -> None:
    x, y, moved_x, moved_y = sinusoids(torch.tensor([p, q, p + shift, q + shift]), 32).unbind()
    torch.testing.assert_close(x @ y, moved_x @ moved_y, rtol=0, atol=5e-3)
    assert (x @ x).item() == pytest.approx(16, abs=1e-4)


def test_batches_of_positions_keep_their_shape_and_are_float32() -> None:
    encoded = sinusoids(torch.zeros(2, 3, dtype=torch.long), 8)
    assert encoded.shape == (2, 3, 8)
    assert encoded.dtype == torch.float32


def test_an_odd_dimension_is_an_error() -> None:
    with pytest.raises(ConfigError, match="need an even dim, got 7"):
        sinusoids(torch.tensor([0]), 7)
