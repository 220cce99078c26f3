"""`yarn` and `llama3` against known answers and Hugging Face's, and the mistakes that are easy to make."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from axon_core import ROTARY_EMBEDDINGS, ConfigError
from axon_roformer import frequencies


def rotary(key, dim=16, **options):
    return ROTARY_EMBEDDINGS.build(key, dim=dim, **options)


def test_yarn_has_the_known_frequencies():
    # The ramp by index, as in all code; the paper's formula would begin .349023 at the second pair.
    small = rotary("yarn", 8, factor=4.0, context=32)
    torch.testing.assert_close(small.frequencies, torch.tensor([1, 0.025, 0.0025, 0.00025]))
    assert small.scale == pytest.approx(1.138629436)
    expected = [1, 0.3162278, 0.1, 0.02569351, 0.00625, 0.001383496, 0.00025, 7.905694e-5]
    larger = rotary("yarn", 16, factor=4.0, context=2048)
    torch.testing.assert_close(larger.frequencies, torch.tensor(expected), rtol=1e-6, atol=0)


def test_llama3_has_the_known_frequencies():
    expected = [1, 0.1939227, 0.03760603, 0.007292665, 5.248462e-4, 3.428102e-5, 6.647870e-6, 1.289173e-6]
    found = rotary("llama3", 16, base=500000.0, factor=8.0, original_context=8192, context=131072)
    torch.testing.assert_close(found.frequencies, torch.tensor(expected), rtol=1e-6, atol=0)
    wide = rotary("llama3", 64, base=500000.0, factor=32.0, original_context=8192, context=131072)
    ratios = wide.frequencies / frequencies(64, 500000.0)
    known = torch.tensor([1, 0.605573, 0.303743, 0.103448, 0.03125])
    torch.testing.assert_close(ratios[14:19], known, rtol=0, atol=6e-7)
    assert wide.frequencies.double().sum().item() == pytest.approx(2.968202, rel=1e-6)


SCALINGS = [
    ("yarn", {"factor": 4.0}),
    ("yarn", {"factor": 16.0, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False}),
    ("yarn", {"factor": 2.5, "attention_factor": 1.3}),
    ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("llama3", {"factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0}),
]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize(("key", "options"), SCALINGS)
def test_equals_hugging_faces_llama(key, options, base, dim):
    scaling = {"rope_type": key, "rope_theta": base, "original_max_position_embeddings": 512, **options}
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, max_position_embeddings=2048, rope_parameters=scaling)
    )
    ours = rotary(key, dim, base=base, context=2048, original_context=512, **options)
    torch.testing.assert_close(ours.frequencies, theirs.inv_freq, rtol=2e-6, atol=0)
    assert ours.scale == pytest.approx(theirs.attention_scaling) and ours.context == 2048
    where, generator = torch.arange(1500)[None], torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1500, 2, dim, generator=generator)
    rotation, tables = ours(where), theirs(q, where)
    torch.testing.assert_close(rotation.cos, tables[0], rtol=0, atol=2e-4)
    for x, expected in zip((q, k), apply_rotary_pos_emb(q, k, *tables, unsqueeze_dim=2), strict=True):
        torch.testing.assert_close(rotation(x), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("key", ["yarn", "llama3"])
def test_a_factor_of_one_is_the_plain_embedding(key):
    where = torch.arange(300)[None]
    assert torch.equal(rotary(key, context=64)(where).cos, rotary("rotary", context=64)(where).cos)


@pytest.mark.parametrize("key", ["yarn", "llama3"])
def test_the_context_is_that_after_the_extension(key):
    assert rotary(key, context=64, factor=4.0).context == 256
    assert rotary(key, context=256, factor=4.0, original_context=64).context == 256
    by_either = [rotary(key, context=64, factor=4.0), rotary(key, context=256, factor=4.0, original_context=64)]
    assert torch.equal(*(module.frequencies for module in by_either))
    assert by_either[0].constant_until is None  # a cache stays right for any length


def test_yarn_lengthens_queries_and_keys_by_its_scale():
    x = torch.randn(1, 9, 2, 16, generator=torch.Generator().manual_seed(0))
    found = rotary("yarn", factor=16.0)(torch.arange(9)[None])(x)
    torch.testing.assert_close(found.norm(dim=-1), (0.1 * math.log(16) + 1) * x.norm(dim=-1))


def test_half_precision_does_not_reach_the_frequencies():
    for key in ("yarn", "llama3"):
        module = rotary(key, factor=4.0)
        assert torch.equal(rotary(key, factor=4.0).bfloat16().frequencies, module.frequencies)
        assert rotary(key, factor=4.0).double().frequencies.dtype == torch.float64


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("yarn", {"beta_fast": 1.0, "beta_slow": 2.0}, "beta_slow must be less than beta_fast, 1, got 2"),
        ("llama3", {"low_freq_factor": 4.0}, "low_freq_factor must be less than high_freq_factor, 4, got 4"),
        ("yarn", {"factor": 0.5}, "factor"),
        ("yarn", {"base": 1.0}, "base"),
        ("llama3", {"original_context": 0}, "original_context"),
    ],
)
def test_impossible_options_are_refused(key, options, message):
    with pytest.raises(ConfigError, match=message):
        rotary(key, **options)
