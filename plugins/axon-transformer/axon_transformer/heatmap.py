"""What cross-attention looks at: the weights of every layer and head for one translation, and their picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from axon_core import UsageError
from axon_core.checkpoint import atomic_file
from axon_core.generation import evaluation_mode
from axon_core.registry import install_line, new_figure
from axon_transformer.layers import DecoderLayer, Memory
from axon_transformer.model import Transformer
from axon_transformer.translate import Translation, Translator

_PIXELS = 20_000  # along the longer side of a picture, at most


class _Recorder(TorchFunctionMode):
    """Computes, while `recording`, the weights of every scaled dot-product attention that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = False
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is scaled_dot_product_attention and self.recording:
            self.weights.append(_weights(*args, **kwargs))
        return func(*args, **kwargs)


def _weights(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b k m d"],
    v: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    **_: Any,
) -> Float[Tensor, "b h n m"]:
    """Return softmax(q kᵀ · scale + mask), where each key head serves h / k query heads."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)


@torch.no_grad()
def cross_attention(
    model: Transformer, source: Int[Tensor, " m"], target: Int[Tensor, " n"]
) -> Float[Tensor, "l h n m"]:
    """Return how much each token of the decoder's input looks at each source token, in every layer and head.

    Works with every cross-attention that ends in torch's scaled dot-product attention.

    Raises:
        UsageError: the model's cross-attention does not.
    """
    recorder = _Recorder()
    source, target = (tokens.to(model.embedding.weight.device) for tokens in (source, target))
    layers = list(cast("Iterable[DecoderLayer]", model.decoder))

    def switch(on: bool) -> Callable[..., None]:
        return lambda *_: setattr(recorder, "recording", on)

    handles = [layer.cross.register_forward_pre_hook(switch(True)) for layer in layers]
    handles += [layer.cross.register_forward_hook(switch(False)) for layer in layers]
    try:
        with evaluation_mode(model), recorder:
            memory = model.encode(source.unsqueeze(0))
            plain = Memory(memory.features, memory.valid, len(layers))  # a packed model's has a kernel of its own
            model.decode(target.unsqueeze(0), plain)
    finally:
        for handle in handles:
            handle.remove()
    m = len(source)
    if len(recorder.weights) != len(layers) or any(weights.shape[-1] != m for weights in recorder.weights):
        raise UsageError(
            f"the cross-attention {model.config.cross_attention.type!r} does not have one map per head, so "
            "there is none to draw"
        )
    # For a single query, the heads of a group arrive as that many queries (`attend`): the order is the same.
    return torch.stack([weights.reshape(-1, len(target), m) for weights in recorder.weights]).float().cpu()


def attention_of(
    translator: Translator, text: str, translation: Translation
) -> tuple[Float[Tensor, "l h n m"], list[str], list[str]]:
    """Return what the decoder looks at for each token of a translation, and the labels of source and translation.

    Raises:
        UsageError: the model's cross-attention does not have one map per head.
    """
    (source,) = translator.encode([text])
    written, read = [*translation.tokens, translator.eos], [translator.bos, *translation.tokens]
    maps = cross_attention(translator.model, torch.tensor(source), torch.tensor(read))
    across, down = (
        [label(translator.tokenizer.piece(token)) or "(end)" for token in each] for each in (source, written)
    )
    return maps, across, down


def label(piece: bytes) -> str:
    """Return a token's label beside a map: its text with spaces visible, or its bytes if it is part of a character."""
    try:
        text = piece.decode().replace(" ", "▁")
    except UnicodeDecodeError:
        return f"<{piece.hex().upper()}>"
    return text if text.isprintable() else repr(text)[1:-1]


def check_picture(path: Path) -> None:
    """Raise `UsageError` unless matplotlib is installed and can write pictures of this kind."""
    kinds = _figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise UsageError(f"a picture's name must end in one of {', '.join(kinds)}, got {path}")


def draw_heatmap(maps: Float[Tensor, "l h n m"], source: Sequence[str], target: Sequence[str], path: Path) -> None:
    """Write a picture of the maps: a row for each layer, a column for each head, white where the weight is 0.

    The tokens of the translation run down each map, as they were written, and those of the source across it.

    Raises:
        UsageError: matplotlib is not installed, or cannot write pictures of that kind.
        CheckpointError: the file cannot be written.
    """
    check_picture(path)
    figure, dpi = _drawn(maps, source, target)
    with atomic_file(path) as draft:
        figure.savefig(draft, dpi=dpi)


def heatmap_png(maps: Float[Tensor, "l h n m"], source: Sequence[str], target: Sequence[str]) -> bytes:
    """Return the picture that `draw_heatmap` writes, as a PNG. Raises `UsageError` if matplotlib is not installed."""
    figure, dpi = _drawn(maps, source, target)
    data = io.BytesIO()
    figure.savefig(data, dpi=dpi)
    return data.getvalue()


def _drawn(maps: Float[Tensor, "l h n m"], source: Sequence[str], target: Sequence[str]) -> tuple[Any, float]:
    """Return the figure of the maps, and its dots per inch."""
    layers, heads, n, m = maps.shape
    inches = heads * (1.2 + 0.16 * m) + 0.8, layers * (1.0 + 0.16 * n) + 0.4
    figure = _figure(*inches)
    grid: Any = figure.subplots(layers, heads, squeeze=False)
    image: Any = None
    for layer, head in product(range(layers), range(heads)):
        axes = grid[layer, head]
        image = axes.imshow(maps[layer, head].numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
        axes.set_xticks(range(m), source, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(n), target, fontsize=7, parse_math=False)
    figure.supxlabel("source", fontsize=9)
    figure.supylabel("translation", fontsize=9)
    figure.colorbar(image, ax=grid, label="attention weight")
    return figure, min(150, _PIXELS / max(inches))


def _figure(*inches: float) -> Any:
    if (figure := new_figure(*inches)) is None:
        raise UsageError(f"drawing attention needs matplotlib: {install_line('axon-transformer', 'plot')}")
    return figure
