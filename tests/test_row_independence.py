"""What else a packed model is made of: norms, rotary embeddings and activations keep a row's bits in any company."""

import pytest
import torch
from torch import nn

from axon_core import MODELS, NORMS, ROTARY_EMBEDDINGS
from axon_core.nn import GatedSiLU, gated_silu, pack_products, rows_depend
from axon_core.nn import activation as activation_module

DTYPES = [torch.float32, torch.bfloat16]
NUMBERS = [1, 2, 3, 5, 8, 17, 31, 49, 64, 97, 300]


def check(function, rows):
    """Whether `function` returns the same bits for rows alone and in any number, with 1, 2 and 3 threads."""
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with torch.inference_mode():
                alone = torch.cat([function(rows[i : i + 1]) for i in range(len(rows))])
                for n in NUMBERS:
                    assert torch.equal(function(rows[:n].clone()), alone[:n]), (number, n)
                    assert torch.equal(function(rows[-n:].clone()), alone[-n:]), (number, n)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [7, 688, 2048])
@pytest.mark.parametrize("name", ["layernorm", *NORMS])
def test_norms(name, d, dtype):
    torch.manual_seed(0)
    norm = nn.LayerNorm(d) if name == "layernorm" else NORMS[name](NORMS[name].Config(dim=d))
    check(norm.to(dtype).eval(), torch.randn(300, d).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ROTARY_EMBEDDINGS))
def test_rotary_embeddings(name, dtype):
    torch.manual_seed(0)
    rotary = ROTARY_EMBEDDINGS[name](ROTARY_EMBEDDINGS[name].Config(dim=18, context=512))
    positions, x = torch.randint(500, (300,)), torch.randn(300, 3, 18).to(dtype)

    def turned(at):
        return rotary(positions[None, at]).to(dtype)(x[None, at])[0]

    alone = torch.cat([turned(slice(i, i + 1)) for i in range(300)])
    for n in NUMBERS:
        assert torch.equal(turned(slice(n)), alone[:n]) and torch.equal(turned(slice(-n, None)), alone[-n:])


@pytest.fixture(params=["compiled", "plain"])
def version(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(torch.ops.axon, "gated_silu", activation_module._plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 100, 688, 2048])
def test_gates(d, dtype, version):
    torch.manual_seed(0)
    both = 3 * torch.randn(300, 2 * d).to(dtype)
    check(lambda rows: gated_silu(*rows.chunk(2, -1)), both)
    gate, up = both.double().chunk(2, -1)
    found = gated_silu(*both.chunk(2, -1))
    assert found.dtype == dtype
    unit = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), gate / (1 + (-gate).exp()) * up, atol=unit / 8, rtol=unit)


def test_a_gate_of_large_numbers(version):
    x = torch.tensor([[-1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e30]])
    torch.testing.assert_close(gated_silu(x, torch.ones_like(x)), nn.functional.silu(x), atol=1e-36, rtol=1e-6)


def test_a_gate_is_what_torch_computes():
    x, y = torch.randn(2, 3, 5, 16).unbind()
    assert torch.equal(GatedSiLU()(x, y), nn.functional.silu(x) * y)
    torch.testing.assert_close(pack_products(GatedSiLU())(x, y), GatedSiLU()(x, y), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gated_silu(x.double(), y.double()), GatedSiLU()(x.double(), y.double()))


def test_a_packed_llama_has_nothing_else_that_depends_on_its_rows():
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "context": 64, "dim": 48, "n_layers": 2, "n_heads": 4}
    model, tokens = pack_products(MODELS["xllama"].build(**sizes).eval()), torch.tensor([[1, 2, 3]])
    found = rows_depend(model, lambda: model(tokens))
    assert {call.split(": ")[0] for call in found} == {"blocks.0.attention", "blocks.1.attention"}  # `attend`


@pytest.mark.parametrize("name", ["silu", "gelu", "sigmoid"])
def test_torchs_activations_are_named(name):
    function = getattr(nn.functional, name)
    assert rows_depend(nn.Module(), lambda: function(torch.randn(3))) == [f"the model: aten.{name}"]
