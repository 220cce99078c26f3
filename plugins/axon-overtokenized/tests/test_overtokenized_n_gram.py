"""N-grams beside a loop over tokens; caching, padding, packing, dynamic rotary embeddings, optimisers, a recipe."""

import json
from pathlib import Path

import pytest
import torch

from axon_core import ConfigError, UsageError
from axon_core.cli import main
from axon_core.generation import Sampling, decode
from axon_core.interfaces import Cache, Scope
from axon_core.training import Muon
from axon_overtokenized import NGramEmbedding, n_gram_ids
from axon_xllama import XLlama

SIZES = {"vocab_size": 11, "context": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
VARIANTS = [dict(options) for options in NGramEmbedding.examples]


def build(options: dict, **changes) -> XLlama:
    """Return a model whose n-grams matter: a table at zero, as at the start, would hide a wrong row."""
    torch.manual_seed(0)
    model = XLlama.build(**{**SIZES, **changes}, embedding={"type": "n_gram", **options}).double().eval()
    for table in model.embedding.tables:
        torch.nn.init.normal_(table.weight)
    return model


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_each_token_is_the_sum_of_its_n_grams(options):
    embedding = build(options).embedding
    row = [3, 0, 10, 10, 3, 0]
    found = embedding(torch.tensor([row]))[0]
    c = embedding.config
    for i, token in enumerate(row):
        expected = embedding.weight[token].clone()
        for k in range(2, c.n + 1):
            number = token + 11 * sum((row[i - j] if i >= j else 11) * 12 ** (j - 1) for j in range(1, k))
            features = embedding.tables[k - 2].weight[number % c.rows]
            matrix = embedding.maps[k - 2]
            expected += features if c.width == c.dim else matrix.weight @ features
        torch.testing.assert_close(found[i], expected, atol=1e-13, rtol=0)


def test_different_n_grams_have_different_numbers_and_the_default_rows_hold_all_pairs():
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))  # an id of 3 says that there is no token before
    (ids,) = n_gram_ids([pairs[:, :1], pairs[:, 1:]], 3)
    assert len(ids.unique()) == 12
    assert len((ids % NGramEmbedding.Config(vocab_size=3, dim=2).rows).unique()) == 12


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


@torch.no_grad()
def test_padding_on_either_side_and_documents_in_one_row_change_nothing():
    model = build({"n": 3, "rows": 50, "width": 6})
    a, b = torch.randint(11, (1, 4)), torch.randint(11, (1, 5))
    both = model(torch.cat((a, b), 1), documents=torch.tensor([[0] * 4 + [1] * 5]))
    torch.testing.assert_close(both, torch.cat((model(a), model(b)), 1))
    for sides in ((3, 0), (0, 3), (2, 1)):
        padded = torch.nn.functional.pad(b, sides, value=7)
        valid = torch.nn.functional.pad(torch.ones_like(b), sides).bool()
        torch.testing.assert_close(model(padded, valid=valid)[valid], model(b)[0])


@torch.no_grad()
def test_rows_that_are_kept_or_reordered_take_their_tokens_along():
    model = build({"n": 3})
    tokens = torch.randint(11, (3, 6))
    order = torch.tensor([2, 0, 1])
    cache = model.new_cache(3, 8)
    model(tokens[:, :5], cache=cache)
    cache.reorder(order)
    torch.testing.assert_close(model(tokens[order, 5:], cache=cache), model(tokens[order])[:, 5:])
    cache = model.new_cache(3, 8)
    valid = torch.tensor([[False, False, True, True, True], [False, True, True, True, True], [True] * 5])
    model(tokens[:, :5], valid=valid, cache=cache)
    cache.keep(torch.tensor([1, 0]))  # slot 0 is then padding in all rows
    found = model(tokens[[1, 0], 5:], cache=cache)
    for row, (text, start) in enumerate(((1, 1), (0, 2))):
        torch.testing.assert_close(found[row], model(tokens[text : text + 1, start:])[0, -1:])


@torch.no_grad()
def test_generation_equals_whole_passes_also_past_the_horizon_of_a_dynamic_rotary_embedding():
    for changes in ({}, {"rotary": {"type": "dynamic", "factor": 2.0}, "context": 8}):
        model = build({"n": 3, "rows": 90}, **changes)
        prompts = [[5, 6, 7], list(range(7))]
        steps = decode(model, prompts, range(2), max_new_tokens=6, sampling=Sampling(temperature=0))
        for prompt, found in zip(prompts, zip(*steps, strict=True), strict=True):
            row = list(prompt)
            for _ in range(6):
                row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
            assert list(found) == row[len(prompt) :]


@torch.no_grad()
def test_a_cache_at_fixed_addresses_gives_the_same():
    model = build({"n": 3})
    tokens = torch.randint(11, (2, 9))
    cache = model.new_cache(2, 12)
    model(tokens[:, :4], cache=cache)
    cache = cache.make_static(4)
    assert type(cache) is not Cache
    found = torch.cat([model(tokens[:, i : i + 1], cache=cache) for i in range(4, 9)], 1)
    torch.testing.assert_close(found, model(tokens)[:, 4:])


def test_a_cache_in_another_order_is_refused():
    embedding = build({}).embedding
    cache = Cache([embedding.state()], 1, 8, dtype=torch.float64, device="cpu")
    step = cache.extend(torch.zeros(1, 3, dtype=torch.long))
    scope = Scope(step.scope.positions, step.scope.keys[:, :2], causal=True)
    with pytest.raises(UsageError, match="needs a cache that stores one row after the other"):
        embedding(torch.zeros(1, 3, dtype=torch.long), scope, step.layers[0])


@torch.no_grad()
def test_a_model_starts_as_one_without_n_grams():
    torch.manual_seed(0)
    plain = XLlama.build(**SIZES)
    torch.manual_seed(0)
    model = XLlama.build(**SIZES, embedding={"type": "n_gram", "width": 4})
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    tokens = torch.randint(11, (2, 7))
    assert torch.equal(model(tokens), plain(tokens))


def test_tables_learn_as_embeddings_and_maps_as_hidden_matrices():
    model = build({"width": 4})
    muon, adamw = Muon(lr=0.5, embedding_lr=0.25).build([model])
    hidden = {id(p) for group in muon.param_groups for p in group["params"]}
    tables = {id(p) for group in adamw.param_groups if group["lr"] == 0.25 for p in group["params"]}
    assert id(model.embedding.maps[0].weight) in hidden
    assert tables == {id(model.embedding.weight), id(model.embedding.tables[0].weight)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, r"embedding\.n: must be greater than or equal to 2, got 1"),
        ({"rows": 0}, r"embedding\.rows: must be greater than 0, got 0"),
        ({"n": 30}, r"\(vocab_size \+ 1\)\^n must be below 2\^63, .* got 12\^30; make n smaller"),
    ],
    ids=str,
)
def test_options_that_break_a_rule(options, message):
    with pytest.raises(ConfigError, match=message):
        XLlama.build(**SIZES, embedding={"type": "n_gram", **options})


def test_a_recipe_trains_it_and_it_generates(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    sets = ["data.path=text.txt", "data.tokenizer=char", "model.embedding.type=n_gram", "model.embedding.width=8"]
    sets += ["trainer.steps=20", "trainer.eval_tokens=512", "model.n_layers=1", "model.dim=16", "model.n_heads=2"]
    assert main(["train", "xllama-tiny", "--out", "run", *[word for each in sets for word in ("--set", each)]]) == 0
    assert json.loads(Path("run/model/config.json").read_text())["config"]["embedding"]["type"] == "n_gram"
    assert main(["generate", "run", "--prompt", "The ", "--max-new-tokens", "5"]) == 0
    assert main(["export", "run", "--out", "out", "--format", "hf"]) == 1
    assert "the embedding must be axon-xllama:token" in " ".join(capsys.readouterr().err.split())
