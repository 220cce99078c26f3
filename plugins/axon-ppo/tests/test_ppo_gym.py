"""Gymnasium's spaces: which actions an environment is sent, and which vector its observations become."""

import copy

import numpy as np
import pytest
import torch

from axon_core import ConfigError, ContractError, fit
from axon_core.training import Recipe, build_trainer

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402

from axon_ppo.gym import Gymnasium  # noqa: E402
from axon_ppo.spaces import action_range, encoder  # noqa: E402

VECTOR, SEEN = spaces.Box(-1, 1, (2,), np.float32), np.array([0.25, -0.5], np.float32)


class Shown(gymnasium.Env):
    """Shows `shown`, in episodes of eight actions; an action of −1 earns 1."""

    sent = ()

    def __init__(self, action_space, observation_space=VECTOR, shown=SEEN):
        self.action_space, self.observation_space, self.shown = action_space, observation_space, shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return copy.deepcopy(self.shown), {}

    def step(self, action):
        Shown.sent = (*Shown.sent, action)
        self.age += 1
        return copy.deepcopy(self.shown), float(action == -1), False, self.age >= 8, {}


@pytest.fixture
def made():
    """Return what registers such an environment and returns its name."""
    names = []

    def make(*given, **options):
        names.append(f"Shown{len(names)}-v0")
        gymnasium.register(names[-1], lambda: Shown(*given, **options))
        Shown.sent = ()
        return names[-1]

    yield make
    for name in names:
        del gymnasium.registry[name]


def test_actions_begin_with_the_start_of_their_space(made):
    environment = Gymnasium(Gymnasium.Config(id=made(spaces.Discrete(3, start=-1))))
    assert environment.n_actions == 3
    environment.reset([1, 2, 3])
    assert environment.step(torch.tensor([0, 1, 2])).reward.tolist() == [1, 0, 0]
    assert Shown.sent == (-1, 0, 1)


def test_a_training_stays_within_the_space_and_finds_the_action_that_earns(made):
    tables = {
        "model": {"type": "perceptron", "hidden": [8]},
        "trainer": {"type": "ppo_control", "steps": 12, "batch_size": 4, "length": 16, "epochs": 4, "episodes": 2,
                    "optimizer": {"lr": 0.03}},
        "data": {"environment": {"type": "gymnasium", "id": made(spaces.Discrete(3, start=-1))}},
    }  # fmt: skip
    assert fit(build_trainer(Recipe.of(tables, "start", "a test"))).metrics["return"] == 8
    assert set(Shown.sent) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("space", "observation", "vector"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), np.array([0.5, 0, -1]), [0.5, 0, -1]),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([7, 255], np.uint8), [7, 255]),
        (spaces.Box(-1, 1, (), np.float32), np.array(0.5, np.float32), [0.5]),
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(3, start=-1), np.int64(-1), [1, 0, 0]),
        (spaces.Discrete(3, start=5), 7, [0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.MultiBinary((2, 2)), np.array([[1, 0], [0, 1]], np.int8), [1, 0, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiDiscrete([2, 3], start=[10, -1]), np.array([10, 1]), [1, 0, 0, 0, 1]),
        (spaces.Tuple((spaces.Discrete(2, start=1), VECTOR)), (2, np.array([0.5, 1], np.float32)), [0, 1, 0.5, 1]),
        (spaces.Dict({"b": VECTOR, "a": spaces.Dict({"c": spaces.Discrete(2)})}),
         {"a": {"c": 0}, "b": np.array([0.5, 1], np.float32)}, [1, 0, 0.5, 1]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_observed_as_a_vector(made, space, observation, vector):
    assert space.contains(observation)
    environment = Gymnasium(Gymnasium.Config(id=made(spaces.Discrete(2), space, observation)))
    assert environment.n_observed == len(vector)
    first = environment.reset([0, 1])
    assert first.dtype == torch.float32 and first.tolist() == [vector, vector]
    assert environment.step(torch.tensor([0, 1])).observation.tolist() == [vector, vector]


@pytest.mark.parametrize(
    "space", [spaces.MultiBinary(3), spaces.MultiDiscrete([2, 2]), spaces.Tuple([spaces.Discrete(2)]),
    spaces.Dict(a=spaces.Discrete(2)), VECTOR], ids=str,
)  # fmt: skip
def test_other_actions_are_refused_by_name(made, space):
    with pytest.raises(ConfigError, match=r"id: Shown0-v0 cannot be played: actions must be Discrete") as caught:
        Gymnasium(Gymnasium.Config(id=made(space)))
    assert f"got {space}; wrap the environment" in str(caught.value)


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2, 2)), spaces.Text(3), spaces.Sequence(VECTOR),
    spaces.Graph(VECTOR, None), spaces.OneOf([VECTOR])], ids=str)  # fmt: skip
def test_other_observations_are_refused_by_name(made, space):
    for whole in (space, spaces.Tuple((VECTOR, space)), spaces.Dict(part=space)):
        with pytest.raises(ConfigError, match="cannot be played: an observation must be a Box of") as caught:
            Gymnasium(Gymnasium.Config(id=made(spaces.Discrete(2), whole)))
        assert f"got {space}; wrap the environment" in str(caught.value)


def test_sizes_beyond_reason_are_refused():
    with pytest.raises(ValueError, match=r"a vector of 1 to 1,048,576 numbers, got 1,000,000,000: Discrete"):
        encoder(spaces.Discrete(10**9))
    with pytest.raises(ValueError, match=r"a vector of 1 to 1,048,576 numbers, got 0"):
        encoder(spaces.Tuple(()))
    with pytest.raises(ValueError, match="at most 1,048,576 actions, got Discrete"):
        action_range(spaces.Discrete(10**9))


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (spaces.Discrete(3, start=1), 0),
        (spaces.Discrete(3), 3),
        (spaces.Discrete(3), "left"),
        (spaces.MultiDiscrete([2, 2]), np.array([0, -1])),
        (VECTOR, np.zeros(3, np.float32)),
        (VECTOR, "left"),
        (spaces.Tuple((VECTOR, VECTOR)), (np.zeros(2, np.float32),)),
        (spaces.Dict(a=VECTOR), {"b": np.zeros(2, np.float32)}),
    ],
    ids=str,
)
def test_an_observation_outside_its_space_is_named(space, observation):
    gymnasium.register("Outside-v0", lambda: Shown(spaces.Discrete(2), space, observation), disable_env_checker=True)
    try:
        environment = Gymnasium(Gymnasium.Config(id="Outside-v0"))
        with pytest.raises(ContractError, match=r"Outside-v0 must return observations of its space, .*, got"):
            environment.reset([0])
    finally:
        del gymnasium.registry["Outside-v0"]
