"""Maps of cross-attention: the weights that are recorded, and the picture made of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from axon_core import UsageError
from axon_transformer import Transformer, Translator, cross_attention
from axon_transformer.heatmap import draw_heatmap, label


def test_heat_maps_are_the_weights_of_every_layer_and_head(small_run: Path, tmp_path: Path, said: Any) -> None:
    path = tmp_path / "maps.png"
    out, err = said("translate", small_run, "a b c", "--attention", path)
    assert str(path) in err and out == said("translate", small_run, "a b c")[0]
    picture = imread(path)
    assert sorted(tmp_path.iterdir()) == [path]
    assert min(picture.shape[:2]) > 100 and len({round(float(value), 2) for value in picture[..., 0].flat}) > 20


def test_a_picture_says_what_is_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: figures.append(self))
    maps = torch.rand(2, 3, 2, 4)
    draw_heatmap(maps, ["$a", "▁b", "c_", "(end)"], ["x$", "(end)"], tmp_path / "x.png")
    (figure,) = figures
    *grid, bar = figure.axes
    assert [axes.get_title() for axes in grid] == [f"layer {i}, head {j}" for i in (1, 2) for j in (1, 2, 3)]
    for axes, expected in zip(grid, maps.flatten(0, 1), strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["$a", "▁b", "c_", "(end)"]
        assert [text.get_text() for text in axes.get_yticklabels()] == ["x$", "(end)"]
        torch.testing.assert_close(torch.from_numpy(axes.images[0].get_array().data), expected)
    assert (figure.get_supxlabel(), figure.get_supylabel(), bar.get_ylabel()) == (
        *("source", "translation", "attention weight"),
    )


def test_a_picture_of_many_heads_and_tokens_stays_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[float] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: sizes.append(dpi * max(self.get_size_inches())))
    draw_heatmap(torch.rand(1, 16, 2, 60), ["a"] * 60, ["b"] * 2, tmp_path / "x.png")
    assert sizes == [pytest.approx(20_000)]


def test_tokens_can_be_read_beside_a_map() -> None:
    pieces = {b" dog": "▁dog", b"$x": "$x", "ü".encode(): "ü", b"\xf0": "<F0>", b"\n": "\\n", b"": ""}
    assert {piece: label(piece) for piece in pieces} == pieces


@pytest.mark.parametrize("written", [[1, 7, 8], [1]], ids=["three tokens", "one"])
@pytest.mark.parametrize("attention", ["MHA", "GQA", "MQA"])
def test_recorded_weights_are_the_formulas(attention: str, written: list[int]) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "dim": 16, "n_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    model = Transformer.build(**sizes, attention=attention).eval()
    source, target, n = torch.tensor([3, 4, 5, 2]), torch.tensor(written), len(written)
    seen = []
    handle = model.decoder[1].cross.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    maps = cross_attention(model, source, target)
    handle.remove()
    assert maps.shape == (2, 4, n, 4)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, n))
    with torch.no_grad():
        cross, features = model.decoder[1].cross, model.encode(source[None]).features
        q, (k, _) = cross.qkv.query(seen[0])[0], cross.qkv.key_value(features)
        for head in range(4):
            key = k[0, :, head * k.shape[2] // 4]
            expected = (q[:, head] @ key.T / 2).softmax(-1)
            torch.testing.assert_close(maps[1, head], expected)


def test_dropout_has_no_part_in_a_map() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "dim": 16, "n_heads": 4, "encoder_layers": 1, "decoder_layers": 1}
    model = Transformer.build(**sizes, dropout=0.5)
    first, second = (cross_attention(model, torch.tensor([3, 4, 2]), torch.tensor([1, 7])) for _ in range(2))
    assert torch.equal(first, second) and model.training


def test_a_map_is_of_what_the_decoder_reads_while_it_writes(
    small_run: Path, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("axon_transformer.cli.draw_heatmap", lambda *given: drawn.append(given))
    said("translate", small_run, "a b c", "--attention", tmp_path / "maps.png")
    ((maps, across, down, _),) = drawn
    translator = Translator.load(small_run / "model")
    ((best, *_),) = translator.translate(["a b c"])
    (source,) = translator.encode(["a b c"])
    read = torch.tensor([translator.bos, *best.tokens])
    assert torch.equal(maps, cross_attention(translator.model.eval(), torch.tensor(source), read))
    assert (len(across), len(down)) == (len(source), len(best.tokens) + 1)
    assert across[-1] == down[-1] == "(end)"


def test_an_attention_without_maps_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Transformer.build(vocab_size=11, dim=16, n_heads=4, encoder_layers=1, decoder_layers=1)
    monkeypatch.setattr("axon_transformer.attention.attend", lambda q, k, v, scope: q)
    with pytest.raises(UsageError, match="the cross-attention 'MHA' does not have one map per head"):
        cross_attention(model, torch.tensor([3, 2]), torch.tensor([1]))
    for name in ("maps", "maps.doc"):
        with pytest.raises(UsageError, match=rf"a picture's name must end in one of .*png.*, got .*{name}"):
            draw_heatmap(torch.ones(1, 1, 1, 1), ["a"], ["b"], tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib"):
        draw_heatmap(torch.ones(1, 1, 1, 1), ["a"], ["b"], tmp_path / "x.png")
