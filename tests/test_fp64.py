"""Training in float64, `precision = "fp64"`: nothing is computed in less, and what differs is not rounding."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axon_core import TRAINERS
from axon_core.checkpoint.weights import dtypes
from axon_core.registry.discovery import discover
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.recipe import Recipe
from axon_core.training.trainer import Trainer

STEPS = 10
EXAMPLES = {
    f"{entry.key}-{number}": (entry.qualified, options)
    for entry in discover().entries("trainer")
    if not issubclass(TRAINERS[entry.qualified], DirectTrainer)
    for number, options in enumerate(TRAINERS[entry.qualified].examples)
}
examples = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


def build(example: tuple[str, Mapping[str, Any]], *overrides: str) -> Trainer:
    key, options = example
    given = ["trainer.precision=fp64", "trainer.device=cpu", f"trainer.steps={STEPS}", *overrides]
    torch.manual_seed(0)
    return TRAINERS[key].from_recipe(Recipe.of(options, "example", f"the example of {key}", given))


class Float64Alone(TorchDispatchMode):
    """Refuses every operation that returns real numbers in less than float64, other than a single one (a counter)."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim:
                assert tensor.dtype == torch.float64, f"{func} returns {tensor.dtype} of shape {tuple(tensor.shape)}"
        return out


class Watched:
    """A hook that computes losses, gradients and updates under `Float64Alone`, and looks at what enters and stays."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[str, Tensor] = {}
        loss, backward, mode = trainer.loss, Tensor.backward, Float64Alone()

        def watched_loss(data):
            with mode:
                terms = loss(data)
            for name, tensor in {**data, **terms}.items():
                assert not tensor.is_floating_point() or tensor.dtype == torch.float64, name
            return terms

        def watched_backward(tensor):
            with mode if tensor.dtype == torch.float64 else nullcontext():  # an evaluation may train in float32
                backward(tensor)

        monkeypatch.setattr(trainer, "loss", watched_loss)
        monkeypatch.setattr(Tensor, "backward", watched_backward)
        self._mode = mode

    @hook
    def fit_start(self, fit):
        update = fit.state.update

        def watched_update(factor):
            with self._mode:
                update(factor)

        fit.state.update = watched_update

    @hook
    def fit_end(self, fit):
        state = fit.state
        self.kept = {f"the weight {name}": parameter for name, parameter in state.parameters.items()}
        self.kept |= {f"the average of {name}": average for name, average in (state.average or {}).items()}
        for name, moments in state._moments().items():
            self.kept |= {f"{key} of {name}": value for key, value in moments.items() if value.ndim}


@examples
def test_everything_from_the_data_to_the_weights_is_float64(example, monkeypatch: pytest.MonkeyPatch):
    trainer = build(example, "trainer.steps=2", "trainer.ema=0.9", "trainer.optimizer.type=muon")  # AdamW for the rest
    watched = Watched(trainer, monkeypatch)
    fit(trainer, hooks=[watched])
    assert len(watched.kept) > 3
    assert {name: tensor.dtype for name, tensor in watched.kept.items() if tensor.dtype != torch.float64} == {}
    tensors = [tensor for model in trainer.models.values() for tensor in model.state_dict().values()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float64}


@examples
def test_the_weights_do_not_depend_on_the_micro_batches(example):
    whole = build(example)
    cut = build(example, f"trainer.micro_batches={min(3, whole.config.batch_size)}")
    start = {role: {name: x.clone() for name, x in model.state_dict().items()} for role, model in whole.models.items()}
    for trainer in (whole, cut):
        fit(trainer)
    for role in whole.trainable:
        mine, other = (trainer.models[role].state_dict() for trainer in (whole, cut))
        assert any(not torch.equal(mine[name], before) for name, before in start[role].items()), role
        for name, tensor in mine.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-12, atol=1e-12, msg=f"{role}.{name}: {{}}".format)


def test_a_run_is_saved_and_resumed_in_float64(tmp_path: Path):
    example = EXAMPLES["causal_lm-0"]
    straight, halves = build(example), build(example)
    fit(straight, tmp_path / "straight")
    fit(build(example), tmp_path / "halves", stop_at=4)
    fit(halves, tmp_path / "halves", resume=True)
    for name, tensor in straight.models["model"].state_dict().items():
        assert torch.equal(halves.models["model"].state_dict()[name], tensor), name
    assert dtypes(tmp_path / "halves/model/model.safetensors") == ["F64"]
