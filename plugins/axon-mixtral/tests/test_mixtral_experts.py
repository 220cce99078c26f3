"""The mixture of experts beside a loop over tokens and transformers; its loss; caching, batches, compiling."""

import json

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from axon_core import ConfigError
from axon_core.generation import Sampling, decode
from axon_core.interfaces import Scope
from axon_core.nn import auxiliary_losses
from axon_core.training import Recipe, build_trainer, fit
from axon_mixtral import MixtureOfExperts, load_balance
from axon_xllama import XLlama
from axon_xllama.feed_forward import FEED_FORWARDS


def experts(**options) -> MixtureOfExperts:
    torch.manual_seed(0)
    return FEED_FORWARDS.build({"type": "moe", "n_experts": 5, **options}, dim=12, hidden_dim=20).double()


@pytest.mark.parametrize("k", [1, 2, 5])
@torch.no_grad()
def test_each_token_is_the_weighted_sum_of_its_experts(k):
    moe = experts(top_k=k)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    found = moe(x, Scope.over(x))
    for row in range(2):
        for place in range(7):
            token = x[row, place]
            scores = moe.router.weight @ token
            chosen = sorted(range(5), key=lambda i: -scores[i])[:k]
            weights = scores[chosen].softmax(0)
            alone = [moe.experts[i](token[None, None], Scope.over(token[None, None]))[0, 0] for i in chosen]
            expected = sum(weight * part for weight, part in zip(weights, alone, strict=True))
            torch.testing.assert_close(found[row, place], expected, atol=1e-14, rtol=0)


@torch.no_grad()
def test_it_equals_mixtral_in_transformers():
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=12, intermediate_size=20, num_local_experts=5, num_experts_per_tok=2)
    )
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    ours = experts().float()
    ours.router.weight.copy_(theirs.gate.weight)
    for number, expert in enumerate(ours.experts):
        expert.gate_up.weight.copy_(theirs.experts.gate_up_proj[number])
        expert.down.weight.copy_(theirs.experts.down_proj[number])
    x = torch.randn(3, 9, 12)
    torch.testing.assert_close(ours(x, Scope.over(x)), theirs(x), atol=1e-6, rtol=1e-5)


def test_the_load_balance_is_one_for_equal_use_and_the_number_of_experts_for_a_single_one():
    shares = torch.full((2, 6, 3), 1 / 3)
    chosen = torch.tensor([[[0], [1], [2]] * 2, [[1]] * 6])
    torch.testing.assert_close(load_balance(shares, chosen), torch.ones(2))
    alone = torch.zeros(1, 6, 3).index_fill(-1, torch.tensor([1]), 1.0)
    assert load_balance(alone, torch.ones(1, 6, 1, dtype=torch.long)).tolist() == [3.0]


def test_padding_counts_as_nothing_in_the_load_balance():
    torch.manual_seed(0)
    shares, chosen = torch.randn(1, 8, 3).softmax(-1), torch.randint(3, (1, 8, 2))
    valid = torch.tensor([[False] * 3 + [True] * 5])
    assert torch.equal(load_balance(shares, chosen, valid), load_balance(shares[:, 3:], chosen[:, 3:]))


def test_the_loss_reaches_whoever_collects_it_once_for_all_layers():
    model = XLlama.build(vocab_size=11, context=8, dim=12, n_layers=3, n_heads=2, feed_forward="moe")
    with auxiliary_losses() as found:
        model(torch.randint(11, (4, 8)))
    assert set(found) == {"balance"}
    assert 3 * 4 * 0.01 <= found["balance"].item() < 3 * 4 * 0.01 * 8
    found["balance"].backward()
    assert model.blocks[0].feed_forward.router.weight.grad.abs().sum() > 0
    with auxiliary_losses() as found, torch.no_grad():
        model(torch.randint(11, (4, 8)))
    assert not found


RECIPE = {
    "model": {"type": "xllama", "dim": 16, "n_layers": 2, "n_heads": 2, "context": 16, "feed_forward": "moe"},
    "trainer": {"type": "causal_lm", "batch_size": 4, "steps": 6, "device": "cpu", "precision": "fp64"},
    "data": {"held_out": 0.001},
}


def losses(tmp_path, **changes):
    """Return the loss and the balance of each step."""
    recipe = Recipe.of({**RECIPE, "trainer": {**RECIPE["trainer"], **changes}}, "moe", "moe.toml")
    folder = tmp_path / "-".join(map(str, changes.values()))
    fit(build_trainer(recipe), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    return [[line["value"] for line in train if line["name"] == name] for name in ("loss", "auxiliary_balance")]


def test_any_trainer_minimises_it_whatever_the_micro_batches(tmp_path):
    whole, cut = losses(tmp_path, micro_batches=1), losses(tmp_path, micro_batches=4)
    assert len(whole[1]) == 6
    assert all(2 * 0.01 <= value < 2 * 0.01 * 8 for value in whole[1])
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


def model() -> XLlama:
    torch.manual_seed(0)
    built = XLlama.build(
        vocab_size=61,
        context=64,
        dim=32,
        n_layers=4,
        n_heads=4,
        feed_forward={"type": "moe", "n_experts": 4},
        layers=[{"every": 4, "rotary": "none", "feed_forward": "relu2"}, {"attention": {"type": "MHA"}}],
    ).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)
    return built


@torch.no_grad()
def test_generated_text_does_not_depend_on_cache_or_batch():
    built, prompts, greedy = model(), [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8]], Sampling(temperature=0)
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(20):
            row.append(built(torch.tensor([row]))[0, -1].argmax().item())
        expected.append(row[len(prompt) :])
    together = zip(*decode(built, prompts, range(2), max_new_tokens=20, sampling=greedy), strict=True)
    assert [list(row) for row in together] == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_pass_is_the_same():
    built = model().double()
    tokens = torch.randint(61, (2, 12))
    expected = built(tokens)
    expected.square().sum().backward()
    gradient = built.blocks[0].feed_forward.router.weight.grad.clone()
    built.zero_grad()
    found = torch.compile(built, dynamic=False)(tokens)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    found.square().sum().backward()
    torch.testing.assert_close(built.blocks[0].feed_forward.router.weight.grad, gradient, atol=1e-9, rtol=1e-9)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ConfigError, match="feed_forward: top_k must be at most n_experts, got 9 > 8"):
        XLlama.build(vocab_size=5, context=8, dim=16, n_layers=1, n_heads=2, feed_forward={"type": "moe", "top_k": 9})
