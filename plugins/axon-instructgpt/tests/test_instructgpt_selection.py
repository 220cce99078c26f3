"""Best-of-n, rejection sampling, Ghost Attention, noisy rankings, and the frontiers: known answers and brute force."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_core import ConfigError, DataError, TrainingError, UsageError
from axon_core.text import Message
from axon_instructgpt import best_of, best_of_n_kl, ghost_demonstration, instructed, rejection_sampled
from axon_instructgpt.comparisons import bayes_accuracy, noisy_ranking
from axon_instructgpt.frontier import best_of_n, optimum, win_rate

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARDS = torch.arange(4, dtype=torch.float64)


@pytest.mark.parametrize(("beta", "log_z", "kl"), [(1.0, 1.547956, 0.535643), (0.5, 1.993372 / 0.5, None)])
def test_the_optimum_of_the_bandit(beta, log_z, kl):
    policy = torch.tensor(
        {1.0: (0.085073, 0.173439, 0.314304, 0.427184), 0.5: (0.007424, 0.041142, 0.202669, 0.748765)}[beta],
        dtype=torch.float64,
    )
    reward, found = optimum(REWARDS, REFERENCE, beta)
    assert reward.item() == pytest.approx((policy @ REWARDS).item(), abs=5e-6)
    assert found.item() == pytest.approx((policy @ (policy / REFERENCE).log()).item(), abs=5e-6)
    assert reward.item() / beta - found.item() == pytest.approx(log_z, abs=2e-6)
    if kl is not None:
        assert found.item() == pytest.approx(kl, abs=1e-6)


def test_no_policy_of_the_same_divergence_has_more_reward():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20_000, 4, generator=generator, dtype=torch.float64) * 2
    policies = scores.softmax(-1)
    kls, rewards = (policies * (policies / REFERENCE).log()).sum(-1), policies @ REWARDS
    for beta in (0.3, 1.0, 3.0):
        reward, kl = optimum(REWARDS, REFERENCE, beta)
        assert (rewards[kls <= kl] <= reward + 1e-12).all() and (kls <= kl).sum() > 100


@pytest.mark.parametrize("rewards", [[0.0, 1.0, 2.0, 3.0], [2.0, 0.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_is_that_of_all_draws(rewards, n):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    chosen = torch.zeros(4, dtype=torch.float64)
    for draw in product(range(4), repeat=n):
        best = max(rewards[i].item() for i in draw)
        winners = [i for i in draw if rewards[i] == best]
        for i in winners:  # one of the best at random
            chosen[i] += math.prod(REFERENCE[j].item() for j in draw) / len(winners)
    reward, kl = best_of_n(rewards, REFERENCE, n)
    assert chosen.sum().item() == pytest.approx(1)
    assert reward.item() == pytest.approx((chosen @ rewards).item(), abs=1e-12)
    assert kl.item() == pytest.approx(torch.xlogy(chosen, chosen / REFERENCE).sum().item(), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0.01, 1)), min_size=1, max_size=12), st.integers(1, 40))
def test_best_of_n_keeps_below_its_bound_and_below_the_optimum(pairs, n):
    rewards = torch.tensor([float(r) for r, _ in pairs], dtype=torch.float64)
    weights = torch.tensor([p for _, p in pairs], dtype=torch.float64)
    reward, kl = best_of_n(rewards, weights / weights.sum(), n)
    assert -1e-12 <= kl.item() <= best_of_n_kl(n) + 1e-9
    for beta in (0.05, 0.5, 5.0):  # π* maximises E[r] − β KL
        best, spent = optimum(rewards, weights / weights.sum(), beta)
        assert reward.item() - beta * kl.item() <= best.item() - beta * spent.item() + 1e-9


def test_the_bound_is_reached_by_very_many_different_responses():
    rewards = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, kl = best_of_n(rewards, torch.full_like(rewards, 1 / len(rewards)), 8)
    assert kl.item() == pytest.approx(best_of_n_kl(8), abs=1e-3)
    assert best_of_n_kl(1) == 0 and best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)


def test_frontiers_of_several_prompts_are_those_of_each():
    rewards, probabilities = torch.stack([REWARDS, REWARDS.flip(0)]), torch.stack([REFERENCE, REFERENCE])
    for find, value in ((best_of_n, 3), (optimum, 0.5)):
        both = find(rewards, probabilities, value)
        for i in range(2):
            alone = find(rewards[i], probabilities[i], value)
            assert [part[i].item() for part in both] == pytest.approx([part.item() for part in alone])


def test_win_rate_counts_equal_rewards_half():
    ours, theirs = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    assert win_rate(ours, theirs).tolist() == pytest.approx([(1 + 0.5 + 0 + 1 + 1 + 0) / 6])
    assert win_rate(theirs, theirs).tolist() == pytest.approx([0.5])


def test_the_best_response_is_chosen_for_the_next_fine_tuning():
    rewards = torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]])
    assert best_of(rewards).tolist() == [1, 0]
    found = rejection_sampled(["p", "q"], [["a", "b", "c"], ["d", "e", "f"]], rewards)
    assert [(one.prompt, one.completion) for one in found] == [("p", "b"), ("q", "d")]
    with pytest.raises(TrainingError, match="response 1 to prompt 1"):
        best_of(torch.tensor([[1.0, 2.0], [0.0, float("nan")]]))
    with pytest.raises(DataError, match=r"the best response to prompt 1 \('q'\) must have at least one character"):
        rejection_sampled(["p", "q"], [["a", "b", "c"], ["", "e", "f"]], rewards)
    with pytest.raises(DataError, match="prompt 0 must have at least one character"):
        rejection_sampled(["", "q"], [["a", "b", "c"], ["d", "e", "f"]], rewards)


def chat(*texts):
    return [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]


def test_ghost_attention_samples_with_the_instruction_everywhere_and_learns_it_from_the_first_turn():
    seen = []

    def answer(messages):
        seen.append([message.content for message in messages])
        return "Arr!"

    found = ghost_demonstration(chat("Hi", "Ahoy", "Bye"), "Be a pirate.", answer)
    assert seen == [["Be a pirate.\n\nHi", "Ahoy", "Be a pirate.\n\nBye"]]
    assert [message.content for message in found.messages] == ["Be a pirate.\n\nHi", "Ahoy", "Bye", "Arr!"]
    assert [message.role for message in found.messages] == ["user", "assistant", "user", "assistant"]
    system = Message(role="system", content="S")
    assert [m.content for m in instructed([system, *chat("a")], "I")] == ["S", "I\n\na"]
    with pytest.raises(UsageError, match="assistant"):
        ghost_demonstration(chat("Hi", "Ahoy"), "Be a pirate.", answer)
    with pytest.raises(DataError, match="the answer to 'Bye' must have at least one character"):
        ghost_demonstration(chat("Hi", "Ahoy", "Bye"), "Be a pirate.", lambda messages: "")
    with pytest.raises(ConfigError, match="take turns"):
        ghost_demonstration([*chat("Hi"), *chat("Bye")], "Be a pirate.", answer)


def test_noisy_rankings_order_every_pair_as_bradley_and_terry_say():
    utilities = torch.tensor([0.0, 0.7, -1.2, 2.0], dtype=torch.float64)
    n = 40_000
    order = noisy_ranking(utilities.expand(n, 4), torch.Generator().manual_seed(0))
    place = order.argsort(-1)
    for i in range(4):
        for j in range(4):
            if i != j:
                share = (place[:, i] < place[:, j]).double().mean().item()
                expected = 1 / (1 + math.exp(-(utilities[i] - utilities[j]).item()))
                assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_the_bayes_accuracy_is_that_of_who_knows_the_utilities():
    generator = torch.Generator().manual_seed(1)
    utilities = torch.randn(30_000, 3, generator=generator, dtype=torch.float64) * 2
    order = noisy_ranking(utilities, generator)
    ranked = utilities.gather(1, order)
    i, j = torch.triu_indices(3, 3, offset=1)
    assert (ranked[:, i] > ranked[:, j]).double().mean().item() == pytest.approx(bayes_accuracy(utilities), abs=5e-3)
    assert bayes_accuracy(torch.tensor([[0.0, math.log(4)]])) == pytest.approx(0.8)
