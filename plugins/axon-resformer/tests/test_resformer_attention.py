"""Value residuals beside their equation; decoding, padding, packing, exports, and sizes that do not fit."""

import pytest
import torch

from axon_core import CheckpointError, UsageError
from axon_core.generation import Sampling, decode
from axon_core.interfaces import Scope
from axon_core.nn import attend
from axon_resformer import mix_values
from axon_xllama import XLlama
from axon_xllama.checkpoints.exporting import check_parts

SIZES = {"vocab_size": 11, "context": 32, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24}


def build(**changes) -> XLlama:
    torch.manual_seed(0)
    model = XLlama.build(**{**SIZES, "attention": {"type": "VR", "n_kv_heads": 2}, **changes}).double().eval()
    for number, block in enumerate(model.blocks):
        if getattr(block.attention, "first_weight", None) is not None:
            block.attention.first_weight.data.fill_(0.2 + 0.3 * number)
    return model


@torch.no_grad()
def test_each_layer_attends_to_its_values_mixed_with_the_first_layers():
    model, tokens = build(rotary="none"), torch.randint(11, (2, 7))
    scope, x = Scope.over(tokens), model.embedding(tokens)
    first = None
    for number, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv(block.attention_norm(x))
        first = v if first is None else first
        share = 0.2 + 0.3 * number if number else 0.0
        h = x + block.attention.out(attend(q, k, (1 - share) * v + share * first, scope).flatten(-2))
        x = h + block.feed_forward(block.feed_forward_norm(h), scope)
    torch.testing.assert_close(model(tokens), model.head(model.norm(x)), atol=1e-12, rtol=0)


@torch.no_grad()
def test_decoding_in_chunks_with_padding_and_documents_in_a_row_equal_whole_rows():
    model, tokens = build(), torch.randint(11, (2, 9))
    valid = torch.arange(9) >= torch.tensor([[0], [4]])
    for sizes in ([1] * 9, [5, 3, 1]):
        cache = model.new_cache(2, 9)
        pieces = zip(tokens.split(sizes, 1), valid.split(sizes, 1), strict=True)
        found = torch.cat([model(piece, valid=mask, cache=cache) for piece, mask in pieces], 1)
        for row, start in enumerate((0, 4)):
            torch.testing.assert_close(found[row, start:], model(tokens[row : row + 1, start:])[0])
    row = tokens[:1]
    both = model(row, documents=torch.tensor([[0] * 4 + [1] * 5]))
    torch.testing.assert_close(both, torch.cat((model(row[:, :4]), model(row[:, 4:])), 1))


@torch.no_grad()
def test_generation_equals_whole_passes():
    model = build().float()
    prompts = [[5, 6, 7], list(range(7))]
    steps = decode(model, prompts, range(2), max_new_tokens=6, sampling=Sampling(temperature=0))
    rows = list(zip(*steps, strict=True))
    for prompt, found in zip(prompts, rows, strict=True):
        row = list(prompt)
        for _ in range(6):
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
        assert list(found) == row[len(prompt) :]


def test_values_of_another_shape_are_refused():
    model = build(attention="MQA", layers=[{"every": 3, "attention": {"type": "VR", "n_kv_heads": 2}}])
    model(torch.zeros(1, 3, dtype=torch.long))  # layer 0 has no value residual to give
    with pytest.raises(UsageError, match=r"the first layer has 2 of 4 features, and a later one 1 of 4"):
        mix_values(torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 2, 4), torch.ones(1))


def test_an_export_names_the_part():
    with pytest.raises(CheckpointError, match=r"the attention must be axon-gqa:GQA .*got axon-resformer:VR"):
        check_parts(build(attention="VR"), "hf")
