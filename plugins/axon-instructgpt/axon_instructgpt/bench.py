"""The bench that measures every policy of a report with the same prompts, rewards and sizes, and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core import Key
from axon_core.alignment import Scorer, is_finished, score_responses
from axon_core.interfaces import CausalLM
from axon_core.text import EncodedPrompt, Ranking, Tokenizer, line_names
from axon_instructgpt.frontier import win_rate
from axon_instructgpt.responses import every_response, logprobs, sampled, texts

__all__ = ["Bench", "Drawn", "Measured"]

_ENUMERABLE = 20_000  # responses to a prompt that are enumerated rather than sampled


@dataclass(frozen=True)
class Measured:
    """Measurements of a policy's responses; means over prompts.

    Errors are standard errors over prompts, as responses to one prompt are not independent; None for a single prompt.
    """

    reward: float
    """By the known reward."""
    kl: float
    """KL(policy ‖ reference) of a response, in nats."""
    kl_error: float | None
    """Its error."""
    length: float
    """Tokens of a response."""
    unfinished: float | None
    """The share of responses that were cut off before a token that ends them; None where there is none."""
    win_rate: float
    """How often a response beats one of the reference's by the known reward; equal ones count half."""
    win_rate_error: float | None
    """Its error."""
    model_reward: float | None
    """By the reward model."""
    model_win_rate: float | None
    """As `win_rate`, by the reward model."""
    model_win_rate_error: float | None
    """Its error."""


class Drawn(NamedTuple):
    """Responses to the prompts, and what they are worth."""

    tokens: list[list[list[int]]]
    rewards: Float[Tensor, "p n"]
    judged: Float[Tensor, "p n"] | None


@dataclass(frozen=True)
class Bench:
    """Draws responses and measures them.

    Attributes:
        reference: the model that the policies started from.
        tokenizer: the tokenizer of all models.
        prompts: the prompts to respond to.
        reward: the known reward.
        judge: the reward model, if there is one.
        responses: how many responses to draw for each prompt.
        response_tokens: the longest response.
        key: what all random numbers derive from.
    """

    reference: CausalLM
    tokenizer: Tokenizer
    prompts: Sequence[EncodedPrompt]
    reward: Scorer
    judge: Scorer | None
    responses: int
    response_tokens: int
    key: Key

    def base(self) -> Drawn:
        """Return responses of the reference, independent of those they are compared with."""
        return self._draw(self.reference, self.key("reference"), self.responses, self.judge)

    def draw(self, policy: CausalLM) -> Drawn:
        """Return responses of a policy; all policies use the same random numbers, which sharpens comparisons."""
        return self._draw(policy, self.key("policy"), self.responses, self.judge)

    def measure(self, policy: CausalLM, drawn: Drawn, base: Drawn) -> Measured:
        """Return measurements of a policy's responses, compared with the reference's."""
        kl, kl_error = _over_prompts(self.kl(policy, drawn).mean(1))
        wins, wins_error = _over_prompts(win_rate(drawn.rewards, base.rewards))
        responses = [response for some in drawn.tokens for response in some]
        judged = model_wins = model_error = None
        if drawn.judged is not None and base.judged is not None:
            judged = drawn.judged.mean().item()
            model_wins, model_error = _over_prompts(win_rate(drawn.judged, base.judged))
        cut_off = sum(not is_finished(self.tokenizer.ends, response) for response in responses) / len(responses)
        return Measured(
            reward=drawn.rewards.mean().item(),
            kl=kl,
            kl_error=kl_error,
            length=sum(map(len, responses)) / len(responses),
            unfinished=cut_off if self.tokenizer.ends else None,
            win_rate=wins,
            win_rate_error=wins_error,
            model_reward=judged,
            model_win_rate=model_wins,
            model_win_rate_error=model_error,
        )

    def kl(self, policy: CausalLM, drawn: Drawn) -> Float[Tensor, "p n"]:
        """Return log π − log π_ref of each response: on average KL(π ‖ π_ref)."""
        pairs = [
            (prompt, response) for prompt, some in zip(self.prompts, drawn.tokens, strict=True) for response in some
        ]
        ours, theirs = (logprobs(model, pairs, self.tokenizer.vocab_size) for model in (policy, self.reference))
        return (ours - theirs).view_as(drawn.rewards)

    def reference_distribution(self, pool: int) -> tuple[Float[Tensor, "p y"], Float[Tensor, "p y"], bool]:
        """Return rewards and probabilities of the reference's responses, and whether these are all there are.

        If there are too many, they are those of a `pool` of samples.
        """
        if min(self.reference.config.vocab_size, self.tokenizer.vocab_size) ** self.response_tokens > _ENUMERABLE:
            rewards = self._draw(self.reference, self.key("pool"), pool, judge=None).rewards
            return rewards, torch.full_like(rewards, 1 / pool), False
        found = [every_response(self.reference, p, self.tokenizer, self.response_tokens) for p in self.prompts]
        rewards = self._worth(self.reward, [responses for responses, _ in found])
        return rewards, torch.stack([probabilities for _, probabilities in found]), True

    def accuracy(self, scorer: Scorer, rankings: Sequence[Ranking], file: Path) -> float:
        """Return the share of the pairs in the rankings, read from `file`, that a reward orders as they do."""
        named = [*zip(line_names(rankings, file), (ranking.texts()[0] for ranking in rankings), strict=True)]
        written = [[ranking.responses[i] for i in ranking.ranking] for ranking in rankings]
        ends = [[i not in ranking.unfinished for i in ranking.ranking] for ranking in rankings]
        scores = score_responses(scorer, named, written, ends)
        i, j = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
        gaps = scores[:, i] - scores[:, j]
        return ((gaps > 0).double() + (gaps == 0).double() / 2).mean().item()

    def _draw(self, model: CausalLM, key: Key, n: int, judge: Scorer | None) -> Drawn:
        tokens = sampled(model, self.prompts, self.tokenizer, n=n, response_tokens=self.response_tokens, key=key)
        return Drawn(tokens, self._worth(self.reward, tokens), judge and self._worth(judge, tokens))

    def _worth(self, scorer: Scorer, tokens: Sequence[Sequence[Sequence[int]]]) -> Float[Tensor, "p n"]:
        written = [texts(self.tokenizer, *each) for each in zip(self.prompts, tokens, strict=True)]
        ends = [[is_finished(self.tokenizer.ends, response) for response in responses] for responses in tokens]
        return score_responses(scorer, [prompt.named for prompt in self.prompts], written, ends)


def _over_prompts(values: Float[Tensor, " p"]) -> tuple[float, float | None]:
    """Return the mean over prompts and its standard error, None for a single prompt."""
    error = (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None
    return values.mean().item(), error
