"""NF4 and its scales: known answers, and bitsandbytes' bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from axon_qlora import LEVELS, dynamic_map, from_double, from_dynamic, from_nf4, to_double, to_dynamic, to_nf4

BLOCK = torch.tensor(
    [1, -0.5, 0.25, -2, 1.8, -1.6, 0.06, -0.08, 0.66, -0.94, 1.22, -0.24, 0.14, 0, 0.4, -1.32] + [0] * 48
)
BYTES = bytes.fromhex("c490f177b2d68791") + b"\x77" * 24
BACK = [
    *(0.8814197, -0.5688828, 0.3218604, -2, 2, -1.3923856, 0, 0, 0.6758305, -1.0501461, 1.125234, -0.1821001),
    *(0.1591606, 0, 0.3218604, -1.3923856),
]


def normal(n=1 << 20, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(n).astype(np.float32))


def test_a_block_has_these_bytes_and_comes_back_as_these_numbers():
    codes, absmax = to_nf4(BLOCK)
    assert bytes(codes.tolist()) == BYTES
    assert absmax.tolist() == [2]
    torch.testing.assert_close(from_nf4(codes, absmax, (64,))[:16], torch.tensor(BACK), rtol=0, atol=1e-6)


def test_the_error_on_normal_numbers():
    w = normal()
    codes, absmax = to_nf4(w)
    error = (from_nf4(codes, absmax, w.shape) - w).double()
    assert error.square().mean().sqrt().item() == pytest.approx(0.09199, abs=6e-6)
    assert error.abs().mean().item() == pytest.approx(0.07281, abs=6e-6)
    error = (from_nf4(codes, from_double(*to_double(absmax)), w.shape) - w).double()
    assert error.square().mean().sqrt().item() == pytest.approx(0.09201, abs=6e-6)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130, 4096 + 7])
@pytest.mark.parametrize("block", [64, 128])
def test_codes_and_scales_of_any_length_are_bitsandbytes(n, block):
    w = normal(n, seed=n)
    theirs, state = functional.quantize_4bit(w, blocksize=block, quant_type="nf4")
    codes, absmax = to_nf4(w, block)
    assert torch.equal(codes, theirs.flatten())
    assert torch.equal(absmax, state.absmax)
    assert torch.equal(from_nf4(codes, absmax, w.shape, block), functional.dequantize_4bit(theirs, state).flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_scales_of_a_weight_are_bitsandbytes(dtype):
    """Of a million numbers, some of which lie between two levels, in each dtype."""
    w = normal().view(1024, 1024).to(dtype)
    theirs, state = functional.quantize_4bit(w, quant_type="nf4")
    codes, absmax = to_nf4(w)
    assert torch.equal(codes, theirs.flatten())
    assert torch.equal(absmax, state.absmax)


def test_double_quantisation_is_bitsandbytes():
    """Up to scales about as near to two numbers of the map: bitsandbytes looks them up a little less exactly."""
    w = normal()
    codes, absmax = to_nf4(w)
    theirs, state = functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    assert torch.equal(codes, theirs.flatten())
    scales, nested, offset = to_double(absmax)
    torch.testing.assert_close(offset, state.offset, rtol=1e-6, atol=0)
    torch.testing.assert_close(nested, state.state2.absmax, rtol=1e-5, atol=0)
    assert (scales == state.absmax).float().mean() > 0.998
    assert (scales.int() - state.absmax.int()).abs().max() <= 1
    ours = from_double(scales, nested, offset)
    back = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert ((ours - absmax).abs() <= (back - absmax).abs() + 1e-6).all()
    torch.testing.assert_close(from_double(state.absmax, nested, offset), back)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_map_is_bitsandbytes(signed):
    theirs = functional.create_dynamic_map(signed)
    assert torch.equal(dynamic_map(signed), torch.as_tensor(theirs, dtype=torch.float32))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n", [1, 255, 256, 1000])
def test_dynamic_numbers_are_the_nearest(n, signed):
    x = normal(n, seed=3) * torch.logspace(-4, 0, n)
    x = x if signed else x.square()
    codes, absmax = to_dynamic(x, signed)
    back = from_dynamic(codes, absmax, signed)
    scale = absmax.repeat_interleave(256)[:n]
    nearest = (x / scale).unsqueeze(1).sub(dynamic_map(signed)).abs().amin(1) * scale
    torch.testing.assert_close((back - x).abs(), nearest, rtol=0, atol=1e-6)


def test_zeros_stay_zeros():
    codes, absmax = to_nf4(torch.zeros(128))
    assert not from_nf4(codes, absmax, (128,)).any() and LEVELS[7] == 0
    assert not from_dynamic(*to_dynamic(torch.zeros(300))).any()
