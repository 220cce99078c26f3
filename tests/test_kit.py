"""The conformance kit passes healthy parts and says what is wrong with others; every check catches a part."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from healthy_parts import Guess, Healthy, Plain, RootMeanSquare, Rotating, Tiny, Unmoved
from pydantic import Field
from test_kit_catches_attention import SeesTheFuture
from test_kit_catches_rotary import Stretched, WithBase
from torch import Tensor, nn
from torch.nn.functional import dropout

from axon_core.errors import ContractError
from axon_core.interfaces.attention import Attention
from axon_core.interfaces.cache import LayerCache, StateSpec
from axon_core.interfaces.rotary_embedding import RotaryEmbedding
from axon_core.interfaces.scope import Scope
from axon_core.nn.attention import attend
from axon_core.randomness import Key
from axon_core.testing import examine
from axon_core.testing.suites import suites
from axon_core.training.trainer import Trainer


class DropsOut(Healthy):
    """Dropout where it belongs, with the usual rate and one that drops nearly everything."""

    examples = ({}, {"dropout": 0.9})

    class Config(Attention.Config):
        dropout: float = Field(0.1, description="Share of the values that are dropped in training.")

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return dropout(super().mix(q, k, v, scope), self.config.dropout, self.training)


class DropsFeatures(Tiny):
    def logits(self, features: Tensor) -> Tensor:
        return super().logits(dropout(features, 0.5, self.training))


class KeepsZeros(Healthy):
    """A state whose entries happen to be zero."""

    def keep(self, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        cache.append(gate=torch.zeros(*k.shape[:2], 1))
        return super().keep(cache, k, v)

    def state(self) -> Mapping[str, StateSpec]:
        return {**super().state(), "gate": StateSpec((1,))}


class GatesItsMemory(Healthy):
    """A parameter for cross-attention alone."""

    def __init__(self, config: Attention.Config, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__(config, rotary)
        self.gate = nn.Parameter(torch.ones(config.dim))

    def forward(
        self, x: Tensor, scope: Scope, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        out = super().forward(x, scope, memory=memory, cache=cache)
        return out if memory is None else self.gate * out


class HasAWindow(Healthy):
    """The first example's window is never reached; that of the second is."""

    examples = ({}, {"window": 4})
    cross = False

    class Config(Attention.Config):
        window: int = Field(4096, description="How many tokens a query reaches back to.")

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return attend(q, k, v, scope, narrow=lambda query, key: (query - key).abs() < self.config.window)

    def state(self) -> Mapping[str, StateSpec]:
        return {name: StateSpec(kept.shape, window=self.config.window) for name, kept in super().state().items()}


class KnowsFewWords(Tiny):
    examples = ({"vocab_size": 5},)


class StretchesEarly(Stretched):
    """Constant up to a length below that of every test."""

    examples = tuple({"start": start} for start in (1, 3, 7, 8))

    class Config(RotaryEmbedding.Config):
        start: int = Field(8, description="Length from which on the base grows.")

    def length(self, positions: Tensor) -> Tensor:
        return super().length(positions) * self.config.context / self.config.start

    @property
    def constant_until(self) -> int | None:
        return self.config.start


class KeepsAList(Guess):
    """State of every kind that is allowed."""

    def __init__(self, config: Trainer.Config, models: Mapping[str, nn.Module]) -> None:
        super().__init__(config, models)
        self.state: dict[str, Any] = {"seen": [1, [torch.arange(3), "a"], None], "rate": 0.5, "done": False, "none": []}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class CutsByItsKey(Guess):
    def minibatches(self, data: dict[str, Tensor], key: Key) -> Iterable[dict[str, Tensor]]:
        order = torch.randperm(len(data["y"]), generator=key.generator())
        return [{name: rows[i] for name, rows in data.items()} for i in order.split(2)]


class Forgets(Healthy):
    """The weight of a token fades with the slots since; padding inside a row, which caches refuse, would count."""

    cross = False

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        m, n = k.shape[1], q.shape[1]
        slots = torch.arange(m)
        faded = 0.3 * (slots - slots[m - n :, None]).to(q.dtype)
        return attend(q, k, v, scope, bias=lambda query, key: -faded.abs())


class RotatesThreeLayersOfFour(Healthy):
    """Layer 1 has no positions on purpose, and is handed the rotary embedding all the same."""

    def rotate(self, scope: Scope, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return (q, k) if self.config.layer % 4 == 1 else super().rotate(scope, q, k)


class KeepsNothing(Healthy):
    """A state of size zero, such as that of an option that is off."""

    def state(self) -> Mapping[str, StateSpec]:
        return {**super().state(), "shared": StateSpec((0, 4)), "sum": StateSpec((0,), per_token=False)}


class Steep(Healthy):
    """A right gradient of a function that is far from linear over a long step."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return 3 * (4 * super().mix(3 * q, k, v, scope)).sin()


class SquashesInFloat32(RootMeanSquare):
    """Computes in float32 whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.scale(x.float())).tanh().to(x.dtype) * self.weight


HEALTHY = [Healthy, DropsOut, KeepsZeros, GatesItsMemory, HasAWindow, Plain, WithBase, Stretched, StretchesEarly]
HEALTHY += [RootMeanSquare, Tiny, Rotating, DropsFeatures, KnowsFewWords, Guess, Unmoved, KeepsAList]
HEALTHY += [CutsByItsKey, Forgets, RotatesThreeLayersOfFour, KeepsNothing, Steep, SquashesInFloat32]


@pytest.mark.parametrize("healthy", HEALTHY)
def test_a_healthy_part_passes(healthy: type[Any]) -> None:
    assert examine(healthy) == {}


def test_every_check_catches_a_part_that_is_broken_where_it_looks() -> None:
    files = Path(__file__).parent.glob("test_kit_catches_*.py")
    rows = [row for file in files for row in importlib.import_module(file.stem).ROWS]
    for suite in suites():
        caught = {caught_by for broken, caught_by, _ in rows if issubclass(broken, suite.interface)}
        assert {check.name for check in suite.checks} <= caught, suite.interface


class LeaksThroughItsDropout(DropsOut):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
        return super().mix(q, k, v + v[:, -1:] if self.training else v, scope)


def test_dropout_hides_no_leak() -> None:
    failures = examine(LeaksThroughItsDropout)
    assert failures.keys() == {"causal"}
    assert "input: tokens from 1 on replaced, in training mode; results before 1" in failures["causal"]


def test_every_example_counts() -> None:
    class FirstExampleBreaks(Healthy):
        examples = ({"window": 2}, {})

        class Config(Attention.Config):
            window: int = Field(0, description="Breaks causality where it is not 0.")

        def mix(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Tensor:
            return SeesTheFuture.mix(self, q, k, v, scope) if self.config.window else attend(q, k, v, scope)

    assert "FirstExampleBreaks[window=2] breaks the rule 'causal'" in examine(FirstExampleBreaks)["causal"]


def test_part_that_cannot_be_built_says_where_to_give_its_options() -> None:
    class NeedsAWidth(Healthy):
        class Config(Attention.Config):
            width: int = Field(description="Has no default.")

    failures = examine(NeedsAWidth)
    assert (
        "found: width: this field is required; give working options in the class attribute `examples`"
        in failures["causal"]
    )
    assert examine(NeedsAWidth, width=3) == {}


def test_failure_says_what_broke_on_which_input_with_which_values_and_why() -> None:
    lines = examine(SeesTheFuture)["causal"].splitlines()
    assert lines[0] == (
        "SeesTheFuture breaks the rule 'causal': In a causal scope, no token's result depends on later tokens, "
        "in training mode too."
    )
    assert lines[1] == "  input: tokens from 1 on replaced, in evaluation mode; results before 1"
    assert lines[2].startswith("  found: ")
    assert " instead of " in lines[2]
    assert "; difference " in lines[2]
    assert lines[3].startswith("  usual cause: a missing mask")


def test_part_that_raises_says_on_which_input() -> None:
    class TakesNoPadding(Tiny):
        def scope(self, tokens: Tensor, valid: Tensor | None, documents: Tensor | None) -> Scope:
            if valid is not None:
                raise ValueError("no padding")
            return super().scope(tokens, valid, documents)

    lines = examine(TakesNoPadding)["padding"].splitlines()
    assert lines[1] == "  input: building or running it, with tokens (3, 9), side 'left', valid (3, 9)"
    assert lines[2] == "  found: it raised ValueError: no padding"


def test_trainer_without_an_example_is_a_failure_not_a_pass() -> None:
    class NoExample(Guess):
        examples = ()

    assert examine(NoExample).keys() == {"examples"}


def test_class_of_no_interface_is_refused() -> None:
    with pytest.raises(ContractError, match="Linear must implement an interface of the kit, and implements none"):
        examine(nn.Linear)
