"""The checks of every trainer."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_core.randomness import Key
from axon_core.testing import modules
from axon_core.testing.kit import Broken, PartUnderTest, Suite, expect, same
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.recipe import Recipe
from axon_core.training.trainer import Trainer

SUITE = Suite(Trainer)
STEP = 3
_AGAIN = 4  # an order drawn again may be the same by chance
_ROUNDING = 1e-9  # a smaller sum may be zero, such as the KL divergence of a policy that has not changed yet


def build(part: PartUnderTest, saved: Path | None = None) -> Trainer:
    """Build the trainer of an example recipe, with its models in evaluation mode and their parameters perturbed."""
    torch.manual_seed(0)
    recipe = Recipe.of(part.options, "example", f"the example of {part.name}", ["trainer.device=cpu"])
    trainer = part.cls.from_recipe(recipe, saved)
    for model in trainer.models.values():
        modules.stirred(model.eval())
    return trainer


def collected(trainer: Trainer, step: int = STEP) -> dict[str, Tensor]:
    """Return the data that a step learns from."""
    key = Key((trainer.config.seed, step))("collect")
    key.seed_global()
    with torch.no_grad():
        return trainer.collect(trainer.batch(step), key)


def minibatch(trainer: Trainer) -> dict[str, Tensor]:
    """Return the first mini-batch of a step's data."""
    return next(iter(trainer.minibatches(collected(trainer), Key((trainer.config.seed, STEP))("minibatches"))))


def terms_of(trainer: Trainer, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the sums of a mini-batch: of the loss, or of an update without gradients."""
    if isinstance(trainer, DirectTrainer):
        with torch.no_grad():
            return trainer.update(data, Key((trainer.config.seed, STEP))("update"))
    return trainer.loss(data)


def updated(trainer: DirectTrainer) -> None:
    """Make an update. Its sums have the names of the counts, and are finite."""
    data = minibatch(trainer)
    counts, sums = trainer.counts(data), terms_of(trainer, data)
    expect(counts.keys() == sums.keys(), "the names of counts and of an update's sums", f"{[*counts]} and {[*sums]}")
    for name, value in sums.items():
        expect(bool(value.isfinite().all()), f"the sum {name!r} of an update", f"{value}")


def pieces(data: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Cut data into its first example and the rest."""
    return [{name: rows[cut] for name, rows in data.items()} for cut in (slice(0, 1), slice(1, None))]


@SUITE.check("a field of a type that JSON lacks, or a default that depends on more than the fields")
def config_json(part: PartUnderTest) -> None:
    """The config round-trips through JSON, and each of its fields has a description."""
    modules.config_round_trip(build(part).config)
    modules.fields_described(part.cls.Config)


@SUITE.check("a misspelt role in `trainable`, or a frozen model that is the trained one instead of a copy")
def roles(part: PartUnderTest) -> None:
    """Each trainable role has a model, and shares no parameter with a frozen model."""
    trainer = build(part)
    found = f"trainable {list(trainer.trainable)}, models {list(trainer.models)}"
    expect(bool(trainer.trainable) and set(trainer.trainable) <= trainer.models.keys(), "the example recipe", found)
    trained = {id(p): role for role in trainer.trainable for p in trainer.models[role].parameters()}
    for role in trainer.models.keys() - set(trainer.trainable):
        for name, parameter in trainer.models[role].named_parameters():
            other = trained.get(id(parameter))
            expect(other is None, f"the frozen model {role!r}", f"its parameter {name!r} also belongs to {other!r}")


@SUITE.check("an iterator or a generator that is advanced by each call")
def batch(part: PartUnderTest) -> None:
    """The batch of a step is a function of the step alone, and all its tensors have one row per example."""
    trainer, other = build(part), build(part)
    want = trainer.batch(STEP)
    sizes = {name: len(rows) for name, rows in want.items()}
    expect(len(set(sizes.values())) == 1, f"batch({STEP})", f"rows: {sizes}")
    trainer.batch(0)
    _same_data(trainer.batch(STEP), want, f"batch({STEP}) after batch(0)")
    _same_data(other.batch(STEP), want, f"batch({STEP}) of another instance, as the first call")
    alike = all(torch.equal(rows, want[name]) for name, rows in trainer.batch(STEP + 1).items())
    expect(not alike, f"batch({STEP}) and batch({STEP + 1})", "they are the same")


@SUITE.check("random numbers that do not come from the key")
def collect(part: PartUnderTest) -> None:
    """The data that a step learns from depend on the batch and the key alone."""
    trainer = build(part)
    want = collected(trainer)
    collected(trainer, STEP + 1)
    _same_data(collected(trainer), want, f"step {STEP} collected again, after step {STEP + 1}")


@SUITE.check("roll-outs or the like declared as `collects_ahead`, which is for what needs no models, such as noise")
def collects_ahead(part: PartUnderTest) -> None:
    """What is collected ahead, while the previous step is still being computed, does not depend on the weights."""
    trainer = build(part)
    if not trainer.collects_ahead:
        return
    want = collected(trainer)
    for model in trainer.models.values():
        modules.stirred(model)
    _same_data(collected(trainer), want, "the same step collected with other weights")


@SUITE.check("an order that does not come from the key, such as that of `random.shuffle`")
def minibatches(part: PartUnderTest) -> None:
    """The mini-batches and their order depend on the data and the key alone."""
    trainer = build(part)
    data, key = collected(trainer), Key((trainer.config.seed, STEP))("minibatches")
    want = list(trainer.minibatches(data, key))
    for again in range(_AGAIN):
        got = list(trainer.minibatches(data, key))
        expect(
            len(got) == len(want), "the same data cut again with the same key", f"{len(got)} pieces, not {len(want)}"
        )
        for i, (one, other) in enumerate(zip(got, want, strict=True)):
            _same_data(one, other, f"mini-batch {i} of {len(want)}, cut again with the same key ({again + 1})")


@SUITE.check("a mean returned instead of a sum, or a batch statistic in the loss")
def additive(part: PartUnderTest) -> None:
    """Losses and counts are sums over the examples, with the same names, so that micro-batches do not matter."""
    trainer = build(part)
    data = minibatch(trainer)
    if isinstance(trainer, DirectTrainer):
        updated(trainer)
        return
    counts, losses = trainer.counts(data), trainer.loss(data)
    expect(counts.keys() == losses.keys(), "the names of counts and of losses", f"{[*counts]} and {[*losses]}")
    on = "a mini-batch, against its first example plus the rest"
    for name, loss in losses.items():
        parts = torch.stack([trainer.loss(piece)[name].detach() for piece in pieces(data)])
        whole = torch.stack((loss.detach(), *parts))  # if the parts cancel, rounding depends on their size
        if float(whole.abs().max()) > _ROUNDING:
            same(torch.stack((parts.sum(), *parts)), whole, f"{on}; loss {name!r}")
        found = sum(trainer.counts(piece)[name] for piece in pieces(data))
        expect(math.isclose(found, counts[name], rel_tol=1e-6), f"{on}; count {name!r}", f"{found}, not {counts[name]}")


@SUITE.check("an in-place operation on the data, which later epochs read again, or an entry added to them")
def inputs_unchanged(part: PartUnderTest) -> None:
    """`collect`, `minibatches`, `counts` and `loss` do not change their data."""
    trainer = build(part)
    key = Key((trainer.config.seed, STEP))
    examples, data = trainer.batch(STEP), collected(trainer)
    micro = minibatch(trainer)
    for name, given, run in (
        ("collect", examples, lambda: trainer.collect(examples, key("collect"))),
        ("minibatches", data, lambda: list(trainer.minibatches(data, key("minibatches")))),
        ("counts", micro, lambda: trainer.counts(micro)),
        ("loss", micro, lambda: terms_of(trainer, micro)),
    ):
        names = [*given]
        modules.unchanged(run, f"the input of {name}", given)
        expect([*given] == names, f"the input of {name}", f"{[*given]} instead of {names}")


@SUITE.check(
    "a call of `eval()` or `train()`; the class attribute `training_mode` says which mode the loss is computed in"
)
def modes(part: PartUnderTest) -> None:
    """A step leaves every model in the mode that the loop has set."""
    trainer = build(part)
    for training in (True, False):
        data = minibatch(trainer)
        for model in trainer.models.values():
            model.train(training)
        key = Key((trainer.config.seed, STEP))
        next(iter(trainer.minibatches(data, key("minibatches"))))
        trainer.counts(data)
        terms_of(trainer, data)
        for role, model in trainer.models.items():
            expect(model.training == training, f"the mode of model {role!r}", f"training is {model.training}")


@SUITE.check("padding or masked examples counted, or an empty mask")
def positive_counts(part: PartUnderTest) -> None:
    """Every term of the loss has a positive, finite count."""
    trainer = build(part)
    for name, count in trainer.counts(minibatch(trainer)).items():
        expect(0.0 < float(count) < math.inf, f"the count of {name!r} in a mini-batch", f"{count}")


@SUITE.check("a loss computed without gradients, or a trainable model that the loss does not use")
def gradient(part: PartUnderTest) -> None:
    """Every trainable model has a finite gradient, or is changed by an update without gradients."""
    trainer = build(part)
    if isinstance(trainer, DirectTrainer):
        before = {role: copy.deepcopy(trainer.models[role].state_dict()) for role in trainer.trainable}
        updated(trainer)
        for role, old in before.items():
            new = trainer.models[role].state_dict()
            alike = all(torch.equal(new[name], value) for name, value in old.items())
            expect(not alike, f"model {role!r} after an update", "nothing in it has changed")
        return
    for role, model in trainer.models.items():  # as the loop does
        model.requires_grad_(role in trainer.trainable)
    terms = trainer.loss(minibatch(trainer))
    minimised = [term for term in terms.values() if term.requires_grad]
    expect(bool(minimised), "the loss of a mini-batch", f"none of its terms {[*terms]} has a gradient")
    torch.stack(minimised).sum().backward()
    for role in trainer.trainable:
        found = [p.grad for p in trainer.models[role].parameters() if p.grad is not None and p.grad.any()]
        expect(bool(found), f"the gradient of model {role!r}", "there is none")
        expect(all(bool(g.isfinite().all()) for g in found), f"the gradient of model {role!r}", "it is not finite")


@SUITE.check("an evaluation on a random sample, or one that trains")
def evaluate(part: PartUnderTest) -> None:
    """Evaluation returns the same finite numbers each time, and does not change the models."""
    trainer = build(part)
    before = {role: copy.deepcopy(model.state_dict()) for role, model in trainer.models.items()}
    with torch.no_grad():
        first, second = trainer.evaluate(), trainer.evaluate()
    expect(first == second, "two evaluations", f"{first} and {second}")
    for name, value in first.items():
        expect(math.isfinite(value), f"metric {name!r}", f"{value}")
    for role, model in trainer.models.items():
        _same_data(model.state_dict(), before[role], f"model {role!r} after an evaluation")


@SUITE.check("state that `state_dict` leaves out or `load_state_dict` ignores")
def state_dict(part: PartUnderTest) -> None:
    """The trainer's own state consists of tensors, numbers and strings, and another instance can load it."""
    trainer, other = build(part), build(part)
    for step in range(2):
        terms_of(trainer, next(iter(trainer.minibatches(collected(trainer, step), Key((step,))))))
    state = trainer.state_dict()
    _plain(state, "state_dict")
    other.load_state_dict(copy.deepcopy(state))
    _same_state(other.state_dict(), state, "state_dict")


@SUITE.check("a file that is not written, or that is made again instead of read")
def export(part: PartUnderTest) -> None:
    """Its export suffices to build it again from the same recipe, with the same examples."""
    trainer = build(part)
    with tempfile.TemporaryDirectory() as folder:
        trainer.export(Path(folder))
        expect(any(Path(folder).iterdir()), "the folder it exports into", "it is empty")
        again = build(part, Path(folder))
    _same_data(again.batch(STEP), trainer.batch(STEP), f"batch({STEP}) of the trainer built from its export")


def _same_data(got: dict[str, Tensor], want: dict[str, Tensor], on: str) -> None:
    if got.keys() != want.keys():
        raise Broken(on, f"{sorted(got)} instead of {sorted(want)}")
    for name, rows in want.items():
        same(got[name], rows, f"{on}; {name!r}", tolerance=0)


def _inside(value: Any) -> dict[Any, Any]:
    """Return the values of a dictionary by key or of a list by index, and nothing for anything else."""
    if isinstance(value, dict):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType]
    return dict(enumerate(value)) if isinstance(value, list | tuple) else {}  # pyright: ignore[reportUnknownArgumentType]


def _plain(value: Any, path: str) -> None:
    if not isinstance(value, dict | list | tuple | Tensor | int | float | str | bool | None):
        raise Broken(path, f"it is a {type(value).__name__}")
    for key, inner in _inside(value).items():
        _plain(inner, f"{path}[{key!r}]")


def _same_state(got: Any, want: Any, path: str) -> None:
    on, inside = f"{path} of a trainer that loaded another's", _inside(want)
    if type(got) is not type(want) or _inside(got).keys() != inside.keys():
        raise Broken(on, f"{got!r} instead of {want!r}")
    if isinstance(want, Tensor):
        alike = got.dtype == want.dtype and torch.equal(got, want)
        expect(alike, on, f"{got!r} instead of {want!r}")
    elif not inside:
        expect(got == want, on, f"{got!r} instead of {want!r}")
    for key, inner in inside.items():
        _same_state(_inside(got)[key], inner, f"{path}[{key!r}]")
