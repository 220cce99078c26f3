"""Compiled training: the losses of the model as it is, exact resumption, and a fallback that says so."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from axon_core import MODELS
from axon_core.config import validate
from axon_core.text.corpus import TextData
from axon_core.text.tokenizer import ByteTokenizer
from axon_core.training.loop import fit
from axon_xllama import CausalLMTrainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def trainer(**options):
    torch.manual_seed(0)
    tokens = torch.randint(61, (600,), dtype=torch.int32)
    model = MODELS["xllama"].build(vocab_size=ByteTokenizer().vocab_size, context=16, dim=32, n_layers=2, n_heads=4)
    data = TextData(ByteTokenizer(), tokens[:500], tokens[500:])
    settings = {"steps": 6, "batch_size": 4, "max_grad_norm": 1, "eval_every": 2, **options}
    return CausalLMTrainer(validate(CausalLMTrainer.Config, settings), {"model": model}, data)


def weights(trained):
    return torch.cat([parameter.detach().flatten() for parameter in trained.model.parameters()])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_weights_are_those_of_a_training_that_is_not_compiled(precision):
    plain, compiled = trainer(precision=precision), trainer(precision=precision, compile=True)
    start = weights(plain).clone()
    fit(plain)
    before = counters["stats"]["unique_graphs"]
    fit(compiled)
    assert counters["stats"]["unique_graphs"] == before + 1  # the loss in one piece; evaluations run as they are
    moved = (weights(plain) - start).norm()
    assert (weights(compiled) - weights(plain)).norm() < {"fp32": 1e-4, "bf16": 0.1}[precision] * moved


@needs_compiler
def test_a_compiled_training_resumes_bit_for_bit(tmp_path):
    whole, rest = trainer(compile=True), trainer(compile=True)
    fit(whole, tmp_path / "whole")
    fit(trainer(compile=True), tmp_path / "parts", stop_at=3)
    fit(rest, tmp_path / "parts", resume=True)
    assert torch.equal(weights(rest), weights(whole))


def test_without_a_compiler_it_says_so_and_trains():
    from torch._inductor import config

    torch._dynamo.reset()
    plain, compiled = trainer(), trainer(compile=True)
    missing = config.patch({"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False})
    with missing, pytest.warns(RuntimeWarning, match=r"the model is slower because it is not compiled: .*[Cc]ompiler"):
        fit(compiled)
    fit(plain)
    torch.testing.assert_close(weights(compiled), weights(plain))
