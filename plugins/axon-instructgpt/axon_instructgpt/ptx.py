"""The auxiliary loss `pretraining`: PPO-ptx, in which a policy keeps learning the texts it was pre-trained on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from axon_core import ContextError, Count, Key, config
from axon_core.alignment import token_logprobs
from axon_core.checkpoint import digest
from axon_core.interfaces import CausalLM
from axon_core.text import Tokenizer, Windows, read_text, split_text

__all__ = ["Pretraining"]

_NAME = "loss/ptx_avg"


class Pretraining:
    """γ · the mean of −log p(token | tokens before it) over a text, minimised in the same updates as PPO's loss.

    The second term of arXiv 2203.02155, Section 3.5, Eq. 2. γ multiplies the mean over tokens.

    Args:
        config: what to learn, and how much it weighs.
        tokenizer: the policy's.
        context: the policy's.
        seed: what the order of the text's windows depends on.

    Attributes:
        digest: a checksum of the text as tokens.

    Raises:
        ContextError: `length` is more than the context.
        DataError: the text cannot be read, or is shorter than a window.
    """

    class Config(config.Config):
        """Which text, and how much it weighs."""

        path: str | None = None
        """A UTF-8 text file, or a folder of them; left out, the English text that Python carries."""
        held_out: float = Field(default=0.1, ge=0, lt=1)
        """The share of the text, at its end, that is left out: what pre-training kept for evaluation."""
        gamma: NonNegativeFloat = 27.8
        """Weight γ (arXiv 2203.02155, Appendix C.4)."""
        length: Count | None = None
        """Tokens predicted in a window; left out, as many as the context holds."""
        per_response: Count = 8
        """Windows for each response of a step (arXiv 2203.02155, Appendix C.4)."""

    def __init__(self, config: Config, *, tokenizer: Tokenizer, context: int, seed: int) -> None:
        self.config = config
        length = config.length or context
        if length > context:
            raise ContextError(
                f"a window of {length} tokens does not fit into the policy's context of {context}; lower length"
            )
        text, _ = split_text(read_text(config.path), config.held_out)
        tokens = torch.tensor(tokenizer.encode(text), dtype=torch.int32)
        self.digest = digest(tokens)
        self._windows = Windows(tokens, length, Key((seed, "pretraining")))

    def batch(self, step: int, size: int) -> dict[str, Tensor]:
        """Return `per_response` windows for each of the step's responses: `tokens` `(size, w, n + 1)`."""
        windows = self._windows.batch(step, size * self.config.per_response)
        return {"tokens": windows.unflatten(0, (size, self.config.per_response))}

    def counts(self, data: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return the number of predicted tokens."""
        return {_NAME: float(data["tokens"][..., 1:].numel())}

    def loss(self, policy: CausalLM, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return γ times the summed cross-entropy, in nats."""
        tokens = data["tokens"].flatten(0, 1)
        logprobs = token_logprobs(policy(tokens[:, :-1]), tokens[:, 1:])
        return {_NAME: -self.config.gamma * logprobs.sum()}
