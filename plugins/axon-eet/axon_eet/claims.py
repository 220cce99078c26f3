"""The paper's claims, checked."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from axon_core import ByteTokenizer
from axon_core.papers import Outcome
from axon_eet.blocks import SIZE, blocks_for
from axon_eet.engine import Engine
from axon_eet.packed import Packed, PackedCache, block_bytes
from axon_eet.small_decoder import SmallDecoder

LENGTHS = (5, 17, 64, 128)


def as_if_alone() -> Outcome:
    """Run texts of four lengths padded on the left, packed, and each by itself, in float64."""
    model, texts = _model(64, 2).double(), _texts(LENGTHS)
    tokens, valid = _padded(texts)
    with torch.inference_mode():
        alone = torch.cat([model.features(torch.tensor([text]))[0] for text in texts])
        padded = model.features(tokens, valid=valid)[valid]
        packed = _packed(model, texts)
    worst = max((other - alone).abs().max().item() for other in (padded, packed))
    n = packed.shape[0]
    return Outcome(
        worst < 1e-12 and n == sum(LENGTHS),
        f"largest difference {worst:.1e}; {tokens.numel()} tokens padded, {n} packed",
    )


def memory() -> Outcome:
    """Compare the memory that texts of four lengths take with what their lengths predict, at two depths."""
    pages = sum(map(blocks_for, LENGTHS))
    held: dict[int, int] = {}
    for depth in (2, 8):
        model = _model(32, depth)
        with Engine(model, ByteTokenizer(), memory="10MB") as engine:
            answers = [engine.submit(prompt=text, max_new_tokens=1) for text in _texts(LENGTHS)]
            for answer in answers:
                list(answer)
            report = engine.report().memory
        size = block_bytes([layer.states for layer in model.new_cache(1, 1).layers], torch.float32)
        held[depth] = report.kept // size
    full = sum(length // SIZE for length in LENGTHS)
    peaks = {depth: _activations(_model(32, depth)) for depth in (2, 8)}
    passed = pages == 15 and set(held.values()) == {full} and peaks[2] == peaks[8]
    return Outcome(
        passed,
        f"{pages} blocks of {SIZE} tokens, {pages * SIZE} in all, for {sum(LENGTHS)}; of activations at most "
        f"{peaks[2] / 1e6:.2f} MB exist at a time with 2 layers, {peaks[8] / 1e6:.2f} MB with 8",
    )


def padding_skipped() -> Outcome:
    """Time a pass over four texts, padded against packed, with more and more padding."""
    gains = [_gain((shortest, shortest, shortest, 128)) for shortest in (128, 64, 5)]
    found = ", ".join(f"{gain:.2f}" for gain in gains)
    return Outcome(
        "direction" if gains[0] < gains[1] < gains[2] and gains[2] > 1.4 else False,
        f"with no padding, 38 % and 72 %, a packed pass is {found} times as fast as a padded one",
    )


def _gain(lengths: Sequence[int]) -> float:
    """Return how many times as long a padded pass over texts of these lengths takes as a packed one."""
    model, texts = _model(128, 2), _texts(lengths)
    tokens, valid = _padded(texts)
    mask = None if bool(valid.all()) else valid
    row = torch.tensor([[token for text in texts for token in text]])
    documents = torch.tensor([[i for i, text in enumerate(texts) for _ in text]])
    padded = _seconds(lambda: model.features(tokens, valid=mask))
    return padded / _seconds(lambda: model.features(row, documents=documents))


def _model(dim: int, n_layers: int) -> SmallDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallDecoder.build(vocab_size=258, context=256, dim=dim, n_layers=n_layers).eval()


def _texts(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(258, (n,), generator=generator).tolist() for n in lengths]


def _padded(texts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Return the texts as rows padded on the left, and which of their entries are tokens."""
    longest = max(map(len, texts))
    rows = [(longest - len(text), list(text)) for text in texts]
    tokens = torch.tensor([[0] * pads + text for pads, text in rows])
    return tokens, torch.tensor([[False] * pads + [True] * len(text) for pads, text in rows])


def _packed(model: SmallDecoder, texts: Sequence[Sequence[int]]) -> Float[Tensor, "n d"]:
    """Return the features of all texts, run as one row without padding, with their keys and values in blocks."""
    layers = [layer.states for layer in model.new_cache(1, 1).layers]
    weight = model.embedding.weight
    free = iter(range(sum(map(blocks_for, map(len, texts)))))
    tables = [[next(free) for _ in range(blocks_for(len(text)))] for text in texts]
    cache = PackedCache(layers, sum(map(len, tables)), weight.dtype, weight.device)
    packed = Packed.of([(text, 0, table) for text, table in zip(texts, tables, strict=True)], weight.device)
    cache.load(packed)
    return model.features(packed.tokens, cache=cache)[0]


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that exist at a time, among those made in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


def _activations(model: SmallDecoder) -> int:
    """Return the most bytes of activations that exist at a time in a pass over a text of 128 tokens."""
    tokens = torch.tensor(_texts((128,)))
    with torch.inference_mode(), _Live() as live:
        model.features(tokens)
    return live.peak


def _seconds(run: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    with torch.inference_mode():
        once()
        return median(once() for _ in range(15))
