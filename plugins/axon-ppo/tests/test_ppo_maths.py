"""The pure functions, against naive loops in float64 and known answers."""

import math

import pytest
import torch

from axon_ppo.maths import (
    adapted_coefficient,
    clipped_surrogate,
    clipped_value_loss,
    gae,
    k1,
    k2,
    k3,
    whiten,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gae_known_answer():
    rewards, values = torch.tensor([[-0.1, -0.1, -0.1, 0.9]]), torch.tensor([[0.5, 0.4, 0.3, 0.2]])
    following = torch.tensor([[0.4, 0.3, 0.2, 0.0]])
    ended = torch.tensor([[False, False, False, True]])
    advantages, returns = gae(rewards, values, following, ended, gamma=1.0, gae_lambda=0.95)
    assert advantages[0].tolist() == pytest.approx([0.0297, 0.2417, 0.4650, 0.7000], abs=5e-5)
    assert torch.equal(returns, advantages + values)


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_weighted_sum_of_temporal_differences_up_to_the_end_of_the_episode(gamma, lam):
    b, t = 3, 9
    rewards, values, following = normal(3, b, t)
    ended = normal(b, t, seed=1) > 0.7
    ended[:, -1] = True
    advantages, _ = gae(rewards, values, following, ended, gamma=gamma, gae_lambda=lam)
    for row in range(b):
        for start in range(t):
            total, weight = 0.0, 1.0
            for i in range(start, t):
                total += weight * (rewards[row, i] + gamma * following[row, i] - values[row, i]).item()
                weight *= gamma * lam
                if ended[row, i]:
                    break
            assert advantages[row, start].item() == pytest.approx(total, abs=1e-12)


def test_gae_with_lambda_one_is_the_return_less_the_value():
    rewards, values = normal(2, 1, 6)
    following = torch.cat((values[:, 1:], torch.zeros(1, 1)), 1)
    ended = torch.zeros(1, 6, dtype=torch.bool)
    _, returns = gae(rewards, values, following, ended, gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))


def test_clipped_surrogate_against_scalars():
    new, old, advantages = normal(3, 50)
    loss, clipped = clipped_surrogate(new, old, advantages, 0.2)
    for i in range(50):
        ratio, a = math.exp(new[i] - old[i]), advantages[i].item()
        bounded = min(max(ratio, 0.8), 1.2)
        assert loss[i].item() == pytest.approx(-min(ratio * a, bounded * a))
        assert clipped[i].item() == (bounded * a < ratio * a)
    assert 0 < clipped.sum() < 50


def test_the_surrogate_has_no_gradient_where_it_is_clipped():
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    loss, clipped = clipped_surrogate(new, torch.zeros(4), torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.2)
    loss.sum().backward()
    assert clipped.tolist() == [True, True, False, False]
    assert (new.grad == 0).tolist() == [True, True, False, False]


def test_clipped_value_loss_against_scalars():
    values, old, returns = normal(3, 50, seed=2)
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    for i in range(50):
        near = old[i] + min(max((values[i] - old[i]).item(), -0.2), 0.2)
        assert loss[i].item() == pytest.approx(max((values[i] - returns[i]) ** 2, (near - returns[i]) ** 2).item() / 2)
    assert 0 < clipped.sum() < 50
    free, none = clipped_value_loss(values, old, returns, math.inf)
    assert torch.equal(free, (values - returns).square() / 2) and not none.any()


def test_estimators_of_the_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimate in (k1, k3):  # without bias
        torch.testing.assert_close((p * estimate(p.log(), q.log())).sum(), exact)
    ratio = q / p
    torch.testing.assert_close(k1(p.log(), q.log()), -ratio.log())
    torch.testing.assert_close(k2(p.log(), q.log()), ratio.log() ** 2 / 2)
    torch.testing.assert_close(k3(p.log(), q.log()), ratio - 1 - ratio.log())
    assert (k3(p.log(), q.log()) >= 0).all()


def test_adapted_coefficient():
    sizes = {"target": 6.0, "n": 256, "horizon": 10_000.0}
    assert adapted_coefficient(0.1, 6.6, **sizes) == pytest.approx(0.1 * (1 + 0.1 * 0.0256))
    assert adapted_coefficient(0.1, 60.0, **sizes) == pytest.approx(0.1 * (1 + 0.2 * 0.0256))
    assert adapted_coefficient(0.1, -5.0, **sizes) == pytest.approx(0.1 * (1 - 0.2 * 0.0256))
    assert adapted_coefficient(0.1, 6.0, **sizes) == 0.1


def test_whitening_sees_nothing_but_the_mask():
    x, mask = normal(4, 7, seed=3), normal(4, 7, seed=4) > 0
    chosen = [
        v for row, keep in zip(x.tolist(), mask.tolist(), strict=True) for v, k in zip(row, keep, strict=True) if k
    ]
    mean = sum(chosen) / len(chosen)
    variance = sum((v - mean) ** 2 for v in chosen) / len(chosen)  # biased
    white = whiten(x, mask)
    torch.testing.assert_close(white[mask], (torch.tensor(chosen).double() - mean) / math.sqrt(variance + 1e-8))
    assert (white[~mask] == 0).all()
    poisoned = torch.where(mask, x, math.nan)
    assert torch.equal(whiten(poisoned, mask), white)
    assert (whiten(x, torch.zeros_like(mask)) == 0).all()


def test_whitening_what_does_not_vary_gives_zeros():
    x = torch.full((2, 3), 0.1)
    assert whiten(x, torch.ones(2, 3, dtype=torch.bool)).abs().max() < 1e-3
