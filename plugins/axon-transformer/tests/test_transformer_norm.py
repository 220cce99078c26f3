"""Layer normalisation against torch's module, and its statistics in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from axon_core import ConfigError, validate
from axon_transformer import LayerNorm


def pair(dim: int, **options: object) -> tuple[LayerNorm, nn.LayerNorm]:
    torch.manual_seed(0)
    ours = LayerNorm(LayerNorm.Config(dim=dim, **options))
    torchs = nn.LayerNorm(dim, eps=ours.config.eps, bias=ours.config.bias)
    for parameter in torchs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"eps": 0.1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equals_torchs_in_value_and_gradient(options: dict[str, object], dtype: torch.dtype) -> None:
    ours, torchs = pair(24, **options)
    x = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    y, expected = ours.to(dtype)(x), torchs.to(dtype)(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    for got, wanted in zip(
        torch.autograd.grad(y.sum(), [x, *ours.parameters()]),
        torch.autograd.grad(expected.sum(), [x, *torchs.parameters()]),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_statistics_of_half_precision_are_kept_in_float32(dtype: torch.dtype) -> None:
    # The mean of 4,096 numbers near 100, summed in bfloat16, would be off by more than their spread.
    x = (100 + torch.randn(2, 4096, dtype=torch.float64)).to(dtype)
    y = LayerNorm(LayerNorm.Config(dim=4096)).to(dtype)(x)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    exact = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_a_half_precision_input_keeps_its_dtype_beside_float32_weights() -> None:
    ours, _ = pair(16)
    x = torch.randn(4, 16)
    assert ours(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x.bfloat16()).dtype == torch.bfloat16
        assert ours(x).dtype == torch.float32


def test_shifting_and_scaling_a_vector_change_nothing() -> None:
    ours, _ = pair(16, eps=1e-12)
    ours.double()
    x = torch.randn(4, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(3 * x + 7), ours(x))


def test_eps_is_positive() -> None:
    with pytest.raises(ConfigError, match="eps: must be greater than 0, got 0"):
        validate(LayerNorm.Config, {"dim": 8, "eps": 0})
