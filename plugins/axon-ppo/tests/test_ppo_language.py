"""The trainer `ppo`: exact gradients, invariances, randomness, resumption."""

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for the small models that several test modules share
from small_models import collected, llama, value_of, vowels

from axon_core import CheckpointError, Key, fit
from axon_core.alignment import Response, Sequences, sample_responses, token_entropies
from axon_core.training import RunFolder
from axon_ppo import base
from axon_ppo import trainer as module
from axon_ppo.rollout import action_logits


def every(vocabulary, length, eos):
    """Every response of at most `length` tokens, which ends with `eos` or at `length`."""
    for n in range(1, length + 1):
        for tokens in itertools.product(range(vocabulary), repeat=n):
            if eos not in tokens[:-1] and (tokens[-1] == eos or n == length):
                yield Response(list(tokens), eos is None or tokens[-1] == eos)


@pytest.mark.parametrize("ends", [False, True])
def test_over_all_sequences_the_gradient_is_that_of_the_exact_objective(ends, make, letters, monkeypatch):
    """V = 5, T = 3: ∇ Σ π(s) (r(s) − β log π(s)/π_ref(s)), for any value function, as λ = γ = 1."""
    tokenizer = letters("abcde")
    tokenizer.eos = 4 if ends else None
    responses = list(every(5, 3, tokenizer.eos))
    assert len(responses) == (1 + 4 + 16 * 5 if ends else 125)
    policy, reference, value = llama().double(), llama(seed=1).double(), value_of(llama(seed=2)).double()
    generator = torch.Generator().manual_seed(3)
    worth = {
        tokenizer.decode(r.tokens) + str(len(r.tokens)): torch.randn((), generator=generator).item() for r in responses
    }

    def reward(prompts, texts):
        return [worth[tokenizer.decode(r.tokens) + str(len(r.tokens))] for r in responses]

    trainer = make(
        policy,
        tokenizer,
        ["ab"],
        reward,
        reference=reference,
        value=value,
        batch_size=len(responses),
        response_tokens=3,
        kl_coefficient=0.3,
        gae_lambda=1.0,
        value_weight=0.0,
        unfinished_penalty=0.5,
    )
    monkeypatch.setattr(module, "sample_responses", lambda *args, **options: responses)
    data = collected(trainer)

    # By hand, a sequence at a time: no padding, no mask, no value function.
    prompt = tokenizer.encode("ab")
    objective, likelihood = torch.zeros((), dtype=torch.float64), []
    for response, score in zip(responses, data["score"].tolist(), strict=True):
        expected = reward([], [])[len(likelihood)] - 0.5 * (not response.finished)
        assert score == pytest.approx(expected, abs=1e-6)
        row = torch.tensor([prompt + response.tokens])
        p, q = (
            model(row)[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, row[0, len(prompt) :, None]).sum()
            for model in (policy, reference)
        )
        objective = objective + p.exp() * (score - 0.3 * (p - q))
        likelihood.append(p.item())
    probability = torch.tensor(likelihood, dtype=torch.float64).exp()
    assert probability.sum().item() == pytest.approx(1)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(policy.parameters()))])

    data["advantage"] = data["advantage"] * probability[:, None]
    trainer.loss(data)["loss/total_avg"].backward()
    ours = -torch.cat([p.grad.flatten() for p in policy.parameters()])
    scale = (ours @ exact) / (exact @ exact)
    assert scale > 0
    torch.testing.assert_close(ours, scale * exact, atol=1e-9 * ours.abs().max().item(), rtol=1e-6)


def test_ppo_finds_the_optimum_of_a_bandit(make, letters, table):
    """π* ∝ π_ref exp(r / β): sampled, 256 responses a step, 4 epochs, 400 updates."""
    policy = table.build(vocab_size=4, context=2)
    with torch.no_grad():
        policy.table.weight.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4, 4))
    tokenizer = letters("abcd")
    tokenizer.eos = None
    trainer = make(
        policy,
        tokenizer,
        ["a"],
        lambda prompts, responses: ["abcd".index(response) for response in responses],
        batch_size=256,
        response_tokens=1,
        steps=100,
        kl_coefficient=1.0,
        optimizer={"lr": 0.05, "weight_decay": 0.0, "eps": 1e-5},
        schedule="linear",
        value_clip_range=None,
    )
    fit(trainer)
    found = policy.table.weight[0].softmax(-1)
    optimum = torch.tensor([0.085073, 0.173439, 0.314304, 0.427184])
    assert (found - optimum).abs().sum() / 2 <= 0.01, found


@pytest.mark.parametrize("ends", [{5}, {1, 5}])
def test_what_is_collected_is_what_the_models_say(ragged, ends):
    trainer = ragged(temperature=0.7)
    trainer.data.tokenizer.other_ends = frozenset(ends - {5})
    data = collected(trainer)
    ended = set()
    for row in range(8):
        tokens = data["tokens"][row][data["valid"][row]]
        new = int(data["scored"][row].sum())
        start = len(tokens) - new
        assert ends.isdisjoint(tokens[start:-1].tolist())
        score = vowels(
            [trainer.data.tokenizer.decode(tokens[:start])], [trainer.data.tokenizer.decode(tokens[start:])]
        )[0]
        if tokens[-1].item() in ends:
            ended.add(tokens[-1].item())
        else:
            assert new == 4
            score -= 1.0
        p, q = (
            (model(tokens[None])[0] / 0.7).log_softmax(-1)[start - 1 : -1].gather(1, tokens[start:, None])[:, 0]
            for model in (trainer.policy, trainer.reference)
        )
        values = trainer.value(tokens[None])[0, start - 1 : -1].tolist()
        rewards = (-0.2 * (p - q)).tolist()
        rewards[-1] += score
        advantage, returns = 0.0, []
        for t in reversed(range(new)):
            advantage = rewards[t] + (values[t + 1] if t + 1 < new else 0) - values[t] + 0.95 * advantage
            returns.insert(0, advantage + values[t])
        at = data["scored"][row]
        torch.testing.assert_close(data["logprob"][row][at], p.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(data["return"][row][at], torch.tensor(returns), atol=1e-5, rtol=1e-5)
        assert data["kl"][row].item() == pytest.approx((p - q).sum().item(), abs=1e-5)
        assert data["reward"][row].item() == pytest.approx(sum(rewards), abs=1e-5)
        assert data["surprisal"][row].item() == pytest.approx(-p.sum().item(), abs=1e-5)
    assert ended == ends
    assert data["advantage"][data["scored"]].mean().item() == pytest.approx(0, abs=1e-5)
    assert data["advantage"][data["scored"]].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    lengths = data["scored"].sum(1)
    assert lengths.min() < 4, "some responses should end early"


def doubled(trainer):
    """The same trainer in float64, in which what should be equal is."""
    for model in trainer.models.values():
        model.double()
    return trainer


def test_neither_the_side_nor_the_length_of_padding_matters(ragged):
    trainer = doubled(ragged())
    data = collected(trainer)
    want = trainer.loss(data)
    pairs = []
    for tokens, valid, scored in zip(data["tokens"], data["valid"], data["scored"], strict=True):
        pairs.append((tokens[valid & ~scored].tolist(), tokens[scored].tolist()))
    for side, length in (("left", 9), ("left", 12), ("right", 12)):
        rows = Sequences.of(pairs, padding=side, length=length)
        padded = {**data, "tokens": rows.tokens, "valid": rows.valid, "scored": rows.scored}
        for name in ("logprob", "value", "advantage", "return"):
            blank = torch.full(
                rows.tokens.shape, math.nan
            ).double()  # whatever stands at padding and prompts must not be read
            padded[name] = blank.masked_scatter(rows.scored, data[name][data["scored"]])
        got = trainer.loss(padded)
        assert got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=1e-9, rtol=1e-9)


def test_neither_order_nor_neighbours_nor_micro_batches_change_what_is_collected(ragged):
    trainer = doubled(ragged())
    batch, key = trainer.batch(0), Key((0, 0))
    whole = trainer.collect(batch, key)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = trainer.collect({name: rows[order] for name, rows in batch.items()}, key)
    for name, rows in shuffled.items():
        torch.testing.assert_close(rows, whole[name][order], atol=1e-9, rtol=1e-9)
    for name, total in trainer.loss(shuffled).items():
        torch.testing.assert_close(total, trainer.loss(whole)[name], atol=1e-9, rtol=1e-9)
    cut = doubled(ragged(micro_batches=3)).collect(batch, key)
    for name, rows in cut.items():
        torch.testing.assert_close(rows, whole[name], atol=1e-9, rtol=1e-9)
    part = trainer.act([trainer.data.train[i] for i in batch["prompt"][2:5].tolist()], [key(i).seed for i in (2, 3, 4)])
    for i in range(3):
        assert part["tokens"][i][part["valid"][i]].tolist() == whole["tokens"][2 + i][whole["valid"][2 + i]].tolist()


def test_micro_batches_do_not_change_an_update(ragged):
    found = []
    for micro_batches in (1, 3):
        trainer = ragged(steps=1, micro_batches=micro_batches, minibatches=2, epochs=2)
        fit(trainer)
        found.append(nn.utils.parameters_to_vector(trainer.policy.parameters()).detach())
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_minibatches_share_out_all_rows_whatever_process_has_them(ragged):
    trainer = ragged(minibatches=4, epochs=3)
    data, key = {"number": torch.arange(8), "kl": torch.zeros(8)}, Key((1,))
    parts = [part["number"].tolist() for part in trainer.minibatches(data, key)]
    assert len(parts) == 12
    for epoch in range(3):
        assert sorted(itertools.chain(*parts[4 * epoch : 4 * epoch + 4])) == list(range(8))
    assert len({tuple(part) for part in parts}) > 6
    for share in (slice(0, 4), slice(4, 8)):
        mine = [p["number"].tolist() for p in trainer.minibatches({n: r[share] for n, r in data.items()}, key)]
        assert mine == [[i for i in part if i in range(share.start, share.stop)] for part in parts]
        assert all(mine)


def test_dropout_is_off_even_in_training(ragged, tmp_path):
    trainer = ragged(steps=1, epochs=1)
    trainer.policy.norm = nn.Sequential(trainer.policy.norm, nn.Dropout(0.5))
    fit(trainer, tmp_path / "run")
    metrics = {line["name"]: line["value"] for line in RunFolder.open(tmp_path / "run").read_metrics()}
    assert metrics["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)


def test_the_first_update_begins_at_ratio_one_in_bfloat16_too(ragged):
    trainer = ragged(precision="bf16")
    data = collected(trainer)
    with torch.autocast("cpu", torch.bfloat16):
        assert trainer.loss(data)["policy/approxkl_avg"].item() < 1e-9


def test_beta_is_adapted_to_the_divergence_after_the_last_update(ragged):
    trainer = ragged(kl_target=0.5, kl_horizon=100.0)
    data = collected(trainer)
    parts = trainer.minibatches(data, Key((0,)))
    for _ in range(4):
        next(parts)
        assert trainer.kl_coefficient == 0.2
    assert next(parts, None) is None
    error = min(max(data["kl"].mean().item() / 0.5 - 1, -0.2), 0.2)
    assert trainer.kl_coefficient == pytest.approx(0.2 * (1 + error * 8 / 100))


def test_resuming_is_exact_with_roll_outs_and_beta(ragged, tmp_path):
    def run():
        return ragged(steps=4, minibatches=2, epochs=2, kl_target=0.1, kl_horizon=50.0)

    whole = run()
    fit(whole, tmp_path / "whole")
    fit(run(), tmp_path / "cut", stop_at=2)
    again = run()
    fit(again, tmp_path / "cut", resume=True)
    assert again.kl_coefficient == whole.kl_coefficient != 0.2
    for role in ("policy", "value"):
        for got, want in zip(again.models[role].parameters(), whole.models[role].parameters(), strict=True):
            assert torch.equal(got, want)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()
    assert (tmp_path / "cut" / "ppo.png").exists()
    other = run()
    with torch.no_grad():
        other.reference.head.weight.add_(1)
    with pytest.raises(CheckpointError, match="reference is not the one"):
        fit(other, tmp_path / "cut", resume=True)


def test_an_auxiliary_loss_is_minimised_in_the_same_update(ragged, make, letters, table):
    class Texts:
        def batch(self, step, size):
            return {"tokens": torch.arange(step, step + 3 * size).view(size, 3) % 4}

        def counts(self, data):
            return {"texts": 2.0 * len(data["tokens"])}

        def loss(self, policy, data):
            logits = policy(data["tokens"][:, :-1])
            return {
                "texts": 3
                * nn.functional.cross_entropy(logits.flatten(0, 1), data["tokens"][:, 1:].flatten(), reduction="sum")
            }

    def build(auxiliary):
        torch.manual_seed(0)
        policy = table.build(vocab_size=5, context=8)
        return make(policy, letters("abcd."), ["ab", "c"], vowels, batch_size=4, response_tokens=2, auxiliary=auxiliary)

    plain, both = build(None), build(Texts())
    data = collected(both)
    torch.testing.assert_close(data["logprob"], collected(plain)["logprob"])
    counts, terms = both.counts(data), both.loss(data)
    assert counts["texts"] == 8 and terms.keys() == counts.keys()
    (terms["loss/total_avg"] / counts["loss/total_avg"] + terms["texts"] / counts["texts"]).backward()
    logits = both.policy(data["auxiliary/tokens"][:, :-1])
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), data["auxiliary/tokens"][:, 1:].flatten())
    (extra,) = torch.autograd.grad(3 * nll, [both.policy.table.weight])
    reinforced = plain.loss(collected(plain))["loss/total_avg"] / counts["loss/total_avg"]
    (own,) = torch.autograd.grad(reinforced, [plain.policy.table.weight])
    torch.testing.assert_close(both.policy.table.weight.grad, own + extra)


def test_every_token_of_a_response_is_scored_and_has_an_entropy():
    policy = llama(6)
    drawn = [
        r
        for seed in range(60)
        for r in sample_responses(policy, [[0]], [seed], max_new_tokens=2, temperature=1.0, ends={5})
    ]
    rows = Sequences.of([([0], r.tokens) for r in drawn])
    assert torch.equal(rows.scored.sum(1), torch.tensor([len(r.tokens) for r in drawn]))
    logits, tokens = action_logits(policy, rows, 1.0)
    assert len(logits) == len(tokens) == rows.scored.sum() and (token_entropies(logits) > 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_entropy_is_computed_once_for_each_loss_and_with_gradients_only_where_it_counts(ragged, monkeypatch, weight):
    seen = []

    def counted(logits):
        seen.append(torch.is_grad_enabled())
        return token_entropies(logits)

    trainer = ragged(entropy_weight=weight)
    monkeypatch.setattr(base, "token_entropies", counted)
    data = collected(trainer)
    assert not seen
    assert trainer.loss(data)["policy/entropy_avg"] > 0
    assert seen == [weight > 0]
