"""Compiled decoding: the tokens of the model as it is, one compilation for all lengths, and a fallback that says so."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import linear, scaled_dot_product_attention

from axon_core import MODELS
from axon_core.generation import compile as compiling
from axon_core.generation import decoder as decoding
from axon_core.generation.api import decode
from axon_core.generation.compile import attend_few, compiled, multiply_row, step
from axon_core.generation.sampling import Sampling
from axon_core.nn.quantization import quantize

GREEDY = Sampling(temperature=0)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def model(attention="GQA", rotary="rotary", **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "context": 48, "dim": 32, "n_layers": 2, "n_heads": 4, **options}
    built = MODELS["xllama"].build(**sizes, attention=attention, rotary=rotary)
    with torch.no_grad():
        for parameter in built.parameters():  # larger weights, so that the choices differ from step to step
            if parameter.ndim == 2:
                parameter.mul_(3)
    return built.eval()


def rows(built, prompts, n, **options):
    steps = decode(built, prompts, range(len(prompts)), max_new_tokens=n, sampling=GREEDY, **options)
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("d", [40, 5632, 4099])  # one sum, two pieces, and a prime
def test_a_row_times_a_weight(dtype, bias, d):
    x, weight, offset = torch.randn(1, 1, d), torch.randn(9, d) / d**0.5, torch.randn(9)
    x, weight, offset = x.to(dtype), weight.to(dtype), offset.to(dtype) if bias else None
    expected = linear(x.double(), weight.double(), None if offset is None else offset.double()).to(dtype)
    torch.testing.assert_close(multiply_row(x, weight, offset), expected)


def test_a_row_times_a_weight_of_whole_numbers():
    x, weight = torch.randint(-9, 10, (1, 40)).float(), torch.randint(-127, 128, (9, 40), dtype=torch.int8)
    assert torch.equal(multiply_row(x, weight), x @ weight.float().T)  # exact in float32


@pytest.mark.parametrize("mask", ["none", "boolean", "scores"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_of_few_queries(mask, scale):
    q, k, v = (torch.randn(2, 3, n, 8) for n in (4, 11, 11))
    masks = {"none": None, "boolean": torch.rand(2, 1, 4, 11) > 0.3, "scores": torch.randn(2, 3, 4, 11)}
    expected = scaled_dot_product_attention(q, k, v, attn_mask=masks[mask], scale=scale)
    torch.testing.assert_close(attend_few(q, k, v, attn_mask=masks[mask], scale=scale), expected)


def test_attention_of_large_scores_in_half_precision():
    q, k, v = (torch.randn(1, 1, n, 4).bfloat16() for n in (1, 3, 3))
    expected = scaled_dot_product_attention((100 * q).double(), (100 * k).double(), v.double())
    torch.testing.assert_close(attend_few(100 * q, 100 * k, v), expected.bfloat16())


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("attention", "rotary"), [("GQA", "linear"), ("MHA", "rotary")])
def test_compiled_decoding_gives_the_same_tokens(attention, rotary):
    built = model(attention, {"type": rotary, "factor": 2.0} if rotary == "linear" else rotary)
    for prompts in ([[5, 6, 7]], [[1, 2, 3, 4], [9], [8, 7]]):
        assert rows(built, prompts, 30, compile=True) == rows(built, prompts, 30)


@pytest.mark.slow
@needs_compiler
def test_compiled_decoding_with_a_cache_that_drops_what_no_token_sees(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "out_of_tree" / "axon-test-sliding"))
    from axon_test_sliding import SlidingWindowAttention

    built = model("MHA")
    for block in built.blocks:
        config = SlidingWindowAttention.Config(dim=32, n_heads=4, window=6)
        block.attention = SlidingWindowAttention(config, block.attention.rotary).eval()
    prompts = [[5, 6, 7], [8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]  # of which one fills the window at once
    assert rows(built, prompts, 20, compile=True) == rows(built, prompts, 20)
    assert rows(built, prompts[:1], 20, compile=True) == rows(built, prompts[:1], 20)


@pytest.mark.slow
@needs_compiler
def test_a_window_of_any_order_is_compiled_once_for_every_length():
    built = model({"type": "SWA", "window": 6}, layers=[{"every": 2, "attention": "GQA", "rotary": "none"}])
    prompts = [[5, 6, 7], [8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]  # of which one fills the window at once
    expected = rows(built, prompts[:1], 20), rows(built, prompts, 20)
    counters.clear()
    assert (rows(built, prompts[:1], 20, compile=True), rows(built, prompts, 20, compile=True)) == expected
    for prompt in ([[1, 2]], [list(range(30))]):
        assert rows(built, prompt, 12, compile=True) == rows(built, prompt, 12)
    assert counters["stats"]["unique_graphs"] == 2  # one row, and several


@pytest.mark.slow
@needs_compiler
def test_one_compilation_for_every_length_and_one_for_every_number_of_rows():
    built = model()
    counters.clear()
    for length in (3, 17, 40, 1):  # the third past the context: the cache is made anew; the last reaches further twice
        rows(built, [list(range(length))], 12 if length > 1 else 40, compile=True)
    assert counters["stats"]["unique_graphs"] == 1
    for prompts in ([[1], [2, 3]], [[1], [2], [3, 4]], [[1, 2]] * 5):
        rows(built, prompts, 9, compile=True)
    assert counters["stats"]["unique_graphs"] == 2  # one row, and several
    assert not counters["graph_break"]


@pytest.mark.slow
@needs_compiler
def test_a_batch_that_shrinks_to_one_row_needs_no_compilation_of_its_own():
    built = model()
    prompts = [[5, 6, 7], [8], [1, 2, 3, 4, 5, 6, 7], [9, 10]]

    def run(prompts, limits, compile):
        n = len(prompts)
        decoder = decoding.Decoder(built, prompts, range(n), [GREEDY] * n, limits, compile=compile)
        texts = {i: [] for i in range(n)}
        while decoder.going:
            for row, token, _ in decoder.step():
                texts[row].append(token)
        return texts

    counters.clear()
    for limits in ((2, 4, 6, 20), (20, 6, 4, 2), (6, 20, 2, 4)):
        assert run(prompts, limits, True) == run(prompts, limits, False)
    assert run([[5, 6, 7]], (9,), True) == run([[5, 6, 7]], (9,), False)
    assert counters["stats"]["unique_graphs"] == 2  # several rows, and one


@pytest.mark.slow
@needs_compiler
def test_other_weights_need_no_compilation_and_another_dtype_one_of_its_own():
    built = model()
    run = compiled(built)
    with torch.no_grad():
        built.head.weight.neg_()
    assert compiled(built) is run
    assert compiled(built.bfloat16()) is not run
    prompt = [[4, 5, 6]]
    assert rows(built, prompt, 3, compile=True) == rows(built, prompt, 3)


def test_what_the_compiled_code_belongs_to():
    built = model(tie_embeddings=True)
    run = compiled(built)
    assert compiled(built) is run
    built.head.weight = torch.nn.Parameter(torch.randn(61, 32))  # no longer tied
    untied = compiled(built)
    assert untied is not run
    built.norm.register_forward_hook(lambda module, arguments, output: 2 * output)
    assert compiled(built) is not untied


def test_past_its_horizon_a_dynamic_rotary_embedding_is_not_compiled(monkeypatch):
    built = model(rotary={"type": "dynamic", "factor": 2.0})
    lengths = []

    def run(model, tokens, cache):
        lengths.append(cache.length)
        return step(model, tokens, cache)

    monkeypatch.setattr(decoding, "compiled", lambda model: run)
    prompt = [list(range(40))]
    assert rows(built, prompt, 20, compile=True) == rows(built, prompt, 20)
    assert lengths == list(range(40, 48))  # the trained context


@pytest.mark.slow
@needs_compiler
def test_compiled_8_bit_decoding_gives_the_same_tokens():
    built = quantize(model())
    assert rows(built, [[5, 6, 7]], 20, compile=True) == rows(built, [[5, 6, 7]], 20)


def test_without_a_compiler_it_says_so_and_goes_on_as_it_is(monkeypatch):
    from torch._inductor import config

    run_with = set()  # what the sums that only pay compiled were run with: while compiling, no real tensors

    def multiply(x, *rest):
        run_with.add(type(x))
        return multiply_row(x, *rest)

    monkeypatch.setattr(compiling, "multiply_row", multiply)
    built = model(dim=64)  # of a shape that no other test has compiled
    torch._dynamo.reset()
    missing = config.patch({"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False})
    with missing, pytest.warns(RuntimeWarning, match=r"the model is slower because it is not compiled: .*[Cc]ompiler"):
        got = rows(built, [[5, 6, 7]], 6, compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert got == rows(built, [[5, 6, 7]], 6)
    assert run_with and torch.Tensor not in run_with


def test_a_prompt_runs_in_chunks(monkeypatch):
    built = model()
    prompts = [list(range(20)), [3, 4], list(range(30, 41))]
    expected = rows(built, prompts, 8)
    monkeypatch.setattr(decoding, "_CHUNK", 6)
    seen = []
    built.embedding.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    assert rows(built, prompts, 8) == expected
    assert seen[:4] == [6, 6, 6, 2]


def test_a_step_returns_scores_and_the_logarithm_of_their_sum():
    built = model().bfloat16()
    cache = built.new_cache(2, 8)
    with torch.no_grad():
        logits, total = step(built, torch.tensor([[1], [2]]), cache)
        expected = built(torch.tensor([[1], [2]]))[:, -1].float()
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(total, expected.exp().sum(-1).log())
