"""PPO-ptx: γ times the pre-training loss, in the same updates as PPO's own."""

import pytest
import torch

from axon_core import MODELS, ConfigError, ContextError, Key
from axon_core.registry import registry_of
from axon_core.text import ByteTokenizer, Windows
from axon_core.training import Recipe, build_trainer
from axon_instructgpt import Pretraining

LLAMA = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 12}


def make(**options):
    given = {"tokenizer": ByteTokenizer(), "context": 12, "seed": 3}
    return registry_of("auxiliary_loss").build({"type": "pretraining", **options}, **given)


def recipe(**auxiliary):
    return Recipe.of(
        {
            "model": {
                "policy": LLAMA,
                "reward": {"type": "regex", "pattern": "[aeiou]"},
                **({"auxiliary": {"type": "pretraining", **auxiliary}} if auxiliary else {}),
            },
            "trainer": {"type": "ppo", "batch_size": 4, "minibatches": 2, "epochs": 1, "response_tokens": 4},
            "data": {"prompts": ["one", "two", "three", "four"], "held_out": 0.0},
        },
        "r",
        "recipe",
    )


def test_it_is_gamma_times_the_mean_of_a_naive_loop(tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 9)
    auxiliary = make(path=str(tmp_path / "text.txt"), gamma=2.5, per_response=3, length=8)
    model = MODELS.build(LLAMA, vocab_size=258).double().eval()
    data = auxiliary.batch(4, 2)
    assert data["tokens"].shape == (2, 3, 9)
    losses = [
        -model(row[None, :-1])[0].log_softmax(-1)[i, row[i + 1]].item()
        for row in data["tokens"].flatten(0, 1)
        for i in range(8)
    ]
    (name, total), (other, count) = *auxiliary.loss(model, data).items(), *auxiliary.counts(data).items()
    assert name == other and count == len(losses) == 48
    assert total.item() / count == pytest.approx(2.5 * sum(losses) / len(losses), rel=1e-9)


def test_its_examples_are_a_function_of_the_step(tmp_path):
    first, second = make(), make()
    wanted = first.batch(7, 4)["tokens"]
    second.batch(2, 4)
    assert torch.equal(second.batch(7, 4)["tokens"], wanted)
    assert not torch.equal(first.batch(8, 4)["tokens"], wanted)
    assert Pretraining.Config().gamma == 27.8 and Pretraining.Config().per_response == 8


def test_the_held_out_part_is_never_seen(tmp_path):
    (tmp_path / "text.txt").write_text("a" * 900 + "b" * 100)
    auxiliary = make(path=str(tmp_path / "text.txt"), per_response=1)
    seen = torch.cat([auxiliary.batch(step, 20)["tokens"].flatten() for step in range(20)])
    assert set(seen.tolist()) == {ord("a")}
    assert isinstance(auxiliary._windows, Windows)


def gradients(trainer, step=0):
    key = Key((0, step))
    batch = next(iter(trainer.minibatches(trainer.collect(trainer.batch(step), key), key)))
    counts, terms = trainer.counts(batch), trainer.loss(batch)
    trainer.policy.zero_grad()
    sum(term / counts[name] for name, term in terms.items() if term.requires_grad).backward()
    return torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]), batch


def test_the_gradient_of_a_step_is_ppos_plus_gamma_times_that_of_pre_training():
    plain, _ = gradients(build_trainer(recipe()))
    both, batch = gradients(trainer := build_trainer(recipe(gamma=3.0, per_response=2)))
    tokens = batch["auxiliary/tokens"].flatten(0, 1)
    assert len(tokens) == 4  # a mini-batch of two responses
    trainer.policy.zero_grad()
    logits = trainer.policy(tokens[:, :-1])
    (3 * torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())).backward()
    ptx = torch.cat([p.grad.flatten() for p in trainer.policy.parameters()])
    assert ptx.norm() > 0.1 * plain.norm()
    torch.testing.assert_close(both, plain + ptx, rtol=1e-4, atol=1e-6)


def test_without_weight_nothing_changes():
    plain, _ = gradients(build_trainer(recipe()))
    none, _ = gradients(build_trainer(recipe(gamma=0.0)))
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-8)


def test_bad_options_are_refused():
    with pytest.raises(ContextError, match="13"):
        make(length=13)
    with pytest.raises(ConfigError, match=r"model\.auxiliary.*gamma"):
        build_trainer(recipe(gamma=-1.0))
