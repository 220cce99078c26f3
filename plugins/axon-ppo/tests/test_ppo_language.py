"""The trainer `ppo`: exact gradients, invariances, randomness, resumption, and what it refuses."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from axon_core import MODELS, fit
from axon_core.errors import CheckpointError, ConfigError, ContextError, DataError, TrainingError, UsageError
from axon_core.likelihood import Sequences
from axon_core.loop import evaluate
from axon_core.randomness import Key
from axon_core.recipe import Recipe
from axon_ppo import AUXILIARY_LOSSES, PPOTrainer, PromptData, RewardModel, ValueModel
from axon_ppo import trainer as module
from axon_ppo.rollout import Response, action_logprobs, respond

LLAMA = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 12}


def llama(vocab_size=5, seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS.build({**LLAMA, **sizes}, vocab_size=vocab_size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def value_of(trunk, seed=7):
    value = ValueModel(trunk)
    with torch.no_grad():
        value.head.weight.copy_(torch.randn(value.head.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return value


def vowels(prompts, responses):
    return [
        sum(c in "ae" for c in response) + 0.1 * len(prompt)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


@pytest.fixture
def ragged(make, letters):
    """A trainer on ragged prompts, whose responses end early or not."""

    def ragged(**options):
        policy = llama(6)
        options = {"batch_size": 8, "response_tokens": 4, "kl_coefficient": 0.2, **options}
        reference, value = llama(6, seed=1), value_of(llama(6, seed=2))
        prompts = ["a", "bc", "abcde", "dd", "eab", "cabd"]
        return make(policy, letters("abcde."), prompts, vowels, reference=reference, value=value, **options)

    return ragged


def collected(trainer, step=0):
    return trainer.collect(trainer.batch(step), Key((trainer.config.seed, step)))


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
        lam=1.0,
        value_weight=0.0,
        unfinished_score=-0.5,
    )
    monkeypatch.setattr(module, "respond", lambda *args, **options: responses)
    data = collected(trainer)

    # By hand, a sequence at a time: no padding, no mask, no value function.
    prompt = tokenizer.encode("ab")
    objective, likelihood = torch.zeros((), dtype=torch.float64), []
    for response, score in zip(responses, data["score"].tolist(), strict=True):
        expected = reward([], [])[len(likelihood)] if response.finished else -0.5
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
        value_clip_range=math.inf,
    )
    fit(trainer)
    found = policy.table.weight[0].softmax(-1)
    optimum = torch.tensor([0.085073, 0.173439, 0.314304, 0.427184])
    assert (found - optimum).abs().sum() / 2 <= 0.01, found


def test_what_is_collected_is_what_the_models_say(ragged):
    trainer = ragged(temperature=0.7)
    data = collected(trainer)
    for row in range(8):
        tokens = data["tokens"][row][data["valid"][row]]
        new = int(data["scored"][row].sum())
        start = len(tokens) - new
        score = vowels(
            [trainer.data.tokenizer.decode(tokens[:start])], [trainer.data.tokenizer.decode(tokens[start:])]
        )[0]
        if tokens[-1] != trainer.data.tokenizer.eos:
            assert new == 4
            score = -1.0
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
    assert data["advantage"][data["scored"]].mean().item() == pytest.approx(0, abs=1e-5)
    assert data["advantage"][data["scored"]].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    lengths = data["scored"].sum(1)
    assert lengths.min() < 4, "some responses should end early"


def test_neither_the_side_nor_the_length_of_padding_matters(ragged):
    trainer = ragged()
    data = collected(trainer)
    want = trainer.loss(data)
    pairs = []
    for tokens, valid, scored in zip(data["tokens"], data["valid"], data["scored"], strict=True):
        pairs.append((tokens[valid & ~scored].tolist(), tokens[scored].tolist()))
    for side, length in (("left", 9), ("left", 12), ("right", 12)):
        rows = Sequences.of(pairs, padding=side, length=length)
        padded = {**data, "tokens": rows.tokens, "valid": rows.valid, "scored": rows.scored}
        for name in ("logprob", "value", "advantage", "return"):
            blank = torch.full(rows.tokens.shape, math.nan)  # whatever stands at padding and prompts must not be read
            padded[name] = blank.masked_scatter(rows.scored, data[name][data["scored"]])
        got = trainer.loss(padded)
        assert got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=1e-6, rtol=1e-6)


def test_neither_order_nor_neighbours_nor_micro_batches_change_what_is_collected(ragged):
    trainer = ragged()
    batch, key = trainer.batch(0), Key((0, 0))
    whole = trainer.collect(batch, key)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = trainer.collect({name: rows[order] for name, rows in batch.items()}, key)
    for name, rows in shuffled.items():
        torch.testing.assert_close(rows, whole[name][order], atol=1e-6, rtol=1e-6)
    for name, total in trainer.loss(shuffled).items():
        torch.testing.assert_close(total, trainer.loss(whole)[name], atol=2e-6, rtol=1e-6)
    cut = ragged(micro_batches=3).collect(batch, key)
    for name, rows in cut.items():
        torch.testing.assert_close(rows, whole[name], atol=1e-6, rtol=1e-6)
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


def test_dropout_is_off_even_in_training(ragged):
    trainer = ragged()
    trainer.policy.norm = nn.Sequential(trainer.policy.norm, nn.Dropout(0.5))
    data = collected(trainer)
    trainer.policy.train()
    terms = trainer.loss(data)
    assert terms["policy/approxkl_avg"].item() == pytest.approx(0, abs=1e-9)


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


def test_a_registered_auxiliary_loss_is_built_from_the_recipe():
    class Nothing:
        class Config(__import__("axon_core").Config):
            weight: float = 1.0

        def __init__(self, config, tokenizer, context, seed):
            self.given = (config.weight, tokenizer.vocab_size, context, seed)

        def batch(self, step, size):
            return {"row": torch.zeros(size)}

        def counts(self, data):
            return {"nothing": 1.0 * len(data["row"])}

        def loss(self, policy, data):
            return {"nothing": data["row"].sum()}

    tables = copy.deepcopy(dict(PPOTrainer.examples[0]))
    tables["model"]["auxiliary"] = {"type": "nothing", "weight": 2.0}
    with AUXILIARY_LOSSES.override(nothing=Nothing):
        trainer = Recipe.of(tables, "t", "a test").build()
    assert trainer.auxiliary.given == (2.0, 258, 16, 0)
    assert "auxiliary/row" in collected(trainer)


def test_a_saved_policy_is_gone_on_from_and_is_the_reference(ragged, tmp_path):
    start = ragged()
    start.policy.save(tmp_path / "sft")
    start.data.tokenizer.save(tmp_path / "sft")
    tables = {
        "model": {"policy": {"init": str(tmp_path / "sft")}, "reward": {"type": "regex", "pattern": "[ae]"}},
        "trainer": {"type": "ppo", "batch_size": 4, "response_tokens": 3, "steps": 2},
        "data": {"prompts": ["ab", "cd", "e", "bb"], "held_out": 0.5},
    }
    trainer = Recipe.of(tables, "t", "a test").build()
    for model in (trainer.policy, trainer.reference):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.policy.parameters(), strict=True))
    fit(trainer, tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.reference.parameters(), start.policy.parameters(), strict=True)
    )
    assert not torch.equal(trainer.policy.head.weight, start.policy.head.weight)
    metrics = evaluate(trainer)
    assert metrics["loss"] == pytest.approx(0.05 * metrics["kl"] - metrics["score"])
    assert evaluate(trainer) == metrics and metrics["length"] == 3
    assert trainer.sample().startswith("e")


def test_a_reward_model_is_a_frozen_role_that_scores_the_end(make, letters):
    tokenizer = letters("abcde.")
    judge = value_of(llama(6, seed=5))
    trainer = make(llama(6), tokenizer, ["ab", "c"], RewardModel.of(judge, tokenizer), batch_size=4, response_tokens=3)
    assert trainer.models["reward"] is judge and not any(p.requires_grad for p in judge.parameters())
    found = trainer.reward(["ab", "c"], ["d", "eab"])
    for prompt, response, score in zip(["ab", "c"], ["d.", "eab."], found, strict=True):
        tokens = torch.tensor([tokenizer.encode(prompt + response)])
        assert score == pytest.approx(judge(tokens)[0, -1].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, r: [math.nan if "c" in x else 0.0 for x in p], r"line 2 of p \('bc'\).* is nan"),
        (lambda p, r: [1 / (0 if "c" in x else 1) for x in p], r"line 2 of p \('bc'\).* failed: ZeroDivisionError"),
        (lambda p, r: [0.0], "one number for each response, got 1 for 4"),
    ],
)
def test_a_reward_that_fails_names_the_record_and_writes_nothing(reward, message, make, letters, tmp_path):
    trainer = make(llama(6), letters("abcde."), ["a", "bc"], reward, batch_size=4, response_tokens=2, steps=1)
    with pytest.raises(TrainingError, match=message):
        fit(trainer, tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*")) and not (tmp_path / "run" / "model").exists()


def test_roles_that_do_not_fit_are_refused(make, letters):
    tokenizer = letters("abcde.")

    def build(**parts):
        return make(llama(6), tokenizer, ["ab", "abcde"], parts.pop("reward", vowels), response_tokens=3, **parts)

    with pytest.raises(UsageError, match="one vocabulary, got 6 tokens for the policy and 7 for the reference"):
        build(reference=llama(7))
    with pytest.raises(UsageError, match="7 for the value"):
        build(value=ValueModel(llama(7)))
    with pytest.raises(UsageError, match="token 1 is b'b' in one and b'x' in the other"):
        build(reward=RewardModel.of(value_of(llama(6)), letters("axcde.")))
    with pytest.raises(
        ContextError, match="line 2 of p has 5 tokens and its response up to 8, but the policy's context is 12"
    ):
        make(llama(6), tokenizer, ["ab", "abcde"], vowels, response_tokens=8)
    with pytest.raises(ContextError, match="the reference's context is 7"):
        build(reference=llama(6, context=7))
    with pytest.raises(UsageError, match="tokenizer has 7 tokens, but the policy's vocabulary only 6"):
        make(llama(6), letters("abcdef."), ["ab"], vowels)


def test_prompts_that_cannot_be_used_are_named(letters, tmp_path):
    tables = copy.deepcopy(dict(PPOTrainer.examples[0]))
    file = tmp_path / "prompts.jsonl"
    for text, message in (
        ('{"prompt": "a", "completion": "b"}\n{"prompt": ""}\n', "line 2 of .* is no prompt"),
        ('{"completion": "b"}\n', "line 1 of .* is no prompt: prompt: this field is required"),
        ('{"prompt": "a"}\n{"prompt": "a very long prompt"}\n', "line 2 of .* has 18 tokens"),
        ("", "holds no prompt"),
    ):
        file.write_text(text)
        tables["data"] = {"path": str(file)}
        with pytest.raises((DataError, ContextError), match=message):
            Recipe.of(tables, "t", "a test").build()
    with pytest.raises(DataError, match="b: character 'x'"):
        PromptData.of([("a", "ab"), ("b", "x")], letters("ab."))
    with pytest.raises(ConfigError, match="either path"):
        Recipe.of({**tables, "data": {}}, "t", "a test").build()
    with pytest.raises(ConfigError, match="minibatches must divide batch_size, got 3 for 4"):
        Recipe.of(tables, "t", "a test", ["trainer.minibatches=3"]).build()


def test_responses_depend_on_their_own_seed_and_end_where_they_end():
    policy = llama(6)
    prompts, seeds = [[0, 1], [2], [3, 4, 0]], [11, 12, 13]
    whole = respond(policy, prompts, seeds, max_new_tokens=5, temperature=1.3, eos=5)
    for prompt, seed, response in zip(prompts, seeds, whole, strict=True):
        assert respond(policy, [prompt], [seed], max_new_tokens=5, temperature=1.3, eos=5) == [response]
        assert response.finished == (response.tokens[-1] == 5) and 5 not in response.tokens[:-1]
    drawn = [r for seed in range(60) for r in respond(policy, [[0]], [seed], max_new_tokens=2, temperature=1.0, eos=5)]
    assert {(len(r.tokens), r.finished) for r in drawn} == {(1, True), (2, True), (2, False)}
    rows = Sequences.of([([0], r.tokens) for r in drawn])
    assert torch.equal(rows.scored.sum(1), torch.tensor([len(r.tokens) for r in drawn]))
    assert (action_logprobs(policy, rows, 1.0)[1] > 0).all()
