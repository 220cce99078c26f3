"""Rewards, in a registry of their own: what a response to a prompt is worth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, Self, cast, runtime_checkable

import torch
from pydantic import field_validator
from torch import nn

from axon_core import config
from axon_core.alignment import Sequences, encode_completion
from axon_core.interfaces import Model
from axon_core.registry import Registry
from axon_core.text import Tokenizer
from axon_core.training import named_model_folder

__all__ = ["REWARDS", "ModelReward", "Regex", "Reward"]


@runtime_checkable
class Reward(Protocol):
    """What responses are worth: any callable of texts, whose class has a `Config` if it is registered.

    If it has an attribute `judges_ends` that is true, it is also given, as `finished`, which responses ended by
    themselves, and with `reads_tokens`, as `prompt_tokens`, the tokens of the prompts
    (`axon_core.alignment.rewards.Scorer`).
    """

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Sequence[float]:
        """Return one finite number for each prompt and its response, which depends only on these two."""
        ...


class Regex:
    """How often a regular expression matches per character of the response."""

    class Config(config.Config):
        """What to look for."""

        pattern: str
        """The regular expression, in Python's syntax."""

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str) -> str:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern must be a regular expression, got {pattern!r} ({error})") from None
            return pattern

    def __init__(self, config: Config) -> None:
        self.config = config
        self._pattern = re.compile(config.pattern)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Return matches per character; an empty response is worth 0."""
        return [len(self._pattern.findall(text)) / max(1, len(text)) for text in responses]


class ModelReward:
    """Scores of a saved reward model: any registered `Model` that maps `(tokens, valid=…)`, `(b n)`, to scores `(b n)`.

    The score of a prefix is at its last token. A response's score is the one at its end: at `eos` if it ended with it.

    Attributes:
        model: the network, frozen; a trainer keeps it as the role `reward`.
        tokenizer: the one it was trained with.
    """

    class Config(config.Config):
        """Where the model is."""

        path: str
        """A run's folder or a model's; `~` and `$VARIABLES` are filled in."""

    judges_ends = True
    reads_tokens = True  # those of a rendered dialogue have markers, which its text has not

    def __init__(self, config: Config) -> None:
        folder = named_model_folder(config.path)
        self._take(Model.load(folder).float(), Tokenizer.load(folder))

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Tokenizer) -> Self:
        """Return the reward of a model that is already in memory."""
        reward = cls.__new__(cls)
        reward._take(model, tokenizer)
        return reward

    @property
    def context(self) -> int | None:
        """The longest text the model is meant for, if it says so."""
        context = getattr(self.model, "context", None)
        return context if isinstance(context, int) else None

    def _take(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        finished: Sequence[bool] | None = None,
        prompt_tokens: Sequence[Sequence[int]] | None = None,
    ) -> list[float]:
        """Return the scores at the ends of the responses; no `eos` follows one that is not `finished`.

        The tokens of the prompts are `prompt_tokens`; by default they are those of the texts.
        """
        tokens, ends = self.tokenizer, finished or [True] * len(prompts)
        asked = prompt_tokens or [tokens.encode_prompt(prompt) for prompt in prompts]
        pairs = [
            (prompt, encode_completion(tokens, response, finished=end))
            for prompt, response, end in zip(asked, responses, ends, strict=True)
        ]
        device = next(self.model.parameters()).device
        rows = Sequences.of(pairs).to(device)
        found = self.model(rows.tokens, valid=rows.valid)
        ends = rows.valid.sum(1) - 1
        return cast(list[float], found.gather(1, ends[:, None])[:, 0].tolist())


REWARDS: Registry[Reward] = Registry("reward", "axon_ppo.reward:Reward")
"""Rewards by key; a plugin adds one in the entry-point group `axon.v1.reward`: a class with a `Config`."""
