"""A trainer's loss, and one decoding step of a model, compiled into a few kernels.

The kernels of a decoding step run as fast as the weights can be read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.functional import linear, scaled_dot_product_attention

from axon_core.errors import first_line
from axon_core.interfaces.cache import Cache, LayerCache
from axon_core.interfaces.model import CausalLM
from axon_core.nn._huge_pages import use_huge_pages
from axon_core.precision import wide_dtype, widen

__all__ = [
    "Call",
    "Step",
    "attend_few",
    "compiled",
    "compiled_calls",
    "compiled_loss",
    "multiply_row",
    "scores",
    "step",
]

Step = Callable[[CausalLM, Int[Tensor, "b 1"], Cache], tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]]
"""Runs a model on one more token a row, as `step` does."""

LossFunction = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Returns sums by name, as `Trainer.loss` does."""


class Call(NamedTuple):
    """A call of a step's compiled code."""

    function: Callable[..., Sequence[Any]]
    """The compiled code."""
    inputs: tuple[Any, ...]
    """Everything it reads and writes: the model's weights, the cache's buffers, tokens, and sizes."""
    outputs: Sequence[Any]
    """What it returned."""


_FEW = 8  # queries: too few for a kernel that works on blocks of them
_OPTIONS = {
    "size_asserts": False,  # these and the next take 0.3 ms
    "alignment_asserts": False,
    "cpp.enable_floating_point_contract_flag": "fast",  # multiply and add in one instruction
}
_compiled: WeakKeyDictionary[CausalLM, tuple[Hashable, Step]] = WeakKeyDictionary()
_calls: ContextVar[list[Call] | None] = ContextVar("_calls", default=None)


def step(model: CausalLM, tokens: Int[Tensor, "b 1"], cache: Cache) -> tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]:
    """Run `model` on one more token a row, and return the scores of the next, with the logarithm of their sum."""
    return scores(model, model.features(tokens, cache=cache))


def scores(model: CausalLM, features: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]:
    """Return the scores s of the token after the last, and log Σ exp s, both in float32 at least."""
    logits = model.logits(features[:, -1:])[:, -1]
    logits = widen(logits)
    return logits, logits.logsumexp(-1)


def compiled(model: CausalLM) -> Step:
    """Return `step` for this model, compiled when it is first run.

    It is compiled once for a single row and once for several. For a cache that cannot be static, several rows compile
    once without padding and once with it; if it keeps a window in order, at most once more for each of these, as it
    fills. The lengths of the rows, their number and the cache's capacity are variables of the compiled code. If PyTorch
    finds no compiler, a warning says so, and the model runs uncompiled. The compiled code depends on the model's
    modules, their configs and hooks, and the shapes, dtypes and ties of its weights, but not on their values.
    """
    first: dict[int, int] = {}  # where each tensor first occurs: which ones are tied
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    key = (
        *(
            (name, type(module), repr(getattr(module, "config", None)), module.extra_repr(), _hooks(module))
            for name, module in model.named_modules(remove_duplicate=False)
        ),
        *(
            (name, tensor.shape, tensor.dtype, tensor.device, first.setdefault(id(tensor), len(first)))
            for name, tensor in tensors.items()
        ),
    )
    known, run = _compiled.get(model, (None, step))
    if known != key:
        run = _compile()
        _compiled[model] = key, run
        use_huge_pages(tensors.values())  # decoding is a tenth faster
    return run


def compiled_loss(loss: LossFunction) -> LossFunction:
    """Return `loss`, compiled when it is first run on tensors of these shapes.

    Each shape has its own code, so that the numbers do not depend on the shapes that came before. If PyTorch finds no
    compiler, a warning says so, and the loss is computed uncompiled.
    """
    return torch.compile(loss, dynamic=False, backend=_inductor)


@contextmanager
def compiled_calls() -> Generator[list[Call]]:
    """Record the calls that compiled steps make inside the block, in order."""
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return tuple(id(hook) for hooks in (module._forward_hooks, module._forward_pre_hooks) for hook in hooks.values())  # pyright: ignore[reportPrivateUsage]


def _compile() -> Step:
    # `compiled` has checked what the guards would check again before every token: 0.6 ms for 12 layers.
    from torch._dynamo.decorators import mark_static

    options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    run: Step = torch.compile(step, dynamic=True, isolate_recompiles=True, backend=_backend, options=options)  # pyright: ignore
    marked: WeakKeyDictionary[LayerCache, dict[str, Tensor]] = WeakKeyDictionary()

    def run_with_sizes(
        model: CausalLM, tokens: Int[Tensor, "b 1"], cache: Cache
    ) -> tuple[Float[Tensor, "b v"], Float[Tensor, " b"]]:
        for layer in cache.layers:
            if marked.get(layer) is not layer.buffers:  # new, or replaced when rows were dropped
                marked[layer] = layer.buffers
                for name, state in layer.states.items():  # the sizes that never vary: two that are equal by chance
                    buffer = layer.buffers[name]  # would be taken for one
                    mark_static(buffer, list(range(buffer.ndim - len(state.shape), buffer.ndim)))
        return run(model, tokens, cache)

    return run_with_sizes


def multiply_row(
    x: Float[Tensor, "... d"], weight: Float[Tensor, "r d"], bias: Float[Tensor, " r"] | None = None
) -> Float[Tensor, "... r"]:
    """Return `x weightᵀ + bias` for a single row x, as sums of products that a compiler fuses into one loop.

    A library's matrix product reads weights for a single row at a third of the memory's speed or copies them into
    another layout first. Two sums run side by side, since the additions of a single one wait for each other.
    """
    wide = wide_dtype(x.dtype)
    d = x.shape[-1]
    # Above 4,096 terms inductor sums in another, slower way: split into equal pieces, if possible.
    pieces = next((n for n in range(-(-d // 4096), 17) if d % n == 0), 1)
    row = _stored(x.reshape(pieces, -1).to(wide))
    halves = weight.chunk(2)
    out = torch.cat([(row * half.unflatten(1, (pieces, -1)).to(wide)).sum(-1).sum(-1) for half in halves])
    if bias is not None:
        out = out + bias.to(wide)
    return out.to(x.dtype).reshape(*x.shape[:-1], -1)


def attend_few(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    *,
    attn_mask: Shaped[Tensor, "b h n m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n e"]:
    """Return softmax(q kᵀ · scale + mask) v for few queries, as `scaled_dot_product_attention` does.

    Source: arXiv 1706.03762, Section 3.2.1.

    Written out, it compiles into loops that read keys and values in place, in their own dtype.
    """
    dtype, wide = q.dtype, wide_dtype(q.dtype)
    q = _stored(q.to(wide) * (q.shape[-1] ** -0.5 if scale is None else scale))
    k, v = k.to(wide), v.to(wide)
    # One loop for each query: the compiler fuses them into one, which reads every key and value once.
    scores = torch.stack([(row.unsqueeze(2) * k).sum(-1) for row in q.unbind(2)], 2)
    if attn_mask is not None:
        attn_mask = _stored(attn_mask)
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if boolean else scores + attn_mask
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    out = torch.stack([(row.unsqueeze(-1) * v).sum(2) for row in weights.unbind(2)], 2)
    return (out / weights.sum(-1, keepdim=True)).to(dtype)


def _backend(graph: GraphModule, inputs: list[Any], **_: Any) -> Callable[..., Any]:
    """Compile a graph with inductor, with the products that do little but read memory written out as sums."""
    lowered = Graph()
    lowered.output(lowered.graph_copy(graph.graph, {}))
    for node in lowered.find_nodes(op="call_function", target=linear):
        if len(node.args) >= 2 and all(isinstance(size, int) and size == 1 for size in _shape(node.args[0])[:-1]):
            node.target = multiply_row
            node.args = (node.args[0], _uncast(node.args[1]), *node.args[2:])
    for node in lowered.find_nodes(op="call_function", target=scaled_dot_product_attention):
        given = {name: value for name, value in node.kwargs.items() if value not in (None, False)}
        if len(node.args) != 3 or not given.keys() <= {"attn_mask", "scale"}:
            continue
        *batch, queries, _ = _shape(node.args[0])
        if len(batch) == 2 and isinstance(queries, int) and queries <= _FEW:
            node.target, node.kwargs = attend_few, given
    on_cpu = all(value.device.type == "cpu" for value in inputs if isinstance(value, Tensor))
    # On a CPU the kernels are called from C++: 0.5 ms a token for 12 layers.
    options = {**_OPTIONS, "cpp_wrapper": on_cpu}
    return _taken_down(_inductor(GraphModule(graph, lowered), inputs, options=options, otherwise=graph))


def _taken_down(function: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """`function`, whose calls `compiled_calls` records."""

    def call(*inputs: Any) -> Sequence[Any]:
        outputs = function(*inputs)
        calls = _calls.get()
        if calls is not None:
            calls.append(Call(function, inputs, outputs))
        return outputs

    return call


def _inductor(
    graph: GraphModule,
    inputs: list[Any],
    *,
    options: dict[str, Any] | None = None,
    otherwise: GraphModule | None = None,
) -> Callable[..., Any]:
    """Compile a graph with inductor; if that fails, return `otherwise`, or the graph itself."""
    from torch._dynamo.exc import ShortenTraceback
    from torch._inductor.compile_fx import compile_fx

    try:
        compiled: Any = compile_fx(graph, inputs, config_patches=options)
    except ShortenTraceback as error:  # what inductor raises when it fails, mostly for want of a compiler
        reason = first_line(error)
        warnings.warn(f"the model is slower because it is not compiled: {reason}", RuntimeWarning, stacklevel=2)
        return (graph if otherwise is None else otherwise).forward
    return compiled


def _stored(x: Tensor) -> Tensor:
    """`x`, stored by inductor, which would otherwise recompute it for every output of a product, or every head."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def _shape(node: Any) -> tuple[Any, ...]:
    """The shape of a node's value; a size that varies is not an int."""
    return tuple(node.meta["example_value"].shape)


def _uncast(node: Node) -> Node:
    """The node whose value `node` casts to a dtype, or `node` itself: `multiply_row` reads what is in memory."""
    cast = node.op == "call_method" and node.target == "to" and len(node.args) == 2
    return node.all_input_nodes[0] if cast and isinstance(node.args[1], torch.dtype) else node
