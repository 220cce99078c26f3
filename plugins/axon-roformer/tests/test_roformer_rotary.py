"""Rotary embeddings against a complex float64 reference, Hugging Face's, and the mistakes that are easy to make."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from axon_core import ROTARY_EMBEDDINGS, ConfigError
from axon_roformer import frequencies

KEYS = ("rotary", "linear", "dynamic")
LAYOUTS = ("half", "interleaved")


def rotary(key="rotary", dim=16, **options):
    return ROTARY_EMBEDDINGS.build(key, dim=dim, **options)


def positions(*numbers):
    return torch.tensor([list(numbers)])


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def turned(x, angles, layout):
    """Turn the pairs of `x` (n h d) by `angles` (n d/2), as complex numbers in float64."""
    x, d = x.double(), x.shape[-1]
    first, second = (x[..., : d // 2], x[..., d // 2 :]) if layout == "half" else (x[..., 0::2], x[..., 1::2])
    z = torch.complex(first, second) * torch.exp(1j * angles.double().unsqueeze(-2))
    return torch.cat((z.real, z.imag), -1) if layout == "half" else torch.view_as_real(z).flatten(-2)


def exact_frequencies(dim, base=10000.0):
    return torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)


def test_the_frequencies_are_powers_of_the_base():
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001])  # 10000^(-2i/8): to the power, not times it
    torch.testing.assert_close(frequencies(8, 10000.0), expected)
    torch.testing.assert_close(frequencies(8, torch.tensor([10000.0, 1.0])), torch.stack((expected, torch.ones(4))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("key", "factor"), [("rotary", None), ("linear", 3.0), ("dynamic", 2.0)])
def test_is_a_rotation_of_complex_numbers(key, factor, layout):
    options = {} if factor is None else {"factor": factor}
    module = rotary(key, 32, layout=layout, context=50, base=500.0, **options)
    n, x = 80, randn(1, 80, 3, 32)
    base = 500.0 * (2.0 * n / 50 - 1) ** (32 / 30) if key == "dynamic" else 500.0
    m = torch.arange(n).double() / (3.0 if key == "linear" else 1.0)
    expected = turned(x[0], m[:, None] * exact_frequencies(32, base), layout)
    actual = module(torch.arange(n)[None])(x)[0].double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@given(st.sampled_from(LAYOUTS), st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_scores_depend_on_the_distance_alone(layout, m, n, shift, seed):
    module = rotary(dim=16, layout=layout)
    q, k = randn(1, 1, 1, 16, seed=seed), randn(1, 1, 1, 16, seed=seed + 100)

    def score(m, n):
        return (module(positions(m))(q).double() * module(positions(n))(k).double()).sum()

    tolerance = 4e-7 * 4000 * (q.norm() * k.norm()).item()  # angles are float32: half an ulp of the position
    assert abs(score(m, n) - score(m + shift, n + shift)) < tolerance


def test_position_zero_is_the_identity_and_a_rotation_keeps_lengths():
    x = randn(2, 5, 3, 16)
    for key in KEYS:
        rotation = rotary(key)(torch.tensor([[0, 1, 7, 500, 2000], [0, 0, 0, 0, 0]]))
        assert torch.equal(rotation(x)[1], x[1])
        torch.testing.assert_close(rotation(x).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize(
    ("key", "factor", "length"),
    [("rotary", 1.0, 4000), ("linear", 3.0, 4000), ("linear", 8.0, 4000), ("dynamic", 2.0, 3000), ("dynamic", 3.7, 90)],
)
def test_equals_hugging_faces_llama(key, factor, length, base, dim):
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=dim * 2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            rope_parameters={
                "rope_type": "default" if key == "rotary" else key,
                "rope_theta": base,
                **({} if key == "rotary" else {"factor": factor}),
            },
        )
    )
    ours = rotary(key, dim, base=base, context=1024, **({} if key == "rotary" else {"factor": factor}))
    q, k, where = randn(1, length, 2, dim), randn(1, length, 2, dim, seed=1), torch.arange(length)[None]
    cos, sin = theirs(q, where)
    rotation = ours(where)
    torch.testing.assert_close(rotation.cos, cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotation.sin[..., dim // 2 :], sin[..., dim // 2 :], rtol=0, atol=1e-6)
    for x, expected in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2), strict=True):
        torch.testing.assert_close(rotation(x), expected, rtol=0, atol=2e-6)


def test_linear_divides_positions_once():
    plain, linear = rotary(), rotary("linear", factor=4.0)
    where = torch.arange(100)[None]
    torch.testing.assert_close(linear(4 * where).cos, plain(where).cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(linear(where).sin, torch.sin(linear_angles(where[0], 4.0)), rtol=0, atol=1e-5)


def linear_angles(where, factor):
    angles = where[:, None].double() / factor * exact_frequencies(16)
    return torch.cat((-angles, angles), -1)[None].float()


class TestDynamic:
    def test_short_rows_are_plain_to_the_bit(self):
        plain, dynamic = rotary(context=64), rotary("dynamic", context=64, factor=1.3)
        for length in (1, 5, 63, 64):
            where = torch.arange(length)[None]
            assert torch.equal(dynamic(where).cos, plain(where).cos)
            assert torch.equal(dynamic(where).sin, plain(where).sin)

    def test_long_rows_have_the_larger_base(self):
        where = torch.arange(160)[None]
        base = 10000.0 * (2.0 * 160 / 64 - 1) ** (16 / 14)
        expected = rotary(base=base)(where)
        torch.testing.assert_close(
            rotary("dynamic", context=64, factor=2.0)(where).cos, expected.cos, atol=2e-5, rtol=0
        )

    def test_the_slowest_pair_is_interpolated_by_the_stretch_and_the_fastest_is_not(self):
        # What the exponent d / (d − 2) is for: θ_last' = θ_last / stretch, θ_0' = θ_0 = 1.
        module = rotary("dynamic", context=64, factor=2.0)
        angles = torch.acos(module(positions(0, 1, 128)).cos[0, 1, :8].double())
        assert angles[0] == pytest.approx(1.0)
        # The row is 129 long.
        stretch = 2.0 * 129 / 64 - 1
        table = module(positions(128)).sin[0, 0, 8:].double()
        assert math.asin(table[7]) == pytest.approx(128 * 10000 ** (-14 / 16) / stretch, rel=1e-5)

    def test_remembers_nothing(self):
        module, short = rotary("dynamic", context=16, factor=4.0), torch.arange(10)[None]
        before = module(short).cos
        module(torch.arange(60)[None])
        assert torch.equal(module(short).cos, before)

    def test_a_row_never_sees_its_neighbours_length(self):
        module = rotary("dynamic", context=16, factor=4.0)
        short, long = torch.arange(40).clamp(max=9), torch.arange(40)
        batch = module(torch.stack((short, long)))
        for row, alone in enumerate((short, long)):
            assert torch.equal(batch.cos[row], module(alone[None]).cos[0])
            assert torch.equal(batch.sin[row], module(alone[None]).sin[0])

    def test_padding_does_not_count(self):
        module, n = rotary("dynamic", context=16, factor=4.0), 30
        padded = torch.cat((torch.full((5,), -1), torch.arange(n)))[None]
        rotation = module(padded)
        assert torch.equal(rotation.cos[:, 5:], module(torch.arange(n)[None]).cos)
        nothing = module(torch.full((1, 3), -1))
        assert torch.equal(nothing.cos, rotary()(torch.full((1, 3), -1)).cos)

    def test_a_newest_token_alone_knows_how_long_its_row_is(self):
        module, n = rotary("dynamic", context=16, factor=4.0), 37
        assert torch.equal(module(positions(n - 1)).cos[:, 0], module(torch.arange(n)[None]).cos[:, -1])

    def test_two_features_have_no_base_to_stretch(self):
        where = torch.arange(50)[None]
        assert torch.equal(rotary("dynamic", 2, context=8, factor=2.0)(where).cos, rotary(dim=2)(where).cos)


def test_contexts():
    assert (rotary(context=64).context, rotary(context=64).constant_until) == (64, None)
    assert (rotary("linear", context=64, factor=2.5).context, rotary("linear", factor=2.5).constant_until) == (
        160,
        None,
    )
    assert (rotary("dynamic", context=64, factor=2.5).context, rotary("dynamic", context=64).constant_until) == (
        160,
        64,
    )


CASTS = {
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(torch.bfloat16),
    "to and back": lambda m: m.to(torch.float16).float(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("key", KEYS)
def test_angles_stay_float32_in_a_module_of_less(key, cast):
    module, where = rotary(key, 128, context=16384), positions(8191)
    before = module(where)
    after = cast(torch.nn.Sequential(module))[0](where)
    assert after.cos.dtype == after.sin.dtype == torch.float32
    assert torch.equal(after.cos, before.cos) and torch.equal(after.sin, before.sin)
    exact = torch.cos(8191 * exact_frequencies(128)).repeat(2)
    torch.testing.assert_close(after.cos[0, 0].double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("key", KEYS)
def test_angles_are_float64_in_a_module_of_float64(key):
    table = torch.nn.Sequential(rotary(key, 128, context=16384)).double()[0](positions(8191))
    assert table.cos.dtype == table.sin.dtype == torch.float64
    exact = torch.cos(8191 * exact_frequencies(128)).repeat(2)
    torch.testing.assert_close(table.cos[0, 0], exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("key", KEYS)
def test_the_default_dtype_does_not_matter(key):
    where = torch.arange(300)[None]
    expected = rotary(key, context=64)(where)
    torch.set_default_dtype(torch.bfloat16)
    try:
        actual = rotary(key, context=64)(where)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(actual.cos, expected.cos) and torch.equal(actual.sin, expected.sin)


def test_autocast_does_not_matter():
    for key in KEYS:
        module, where = rotary(key, context=64), torch.arange(300)[None]
        expected = module(where)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module(where).cos, expected.cos)


@pytest.mark.parametrize("key", KEYS)
def test_survives_the_meta_device(key):
    where, expected = torch.arange(100)[None], rotary(key, context=64)(torch.arange(100)[None])
    with torch.device("meta"):
        built = rotary(key, context=64)
    assert torch.equal(built(where).cos, expected.cos)  # weights may be assigned, without `to_empty`
    assert torch.equal(built.to_empty(device="cpu")(where).cos, expected.cos)
    assert built.to("meta")(where.to("meta")).cos.is_meta
    assert torch.equal(built.to_empty(device="cpu")(where).cos, expected.cos)


def test_a_checkpoint_holds_no_tables():
    for key in KEYS:
        assert rotary(key).state_dict() == {}


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("rotary", {"dim": 65}, "even, got 65"),
        ("rotary", {"base": 0.0}, "greater than 0, got 0.0"),
        ("rotary", {"layout": "neox"}, "'half' or 'interleaved', got 'neox'"),
        ("rotary", {"factor": 2.0}, "unknown field 'factor'"),
        ("linear", {"factor": 0.5}, "greater than or equal to 1, got 0.5"),
        ("dynamic", {"factr": 2.0}, "did you mean 'factor'"),
        ("rotary", {"base": math.inf}, "base: must be a finite number, got inf"),
        ("dynamic", {"factor": math.inf}, "factor: must be a finite number, got inf"),
    ],
)
def test_bad_options_are_named(key, options, message):
    with pytest.raises(ConfigError, match=message):
        ROTARY_EMBEDDINGS.build({"type": key, "dim": 8, **options})


def test_print_shows_the_options():
    assert "factor=2.0" in repr(rotary("linear", factor=2.0)) and "layout='half'" in repr(rotary())
