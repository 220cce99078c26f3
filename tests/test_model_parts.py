"""Every installed embedding, residual stream and token mixer of X-Llama: decoded, padded, packed, served, trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from axon_core import ByteTokenizer, Request, Sampling, complete
from axon_eet import Engine, Question
from axon_xllama import XLlama
from axon_xllama.embedding import EMBEDDINGS
from axon_xllama.mixing import TOKEN_MIXERS
from axon_xllama.residual import RESIDUAL_STREAMS

TOKENIZER = ByteTokenizer()
SIZES = {"vocab_size": TOKENIZER.vocab_size, "context": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    for field, registry in (("embedding", EMBEDDINGS), ("residual", RESIDUAL_STREAMS), ("token_mixer", TOKEN_MIXERS)):
        for entry in registry.entries():
            for options in registry[entry.qualified].examples:
                yield field, {"type": entry.qualified, **options}


PARTS = list(parts())


def build(field: str, spec: dict[str, Any]) -> XLlama:
    """Return a model whose part matters: one that starts as if it were not there would hide a fault."""
    torch.manual_seed(0)
    model = XLlama.build(**SIZES, **{field: spec}).double().eval()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("embedding", "residual", "mixer")):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(("field", "spec"), PARTS, ids=str)
@torch.no_grad()
def test_a_part_gives_the_same_in_whole_rows_and_pieces_and_sees_no_later_token(field, spec):
    model, tokens = build(field, spec), torch.randint(256, (3, 9))
    lengths = [9, 5, 1]
    valid = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    whole = model(tokens)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 256
    torch.testing.assert_close(model(changed)[:, :6], whole[:, :6])
    for sizes in ([9], [1] * 9, [5, 3, 1]):
        cache = model.new_cache(3, 12)
        pieces = zip(tokens.masked_fill(~valid, -1).split(sizes, 1), valid.split(sizes, 1), strict=True)
        found = torch.cat([model(piece, valid=mask, cache=cache) for piece, mask in pieces], 1)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[row, -length:], model(tokens[row : row + 1, -length:])[0])
    packed = model(tokens[:1], documents=torch.tensor([[0] * 4 + [1] * 5]))
    torch.testing.assert_close(packed, torch.cat((model(tokens[:1, :4]), model(tokens[:1, 4:])), 1))


@pytest.mark.parametrize(("field", "spec"), PARTS, ids=str)
def test_every_weight_has_a_gradient(field, spec):
    model = build(field, spec)
    model(torch.arange(48).view(2, 24) % 7).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("field", "spec"), PARTS, ids=str)
def test_a_part_is_served_as_it_generates(field, spec):
    model = build(field, spec).float()
    questions = [
        Question(prompt="a" * 40, max_new_tokens=5, seed=3, sampling=Sampling(temperature=0.8)),
        Question(prompt="b", max_new_tokens=8, sampling=Sampling(temperature=0)),
    ]
    with Engine(model, TOKENIZER, chunk=3) as engine:
        found = [[piece.token for piece in answer] for answer in [engine.submit(question) for question in questions]]
    requests = [Request(**{name: getattr(q, name) for name in Request.model_fields}) for q in questions]
    assert found == [complete(model, TOKENIZER, [request])[0].tokens for request in requests]
