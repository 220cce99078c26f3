"""Residual streams beside sums in float64: at the start, with any weights, while decoding, saved and exported."""

import pytest
import torch

from axon_core import CheckpointError
from axon_core.training import Muon
from axon_denseformer import weighted_sum
from axon_xllama import XLlama
from axon_xllama.checkpoints.exporting import check_parts
from axon_xllama.residual import RESIDUAL_STREAMS

SIZES = {"vocab_size": 11, "context": 32, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
KINDS = ["dwa", "x0"]


def build(kind: str, *, random: bool = True) -> XLlama:
    torch.manual_seed(0)
    model = XLlama.build(**SIZES, residual=kind).double().eval()
    if random:
        for weights in model.residual.parameters():
            torch.nn.init.normal_(weights)
    return model


@torch.no_grad()
def test_a_weighted_sum_is_what_it_says():
    outputs = torch.randn(4, 2, 3, 5, dtype=torch.float64)
    weights = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(weighted_sum(list(outputs), weights), torch.einsum("j,jbnd->bnd", weights, outputs))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_starts_as_one_with_a_plain_residual_stream(kind):
    plain, model, tokens = build("plain", random=False), build(kind, random=False), torch.randint(11, (2, 7))
    assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    assert torch.equal(model(tokens), plain(tokens))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_layer_reads_the_weighted_sum_of_the_outputs_so_far(kind):
    model = build(kind)
    read: list[torch.Tensor] = []
    written = [model.embedding(tokens := torch.randint(11, (2, 7)))]
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        block.register_forward_hook(lambda _, given, out: written.append(out))
    model.norm.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(tokens)
    assert torch.equal(read[0], written[0])
    for layer in range(1, 4):
        if kind == "dwa":
            expected = sum(w * x for w, x in zip(model.residual.weights[layer - 1], written, strict=False))
        else:
            stream = model.residual
            expected = stream.last[layer - 1] * written[layer] + stream.first[layer - 1] * written[0]
        torch.testing.assert_close(read[layer], expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_in_chunks_equals_whole_rows(kind):
    model, tokens = build(kind), torch.randint(11, (2, 9))
    for sizes in ([1] * 9, [5, 3, 1]):
        cache = model.new_cache(2, 9)
        torch.testing.assert_close(torch.cat([model(x, cache=cache) for x in tokens.split(sizes, 1)], 1), model(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_gradient_and_learns_as_a_vector(kind):
    model = build(kind, random=False)
    model(torch.randint(11, (2, 7))).square().sum().backward()
    for weights in model.residual.parameters():
        assert weights.grad is not None and weights.grad.abs().min() > 0
    _, adamw = Muon(vector_lr=0.25).build([model])
    vectors = {id(p) for group in adamw.param_groups if group["lr"] == 0.25 for p in group["params"]}
    assert {id(weights) for weights in model.residual.parameters()} <= vectors


def test_the_number_of_weights():
    counts = {
        kind: sum(p.numel() for p in RESIDUAL_STREAMS.build(kind, dim=4, n_layers=12).parameters()) for kind in KINDS
    }
    assert counts == {"dwa": 12 * 15 // 2, "x0": 24}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_same_and_an_export_names_the_part(kind, tmp_path):
    model, tokens = build(kind), torch.randint(11, (1, 9))
    model.save(tmp_path)
    torch.testing.assert_close(XLlama.load(tmp_path).eval()(tokens), model(tokens))
    for form in ("hf", "meta", "gguf"):
        with pytest.raises(
            CheckpointError, match=f"the residual must be axon-xllama:plain, got axon-denseformer:{kind}"
        ):
            check_parts(model, form)
