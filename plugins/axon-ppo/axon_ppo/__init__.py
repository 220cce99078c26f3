"""Proximal policy optimisation (arXiv 1707.06347), of language models and in environments with discrete actions."""

from axon_ppo.auxiliary import AUXILIARY_LOSSES, AuxiliaryLoss
from axon_ppo.control import ControlTrainer
from axon_ppo.environment import ENVIRONMENTS, Environment, Transition
from axon_ppo.maths import clipped_surrogate, clipped_value_loss, gae, k1, k2, k3, whiten
from axon_ppo.perceptron import Perceptron
from axon_ppo.prompts import PromptData
from axon_ppo.reward import REWARDS, ModelReward, Reward
from axon_ppo.trainer import PPOTrainer
from axon_ppo.value import ValueModel

__all__ = [
    "AUXILIARY_LOSSES",
    "ENVIRONMENTS",
    "REWARDS",
    "AuxiliaryLoss",
    "ControlTrainer",
    "Environment",
    "ModelReward",
    "PPOTrainer",
    "Perceptron",
    "PromptData",
    "Reward",
    "Transition",
    "ValueModel",
    "clipped_surrogate",
    "clipped_value_loss",
    "gae",
    "k1",
    "k2",
    "k3",
    "whiten",
]
