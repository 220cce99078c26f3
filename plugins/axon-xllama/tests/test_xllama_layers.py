"""Patterns of layers, feed-forwards by name, and rotary embeddings that differ by layer."""

import pytest
import torch
from torch.nn.functional import relu

from axon_core import ConfigError, UnknownKey
from axon_core.interfaces import Scope
from axon_xllama import XLlama
from axon_xllama.feed_forward import FEED_FORWARDS

SIZES = {"vocab_size": 31, "context": 32, "dim": 16, "n_heads": 2, "hidden_dim": 24}


def build(**changes) -> XLlama:
    torch.manual_seed(0)
    return XLlama.build(**{**SIZES, "n_layers": 8, **changes}).eval()


def test_the_first_pattern_with_a_layer_says_what_it_has():
    model = build(
        attention={"type": "GQA", "n_kv_heads": 1},
        layers=[
            {"every": 4, "attention": "MHA", "rotary": "none"},
            {"every": 2, "feed_forward": "relu2"},
            {"rotary": {"type": "rotary", "base": 500.0}},
        ],
    )
    attentions = [type(block.attention).__name__ for block in model.blocks]
    assert attentions == (["GroupedQueryAttention"] * 3 + ["MultiHeadAttention"]) * 2
    bases = [getattr(getattr(block.attention.rotary, "config", None), "base", None) for block in model.blocks]
    assert bases == [500.0, 10000.0, 500.0, None] * 2
    fed = [type(block.feed_forward).__name__ for block in model.blocks]
    assert fed == ["SwiGLU", "SquaredReLU", "SwiGLU", "SwiGLU"] * 2
    assert [block.attention.config.layer for block in model.blocks] == list(range(8))
    assert len(model.rotaries) == 2  # each is shared by its layers


def test_what_a_model_passes_down_to_its_attentions():
    config = build(n_layers=3).blocks[2].attention.config
    assert (config.layer, config.n_layers, config.context) == (2, 3, 32)


@torch.no_grad()
def test_a_model_without_positions_does_not_know_the_order():
    model = build(n_layers=1, rotary="none")
    tokens = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(model(tokens)[0, -1], model(tokens[:, [1, 0, 2, 3]])[0, -1])
    assert model.rotaries == [] and model.context == 32
    assert (build(n_layers=1)(tokens)[0, -1] - build(n_layers=1)(tokens[:, [1, 0, 2, 3]])[0, -1]).abs().max() > 1e-4


def test_the_context_is_that_of_the_layer_that_reaches_least_far():
    extended = {"type": "linear", "factor": 4.0}
    assert build(rotary=extended).context == 128
    assert build(rotary=extended, layers=[{"every": 4, "rotary": "rotary"}]).context == 32
    assert build(rotary=extended, layers=[{"every": 4, "rotary": "none"}]).context == 128


@torch.no_grad()
def test_squared_relu_is_what_it_says():
    layer = FEED_FORWARDS.build("relu2", dim=6, hidden_dim=10).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = relu(x @ layer.up.weight.T) ** 2 @ layer.down.weight.T
    torch.testing.assert_close(layer(x, Scope.over(x)), expected, atol=1e-15, rtol=0)


def test_the_pattern_survives_saving(tmp_path):
    model = build(layers=[{"every": 2, "attention": "MHA", "rotary": "none"}, {"feed_forward": "relu2"}])
    model.save(tmp_path)
    again = XLlama.load(tmp_path).eval()
    tokens = torch.randint(31, (1, 9))
    assert again.config == model.config
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ({"every": 0}, ConfigError, r"layers\.0\.every: must be greater than 0, got 0"),
        ({"attention": "nowhere"}, UnknownKey, r"layers\.0\.attention: no attention 'nowhere' is installed"),
        ({"feed_forward": "swiglo"}, UnknownKey, r"layers\.0\.feed_forward: no feed forward 'swiglo' .*'swiglu'"),
        (
            {"attention": {"type": "GQA", "n_kv_heads": 5}},
            ConfigError,
            r"layers\.0\.attention\.n_kv_heads: n_kv_heads m",
        ),
        ({"every": 9}, ConfigError, r"layers\.0 must decide about a layer, but with `every` 9 it has none of 8"),
        ({"rotary": {"type": "none", "base": 3}}, ConfigError, r"layers\.0: rotary none has no options, got base"),
        ({"atention": "GQA"}, ConfigError, r"layers\.0\.atention: unknown field .*did you mean 'attention'"),
    ],
    ids=str,
)
def test_patterns_that_break_a_rule(pattern, error, message):
    with pytest.raises(error, match=message):
        build(layers=[pattern])


def test_a_pattern_that_an_earlier_one_leaves_no_layer_is_refused():
    build(layers=[{"every": 4}, {"every": 2, "attention": "MHA"}, {"attention": "MQA"}])
    with pytest.raises(ConfigError, match=r"layers\.1 must decide about a layer, .* it has none of 8 that an earlier"):
        build(layers=[{"every": 2}, {"every": 4, "attention": "MHA"}])
