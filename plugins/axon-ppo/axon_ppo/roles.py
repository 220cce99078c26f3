"""The roles of alignment, built from a recipe: policy, value model, frozen reference, and reward."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from axon_core import Key, UsageError, at, config, validate
from axon_core.checkpoint import check_vocabulary, digest
from axon_core.interfaces import CausalLM, Model
from axon_core.registry import Spec
from axon_core.text import Tokenizer, check_room
from axon_core.training import InitialModel, Recipe, Saved, load_pretrained, tokenizer_difference
from axon_ppo.auxiliary import AUXILIARY_LOSSES, AuxiliaryLoss
from axon_ppo.prompts import PromptConfig, PromptData
from axon_ppo.reward import REWARDS, ModelReward, Reward
from axon_ppo.value import ValueModel

__all__ = ["Parts", "Roles", "build_roles", "check_roles", "check_tables", "checksum"]


class Roles(config.Config):
    """The `[model]` table of a recipe of `ppo`."""

    policy: dict[str, Any]
    """What is trained: `{init = …}` for a saved model, whose tokenizer is used too, or a new one by `type`."""
    value: Saved | None = None
    """What the value model starts from: a saved `CausalLM`, or a reward model; left out, the policy."""
    reward: Spec
    """What responses are worth, by `type`."""
    auxiliary: Spec | None = None
    """A further loss of the policy in the same update, by `type`."""


class Parts(NamedTuple):
    """What a trainer is made of."""

    models: dict[str, nn.Module]
    data: PromptData
    reward: Reward
    auxiliary: AuxiliaryLoss | None


def build_roles(recipe: Recipe, seed: int, saved: Path | None) -> Parts:
    """Return the parts that the tables `model` and `data` of a recipe describe.

    `saved` is what an earlier run of the recipe exported, together with its tokenizer.

    Raises:
        ConfigError: a table breaks a rule.
        UsageError: the value model's tokenizer differs from the policy's.
        DataError: the prompts cannot be used.
        CheckpointError: a saved model cannot be read.
    """
    with at("model"):
        roles = validate(Roles, recipe.model)
        with at("policy"):
            # A resumed run takes its policy from where it began: it is the reference.
            initial = InitialModel(roles.policy, None if "init" in roles.policy else saved)
    with at("data"):
        settings = validate(PromptConfig, recipe.data)
        records = settings.read()
        with at("tokenizer"):
            text = "".join(text for _, record in records for text in record.texts())
            tokenizer = initial.tokenizer(settings.tokenizer, text)
        named, template = (
            [(name, record.prompt) for name, record in records],
            settings.chat_template((record for _, record in records), tokenizer),
        )
        data = PromptData.of(named, tokenizer, settings.held_out, template, settings.validation)
    with at("model", "policy"):
        policy = initial.build(CausalLM, seed, tokenizer)
    with at("model"), Key((seed, "roles")).seeded("cpu"):
        reference = copy.deepcopy(policy)
        value = _value(policy, tokenizer, roles.value)
        with at("reward"):
            reward = REWARDS.build(roles.reward)
        auxiliary = None
        if roles.auxiliary is not None and isinstance(policy, CausalLM):
            with at("auxiliary"):
                given = {"tokenizer": tokenizer, "context": policy.config.context, "seed": seed}
                auxiliary = AUXILIARY_LOSSES.build(roles.auxiliary, **given)
    return Parts({"policy": policy, "value": value, "reference": reference}, data, reward, auxiliary)


def check_tables(recipe: Recipe) -> None:
    """Raise `ConfigError` or `UnknownKey` if the tables `model` and `data` break a rule, whatever the files."""
    with at("model"):
        roles = validate(Roles, recipe.model)
        with at("policy"):
            InitialModel.check(roles.policy)
        with at("reward"):
            REWARDS.config(roles.reward)
        if roles.auxiliary is not None:
            with at("auxiliary"):
                AUXILIARY_LOSSES.config(roles.auxiliary)
    with at("data"):
        validate(PromptConfig, recipe.data).check_template()


def _value(policy: nn.Module, tokenizer: Tokenizer, start: Saved | None) -> nn.Module:
    """Return a value model: a copy of the policy or a saved `CausalLM` with a new head, or a saved reward model."""
    model, other = (copy.deepcopy(policy), tokenizer) if start is None else load_pretrained(start.folder, Model)
    if problem := tokenizer_difference(tokenizer, other):
        raise UsageError(f"policy and value model must have the same tokenizer, but {problem}")
    return ValueModel(model) if isinstance(model, CausalLM) else model


def check_roles(models: Mapping[str, nn.Module], data: PromptData, reward: Reward, response_tokens: int) -> None:
    """Check that the roles understand the same tokens, and that every prompt and its response fit into each.

    Raises:
        UsageError: vocabularies or tokenizers differ.
        CheckpointError: the tokenizer has more tokens than the policy.
        ContextError: a prompt is too long; the message names it.
    """
    lms = {role: model.trunk if isinstance(model, ValueModel) else model for role, model in models.items()}
    lms = {role: model for role, model in lms.items() if isinstance(model, CausalLM)}
    policy = lms["policy"].config.vocab_size
    for role, model in lms.items():
        if (size := model.config.vocab_size) != policy:
            raise UsageError(
                f"all roles must have one vocabulary, got {policy} tokens for the policy and {size} for the {role}"
            )
    check_vocabulary(data.tokenizer, policy)
    if isinstance(reward, ModelReward) and (problem := tokenizer_difference(data.tokenizer, reward.tokenizer)):
        raise UsageError(f"policy and reward model must have the same tokenizer, but {problem}")
    for role, model in models.items():
        if isinstance(context := getattr(model, "context", None), int):
            check_room((*data.train, *data.held_out), response_tokens, context, role)


def checksum(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights and their names, which identifies the model."""
    return digest(model.state_dict())
