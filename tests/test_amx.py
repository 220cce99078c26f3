"""Products in AMX's tiles: the order of their sums, and processes without them; skipped on other processors."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from axon_core.nn import pack_weight, packed_product

usable = "AXON_NO_AMX" not in os.environ and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()
pytestmark = pytest.mark.skipif(not (usable and shutil.which("g++")), reason="there is no AMX, or no C++ compiler")


def sums_of_tiles(x, weight):
    """The order of the hardware: even and odd ones of 32 inputs apart. Products of bfloat16 are exact in float32."""
    x, weight = (nn.functional.pad(each.float(), (0, -each.shape[1] % 32)) for each in (x, weight))
    total = torch.zeros(len(x), len(weight))
    for first in range(0, x.shape[1], 32):
        even, odd = torch.zeros_like(total), torch.zeros_like(total)
        for k in range(first, first + 32, 2):
            even = even + x[:, k, None] * weight[:, k]
            odd = odd + x[:, k + 1, None] * weight[:, k + 1]
        total = total + (even + odd)
    return total


@pytest.mark.parametrize("n", [1, 8, 16, 17, 33, 300])
@pytest.mark.parametrize("d", [1, 31, 64, 770])
def test_the_sums_have_the_order_of_the_hardware(n, d):
    torch.manual_seed(0)
    x, weight = torch.randn(n, d).bfloat16(), torch.randn(70, d).bfloat16()
    assert torch.equal(packed_product(x, pack_weight(weight), 70), sums_of_tiles(x, weight).bfloat16())


def test_so_they_have_over_a_large_range():
    torch.manual_seed(1)
    for _ in range(20):
        x, weight = (torch.randn(rows, 256) * torch.exp2(torch.randint(-40, 40, (rows, 256))) for rows in (64, 320))
        x, weight = x.bfloat16(), weight.bfloat16()
        assert torch.equal(packed_product(x, pack_weight(weight), 320), sums_of_tiles(x, weight).bfloat16())


def test_numbers_below_the_normal_ones_are_0():
    x = torch.full((2, 32), 2.0**-127).bfloat16()
    x[1, 0] = 1
    assert packed_product(x, pack_weight(torch.full((1, 32), 2.0).bfloat16()), 1).flatten().tolist() == [0, 2]


def test_the_error_is_that_of_float32_sums():
    torch.manual_seed(2)
    x, weight = torch.randn(40, 3000).bfloat16(), torch.randn(64, 3000).bfloat16()
    y = packed_product(x, pack_weight(weight), 64).double()
    expected, size = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    # 16 sums of a step, one of both halves, and 94 of steps round once each; then the result is rounded to bfloat16
    bound = (16 + 1 + 94) * 2.0**-24 * size
    assert ((y - expected).abs() <= bound + (expected.abs() + bound) * 2.0**-8).all()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("d", [4, 512, 770])
def test_products_of_8_bit_weights_are_exact_to_their_limits(d, sign):
    """Sums of bytes in tiles for 17 rows, of 16 bits in registers for one: the same bits."""
    torch.manual_seed(4)
    weight = torch.where(torch.rand(70, d) < 0.9, 127, torch.randint(-127, 128, (70, d))).to(torch.int8)
    x = torch.where(torch.rand(17, d) < 0.9, sign * 32767, torch.randint(-32767, 32768, (17, d))).float()
    packed = pack_weight(weight)
    y = packed_product(x, packed, 70)
    assert torch.equal(y, torch.cat([packed_product(row[None], packed, 70) for row in x]))
    expected = x.double() @ weight.double().T
    assert ((y.double() - expected).abs() <= 2 * 2.0**-24 * x.double().abs() @ weight.double().abs().T).all()


PRODUCTS = """
    import sys, torch
    from axon_core.nn import pack_weight, packed_product
    x, weight = torch.load(sys.argv[1])
    packed = pack_weight(weight)
    y = packed_product(x, packed, len(weight))
    assert all(torch.equal(packed_product(x[-n:], packed, len(weight)), y[-n:]) for n in (1, 8, 17, 64))
    torch.save(y, sys.argv[1])
"""
REFUSED = """
    import ctypes
    class Stack(ctypes.Structure):  # of signals: too small for tiles, so that Linux refuses them
        _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
    memory = ctypes.create_string_buffer(4096)
    assert not ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None)
"""


@pytest.mark.parametrize("before", ["", REFUSED, "import os; os.environ['AXON_NO_AMX'] = '1'"])
def test_a_process_that_may_not_use_them_computes_in_registers(before, tmp_path):
    torch.manual_seed(3)
    x, weight = torch.randn(300, 700).bfloat16(), torch.randn(333, 700).bfloat16()
    torch.save((x, weight), tmp_path / "product")
    code = textwrap.dedent(before) + textwrap.dedent(PRODUCTS)
    command = [sys.executable, "-c", code, str(tmp_path / "product")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    y = torch.load(tmp_path / "product")
    torch.testing.assert_close(y.float(), x.float() @ weight.float().T, rtol=2**-7, atol=1e-3)
    assert torch.equal(y, sums_of_tiles(x, weight).bfloat16()) == (not before)
