"""RMSNorm against the paper's equations, Llama's bits, and the mistakes that are easy to make."""

import math

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from axon_core import NORMS, ConfigError
from axon_rmsnorm import RMSNorm, rms_norm


def norm(dim, dtype=torch.float32, seed=0, **options):
    module = NORMS.build("rmsnorm", dim=dim, **options)
    with torch.no_grad():
        module.weight.copy_(torch.rand(dim, generator=torch.Generator().manual_seed(seed)) + 0.5)
    return module.to(dtype)


def inputs(*shape, dtype=torch.float32, seed=1):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def naive(x, weight, eps, k):
    """Eq. 4, one number at a time."""
    rows = []
    for row in x.double().reshape(-1, x.shape[-1]).tolist():
        rms = math.sqrt(math.fsum(a * a for a in row[:k]) / k + eps)
        rows.append([a / rms * g for a, g in zip(row, weight.tolist(), strict=True)])
    return torch.tensor(rows, dtype=torch.float64).view(x.shape)


@pytest.mark.parametrize(("partial", "k"), [(1.0, 20), (0.5, 10), (0.0625, 2), (1e-9, 1), (0.96, 20)])
def test_is_the_papers_equation(partial, k):
    x, module = inputs(2, 3, 20), norm(20, partial=partial)
    torch.testing.assert_close(module(x).double(), naive(x, module.weight, 1e-5, k), rtol=2e-6, atol=2e-6)


def test_the_share_of_features_is_rounded_up_but_not_by_binary_fractions():
    # ⌈100 · 0.07⌉ is 7, yet in floating point 100 · 0.07 > 7.
    x = inputs(4, 100)
    torch.testing.assert_close(norm(100, partial=0.07)(x), norm(100, partial=0.0695)(x), rtol=0, atol=0)
    assert not torch.allclose(norm(100, partial=0.07)(x), norm(100, partial=0.08)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [16, 128, 300])
def test_gives_the_bits_of_hugging_faces_llama(dtype, dim):
    module, reference = norm(dim, dtype), LlamaRMSNorm(dim, eps=1e-5).to(dtype)
    reference.load_state_dict(module.state_dict())
    x = inputs(8, 33, dim, dtype=dtype)
    assert torch.equal(module(x), reference(x))


@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_rounds_before_it_multiplies_by_the_weight(partial):
    # The other order, which torch's own RMSNorm takes, is not what Llama checkpoints were trained with.
    module, x = norm(128, torch.bfloat16, partial=partial), inputs(64, 128, dtype=torch.bfloat16)
    normalised = rms_norm(x, torch.ones(128, dtype=torch.bfloat16), 1e-5, partial)
    assert torch.equal(module(x), module.weight * normalised)
    assert not torch.equal(module(x), rms_norm(x.float(), module.weight.float(), 1e-5, partial).bfloat16())


def test_autocast_keeps_dtype_and_bits():
    module, x = norm(64), inputs(5, 64)
    half = x.bfloat16()
    expected, expected_half = module(x), module(half)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), expected) and module(x).dtype == torch.float32
        assert torch.equal(module(half), expected_half) and module(half).dtype == torch.bfloat16


def test_a_float32_weight_is_not_rounded_for_half_precision_input():
    # So it is under autocast: rounding the weight first would hide its small updates.
    x, weight = inputs(64, 128, dtype=torch.bfloat16), norm(128).weight
    normalised = rms_norm(x, torch.ones(128, dtype=torch.bfloat16), 1e-5)
    out = rms_norm(x, weight, 1e-5)
    assert torch.equal(out, (weight * normalised.float()).bfloat16())
    assert not torch.equal(out, weight.bfloat16() * normalised)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_statistics_are_in_float32(dtype):
    x = torch.full((1, 512), 300.0, dtype=dtype)  # the sum of squares is 4.6e7, far beyond float16
    for partial in (1.0, 0.5):
        torch.testing.assert_close(norm(512, dtype, partial=partial)(x), norm(512, dtype).weight.expand(1, -1))


@pytest.mark.parametrize("partial", [1.0, 0.3])
def test_a_vector_of_zeros_stays_one_and_has_finite_gradients(partial):
    x = torch.zeros(2, 10, requires_grad=True)
    out = norm(10, partial=partial)(x)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 10)) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("partial", [1.0, 0.4])
def test_gradients_are_those_of_the_equation(partial):
    module = norm(12, torch.float64, partial=partial)
    x = inputs(3, 12, dtype=torch.float64).requires_grad_()
    weight = module.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, g: rms_norm(x, g, 1e-5, partial), (x, weight))


def test_float32_gradients_agree_with_float64():
    single, double = norm(64), norm(64, torch.float64)
    x, out = inputs(7, 64), inputs(7, 64, seed=2)
    grads = []
    for module in (single, double):
        leaf = x.clone().to(module.weight.dtype).requires_grad_()
        module(leaf).backward(out.to(module.weight.dtype))
        grads.append((leaf.grad.double(), module.weight.grad.double()))
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_the_mean_is_not_subtracted():
    x, module = inputs(4, 32), RMSNorm(RMSNorm.Config(dim=32))
    centred, layer_norm = x - x.mean(-1, keepdim=True), nn.LayerNorm(32)
    torch.testing.assert_close(module(centred), layer_norm(centred))  # Section 4: equal where the mean is zero
    assert not torch.allclose(module(x + 5), layer_norm(x + 5), atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "greater than 0, got 0"),
        ({"eps": -1e-6}, "greater than or equal to 0, got -1e-06"),
        ({"partial": 0.0}, "greater than 0, got 0.0"),
        ({"partial": 1.5}, "less than or equal to 1, got 1.5"),
        ({"epsilon": 1e-6}, "did you mean 'eps'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        NORMS.build({"type": "rmsnorm", "dim": 8, **options})
    assert next(iter(options)) in str(error.value)


def test_print_shows_what_matters():
    assert "partial" not in repr(norm(8)) and "partial=0.5" in repr(norm(8, partial=0.5))
