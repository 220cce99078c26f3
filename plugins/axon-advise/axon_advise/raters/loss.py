"""Preference loss `raters`: a reliability for each rater, learnt from held-out comparisons while the model trains."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from axon_advise.raters.mixture import label_logprob, reliability_posterior
from axon_advise.raters.ratings import RATERS_FILE, Rating, write_ratings
from axon_core import CheckpointError, ConfigError, DataError, printable
from axon_dpo import PreferenceLoss, StatedPreference

__all__ = ["RatersLoss"]

_log = logging.getLogger("axon")
_TRUSTED = 1 - 1e-3
_ALL = "all"  # whoever labelled data that name nobody


class RatersLoss(PreferenceLoss):
    """−ln [C_m σ(βΔ) + (1 − C_m) σ(−βΔ)] of a comparison by rater m, who is right with probability C_m.

    Its gradient is that of the usual loss with the soft label γ = C σ / P, the probability that the rater was right,
    and C is estimated every `every` steps, so that this is expectation maximisation, a little of it at each step. C is
    the posterior mean (`reliability_posterior`) given the Δ of *held-out* comparisons: on those that it learns from, a
    model that has memorised them would find every rater right.

    (r, C) and (−r, 1 − C) make all labels equally probable. The prior chooses: a rater is taken to be right until the
    others say otherwise. Where most labels are wrong, only `trusted` raters can tell.

    Source: with every C = 1 it is the loss of arXiv 2305.18290, Section 4, Eq. 7. Crowd-BT (Chen et al., 2013) has this
    model of a label; section and equation unverified.

    Raises:
        ConfigError: a trusted rater is not in the data.
        DataError: a name is empty or too long, or trusted raters contradict each other.
    """

    class Config(PreferenceLoss.Config):
        """What is believed of the raters, and how often that is revised."""

        prior: tuple[PositiveFloat, PositiveFloat] = (9.0, 1.0)
        """α and β of the Beta distribution of every C: as if α right answers and β wrong ones had been seen."""
        trusted: tuple[str, ...] = ()
        """Raters who are known to be right, such as the authors of gold pairs: their C stays at 0.999."""
        every: PositiveInt = 20
        """Steps between estimates; each costs an evaluation."""

        @model_validator(mode="after")
        def _anchored(self) -> Self:
            alpha, beta = self.prior
            if alpha <= beta and not self.trusted:
                raise ValueError(
                    f"prior must have α > β, got {alpha:g} and {beta:g}, or there must be trusted raters: otherwise "
                    "labels are explained as well by the opposite of every reward, with all raters wrong"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._set((_ALL,), Counter(), Counter())

    def introduce(
        self, raters: Sequence[str], train: Iterable[StatedPreference], held_out: Iterable[StatedPreference]
    ) -> None:
        """Take note of the raters, and of how many labels each gave; see `PreferenceLoss.introduce`.

        Raises:
            ConfigError: a trusted rater is not in the data.
            DataError: trusted raters contradict each other.
        """
        names = tuple(raters) or (_ALL,)
        if unknown := [name for name in self.config.trusted if name not in names]:
            shown = ", ".join(printable(name, line=True) for name in names[:10])
            raise ConfigError([(("trusted",), f"must name raters of the data ({shown}), got {unknown[0]!r}")])
        trusted = {number for number, name in enumerate(names) if name in self.config.trusted}
        counts, gold = (Counter[int](), Counter[int]()), dict[tuple[Hashable, Hashable], StatedPreference]()
        for part, count in zip((train, held_out), counts, strict=True):
            for told in part:
                count[told.rater] += 1
                if told.rater in trusted:
                    _check_gold(told, gold, names)
        self._set(names, *counts)
        self._notice()

    def by(self, raters: Int[Tensor, "*b"] | None) -> PreferenceLoss:
        """Return the loss of comparisons by these raters, with what is now believed of them."""
        if raters is None:
            return RatedLoss(self.config, self.reliability[:1])
        return RatedLoss(self.config, self.reliability.to(raters.device)[raters])

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ of comparisons by the first rater: arXiv 2305.18290, Section 4, Eq. 7, if C = 1."""
        return self.by(None).of(delta)

    def learn(self, step: int, compare: Callable[[], tuple[Float[Tensor, " n"], Int[Tensor, " n"]]]) -> None:
        """Estimate all reliabilities every `every` steps; not before the first, when nothing has been learnt."""
        if not step or step % self.config.every:
            return
        delta, raters = compare()
        mean, error = reliability_posterior(self.config.beta * delta, raters, len(self.names), self.config.prior)
        known = torch.tensor([name in self.config.trusted for name in self.names])
        self.reliability = torch.where(known, _TRUSTED, mean)
        self.error = torch.where(known, 0.0, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the raters' names, and what is believed of them."""
        return {"raters": list(self.names), "reliability": self.reliability, "error": self.error}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: it is of other raters, or of another loss.
        """
        if (before := tuple(state.get("raters", ()))) != self.names:
            raise CheckpointError(
                f"the run started with {len(before)} raters, and these are {len(self.names)} or have other names; "
                "restore trainer.loss and the data, or start a new run"
            )
        self.reliability, self.error = state["reliability"].cpu(), state["error"].cpu()

    def ratings(self) -> list[Rating]:
        """Return what is believed of each rater."""
        found = zip(self.names, self.reliability.tolist(), self.error.tolist(), strict=True)
        return [
            Rating(name, c, error, self._train[m] + self._held_out[m], self._held_out[m], name in self.config.trusted)
            for m, (name, c, error) in enumerate(found)
        ]

    def export(self, folder: Path) -> None:
        """Write `raters.json` into a model's folder."""
        write_ratings(folder / RATERS_FILE, self.ratings())

    def _set(self, names: tuple[str, ...], train: Counter[int], held_out: Counter[int]) -> None:
        alpha, beta = self.config.prior
        mean = alpha / (alpha + beta)
        spread = (mean * (1 - mean) / (alpha + beta + 1)) ** 0.5
        known = torch.tensor([name in self.config.trusted for name in names])
        self.names, self._train, self._held_out = names, train, held_out
        self.reliability = torch.where(known, _TRUSTED, torch.tensor(mean, dtype=torch.float64))
        self.error = torch.where(known, 0.0, torch.tensor(spread, dtype=torch.float64))

    def _notice(self) -> None:
        """Say what cannot be learnt from such data."""
        silent = [
            name for m, name in enumerate(self.names) if not self._held_out[m] and name not in self.config.trusted
        ]
        if silent:
            _log.warning(
                "%d raters, such as %s, have no held-out comparison, so nothing is learnt of their reliability; "
                "shuffle the rows, or raise data.held_out",
                len(silent),
                printable(silent[0], line=True),
            )
        if len(self.names) == 1 and not self.config.trusted:
            _log.warning(
                "all comparisons are by one rater, and only raters who disagree show who is unreliable: what is learnt "
                "is how noisy the labels are"
            )


class RatedLoss(PreferenceLoss):
    """−ln [C σ(βΔ) + (1 − C) σ(−βΔ)] with the C of each comparison; see `RatersLoss`.

    Args:
        config: with β.
        reliability: C, with axes that fit those of Δ.
    """

    def __init__(self, config: PreferenceLoss.Config, reliability: Float[Tensor, "*b"]) -> None:
        super().__init__(config)
        self._reliability = reliability

    def of(self, delta: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return the loss at Δ: that of arXiv 2305.18290, Section 4, Eq. 7, if C = 1."""
        return -label_logprob(self.config.beta * delta, self._reliability.to(delta.device, delta.dtype))


def _check_gold(
    told: StatedPreference, gold: dict[tuple[Hashable, Hashable], StatedPreference], names: Sequence[str]
) -> None:
    """Take note of a trusted label. Raises `DataError` if another one says the opposite."""
    gold[told.better, told.worse] = told
    if (other := gold.get((told.worse, told.better))) is not None:
        who = " and ".join(printable(names[one.rater], line=True) for one in (other, told))
        raise DataError(
            f"{told.name} says the opposite of {other.name}, but both are by trusted raters ({who}), who must agree; "
            "remove one of the rows, or take the rater out of trainer.loss.trusted"
        )
