"""The base of all hooks that log the numbers of a training."""

from __future__ import annotations

from abc import ABC, abstractmethod

from axon_core.training.hooks import FitView, HookRequest, hook

__all__ = ["Log"]


class Log(ABC):
    """Writes the numbers of every step and evaluation; a subclass decides where.

    A subclass opens its log at `fit_start`. The log is closed when training ends, whatever the reason.
    """

    @abstractmethod
    def write(self, step: int, split: str, metrics: dict[str, float]) -> HookRequest:
        """Write numbers of `split`, `train` or `held_out`, after a step. May return a request."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Close the log, if it is open; `failed` says whether training ended with an error."""

    @hook(tryfirst=True)  # another hook may end the training
    def step_end(self, fit: FitView, metrics: dict[str, float]) -> HookRequest:
        """Write the numbers of a step."""
        return self.write(fit.state.step, "train", metrics)

    @hook(tryfirst=True)
    def eval_end(self, fit: FitView, metrics: dict[str, float]) -> HookRequest:
        """Write the numbers of an evaluation."""
        return self.write(fit.state.step, "held_out", metrics)

    @hook
    def error(self) -> None:
        """Close the log of a training that ended with an error."""
        self.close(failed=True)

    @hook
    def fit_end(self) -> None:
        """Close the log."""
        self.close(failed=False)
