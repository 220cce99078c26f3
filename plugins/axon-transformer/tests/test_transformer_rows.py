"""A packed model: it finds what the model finds, and a sentence's translation has the same bits in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from axon_core import Scope
from axon_core.nn import PackedLinear, attend, pack_products, quantize, rows_depend
from axon_core.nn.int8 import Int8Linear
from axon_transformer import MultiHeadAttention, Search, Transformer, beam_search
from axon_transformer.rows import BeamCache
from axon_transformer.search import CachedScorer, Hypothesis

BOS, EOS, VOCABULARY = 0, 1, 50
SOURCES = [[2, 3, 14, 2, 1], [3, 1], [4, 40, 2, 21, 1], [22, 2, 3, 4, 3, 2, 1], [2, 3, 1]]


def build(**values: Any) -> Transformer:
    """Return a small model whose scores are far from uniform, so that rounding decides nothing."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "context": 16}
    model = Transformer.build(vocab_size=VOCABULARY, **{**sizes, **values}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def translate(model: Transformer, sources: list[list[int]], left: int = 0, **options: Any) -> list[list[Hypothesis]]:
    """Search with a cache; `left` says how much padding comes before the sources."""
    longest, how = max(map(len, sources)), Search(**{"beam": 4, "n_best": 4, **options})
    how = how if how.n_best <= how.beam else Search(**{**options, "n_best": how.beam})
    rows = torch.tensor([[*[3] * left, *source, *[3] * (longest - len(source))] for source in sources])
    counted = torch.arange(longest + left) - left
    valid = (counted >= 0) & (counted < torch.tensor([len(source) for source in sources]).unsqueeze(1))
    with torch.inference_mode():
        scorer = CachedScorer(model, model.encode(rows, valid=valid), how.beam, 14)
        return beam_search(scorer, [14] * len(sources), how, bos=BOS, eos=EOS)


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]], near: float = 1e-4) -> None:
    for each, others in zip(found, expected, strict=True):
        assert [(one.tokens, one.ended) for one in each] == [(other.tokens, other.ended) for other in others]
        assert [one.logprob for one in each] == pytest.approx([other.logprob for other in others], abs=near)


PARTS = (
    {},
    {"norm_position": "post"},
    {"attention": {"type": "MHA", "bias": True, "qk_norm": "layernorm"}},
    {"attention": "GQA", "rotary": "rotary"},
    {"rotary": {"type": "dynamic"}, "context": 8},
)


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("beam", [1, 3, 4])
def test_a_packed_model_finds_what_the_model_finds(parts: dict[str, Any], beam: int) -> None:
    model = build(**parts)
    expected = translate(model, SOURCES, beam=beam, n_best=beam)
    assert_same(translate(pack_products(model), SOURCES, beam=beam, n_best=beam), expected)
    assert any(len(one.tokens) > 3 for each in expected for one in each)


@pytest.mark.parametrize("bits", [32, 8])
def test_a_translation_has_the_same_bits_in_any_company(bits: int) -> None:
    """Tokens and scores, beside sentences that are longer or end earlier, and alone."""
    model = build()
    packed = pack_products(quantize(model) if bits == 8 else model)
    together = translate(packed, SOURCES)
    for i, source in enumerate(SOURCES):
        assert translate(packed, [source]) == [together[i]]
        assert translate(packed, [SOURCES[3], source, source])[1] == together[i]


def test_nothing_that_is_computed_depends_on_the_number_of_rows() -> None:
    model = build()
    packed = pack_products(model)
    assert rows_depend(packed, lambda: translate(packed, SOURCES)) == []
    assert "head: aten.linear" in rows_depend(model, lambda: translate(model, SOURCES))


def test_8_bits_find_what_the_rounded_weights_find() -> None:
    model = build()
    rounded = quantize(model)
    with torch.no_grad():
        for name, module in rounded.named_modules():
            if isinstance(module, Int8Linear) and name != "head":  # the embedding, whose weight it shares, stays
                model.get_submodule(name).weight.copy_(module.weight * module.scale.unsqueeze(-1))
    head = rounded.head
    model.logits = lambda features: features @ (head.weight * head.scale.unsqueeze(-1)).T
    assert_same(translate(pack_products(rounded), SOURCES), translate(model, SOURCES), near=2e-3)


class Biased(MultiHeadAttention):
    """Nearer keys count more, and those 4 or more away not at all."""

    def forward(self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: Any = None) -> Tensor:
        q, k, v = self.qkv(x, memory)
        if memory is None and cache is not None:
            k, v = cache.append(k=k, v=v)
        elif cache is not None:
            k, v = cache.once(lambda: (k, v))
        found = attend(q, k, v, scope, bias=lambda i, j: -0.3 * (i - j).abs(), narrow=lambda i, j: (i - j).abs() < 4)
        return self.out(found.flatten(-2))


class ByHand(MultiHeadAttention):
    """Without the core's function of attention."""

    def forward(self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: Any = None) -> Tensor:
        q, k, v = self.qkv(x, memory)
        if memory is None and cache is not None:
            k, v = cache.append(k=k, v=v)
        mask = scope.mask(k.shape[1])
        scores = (torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
        return self.out(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(-2))


def test_scores_that_an_attention_changes_are_changed() -> None:
    model = build()
    expected = translate(model, SOURCES)
    for layer in (*model.encoder, *model.decoder):
        layer.attention.__class__ = Biased
    for layer in model.decoder:
        layer.cross.__class__ = Biased
    found = translate(model, SOURCES)
    assert found != expected
    assert_same(translate(pack_products(model), SOURCES), found)


def test_an_attention_that_reads_keys_by_itself_gets_them_as_usual() -> None:
    model = build()
    expected = translate(model, SOURCES)
    for layer in (*model.encoder, *model.decoder):
        layer.attention.__class__ = ByHand
    assert_same(translate(pack_products(model), SOURCES), expected)


def test_padding_before_a_source_changes_nothing() -> None:
    model = build(rotary="rotary")
    assert_same(translate(pack_products(model), SOURCES, left=3), translate(model, SOURCES))


def test_keys_stay_where_they_are() -> None:
    """Reordering and dropping rows moves the numbers of their places alone, and each row reads its own keys."""
    torch.manual_seed(1)
    plain = Transformer.build(vocab_size=5, dim=8, n_heads=2, decoder_layers=1).new_cache(4, 6)
    beams = BeamCache([layer.states for layer in plain.layers], 4, 6, torch.float32, "cpu")
    rows = 4
    for move in ([0, 1, 2, 3], [1, 1, 0, 3], [2, 0], [1, 0], [0, 0]):
        q, k, v = torch.randn(3, rows, 1, 2, 4)
        found: list[Tensor] = []
        for cache in (beams, plain):
            step = cache.extend(torch.zeros(rows, 1, dtype=torch.long))
            (layer,) = step.layers
            assert layer is not None
            keys, values = layer.append(k=k, v=v)
            found.append(attend(q, keys, values, step.scope))
        torch.testing.assert_close(*found)
        places = beams.layers[0].buffers["k"].data_ptr()
        for cache in (beams, plain):
            cache.keep(torch.tensor(move))
        assert beams.layers[0].buffers["k"].data_ptr() == places
        rows = len(move)


def test_a_packed_head_is_what_makes_a_model_packed() -> None:
    model = build()
    assert isinstance(pack_products(model).head, PackedLinear)
    assert isinstance(pack_products(model).new_beam_cache(2, 3), BeamCache)
    assert not isinstance(model.new_beam_cache(2, 3), BeamCache)
    assert not isinstance(pack_products(build(rotary="dynamic")).new_beam_cache(2, 3), BeamCache)
