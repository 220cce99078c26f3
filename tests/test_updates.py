"""A step waits for the device once, and the next batch is built before that: with the same results, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_trainer import Toy

from axon_core.errors import DataError, TrainingError
from axon_core.training import examples, loop, updates
from axon_core.training.build import build_trainer
from axon_core.training.devices import to_device, works_apart
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.recipe import Recipe
from axon_core.training.run_folder import RunFolder
from axon_core.training.trainers import TRAINERS
from axon_core.training.updates import Update, UpdateNumbers, Updater, fetch, per

WAITS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__")


def _apart(monkeypatch: pytest.MonkeyPatch, apart: bool = True) -> None:
    """Let the loop treat the CPU as a device that computes while Python continues."""
    for module in (examples, updates):
        monkeypatch.setattr(module, "works_apart", lambda device: apart)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Axon's own code has read from tensors: on a GPU each would wait for all work before it."""
    found: list[str] = []

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **options: Any) -> Any:
            caller = sys._getframe(1).f_code
            if "axon" in Path(caller.co_filename).as_posix().rpartition("site-packages")[2]:
                found.append(f"{name} in {caller.co_name}")
            return original(*args, **options)

        return read

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
    return found


class Cut(Toy):
    """Three updates a step, whose counts are on the device."""

    def minibatches(self, data, key):
        return [{name: rows[i::3] for name, rows in data.items()} for i in range(3)]

    def counts(self, data):
        return {"loss": (data["tokens"][:, 1:] >= 0).sum()}

    def loss(self, data):
        logits = self.models["model"](data["tokens"][:, :-1]).flatten(0, 1)
        return {"loss": torch.nn.functional.cross_entropy(logits, data["tokens"][:, 1:].flatten(), reduction="sum")}


def test_a_step_waits_once_however_many_updates_it_has(waits: list[str], monkeypatch: pytest.MonkeyPatch):
    _apart(monkeypatch)

    class Between:
        @hook
        def fit_start(self) -> None:
            waits.clear()

        @hook
        def step_end(self) -> None:
            waits.append("end")

    trainer = Cut.make(steps=3, micro_batches=2, max_grad_norm=1.0, ema=0.9)
    trainer.evaluate = dict  # type: ignore[method-assign]
    fit(trainer, hooks=[Between()], progress=False)
    assert waits[: waits.index("end") * 3 + 3] == ["tolist in fetch", "end"] * 3


@pytest.mark.parametrize("key", [k for k in sorted(TRAINERS) if not issubclass(TRAINERS[k], DirectTrainer)])
def test_no_trainer_reads_from_the_device_in_an_update(key: str, waits: list[str], monkeypatch: pytest.MonkeyPatch):
    _apart(monkeypatch)
    update, read = Updater.update, list[str]()

    def watched(updater: Updater, *args: Any) -> Update:
        waits.clear()
        found = update(updater, *args)
        read.extend(waits)
        return found

    monkeypatch.setattr(Updater, "update", watched)
    for module in [module for name, module in sys.modules.items() if name.startswith("axon_")]:
        if vars(module).get("works_apart") is works_apart:  # as if on a GPU
            monkeypatch.setattr(module, "works_apart", lambda device: True)
    for example in TRAINERS[key].examples:
        tables = {**example, "trainer": {**example["trainer"], "steps": 2, "device": "cpu", "max_grad_norm": 1.0}}
        trainer = build_trainer(Recipe.of(tables, "example", "an example"))
        trainer.evaluate = dict  # type: ignore[method-assign]
        fit(trainer, stop_at=1, progress=False)
    assert read == []


@pytest.mark.parametrize("end", [None, 5])
@pytest.mark.parametrize("apart", [True, False])
def test_the_next_batch_is_built_before_the_device_is_waited_for(apart: bool, end: int | None, monkeypatch):
    told: list[Any] = []

    class Told(Cut):
        def batch(self, step):
            told.append(step)
            return super().batch(step)

    _apart(monkeypatch, apart)
    for module in (loop, updates):
        monkeypatch.setattr(module, "fetch", lambda updates: told.append("fetch") or fetch(updates))
    trainer, plain = Told.make(dropout=0.3), Cut.make(dropout=0.3)
    fit(trainer, stop_at=end)
    steps = end or 12
    one_by_one = [told for step in range(steps) for told in (step, *4 * ["fetch"])]  # on the CPU after each update, too
    assert told == ([0, *(x for step in range(1, steps) for x in (step, "fetch")), "fetch"] if apart else one_by_one)
    monkeypatch.undo()
    fit(plain, stop_at=end)
    assert trainer.digest() == plain.digest()


@pytest.mark.parametrize("ahead", [True, False])
def test_only_what_needs_no_models_is_collected_ahead(ahead: bool, monkeypatch: pytest.MonkeyPatch):
    class Noisy(Cut):
        collects_ahead = ahead

        def collect(self, batch, key):
            told.append(("collect", int(batch["step"][0])))
            assert not torch.is_grad_enabled() and not self.models["model"].training
            shift = torch.randint(9, batch["tokens"].shape, generator=key.generator())
            return {**batch, "tokens": (batch["tokens"] + shift) % 9}

    told: list[Any] = []
    _apart(monkeypatch)
    monkeypatch.setattr(loop, "fetch", lambda updates: told.append("fetch") or fetch(updates))
    trainer = Noisy.make(steps=2, dropout=0.3)
    fit(trainer)
    first, second = ("collect", 0), ("collect", 1)
    assert told == ([first, second, "fetch", "fetch"] if ahead else [first, "fetch", second, "fetch"])
    monkeypatch.undo()
    plain = Noisy.make(steps=2, dropout=0.3)
    fit(plain)
    assert trainer.digest() == plain.digest()


@pytest.mark.parametrize("apart", [True, False])
def test_an_error_of_a_batch_belongs_to_its_step(apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Ends(Toy):
        ends = True

        def batch(self, step):
            if step == 4 and self.ends:
                raise DataError("line 5 is damaged")
            return super().batch(step)

    class Steps:
        done = 0

        @hook
        def step_end(self) -> None:
            self.done += 1

    _apart(monkeypatch, apart)
    steps = Steps()
    with pytest.raises(DataError) as caught:
        fit(Ends.make(), tmp_path / "run", hooks=[steps])
    assert str(caught.value) == "line 5 is damaged" and "--resume" in "".join(caught.value.__notes__)
    assert steps.done == 4 and RunFolder.open(tmp_path / "run").checkpoints.names() == ["step-4"]
    resumed, whole = Ends.make(), Toy.make()
    resumed.ends = False
    fit(resumed, tmp_path / "run", resume=True)
    fit(whole)
    assert resumed.digest() == whole.digest()


@pytest.mark.parametrize("apart", [True, False])
def test_an_update_that_is_not_finite_is_made_on_a_gpu_alone(apart: bool, monkeypatch: pytest.MonkeyPatch):
    class Diverges(Cut):
        updates = 0

        def loss(self, data):
            self.updates += 1
            return {"loss": super().loss(data)["loss"] * (float("nan") if self.updates == 5 else 1)}

    _apart(monkeypatch, apart)
    trainer = Diverges.make(steps=2)
    with pytest.raises(TrainingError, match="the loss is not finite"):
        fit(trainer)
    weights = torch.cat([p.flatten() for p in trainer.models["model"].parameters()])
    assert bool(weights.isfinite().all()) != apart
    assert trainer.updates == (6 if apart else 5)


def test_what_is_fetched_is_what_was_computed():
    def update(x: float, count: float | Tensor, norm: float | None) -> Update:
        sums = {"a": torch.tensor(x), "b": torch.tensor(2 * x), "n": torch.tensor(3 * x)}
        counts = {"a": count, "b": 2.0, "n": 0}
        return Update(sums, counts, ("a", "b"), None if norm is None else torch.tensor(norm))

    assert fetch([update(6.0, torch.tensor(3), 0.5), update(1.0, 4.0, None)]) == [
        UpdateNumbers({"a": 2.0, "b": 6.0, "n": 18.0, "loss": 8.0, "grad_norm": 0.5}, 3.0),
        UpdateNumbers({"a": 0.25, "b": 1.0, "n": 3.0, "loss": 1.25}, 4.0),
    ]


@pytest.mark.parametrize("total", [1.0, 0.1, 1e8 / 3])
@pytest.mark.parametrize("count", [0, 1, 3, 1021, 65_537])
def test_a_count_on_the_device_divides_like_a_number(total: float, count: int):
    assert torch.equal(per(torch.tensor(total), torch.tensor(count)), per(torch.tensor(total), count))


def test_on_the_cpu_nothing_is_done_ahead_or_moved():
    rows = torch.ones(3)
    assert to_device(rows, "cpu") is rows
    assert [works_apart(device) for device in ("cpu", "cuda:1", "mps")] == [False, True, True]


@pytest.mark.parametrize("pieces", [1, 3])
def test_dropout_follows_the_numbers_of_the_examples(pieces):
    """A batch in another order gives the same update, if its rows bring their numbers along."""
    order = torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])

    class Ordered(Toy):
        def batch(self, step):
            return {**super().batch(step), "number": torch.arange(8)}

    class Shuffled(Ordered):
        def batch(self, step):
            return {name: rows[order] for name, rows in super().batch(step).items()}

    class Unnumbered(Shuffled):
        def batch(self, step):
            return {name: rows for name, rows in super().batch(step).items() if name != "number"}

    weights = []
    for kind in (Ordered, Shuffled, Unnumbered):
        trainer = kind.make(steps=3, dropout=0.3, precision="fp64", micro_batches=pieces)
        fit(trainer)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.models["model"].parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-12)
    assert (weights[2] - weights[0]).abs().max() > 1e-6
