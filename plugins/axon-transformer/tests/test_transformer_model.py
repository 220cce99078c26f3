"""The Transformer against a float64 reference written from the paper, against torch's, and with other papers' parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from axon_core import MODELS, ConfigError, UsageError
from axon_transformer import Transformer, sinusoids

SIZES = {"vocab_size": 23, "dim": 16, "n_heads": 4, "encoder_layers": 2, "decoder_layers": 3, "hidden_dim": 24}
SOURCE = torch.tensor([[3, 5, 7, 9, 11, 2], [4, 6, 2, -1, -1, -1]])
TARGET = torch.tensor([[1, 8, 10, 12, 14], [1, 9, 11, -1, -1]])
VALID = SOURCE >= 0


def build(**values: Any) -> Transformer:
    """Return a model in evaluation mode whose every parameter, the norms' too, is moved from its start."""
    torch.manual_seed(0)
    model = Transformer.build(**{**SIZES, "dropout": 0.0, **values})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def scores(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model(SOURCE, TARGET, valid=VALID)


class Reference:
    """Sections 3.1 to 3.5 in float64, one sentence, one head and one position at a time."""

    def __init__(self, model: Transformer) -> None:
        self.p = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.c = model.config

    def scores(self, source: list[int], target: list[int]) -> Tensor:
        memory = self.embed(source)
        for layer in range(self.c.encoder_layers):
            name = f"encoder.{layer}"
            memory = self.residual(f"{name}.residuals.0", memory, self.attention, f"{name}.attention")
            memory = self.residual(f"{name}.residuals.1", memory, self.feed_forward, f"{name}.feed_forward")
        memory = self.final("encoder_norm", memory)
        x = self.embed(target)
        for layer in range(self.c.decoder_layers):
            name = f"decoder.{layer}"
            x = self.residual(f"{name}.residuals.0", x, self.attention, f"{name}.attention", None, True)
            x = self.residual(f"{name}.residuals.1", x, self.attention, f"{name}.cross", memory)
            x = self.residual(f"{name}.residuals.2", x, self.feed_forward, f"{name}.feed_forward")
        return torch.stack(self.final("decoder_norm", x)) @ self.p["embedding.weight"].T

    def embed(self, tokens: list[int]) -> list[Tensor]:
        rows = []
        for position, token in enumerate(tokens):
            row = self.p["embedding.weight"][token] * math.sqrt(self.c.dim)
            for i in range(self.c.dim):
                angle = position / 10000 ** (2 * (i // 2) / self.c.dim)
                row[i] += math.cos(angle) if i % 2 else math.sin(angle)
            rows.append(row)
        return rows

    def residual(self, name: str, x: list[Tensor], f: Any, *arguments: Any) -> list[Tensor]:
        if self.c.norm_position == "post":
            return self.norm(f"{name}.norm", [a + b for a, b in zip(x, f(x, *arguments), strict=True)])
        return [a + b for a, b in zip(x, f(self.norm(f"{name}.norm", x), *arguments), strict=True)]

    def final(self, name: str, x: list[Tensor]) -> list[Tensor]:
        return x if self.c.norm_position == "post" else self.norm(name, x)

    def norm(self, name: str, x: list[Tensor]) -> list[Tensor]:
        def one(row: Tensor) -> Tensor:
            mean = sum(row) / len(row)
            variance = sum((value - mean) ** 2 for value in row) / len(row)
            return (row - mean) / (variance + 1e-5).sqrt() * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

        return [one(row) for row in x]

    def feed_forward(self, x: list[Tensor], name: str) -> list[Tensor]:
        p = self.p
        hidden = [(p[f"{name}.up.weight"] @ row + p[f"{name}.up.bias"]).clamp(min=0) for row in x]
        return [p[f"{name}.down.weight"] @ row + p[f"{name}.down.bias"] for row in hidden]

    def attention(self, x: list[Tensor], name: str, memory: list[Tensor] | None = None, causal: bool = False) -> Any:
        d, size = self.c.dim, self.c.dim // self.c.n_heads
        w_q, w_k, w_v = self.p[f"{name}.qkv.projection.weight"].split(d)
        result = []
        for i, row in enumerate(x):
            seen = (x if memory is None else memory)[: i + 1 if causal else None]
            heads = []
            for h in range(self.c.n_heads):
                part = slice(h * size, (h + 1) * size)
                weights = torch.stack([(w_q @ row)[part] @ (w_k @ key)[part] for key in seen]) / math.sqrt(size)
                weights = weights.exp() / weights.exp().sum()
                heads.append(sum(w * (w_v @ value)[part] for w, value in zip(weights, seen, strict=True)))
            result.append(self.p[f"{name}.out.weight"] @ torch.cat(heads))
        return result


@pytest.mark.parametrize("position", ["pre", "post"])
def test_logits_equal_a_reference_written_from_the_paper(position: str) -> None:
    model = build(norm_position=position)
    expected = Reference(model)
    for got in (scores(model), scores(model.double())):
        tolerance = 1e-6 if got.dtype == torch.float64 else 1e-4  # positions are float32 tables
        for row in range(2):
            source, target = (tokens[row][tokens[row] >= 0].tolist() for tokens in (SOURCE, TARGET))
            want = expected.scores(source, target)
            torch.testing.assert_close(got[row, : len(target)].double(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("target", [[[3, 4, -1]], [[-1, 3, 4]], [[-1]]])
def test_padding_is_refused_where_a_cache_would_take_it_for_a_token(target: list[list[int]]) -> None:
    model = build().eval()
    memory = model.encode(SOURCE[:1])
    padded = torch.tensor(target)
    with pytest.raises(UsageError, match=r"with a cache every target token must be one of the vocabulary"):
        model.decode(padded, memory, cache=model.new_cache(1, 8))
    assert model.decode(padded, memory).isfinite().all()


NAMES = {  # torch's -> ours, within a layer
    "self_attn.in_proj_weight": "attention.qkv.projection.weight",
    "self_attn.in_proj_bias": "attention.qkv.projection.bias",
    "self_attn.out_proj": "attention.out",
    "multihead_attn.in_proj_weight": "cross.qkv.projection.weight",
    "multihead_attn.in_proj_bias": "cross.qkv.projection.bias",
    "multihead_attn.out_proj": "cross.out",
    "linear1": "feed_forward.up",
    "linear2": "feed_forward.down",
    "norm1": "residuals.0.norm",
    "norm2": "residuals.1.norm",
    "norm3": "residuals.2.norm",
    "encoder.norm": "encoder_norm",
    "decoder.norm": "decoder_norm",
    "layers.": "",
}


def torchs(model: Transformer) -> nn.Transformer:
    """Return torch's Transformer with the weights of `model`."""
    c, first = model.config, model.config.norm_position == "pre"
    options = {"dim_feedforward": c.hidden_dim, "dropout": 0.0, "batch_first": True, "norm_first": first}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(c.dim, c.n_heads, **options),
        c.encoder_layers,
        nn.LayerNorm(c.dim) if first else None,
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(c.dim, c.n_heads, **options),
        c.decoder_layers,
        nn.LayerNorm(c.dim) if first else None,
    )
    theirs = nn.Transformer(c.dim, c.n_heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True).eval()
    weights = model.state_dict()
    state = {}
    for name in theirs.state_dict():
        ours = name
        for old, new in NAMES.items():
            ours = ours.replace(old, new)
        state[name] = weights.pop(ours)
    assert list(weights) == ["embedding.weight"]
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("position", ["pre", "post"])
def test_it_computes_what_torchs_transformer_does(position: str) -> None:
    model = build(norm_position=position, attention={"type": "MHA", "bias": True})
    theirs = torchs(model)

    def embedded(tokens: Tensor) -> Tensor:
        x = model.embedding.weight[tokens.clamp(min=0)] * math.sqrt(SIZES["dim"])
        return x + sinusoids(torch.arange(tokens.shape[1]), SIZES["dim"])

    with torch.no_grad():
        features = theirs(
            embedded(SOURCE),
            embedded(TARGET),
            tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1),
            src_key_padding_mask=~VALID,
            memory_key_padding_mask=~VALID,
        )
    expected = features @ model.embedding.weight.detach().T
    real = TARGET >= 0
    torch.testing.assert_close(scores(model)[real], expected[real], rtol=0, atol=1e-5)


def test_three_embeddings_are_one_and_training_moves_it_from_all_sides() -> None:
    model = build()
    assert sum(p.shape == (23, 16) for p in model.parameters()) == 1
    gradients = []
    for part in (
        lambda: model.encode(SOURCE, valid=VALID).features.sum(),
        lambda: model.decode(TARGET, model.encode(SOURCE.clamp(max=5), valid=VALID)).sum(),
        lambda: model.logits(torch.ones(1, 16))[:, 20:].sum(),
    ):
        (gradient,) = torch.autograd.grad(part(), [model.embedding.weight])
        gradients.append({i for i, row in enumerate(gradient) if row.any()})
    assert gradients[0] == {2, 3, 4, 5, 6, 7, 9, 11, 0}  # 0 stands where padding is, and gets next to nothing
    assert {8, 10, 12} <= gradients[1] and gradients[2] == {20, 21, 22}


def test_a_fresh_model_is_calm() -> None:
    """Embeddings of variance 1/d keep the first scores about as large as those of a uniform guess."""
    torch.manual_seed(0)
    model = Transformer.build(**{**SIZES, "dim": 256, "vocab_size": 1000}).eval()
    logits = model(torch.randint(1000, (2, 9)), torch.randint(1000, (2, 9)))
    assert logits.std().item() == pytest.approx(1, rel=0.3)
    assert model.embedding.weight.std().item() == pytest.approx(1 / 16, rel=0.02)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = build()
    source, target = SOURCE.masked_fill(~VALID, 22), TARGET.masked_fill(TARGET < 0, 22)
    with torch.no_grad():
        other = model(source, target, valid=VALID)
        alone = model(SOURCE[1:, :3], TARGET[1:, :3])
    real = TARGET >= 0
    torch.testing.assert_close(other[real], scores(model)[real])
    torch.testing.assert_close(alone[0], other[1, :3])


def test_the_encoder_sees_later_tokens_and_the_decoder_does_not() -> None:
    model = build()
    source, target = SOURCE[:1].clone(), TARGET[:1].clone()
    source[0, 4], target[0, 3] = 20, 20
    with torch.no_grad():
        before = model.encode(SOURCE[:1]).features
        assert (model.encode(source).features - before).abs().amax(-1).min() > 1e-4
        changed = (model(SOURCE[:1], target) - model(SOURCE[:1], TARGET[:1])).abs().amax(-1)[0]
    assert changed[:3].max() < 1e-6 and changed[3:].min() > 1e-4


PARTS = [
    {"attention": "GQA"},
    {"attention": {"type": "MQA", "bias": True}, "cross_attention": "MHA"},
    {"attention": "GQA", "rotary": {"type": "rotary"}, "norm": "rmsnorm"},
    {"rotary": {"type": "dynamic", "factor": 2.0}, "context": 4, "norm_position": "post"},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_parts_of_other_papers_fit_and_decode_with_a_cache_as_without(parts: dict[str, Any]) -> None:
    model = build(**parts)
    assert (scores(model) - scores(build())).abs().max() > 1e-3
    with torch.no_grad():
        memory = model.encode(SOURCE, valid=VALID)
        cache, done = model.new_cache(2, 5), 0
        for piece in TARGET.clamp(min=0).split([2, 1, 1, 1], 1):
            done += piece.shape[1]
            got = model.logits(model.decode(piece, memory, cache=cache))[:, -1]
            want = model(SOURCE, TARGET.clamp(min=0)[:, :done], valid=VALID)[:, -1]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_with_a_rotary_embedding_there_are_no_sinusoids() -> None:
    """Then only distances matter to the encoder: all positions moved by three, nothing changes."""
    model = build(rotary="rotary")
    tokens = torch.tensor([[-1, -1, -1, 3, 4, 5]])
    with torch.no_grad():
        moved = model.encode(tokens, valid=tokens >= 0).features[:, 3:]
        torch.testing.assert_close(moved, model.encode(tokens[:, 3:]).features)


def test_several_rows_may_share_a_memory() -> None:
    model = build()
    rows = torch.tensor([[1, 3, 5], [1, 4, 6], [1, 7, 9], [1, 8, 2]])
    with torch.no_grad():
        memory = model.encode(SOURCE, valid=VALID)
        shared = model.decode(rows, memory)
        apart = [model.decode(rows[i : i + 1], model.encode(SOURCE[[i // 2]], valid=VALID[[i // 2]])) for i in range(4)]
    torch.testing.assert_close(shared, torch.cat(apart))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 15, "n_heads": 3}, "dim: sinusoidal positions need an even dim, got 15"),
        ({"n_heads": 3}, "attention: dim must be a multiple of n_heads, but 16 % 3 = 1"),
        ({"norm_position": "middle"}, "norm_position: must be 'pre' or 'post', got 'middle'"),
        ({"dropout": 1.0}, "dropout: must be less than or equal to 0.9, got 1.0"),
        ({"attention": "nowhere"}, "attention: no attention 'nowhere' is installed"),
        (
            {"attention": {"type": "MHA", "biass": True}},
            r"attention.biass: unknown field 'biass' \(did you mean 'bias'",
        ),
    ],
)
def test_configs_that_break_a_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        MODELS.build({"type": "transformer", **SIZES, **values})
    assert caught.value.exit_code == 2


def test_an_attention_that_cannot_cross_is_refused_where_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axon_transformer.attention.MultiHeadAttention.cross", False)
    with pytest.raises(ConfigError, match="cross_attention: 'MHA' cannot attend to a memory"):
        build()
