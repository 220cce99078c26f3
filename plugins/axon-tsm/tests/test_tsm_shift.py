"""The shift beside a loop over tokens; decoding, padding, packing, kept rows, a horizon, engines, exports, options."""

import pytest
import torch

from axon_core import CheckpointError, ConfigError
from axon_core.generation import Sampling, decode
from axon_core.interfaces import Scope
from axon_tsm import TokenShift, shift_features
from axon_xllama import XLlama
from axon_xllama.checkpoints.exporting import check_parts
from axon_xllama.mixing import TOKEN_MIXERS

SIZES = {"vocab_size": 11, "context": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
VARIANTS = [dict(options) for options in TokenShift.examples]


def build(options: dict, **changes) -> XLlama:
    torch.manual_seed(0)
    return XLlama.build(**{**SIZES, **changes}, token_mixer={"type": "shift", **options}).double().eval()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_each_feature_is_from_its_own_place(options):
    mixer = TOKEN_MIXERS.build({"type": "shift", **options}, dim=8)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    found = mixer(x, Scope.over(x), None)
    places = [place for place, width in enumerate(mixer.config.widths, 1) for _ in range(width)]
    places += [0] * (8 - len(places))
    for token in range(5):
        for feature, place in enumerate(places):
            expected = x[:, token - place, feature] if token >= place else torch.zeros(2, dtype=torch.float64)
            assert torch.equal(found[:, token, feature], expected)


def test_the_tokens_before_may_be_more_than_the_shifts_reach():
    x, before = torch.randn(1, 3, 4), torch.randn(1, 6, 2)
    assert torch.equal(shift_features(x, before, [2]), shift_features(x, before[:, -1:], [2]))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_gradients_agree_with_finite_differences(n):
    x = torch.randn(2, n, 5, dtype=torch.float64, requires_grad=True)
    before = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, before: shift_features(x, before, [2, 1, 1]), (x, before))
    assert torch.autograd.gradcheck(lambda x: shift_features(x, None, [2, 1, 1]), (x,))
    assert torch.equal(shift_features(x, None, [2, 1, 1]), shift_features(x, torch.zeros_like(before), [2, 1, 1]))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_decoding_in_chunks_with_padding_equals_whole_rows(options):
    model = build(options)
    tokens = torch.randint(11, (3, 9))
    lengths = [9, 5, 1]
    valid = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    for sizes in ([9], [1] * 9, [5, 3, 1], [2, 7]):
        cache = model.new_cache(3, 12)
        pieces = zip(tokens.masked_fill(~valid, -1).split(sizes, 1), valid.split(sizes, 1), strict=True)
        found = torch.cat([model(piece, valid=mask, cache=cache) for piece, mask in pieces], 1)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[row, -length:], model(tokens[row : row + 1, -length:])[0])


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_padding_on_either_side_and_documents_in_one_row_change_nothing(options):
    model = build(options)
    a, b = torch.randint(11, (1, 4)), torch.randint(11, (1, 5))
    both = model(torch.cat((a, b), 1), documents=torch.tensor([[0] * 4 + [1] * 5]))
    torch.testing.assert_close(both, torch.cat((model(a), model(b)), 1))
    for sides in ((3, 0), (0, 3), (2, 1)):
        padded = torch.nn.functional.pad(b, sides, value=7)
        valid = torch.nn.functional.pad(torch.ones_like(b), sides).bool()
        torch.testing.assert_close(model(padded, valid=valid)[valid], model(b)[0])


@torch.no_grad()
def test_rows_that_are_kept_or_reordered_take_their_features_along():
    model = build({"shares": (0.25, 0.25)})
    tokens, order = torch.randint(11, (3, 6)), torch.tensor([2, 0, 1])
    cache = model.new_cache(3, 8)
    model(tokens[:, :5], cache=cache)
    cache.reorder(order)
    torch.testing.assert_close(model(tokens[order, 5:], cache=cache), model(tokens[order])[:, 5:])
    cache.reset()
    valid = torch.tensor([[False, False, True, True, True], [False, True, True, True, True], [True] * 5])
    model(tokens[:, :5], valid=valid, cache=cache)
    cache.keep(torch.tensor([1, 0]))
    found = model(tokens[[1, 0], 5:], cache=cache)
    for row, (text, start) in enumerate(((1, 1), (0, 2))):
        torch.testing.assert_close(found[row], model(tokens[text : text + 1, start:])[0, -1:])


@torch.no_grad()
def test_generation_equals_whole_passes_also_past_a_horizon_and_beside_n_grams():
    pytest.importorskip("axon_overtokenized")
    n_grams = {"embedding": {"type": "n_gram", "n": 3}}
    for changes in ({}, {"rotary": {"type": "dynamic", "factor": 2.0}, "context": 8}, n_grams):
        model = build({"shares": (0.25, 0.25)}, **changes)
        prompts = [[5, 6, 7], list(range(7))]
        steps = decode(model, prompts, range(2), max_new_tokens=6, sampling=Sampling(temperature=0))
        for prompt, found in zip(prompts, zip(*steps, strict=True), strict=True):
            row = list(prompt)
            for _ in range(6):
                row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
            assert list(found) == row[len(prompt) :]


def test_it_has_no_parameters_and_a_saved_model_is_the_same(tmp_path):
    model, tokens = build({}).float(), torch.randint(11, (1, 9))
    plain = XLlama.build(**SIZES)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.save(tmp_path)
    assert torch.equal(XLlama.load(tmp_path).eval()(tokens), model(tokens))
    for form in ("hf", "meta", "gguf"):
        with pytest.raises(CheckpointError, match="the token mixer must be axon-xllama:none, got axon-tsm:shift"):
            check_parts(model, form)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((), r"token_mixer\.shares: must "),
        ((0.75, 0.5), r"shares must add up to at most 1, got 1\.25; make one smaller"),
        ((0.01,), r"each share of dim 16 must be at least one feature, got \(0\.01,\)"),
    ],
    ids=str,
)
def test_options_that_break_a_rule(shares, message):
    with pytest.raises(ConfigError, match=message):
        build({"shares": shares})
