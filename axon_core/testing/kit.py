"""The kit itself: checks, the parts they run on, and their failures."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Shaped
from torch import Tensor

from axon_core.errors import AxonError

__all__ = ["Broken", "Case", "Check", "Failure", "PartUnderTest", "Suite", "expect", "finite", "same", "told"]


class Broken(Exception):
    """Raised by a check: the input, and what was found."""

    def __init__(self, on: str, found: str) -> None:
        super().__init__(on, found)
        self.on = on
        self.found = found


class Failure(AxonError):
    """A part breaks a rule of its interface; states the rule, the input, what was found and the usual cause."""

    def __init__(self, case: Case, on: str, found: str) -> None:
        self.case, self.on, self.found = case, on, found
        super().__init__(
            f"{case.part.name} breaks the rule {case.check.name!r}: {case.check.rule}\n"
            f"  input: {on}\n  found: {found}\n  usual cause: {case.check.cause}"
        )


@dataclass(frozen=True)
class PartUnderTest:
    """A registered class and the options it is built with."""

    name: str
    """Its name in reports, such as `attention:mine`."""
    cls: type[Any]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of its `Config` or, for a trainer, the recipe."""


@dataclass(frozen=True)
class Check:
    """A named property."""

    name: str
    rule: str
    """The property, in one sentence."""
    cause: str
    """The usual cause of a failure."""
    run: Callable[[PartUnderTest], None]
    """Raises `Broken` if the property does not hold."""


@dataclass(frozen=True)
class Case:
    """One check on one part."""

    part: PartUnderTest
    check: Check

    @property
    def id(self) -> str:
        """Its name in tests and tables: `attention:mine:causal`."""
        return f"{self.part.name}:{self.check.name}"

    def failure(self) -> Failure | None:
        """Run the check, and return its failure or None."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.check.run(self.part)
        except Broken as broken:
            return Failure(self, broken.on, broken.found)
        except Exception as error:  # any error of a plugin is a failure, and must not hide those of other parts
            failure = Failure(self, _inputs(error, self.check.run), f"it raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            return failure
        return None


class Suite:
    """The checks of one interface: functions with the decorator `check`, whose docstrings are the rules."""

    def __init__(self, interface: type[Any]) -> None:
        self.interface = interface
        self.checks: list[Check] = []

    def check(self, cause: str) -> Callable[[Callable[[PartUnderTest], None]], Callable[[PartUnderTest], None]]:
        """Add the decorated function; `cause` is the usual cause of a failure."""

        def add(run: Callable[[PartUnderTest], None]) -> Callable[[PartUnderTest], None]:
            rule = " ".join((run.__doc__ or "").split())
            self.checks.append(Check(run.__name__, rule, cause, run))
            return run

        return add


def told(failures: Iterable[Failure]) -> list[str]:
    """Return a text for each broken rule: the first failure, then a line for each other part that breaks it.

    One mistake often breaks a rule in every variant of a class, and in its subclasses.

    >>> check = Check("causal", "No token sees later ones.", "a mask left out", lambda part: None)
    >>> cases = [Case(PartUnderTest(name, object), check) for name in ("mine", "yours")]
    >>> print(*told(Failure(case, "9 tokens", "0.3, not 0.1") for case in cases))
    mine breaks the rule 'causal': No token sees later ones.
      input: 9 tokens
      found: 0.3, not 0.1
      usual cause: a mask left out
      also: yours; 9 tokens; 0.3, not 0.1
    """
    by_rule: dict[str, list[Failure]] = {}
    for failure in failures:
        by_rule.setdefault(f"{failure.case.check.name}: {failure.case.check.rule}", []).append(failure)
    return [
        "\n  also: ".join((str(first), *(f"{other.case.part.name}; {other.on}; {other.found}" for other in others)))
        for first, *others in by_rule.values()
    ]


def same(got: Shaped[Tensor, ...], want: Shaped[Tensor, ...], on: str, *, tolerance: float = 2e-5) -> None:
    """Raise `Broken` unless `got` equals `want`, up to `tolerance` times the largest value of `want`."""
    if got.shape != want.shape:
        raise Broken(on, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    finite(got, on)
    finite(want, f"{on}; the reference")
    if not want.numel():
        return
    error = (got.double() - want.double()).abs()
    allowed = tolerance * max(float(want.double().abs().max()), 1e-12)
    if float(error.max()) > allowed:
        at = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        values = f"{float(got[at]):.6g} instead of {float(want[at]):.6g}"
        raise Broken(on, f"{values} at {list(at)}; difference {float(error[at]):.3g}, allowed {allowed:.3g}")


def finite(got: Shaped[Tensor, ...], on: str) -> None:
    """Raise `Broken` unless all values are finite."""
    wrong = ~got.isfinite()
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise Broken(on, f"{int(wrong.sum())} of {wrong.numel()} values are not finite, the first at {at}")


def expect(holds: bool, on: str, found: str) -> None:
    """Raise `Broken` unless `holds`."""
    if not holds:
        raise Broken(on, found)


def _inputs(error: Exception, run: Callable[[PartUnderTest], None]) -> str:
    """Describe the variables of the check when the part raised `error`: shapes, numbers and texts."""
    code = getattr(run, "__code__", None)
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    shown: list[str] = []
    for name, value in (pair for held in frames for pair in held.items()):
        if isinstance(value, Tensor):
            shown.append(f"{name} {tuple(value.shape)}")
        elif _brief(value):
            shown.append(f"{name} {value!r}")
    return "building or running it" + (f", with {', '.join(shown)}" if shown else "")


def _brief(value: Any) -> bool:
    """Return whether a variable's value is short and informative: a number, a text, a dtype, or several numbers."""
    if isinstance(value, list | tuple):
        return all(isinstance(item, int) for item in cast("Sequence[Any]", value))
    return isinstance(value, str | int | float | torch.dtype) and len(repr(value)) <= 80
