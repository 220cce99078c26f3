"""The trainer `ppo_control`: what is collected, learning, resumption; and Gymnasium's environments."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import dropout

from axon_core import ConfigError, Key, fit
from axon_core.training import Recipe, RunFolder, build_trainer, evaluate
from axon_ppo import ControlTrainer, Environment, Perceptron, Transition
from axon_ppo.steering import Steering


class Recall(Environment):
    """A bit is shown; the second action, the last, earns 1 where it is the bit."""

    n_observed, n_actions = 3, 2

    def __init__(self, cut=False):
        self.cut = cut

    def reset(self, seeds):
        self.bit, self.age = torch.zeros(len(seeds), dtype=torch.long), torch.zeros(len(seeds), dtype=torch.long)
        return torch.stack([self.restart(row, seed) for row, seed in enumerate(seeds)])

    def restart(self, row, seed):
        self.bit[row], self.age[row] = seed % 2, 0
        return self.seen()[row]

    def seen(self):
        return torch.stack((1.0 * self.bit, 1.0 * (self.age == 0), 1.0 * (self.age == 1)), 1)

    def step(self, actions):
        self.age = self.age + 1
        over = self.age == 2
        reward = torch.where(over, 1.0 * (actions == self.bit), 0.0)
        none = torch.zeros_like(over)
        return Transition(self.seen(), reward, none if self.cut else over, over if self.cut else none)


def build(environment, **options):
    options = {"batch_size": 4, "length": 7, "episodes": 10, **options}
    torch.manual_seed(0)
    models = {
        role: Perceptron.build(inputs=environment.n_observed, outputs=n, hidden=(16,), gain=1.0)
        for role, n in (("policy", environment.n_actions), ("value", 1))
    }
    return ControlTrainer(ControlTrainer.Config(**options), models, environment)


def collected(trainer, step=0):
    with torch.no_grad():
        return trainer.collect(trainer.batch(step), Key((trainer.config.seed, step)))


@pytest.mark.parametrize("cut", [False, True])
def test_what_is_collected_against_a_loop(cut):
    trainer = build(Recall(cut), gamma=0.9, gae_lambda=0.8)
    data = {name: rows.view(4, 7, *rows.shape[1:]) for name, rows in collected(trainer).items()}
    assert data["number"].flatten().tolist() == list(range(28))
    for row in range(4):
        seen = data["observation"][row]
        values = trainer.value(seen)[:, 0].tolist()
        advantage = 0.0
        for t in reversed(range(7)):
            over = t % 2 == 1
            assert seen[t, 1 + t % 2] == 1 and (over is False or seen[t, 0] == seen[t - 1, 0])
            earned = float(over and data["action"][row, t] == seen[t, 0])
            last = torch.tensor([seen[t, 0], 0.0, 0.0 if over else 1.0])
            after = (0.0 if over and not cut else trainer.value(last).item()) if over or t == 6 else values[t + 1]
            delta = earned + 0.9 * after - values[t]
            advantage = delta + (0 if over or t == 6 else 0.9 * 0.8 * advantage)
            assert data["return"][row, t].item() == pytest.approx(advantage + values[t], abs=1e-5)
    logprobs = trainer.policy(data["observation"]).log_softmax(-1).gather(-1, data["action"][..., None])[..., 0]
    torch.testing.assert_close(data["logprob"], logprobs.detach())
    assert data["advantage"].mean().item() == pytest.approx(0, abs=1e-5)


def test_a_share_of_the_environments_collects_what_the_whole_does():
    trainer = build(Steering(Steering.Config(limit=5)), batch_size=6)
    batch, key = trainer.batch(3), Key((0, 3))
    with torch.no_grad():
        whole = trainer.collect(batch, key)
        part = trainer.collect({"number": batch["number"][2:4]}, key)
    for name in ("observation", "action", "number", "logprob", "return"):
        torch.testing.assert_close(part[name], whole[name][14:28])


@pytest.mark.parametrize(("length", "ended"), [(5, 5), (7, 5), (12, 10), (4, 0)])
def test_the_return_is_that_of_the_episodes_that_ended_in_the_step(length, ended):
    class Counted(Steering):
        restarts = -4  # those of the reset

        def restart(self, row, seed):
            self.restarts += 1
            return super().restart(row, seed)

        def step(self, actions):
            found = super().step(actions)
            rewards.append(found.reward)
            assert not found.terminated.any()  # all episodes have five actions
            return found

    rewards = []
    trainer = build(Counted(Steering.Config(limit=5)), length=length, minibatches=2)
    data = collected(trainer)
    assert trainer.environment.restarts == 4 * ((length - 1) // 5)  # none for an episode that has no action
    if not ended:
        assert "objective/return" not in trainer.counts(data) and "objective/return" not in trainer.loss(data)
        return
    mean = torch.stack(rewards)[:ended].sum().item() / (4 * ended / 5)
    for part in trainer.minibatches(data, Key((0,))):
        found = trainer.loss(part)["objective/return"] / trainer.counts(part)["objective/return"]
        assert found.item() == pytest.approx(mean, abs=1e-5)


def test_dropout_is_off_even_in_training(tmp_path):
    trainer = build(Steering(Steering.Config(limit=5)), steps=1, epochs=1)
    trainer.policy.register_forward_hook(lambda module, _, scores: dropout(scores, 0.5, module.training))
    fit(trainer, tmp_path / "run")
    metrics = {line["name"]: line["value"] for line in RunFolder.open(tmp_path / "run").read_metrics()}
    assert metrics["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)


def test_steering_is_learned_and_its_optimum_is_far_from_chance():
    trainer = build_trainer(Recipe.load("steering"))
    before = evaluate(trainer)["return"]
    result = fit(trainer)
    assert before < 40 < 44 < result.metrics["return"] < 50, (before, result.metrics)


def test_steering_ends_as_it_says():
    environment = Steering(Steering.Config(limit=4))
    start = environment.reset([1, 2])
    assert (start[:, 0].abs() <= 1).all() and (start[:, 1] == 0).all()
    right = torch.tensor([2, 1])
    first = environment.step(right)
    torch.testing.assert_close(first.observation[0], torch.stack((start[0, 0] + 0.04, torch.tensor(0.2))))
    torch.testing.assert_close(first.observation[1], start[1])
    torch.testing.assert_close(first.reward, 1 - first.observation[:, 0] ** 2)
    for _ in range(3):
        last = environment.step(right)
    assert last.truncated.all() and not last.terminated.any()
    assert torch.equal(environment.restart(0, 1), start[0])
    environment._state[0, 0] = 5.0
    assert environment.step(right).terminated.tolist() == [True, False]


def test_resuming_is_exact(tmp_path):
    def run():
        return build(Steering(Steering.Config(limit=5)), steps=4, minibatches=2, epochs=2)

    whole = run()
    fit(whole, tmp_path / "whole")
    fit(run(), tmp_path / "cut", stop_at=2)
    again = run()
    fit(again, tmp_path / "cut", resume=True)
    for got, want in zip(again.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(got, want)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()
    assert (tmp_path / "cut" / "ppo.png").exists() and (tmp_path / "cut" / "model" / "config.json").exists()


def test_without_gymnasium_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "from axon_ppo import ENVIRONMENTS\n"
        "from axon_core.errors import UsageError\n"
        "try:\n    ENVIRONMENTS.build('gymnasium')\nexcept UsageError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        "pip install 'axon-ppo[control]', or in a checkout of Axon: pip install './plugins/axon-ppo[control]'" in found
    )


def test_cartpole_is_an_environment():
    pytest.importorskip("gymnasium")
    from axon_ppo.gym import Gymnasium

    environment = Gymnasium(Gymnasium.Config())
    assert (environment.n_observed, environment.n_actions) == (4, 2)
    start = environment.reset([2**62, 4])
    assert not torch.equal(start[0], start[1])
    steps = 0
    while not (found := environment.step(torch.tensor([0, 0]))).terminated.all():
        steps += 1
    assert 5 < steps < 20 and found.reward.sum() <= 2
    assert torch.equal(environment.restart(0, 2**62), start[0])
    again = environment.step(torch.tensor([0, 0]))
    assert again.terminated.tolist() == [False, True] and again.reward.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="must be an environment of Gymnasium"):
        Gymnasium(Gymnasium.Config(id="No-v9"))
    with pytest.raises(ConfigError, match=r"Pendulum-v1 cannot be played: actions must be Discrete, .* got Box"):
        Gymnasium(Gymnasium.Config(id="Pendulum-v1"))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_changes_nothing(half):
    trainer = build(Steering(Steering.Config()), length=20)
    before = collected(trainer), trainer.evaluate()
    torch.set_default_dtype(half)
    try:
        after = collected(trainer), trainer.evaluate()
        order = [part["number"].tolist() for part in trainer.minibatches(before[0], Key((0,)))]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(rows, after[0][name]) for name, rows in before[0].items())
    assert before[1] == after[1]
    assert order == [part["number"].tolist() for part in trainer.minibatches(before[0], Key((0,)))]
