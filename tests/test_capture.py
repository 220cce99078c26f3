"""Fixed caches and replayed steps give the tokens of ordinary decoding; with a stand-in for CUDA's graphs."""

import importlib
import weakref
from pathlib import Path

import pytest
import torch
from test_compile import model
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axon_core import ROTARY_EMBEDDINGS
from axon_core.errors import ContextError, UsageError
from axon_core.generation import compile as compiling
from axon_core.generation import decoder as decoding
from axon_core.generation.capture import Way, compiled_call, replayed
from axon_core.generation.compile import step
from axon_core.generation.sampling import Sampling
from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import Cache, StateSpec

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 6, 7], [8], [1, 2, 3, 4, 5, 6, 7], [9, 10]]


class Recorder(TorchDispatchMode):
    """Takes down every operation with the tensors it works on."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        out = function(*arguments, **options)
        self.operations.append((function, arguments, options, out))
        return out

    def replay(self):
        """Do it again in the same memory; nothing of Python's own is repeated."""
        for function, arguments, options, out in self.operations:
            again = function(*arguments, **options)
            given = {memory(x) for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)}
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and memory(old) not in given:  # neither a view nor done in place
                    old.copy_(new)


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class StandIn:
    """Captures and replays as CUDA does: capturing does nothing but take down, replaying nothing that Python does."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def step(self, model, tokens, cache):
        self.cache = weakref.ref(cache)
        return step(model, tokens, cache)

    def capture(self, run):
        run()
        held = self.cache()
        kept = [held.positions, held._next, held._slot, *(b for layer in held.layers for b in layer.buffers.values())]
        before = [tensor.clone() for tensor in kept]
        with Recorder() as recorder:
            result = run()
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(old)
        self.captured += 1

        def replay():
            self.replayed += 1
            recorder.replay()
            return result

        return replay


def run(built, limits=(20, 3, 20, 5), **options):
    n = len(PROMPTS)
    decoder = decoding.Decoder(built, PROMPTS, range(n), [GREEDY] * n, limits, **options)
    tokens = []
    while decoder.going:
        tokens += decoder.step()
    return tokens


def same(got, expected):
    assert [token[:2] for token in got] == [token[:2] for token in expected]
    assert [token.logprob for token in got] == pytest.approx([token.logprob for token in expected], abs=1e-4)


@pytest.fixture
def graphs(monkeypatch):
    """What runs on a GPU, on the CPU: a static cache of small blocks, and graphs that are stand-ins."""
    stand_in = StandIn()
    monkeypatch.setattr(decoding, "compiled", lambda model: stand_in.step)
    monkeypatch.setitem(decoding.WAYS, "cpu", Way(stand_in.capture, 8))
    return stand_in


@pytest.mark.parametrize("attention", ["GQA", "MQA", "MHA"])
@pytest.mark.parametrize("limits", [(30, 30, 30, 30), (2, 4, 6, 30), (60, 3, 60, 5)])  # rows leave; the context is full
def test_a_captured_step_gives_the_tokens_of_ordinary_decoding(graphs, attention, limits):
    built = model(attention)
    same(run(built, limits, compile=True), run(built, limits))
    assert graphs.captured > 1 and graphs.replayed > 15


def test_a_step_is_captured_once_for_each_block_and_after_rows_have_left(graphs):
    run(model(), (20, 20, 20, 20), compile=True)  # slots 7 to 25 of 27: one, eight, eight and two visible at a time
    assert (graphs.captured, graphs.replayed) == (3, 7 + 7 + 1)
    run(model(), (2, 2, 4, 20), compile=True)  # rows leave before slots 8 and 10, which is then 5 for the last of them
    assert (graphs.captured, graphs.replayed) == (3 + 1 + 3, 15 + 1 + 2 + 7 + 4)


def test_graphs_go_with_their_cache_before_the_next_one_is_made(graphs, monkeypatch):
    built = model()
    caches, new_cache = [], built.new_cache

    def make(batch, capacity):
        assert all(cache() is None for cache in caches)
        caches.append(weakref.ref(made := new_cache(batch, capacity)))
        return made

    monkeypatch.setattr(built, "new_cache", make)
    run(built, (60, 3, 60, 5), compile=True)  # past the context
    assert len(caches) > 1 and graphs.captured > 1


@pytest.mark.parametrize("block", [8, 32])  # as many slots are visible after a reset, or others
def test_a_cache_that_is_made_static_again_is_captured_again(graphs, block):
    built, run = model(), replayed(graphs.step, graphs.capture)
    growing, plain = built.new_cache(1, 40), built.new_cache(1, 40)
    with torch.inference_mode():
        for prompt in ([5, 6, 7], [8, 9, 1, 2]):
            for one in (growing, plain):
                one.reset()
                built.features(torch.tensor([prompt]), cache=one)
            held = growing.make_static(block)
            for token in range(20):
                tokens = torch.tensor([[token]])
                for got, expected in zip(run(built, tokens, held), step(built, tokens, plain), strict=True):
                    torch.testing.assert_close(got, expected)
                if token == 6:
                    held = held.make_static(block)
    assert graphs.replayed > 20


@pytest.mark.parametrize("name", ["alibi", "differential", "mla"])
def test_attentions_of_others_work_on_a_static_cache(graphs, monkeypatch, name):
    built = theirs(monkeypatch, name)
    same(run(built, compile=True), run(built))
    assert graphs.captured > 1


@pytest.mark.parametrize("name", ["sliding", "linear", "dynamic"])
def test_a_cache_with_a_window_a_whole_state_or_a_horizon_runs_as_it_is(graphs, monkeypatch, name):
    built = theirs(monkeypatch, name) if name != "dynamic" else model(rotary={"type": "dynamic", "factor": 2.0})
    same(run(built, compile=True), run(built))
    assert graphs.captured == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [(["operation not permitted\nand more"], "operation not permitted"), ([], "RuntimeError")],
)
def test_a_step_that_cannot_be_captured_says_so_and_runs_as_it_is(graphs, monkeypatch, words, told):
    built = model()

    def fail(run):
        graphs.capture(run)
        raise RuntimeError(*words)

    monkeypatch.setitem(decoding.WAYS, "cpu", Way(fail, 8))
    expected = run(built)
    with pytest.warns(RuntimeWarning, match=f"its steps are not replayed: {told}$") as caught:
        same(run(built, compile=True), expected)
    assert len(caught) == 1


def test_a_static_cache_takes_one_token_a_row_as_long_as_there_is_room():
    held = model().new_cache(2, 6)
    held.extend(torch.ones(2, 3, dtype=torch.long))
    held = held.make_static(4)
    one = torch.ones(2, 1, dtype=torch.long)
    for tokens, valid in ((one.expand(2, 2), None), (one, one.bool())):
        with pytest.raises(UsageError, match="a static cache takes one token per row and no padding"):
            held.extend(tokens, valid)
    reached = [held.extend(one).scope.keys.tolist()[0] for _ in range(3)]
    assert reached == [[0, 1, 2, 3], [0, 1, 2, 3, 4, -1], [0, 1, 2, 3, 4, 5]]
    with pytest.raises(ContextError, match=r"has room for 6 tokens, got 6 \+ 1"):
        held.extend(one)
    with pytest.raises(ContextError, match=r"has room for 6 tokens, got 6 \+ 1"):
        replayed(step, compiled_call)(model(), one, held)
    held.reset()
    assert held.extend(one).scope.keys.tolist() == [[0, -1, -1, -1]] * 2


def test_a_static_cache_is_replayed_after_a_reset(graphs):
    built, run = model(), replayed(graphs.step, graphs.capture)
    held, plain = built.new_cache(1, 40).make_static(8), built.new_cache(1, 40)
    with torch.inference_mode():
        for tokens in ([5, 6, 7, 8, 9], [3, 2, 1]):
            for cache in (held, plain):
                cache.reset()
            for token in tokens:
                given = torch.tensor([[token]])
                for got, expected in zip(run(built, given, held), step(built, given, plain), strict=True):
                    torch.testing.assert_close(got, expected)
    assert (graphs.captured, graphs.replayed) == (1, 4 + 3)


def test_a_cache_with_a_horizon_or_a_window_cannot_be_static():
    for options in ({"horizon": 8}, {"window": 4}, {"per_token": False}):
        horizon = options.pop("horizon", None)
        cache = Cache([{"k": StateSpec((2,), **options)}], 1, 10, dtype=torch.float32, device="cpu", horizon=horizon)
        assert cache.make_static(4) is cache


@pytest.fixture
def traced(monkeypatch):
    """Compiles nothing: what is traced runs as it is."""
    monkeypatch.setattr(compiling, "_inductor", lambda graph, inputs, *, otherwise, **_: otherwise.forward)


class Counter:
    """Replays as `compiled_call`, and counts."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def capture(self, run):
        again = compiled_call(run)
        self.captured += 1

        def replay():
            self.replayed += 1
            return again()

        return replay


@pytest.mark.parametrize("attention", ["GQA", "MQA", "MHA"])
@pytest.mark.parametrize("limits", [(30, 30, 30, 30), (2, 4, 6, 30), (60, 3, 60, 5)])
def test_compiled_code_called_again_gives_the_tokens_of_ordinary_decoding(traced, monkeypatch, attention, limits):
    counter = Counter()
    monkeypatch.setitem(decoding.WAYS, "cpu", Way(counter.capture, 8))
    built = model(attention)
    counters.clear()
    same(run(built, limits, compile=True), run(built, limits))
    assert counter.captured > 1 and counter.replayed > 15
    # However far it reaches, and however many rows are left.
    assert counters["stats"]["unique_graphs"] == 1 + (limits == (2, 4, 6, 30))  # the last row alone
    assert not counters["graph_break"]


def test_a_model_that_is_compiled_in_pieces_runs_as_it_is(traced, monkeypatch):
    built = model()
    forward = built.blocks[1].forward

    def broken(x, *others):
        torch._dynamo.graph_break()
        return forward(x, *others)

    built.blocks[1].forward = broken
    expected = run(built)
    with pytest.warns(RuntimeWarning, match="its steps are not replayed: the model is compiled in [0-9] pieces"):
        same(run(built, compile=True), expected)


def test_scores_that_compiled_code_does_not_return_are_not_replayed():
    def run():
        outputs = compiling._taken_down(lambda x: (x + 1,))(torch.ones(2))
        return outputs[0], outputs[0] * 2

    with pytest.raises(RuntimeError, match="scores are not those that the compiled code returns"):
        compiled_call(run)


def test_a_step_that_fails_is_not_taken_for_one_that_cannot_be_captured():
    def fail(model, tokens, cache):
        raise RuntimeError("no such weights")

    held = model().new_cache(1, 6).make_static(4)
    with pytest.raises(RuntimeError, match="no such weights"):
        replayed(fail, compiled_call)(model(), torch.ones(1, 1, dtype=torch.long), held)


def theirs(monkeypatch, name):
    """A model with an attention of another package."""
    module = f"axon_test_{name}"
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "out_of_tree" / module.replace("_", "-")))
    classes = vars(importlib.import_module(module)).values()
    kind = next(c for c in classes if isinstance(c, type) and issubclass(c, Attention) and c.__module__ == module)
    options = {"window": 6} if name == "sliding" else {}
    built = model("MHA")
    for layer, block in enumerate(built.blocks):
        config = kind.Config(dim=32, n_heads=4, layer=layer, **options)
        rotary = build_rotary(config.rotary_dim)
        block.attention = kind(config, rotary).eval()
    return built


def build_rotary(dim):
    """A rotary embedding of this size, where there is to be one."""
    return ROTARY_EMBEDDINGS.build("rotary", dim=dim, context=48) if dim else None
