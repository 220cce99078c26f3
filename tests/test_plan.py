"""`axon plan`: what it says of memory, traffic and time is what arithmetic by hand, and the training itself, say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from axon_core import MODELS, TRAINERS, Trainer
from axon_core.checkpoint.weights import weightless
from axon_core.cli import main
from axon_core.nn import dropout_rows
from axon_core.training.build import build_bare_trainer, build_trainer
from axon_core.training.capacity.accelerators import ACCELERATORS, Accelerator, find_accelerator
from axon_core.training.capacity.estimate import Demand, RankLayout, estimate
from axon_core.training.capacity.plan import CapacityPlan, demand_of, layout_of
from axon_core.training.capacity.remedies import USABLE, remedies
from axon_core.training.capacity.tracing import KeptForBackward, trace
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.examples import resting, size
from axon_core.training.parallel.units import checkpoint_activations, sharding_units
from axon_core.training.planning import Plan
from axon_core.training.recipe import Recipe
from axon_core.training.train_state import TrainState

DEVICE = Accelerator(name="x", bf16=8e3, fp32=2e3, memory=1e6, bandwidth=100, inter_bandwidth=10, source="made up")


class Layers(nn.Module):
    """Three linear layers `(b 4) -> (b 8) -> (b 8) -> (b 2)`, of which the first two are units."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Fitting(Trainer):
    """Least squares."""

    trainable = ("model",)

    @classmethod
    def from_recipe(cls, recipe: Recipe, saved: Path | None = None) -> Fitting:
        return cls(cls.Config(batch_size=6), {"model": Layers()})

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"x": torch.ones(self.config.batch_size, 4), "y": torch.ones(self.config.batch_size, 2)}

    def counts(self, data: dict[str, Tensor]) -> Mapping[str, float]:
        return {"loss": len(data["x"])}

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": (self.models["model"](data["x"]) - data["y"]).square().sum()}


class Peeking(Fitting):
    """Its loss depends on a number that the model computes."""

    def loss(self, data: dict[str, Tensor]) -> Mapping[str, Tensor]:
        terms = super().loss(data)
        return terms if terms["loss"].item() < 1e9 else {}


def bare(kind: type[Fitting] = Fitting, **settings: Any) -> Fitting:
    with weightless():
        return kind(kind.Config(**{"batch_size": 6, **settings}), {"model": Layers()})


def demanded(trainer: Trainer, world: int = 1) -> Demand:
    demand, unknown = demand_of(trainer, world)
    assert not unknown
    return demand


def fsdp(shard: int, replicate: int = 1, **more: Any) -> RankLayout:
    return RankLayout("fsdp", replicate, shard, **more)


def test_a_linear_model_by_hand() -> None:
    demand = demanded(bare())
    numbers = [4 * 8 + 8, 8 * 8 + 8, 8 * 2]
    assert [group.weights for group in demand.groups] == [4 * n for n in numbers]
    work = demand.work
    assert work is not None and (work.examples, work.share, work.units, work.repeats) == (6, 6, 6, 1)
    products = [2 * 6 * 4 * 8, 2 * 6 * 8 * 8, 2 * 6 * 8 * 2]
    assert work.forward == sum(products) and work.recomputed == sum(products[:2])
    assert work.backward == 2 * sum(products) - products[0]  # the data need no gradient
    x, hidden, difference = 6 * 4 * 4, 6 * 8 * 4, 6 * 2 * 4
    assert work.flops == work.forward + work.backward + work.updates * work.update
    assert work.activations == x + 2 * hidden + difference
    assert work.checkpointed == work.activations  # linear layers keep nothing but their inputs

    found = estimate(demand, RankLayout("ddp", 4), DEVICE, 0.5)
    tensors = 5
    assert found.memory.model_dump() == {
        "weights": 4 * sum(numbers),
        "gradients": 4 * sum(numbers),
        "optimizer": 8 * sum(numbers) + 4 * tensors,
        "average": 0,
        "activations": round(work.activations * 2 / 6),  # two of the six examples
        "temporary": 0,
        "host": 0,
    }
    assert (found.share, found.flops) == (2, (work.forward + work.backward) // 3)
    assert found.traffic.total == found.traffic.all_reduce == 2 * 3 / 4 * 4 * sum(numbers)
    assert found.seconds is not None and found.flops is not None
    assert found.seconds.compute == found.flops / (0.5 * 2e3)
    assert found.seconds.communication == found.traffic.total / 100
    assert found.seconds.exposed == found.seconds.compute + found.seconds.communication
    assert found.seconds.overlapped == max(found.seconds.compute, found.seconds.communication)

    sharded = estimate(demand, fsdp(4, ranks_per_node=2), DEVICE, 0.5)
    rows = [2 * 4 + 2, 2 * 8 + 2, 8]  # of 8, 8 and 2 rows
    assert (sharded.memory.weights, sharded.memory.gradients) == (4 * sum(rows), 4 * sum(rows))
    assert sharded.memory.temporary == 4 * (numbers[2] + numbers[0] + numbers[1] + numbers[1])
    assert sharded.traffic.all_gather == 3 / 4 * 4 * (2 * numbers[0] + 2 * numbers[1] + numbers[2])
    assert sharded.traffic.reduce_scatter == 3 / 4 * 4 * sum(numbers)
    assert sharded.seconds is not None and sharded.seconds.communication == sharded.traffic.total / 10  # across nodes


def test_seven_billion_parameters_take_sixteen_bytes_each_and_a_share_of_them_on_each_rank() -> None:
    sizes = {"dim": 4096, "n_layers": 32, "n_heads": 32, "hidden_dim": 11008, "context": 4096}
    with weightless():
        model = MODELS.build({"type": "xllama", "attention": "MHA", **sizes}, vocab_size=32000)
    trainer = Fitting(Fitting.Config(), {"model": model})
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616  # arXiv 2302.13971, "7B"
    demand, unknown = demand_of(trainer, 1)
    assert "Layers" not in unknown and unknown  # a language model does not take these data
    tensors = len(list(model.parameters()))
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert demand.memory(1).total == 16 * 6_738_415_616 + 4 * tensors + buffers
    assert demand.memory(64).total == 16 * 6_738_415_616 // 64 + 4 * tensors + buffers
    assert len(demand.groups) == 33


def test_more_ranks_never_need_more_memory() -> None:
    demand = demanded(bare(batch_size=64))
    worlds = [1, 2, 3, 4, 8, 16, 64]
    for layouts in ([RankLayout("ddp", w) for w in worlds], [fsdp(w) for w in worlds]):
        totals = [estimate(demand, layout, DEVICE, 0.5).memory.total for layout in layouts]
        assert totals == sorted(totals, reverse=True)
    held = [demand.memory(w).total for w in worlds]
    assert all(total >= held[0] / w for total, w in zip(held, worlds, strict=True))


def test_copies_of_one_rank_are_ddp_and_one_copy_is_fsdp() -> None:
    demand = demanded(bare())
    ddp, copies = (estimate(demand, layout, DEVICE, 0.5) for layout in (RankLayout("ddp", 6), fsdp(1, 6)))
    assert copies.memory.model_copy(update={"temporary": 0}) == ddp.memory
    assert copies.traffic == ddp.traffic
    hybrid, whole = (estimate(demand, layout, DEVICE, 0.5) for layout in (fsdp(3, 2), fsdp(3)))
    assert demand.memory(3).total == hybrid.memory.model_copy(update={"temporary": 0, "activations": 0}).total
    assert hybrid.traffic.all_gather == whole.traffic.all_gather
    gradients = sum(group.gradients for group in demand.groups)
    assert hybrid.traffic.all_reduce == 2 * 1 / 2 * gradients / 3 and not whole.traffic.all_reduce


@pytest.mark.parametrize("key", [k for k in sorted(TRAINERS) if not issubclass(TRAINERS[k], DirectTrainer)])
def test_activations_are_those_of_the_training_itself(key: str) -> None:
    recipe = Recipe.of(TRAINERS[key].examples[0], "small", "small.toml")
    planned = build_bare_trainer(recipe)
    memory = demanded(planned).memory(1)
    work = trace(build_bare_trainer(recipe), [])
    real = build_trainer(recipe)
    dry = Plan.of(recipe, real, Path("run"))
    assert memory.weights >= dry.memory.weights  # a reference may have done its work before a dry run looks
    assert memory.optimizer == dry.memory.optimizer
    TrainState(real)  # freezes what is not trained
    data = real.batch(0)
    with resting(real):
        data = real.collect(data, key_of(real))
    minibatch = next(iter(real.minibatches(data, key_of(real))))
    for role in real.trainable:
        real.models[role].train(real.training_mode)
    with KeptForBackward(real.models.values()) as saved, dropout_rows(key_of(real), torch.arange(size(minibatch))):
        real.loss(minibatch)
    assert work.activations == pytest.approx(saved.total, rel=0.1)


def key_of(trainer: Trainer) -> Any:
    from axon_core import Key

    return Key((trainer.config.seed, 0))


def test_checkpointed_units_keep_what_enters_them() -> None:
    recipe = Recipe.of(
        {
            "model": {"type": "xllama", "dim": 16, "n_layers": 3, "n_heads": 2, "context": 8},
            "trainer": {"type": "causal_lm", "batch_size": 4},
            "data": {"held_out": 0.001},
        },
        "small",
        "small.toml",
    )
    trainer = build_trainer(recipe)
    units = sharding_units(trainer.models["model"])
    work = trace(trainer, units)
    with KeptForBackward(trainer.models.values(), units[:1]) as one:
        trainer.loss(trainer.batch(0))
    checkpoint_activations(units)
    with KeptForBackward(trainer.models.values()) as saved:
        trainer.loss(trainer.batch(0))
    inside = work.checkpointed - saved.total
    assert 0 < inside <= one.total and work.checkpointed < 0.7 * work.activations


def test_micro_batches_and_updates_count() -> None:
    demand = demanded(bare())
    assert demand.work is not None
    cut = replace(fsdp(2), micro_batches=3)
    whole, pieces = (estimate(demand, layout, DEVICE, 0.5) for layout in (fsdp(2), cut))
    assert pieces.memory.activations == round(demand.work.activations / 6)
    assert pieces.traffic.all_gather == 3 * whole.traffic.all_gather
    assert pieces.traffic.reduce_scatter == 3 * whole.traffic.reduce_scatter  # so that gradients stay sharded
    assert pieces.flops == whole.flops
    several = replace(demand, work=replace(demand.work, updates=2, repeats=2.0))
    again = estimate(several, fsdp(2), DEVICE, 0.5)
    assert again.flops == 2 * (whole.flops or 0) and again.traffic.total == 2 * whole.traffic.total


def test_every_remedy_is_one() -> None:
    demand = demanded(bare(batch_size=600))
    assert demand.work is not None
    demand = replace(demand, work=replace(demand.work, checkpointed=demand.work.activations // 4))
    layout = RankLayout("ddp", 2)
    needed = estimate(demand, layout, DEVICE, 1.0).memory.total
    small = DEVICE.model_copy(update={"memory": 0.5 * needed / USABLE})
    assert list(remedies(demand, layout, small)) == [
        "trainer.parallel.activation_checkpointing=true",
        "trainer.micro_batches=4",
        "8 ranks with trainer.parallel.strategy=fsdp",
    ]
    needs = {ranks: estimate(demand, fsdp(ranks), small, 1.0).memory.total for ranks in (4, 8)}
    assert needs[8] <= 0.5 * needed < needs[4]
    most = estimate(demand, fsdp(600), DEVICE, 1.0).memory.total  # one example a rank
    tight = DEVICE.model_copy(update={"memory": (most - 20) / USABLE})
    assert next(iter(remedies(demand, layout, tight))).startswith("trainer.parallel.strategy=fsdp and ")
    none = DEVICE.model_copy(update={"memory": 1.0})
    assert "no setting is enough" in next(iter(remedies(demand, layout, none)))


def test_what_cannot_be_traced_is_said_and_the_rest_is_planned() -> None:
    plan = CapacityPlan.of("it", bare(Peeking), RankLayout("ddp", 2), DEVICE, 0.5)
    assert (plan.memory.activations, plan.flops, plan.seconds, plan.examples) == (None, None, None, None)
    assert "DataDependentOutputException" in plan.unknown and plan.memory.weights == 4 * 128


def test_a_layout_follows_the_recipe() -> None:
    settings = Fitting.Config.model_validate({"parallel": {"strategy": "fsdp", "replicate": 2}, "micro_batches": 3})
    assert layout_of(settings, 8, 4) == fsdp(4, 2, micro_batches=3, ranks_per_node=4)


def test_devices_are_known_or_described() -> None:
    assert ACCELERATORS["h100"].flops("bf16") == 989.5e12 and ACCELERATORS["cpu"].flops("fp32") is None
    assert find_accelerator("a100-80", memory=1e9, flops=None).memory == 1e9
    own = find_accelerator(None, flops=1e12, memory=2e9)
    assert (own.flops("bf16"), own.flops("fp32"), own.bandwidth) == (1e12, 1e12, None)


def test_the_command_says_it_in_words_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "xllama-tiny", "--device", "h100", "--world", "4", "--strategy", "fsdp"]
    assert main(command) == 0
    text = capsys.readouterr().out
    for said in (
        "xllama-tiny on 4 × h100: fsdp, weights sharded over 4",
        "model model: XLlama, 617,600 parameters, trained",
        "a step: 12 examples, 768 tokens; a rank has at most 3",
        "at 40% of 989.5 TFLOP/s (bf16, dense): an assumption",
        "It fits.",
    ):
        assert said in text
    assert main([*command, "--json", "--replicate", "2", "--precision", "fp32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layout"]["replicate"], found["layout"]["shard"], found["precision"]) == (2, 2, "fp32")
    memory = found["memory"]
    assert memory["total"] == sum(memory[part] for part in memory if part not in ("total", "host"))
    assert found["traffic"]["total"] == pytest.approx(sum(v for k, v in found["traffic"].items() if k != "total"))
    assert found["seconds"]["overlapped"] <= found["seconds"]["exposed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h1000"], "--device must be one of a100-40, a100-80, h100, h200, b200, 4090, cpu, got 'h1000'"),
        ([], "name a device: --device a100-40"),
        (["--device", "h100", "--memory", "nan"], "memory"),
        (["--device", "h100", "--world", "6", "--strategy", "fsdp", "--replicate", "4"], "must divide the number"),
        (["--device", "h100", "--replicate", "2"], "replicate belongs to the strategy 'fsdp'"),
        (["--device", "h100", "--strategy", "zero"], "'zero' is not one of 'ddp', 'fsdp'"),
        (["--device", "h100", "--world", "0"], "--world"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "xllama-tiny", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_plan_that_does_not_fit_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--memory", "2e7", "--flops", "1e12", "--world", "16"]
    assert main(["plan", "xllama-tiny", *small]) == 0
    text = capsys.readouterr().out
    assert "It fits." in text and "warning: a step has 12 examples, fewer than the 16 ranks" in text
    assert "not known: give the device's --flops, --bandwidth and --inter-bandwidth" in text
    assert main(["plan", "xllama-tiny", "--memory", "2e7", "--flops", "1e12"]) == 0
    assert "It does not fit. To make it fit: trainer.parallel.activation_checkpointing=true" in capsys.readouterr().out
