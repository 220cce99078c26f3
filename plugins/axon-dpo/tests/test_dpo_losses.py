"""The losses: known answers, identities, and TRL's own on identical tensors."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from axon_core import ConfigError
from axon_core.alignment import token_logprobs
from axon_dpo.losses import PREFERENCE_LOSSES, conservative, hinge, ipo, robust, sigmoid
from axon_dpo.optimum import optimal_policy, preferences, tabular_policy

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARDS = torch.arange(4, dtype=torch.float64)
KNOWN = {1.0: (0.085073, 0.173439, 0.314304, 0.427184), 0.5: (0.007424, 0.041142, 0.202669, 0.748765)}
EVERY = [
    ("sigmoid", {}),
    ("conservative", {"label_smoothing": 0.1}),
    ("robust", {"flip_rate": 0.2}),
    ("ipo", {"length_normalised": False}),
    ("ipo", {"length_normalised": True}),
    ("hinge", {}),
]


def build(kind: str, beta: float = 1.0, **options):
    return PREFERENCE_LOSSES.build(kind, beta=beta, **options)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_loss_where_the_policy_is_the_reference(beta):
    ratios, lengths = torch.zeros(3, 2), torch.tensor([[2, 5]] * 3)
    for kind, options in EVERY:
        expected = {"ipo": 1 / (4 * beta**2), "hinge": 1.0}.get(kind, 0.6931471805599453)
        assert build(kind, beta, **options)(ratios, lengths).tolist() == pytest.approx([expected] * 3, rel=1e-6)


def test_values_computed_by_hand():
    delta = torch.tensor([2.0, -1.0], dtype=torch.float64)
    plain = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.5))]  # β = ½: βΔ = 1 and −½
    other = [math.log(1 + math.exp(1)), math.log(1 + math.exp(-0.5))]
    smoothed = [0.9 * a + 0.1 * b for a, b in zip(plain, other, strict=True)]
    unbiased = [(0.8 * a - 0.2 * b) / 0.6 for a, b in zip(plain, other, strict=True)]
    assert sigmoid(delta, 0.5).tolist() == pytest.approx(plain, abs=1e-15)
    assert conservative(delta, 0.5, 0.1).tolist() == pytest.approx(smoothed, abs=1e-15)
    assert robust(delta, 0.5, 0.2).tolist() == pytest.approx(unbiased, abs=1e-15)
    assert ipo(delta, 0.5).tolist() == [1.0, 4.0]
    assert hinge(delta, 0.5).tolist() == [0.0, 1.5]


def test_ipo_normalised_by_length_compares_means_over_tokens():
    ratios, lengths = torch.tensor([[6.0, 6.0]]), torch.tensor([[2, 3]])
    assert build("ipo", length_normalised=True)(ratios, lengths).item() == (3 - 2 - 0.5) ** 2
    assert build("ipo", length_normalised=False)(ratios, lengths).item() == 0.25
    with pytest.raises(ConfigError, match="length_normalised: this field is required"):
        build("ipo")


def test_flips_do_not_move_the_mean_of_the_robust_loss():
    delta = torch.linspace(-5, 5, 11, dtype=torch.float64)
    mean = 0.7 * robust(delta, 0.4, 0.3) + 0.3 * robust(-delta, 0.4, 0.3)  # right seven times of ten
    torch.testing.assert_close(mean, sigmoid(delta, 0.4), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_extreme_ratios_stay_finite(kind, options):
    ratios = torch.tensor([[1e6, -1e6], [-1e6, 1e6]], requires_grad=True)
    loss = build(kind, **options)(ratios, torch.ones(2, 2))
    loss.sum().backward()
    assert loss.isfinite().all() and ratios.grad.isfinite().all()


@pytest.mark.parametrize("beta", KNOWN)
def test_exact_gradients_lead_to_the_optimal_policy(beta):
    best = optimal_policy(REFERENCE, REWARDS, beta)
    assert best.tolist() == pytest.approx(KNOWN[beta], abs=5e-7)
    log_z = beta * (REFERENCE * (REWARDS / beta).exp()).sum().log().item()
    assert log_z == pytest.approx({1.0: 1.547956, 0.5: 1.993372}[beta], abs=5e-7)
    if beta == 1:
        assert (best * (best / REFERENCE).log()).sum().item() == pytest.approx(0.535643, abs=5e-7)
    found = tabular_policy(REFERENCE, preferences(REWARDS), build("sigmoid", beta))
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0)


def test_what_flipped_choices_do_to_the_optimum():
    flipped = preferences(REWARDS, 0.2)
    right = tabular_policy(REFERENCE, flipped, build("robust", flip_rate=0.2))
    assert right.tolist() == pytest.approx(KNOWN[1.0], abs=1e-6)
    plain = tabular_policy(REFERENCE, flipped, build("sigmoid"))
    assert plain.tolist() == pytest.approx([0.222, 0.264, 0.287, 0.228], abs=6e-4)
    wrong = tabular_policy(REFERENCE, flipped, build("robust", flip_rate=0.1))  # the rate matters
    assert (wrong - right).abs().max() > 0.01


def test_ipo_has_another_optimum():
    found = tabular_policy(REFERENCE, preferences(REWARDS), build("ipo", length_normalised=False))
    assert found.tolist() == pytest.approx([0.3297, 0.2934, 0.2366, 0.1403], abs=6e-5)


def test_smoothed_labels_stop_at_log_9():
    delta = torch.tensor(math.log(9) / 0.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(conservative(delta, 0.3, 0.1), delta, create_graph=True)
    (bend,) = torch.autograd.grad(slope, delta)
    assert slope.item() == pytest.approx(0, abs=1e-15) and bend > 0


@pytest.mark.filterwarnings("default")  # of TRL and what it imports
@pytest.mark.parametrize(
    ("kind", "theirs", "options"),
    [
        ("sigmoid", "sigmoid", {}),
        ("robust", "robust", {"flip_rate": 0.2}),
        ("ipo", "ipo", {"length_normalised": True}),
        ("hinge", "hinge", {}),
    ],
)
def test_trl_computes_the_same(kind, theirs, options):
    trl = pytest.importorskip("trl")
    from trl.trainer.utils import selective_log_softmax

    generator = torch.Generator().manual_seed(0)
    b, n, v = 6, 9, 50
    logits = torch.randn(2 * b, n - 1, v, generator=generator) * 3
    ids = torch.randint(v, (2 * b, n), generator=generator)
    mask = torch.arange(n) >= torch.randint(2, n, (2 * b, 1), generator=generator)
    reference = torch.randn(2 * b, generator=generator) * 3 - 20
    logps = selective_log_softmax(logits, ids[:, 1:])
    ours = token_logprobs(logits, ids[:, 1:])
    torch.testing.assert_close(ours, logps, atol=1e-6, rtol=0)

    metrics = defaultdict(lambda: defaultdict(list))
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        **{"aux_loss_enabled": False, "ld_alpha": None, "precompute_ref_logps": True, "use_weighting": False},
        **{"f_divergence_type": "reverse_kl", "loss_types": [theirs], "loss_weights": [1.0], "beta": 0.3},
        **{"label_smoothing": 0.2, "_metrics": metrics, "_total_train_tokens": 0, "_tp_size": 1},
    )
    blank = torch.zeros(2 * b, n - 1)
    outputs = SimpleNamespace(
        log_probs=logps * mask[:, 1:], entropy=blank, mean_logits=blank, is_top1=blank.bool(), aux_loss=None
    )
    chosen, rejected = reference.chunk(2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask.long()}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    want = trl.DPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)

    def pairs(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack(rows.chunk(2), 1)

    ratios = pairs((ours * mask[:, 1:]).sum(1)) - pairs(reference)
    got = build(kind, 0.3, **options)(ratios, pairs(mask.sum(1))).mean()
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    rewards = [metrics["eval"][f"rewards/{which}"][0] for which in ("chosen", "rejected")]
    assert (0.3 * ratios).mean(0).tolist() == pytest.approx(rewards, abs=1e-6, rel=1e-6)
