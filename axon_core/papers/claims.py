"""Checks the claims of a paper's card, and reports each measured value beside the paper's.

A check is a function without arguments in the plugin, named by the claim:

    def relative_position() -> Outcome:
        worst = ...
        return Outcome(worst < 1e-12, f"largest difference {worst:.1e}")

The check chooses its own seeds, so running it twice gives the same result.
"""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat

from axon_core.checkpoint.atomic import atomic_file
from axon_core.config import LARGEST, Config
from axon_core.errors import AxonError
from axon_core.escaping import shortened
from axon_core.papers.card import Claim, Identifier, LookUp, Paper, StrippedText, Tolerance
from axon_core.registry.optional import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TO_LOOK_UP", "ClaimResult", "NotRun", "Outcome", "Verdict", "check_claim", "unchecked"]

Verdict = Literal["reproduced", "direction holds", "failed", "not run"]

TO_LOOK_UP = "to be looked up"
"""What stands in the result of a claim that a draft still has to look up in its paper."""

_LONGEST = 4_000  # characters of a measured result, which may quote an error of any length


class NotRun(AxonError):
    """Raised by a check if something it needs is missing, such as a data set; the message says what."""


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Raises:
        ValueError: there are seeds, but not one for each value.
    """

    passed: bool | Literal["direction"]
    """Whether the claim holds here; `"direction"` if the effect has the paper's sign but not its size."""
    measured: str
    """The measured result as text, `"largest difference 3.1e-16"`; with `values`, their name, `"BLEU"`."""
    values: Sequence[float] = ()
    """One number for each seed, reported as mean ± standard deviation."""
    seeds: Sequence[int] = ()
    """The seed of each of `values`, if they are known."""
    plot: Callable[[Axes], object] | None = None
    """Draws the figure of the claim on matplotlib axes."""

    def __post_init__(self) -> None:
        if self.seeds and len(self.seeds) != len(self.values):
            raise ValueError(
                f"an outcome has a seed for each value or none, got {len(self.seeds)} for {len(self.values)}"
            )


class ClaimResult(Config):
    """A claim and its measured result, ready for a table or JSON."""

    paper: Identifier
    """Id of the paper."""
    claim: Identifier
    """Id of the claim."""
    where: StrippedText
    """Where the paper states it."""
    text: StrippedText
    """The statement."""
    scale: Literal["exact", "scaled", "full", "unknown"]
    """`exact`, `scaled` or `full`; `unknown` for what is to be looked up."""
    tolerance: Tolerance | None = None
    """What difference from the paper still counts as reproduced (`Claim.tolerance`)."""
    reported: StrippedText
    """The value that the paper reports."""
    measured: str
    """The measured result, with the word `scaled` if the check is scaled down; or the reason for the lack of one."""
    values: tuple[float | None, ...] = ()
    """The number measured for each seed; None if it is not finite."""
    seeds: tuple[int, ...] = ()
    """The seed of each value, if they are known."""
    verdict: Verdict
    """`reproduced`, `direction holds`, `failed` or `not run`."""
    seconds: NonNegativeFloat
    """Duration of the check."""
    budget_s: NonNegativeFloat
    """Duration that its card allows."""
    figure: str | None = None
    """File name of the figure in the output folder."""


def check_claim(
    paper: Paper, claim: Claim, *, out: Path | None = None, full: bool = False, within: float = math.inf
) -> ClaimResult:
    """Run the check of one claim; a failure in the check becomes its result and raises no exception.

    A claim of scale `full` runs only if `full` is set, and one whose budget is larger than `within` seconds not at all.
    If the check draws a figure and matplotlib is installed, the figure is written to the folder `out`.
    """
    start = time.perf_counter()
    outcome, figure = None, None
    if claim.scale == "full" and not full:
        verdict, measured = "not run", "needs a run of the paper's own size; use --full"
    elif claim.budget_s > within:
        verdict, measured = "not run", f"its budget is {claim.budget_s:g} s, and --within {within:g} leaves it out"
    else:
        try:
            with _one_thread():
                outcome = _call(claim.check)
            verdict, measured = _verdict(claim, outcome), _measured(claim, outcome)
            figure = _draw(outcome, out, f"{paper.id}-{claim.id}.png")
        except NotRun as error:
            verdict, measured = "not run", str(error)
        except (Exception, SystemExit) as error:  # a check runs any code; Ctrl-C still interrupts
            cause = traceback.format_exception_only(error)[-1].strip()
            verdict, measured = "failed", str(error) if isinstance(error, AxonError) else f"the check raised {cause}"
    seconds = time.perf_counter() - start
    if seconds > claim.budget_s:
        measured += f" (took {seconds:.1f} s; its budget is {claim.budget_s:g} s)"
    numbers = map(float, outcome.values) if outcome else ()
    return ClaimResult(
        paper=paper.id,
        claim=claim.id,
        where=claim.where,
        text=claim.text,
        scale=claim.scale,
        tolerance=claim.tolerance,
        reported=claim.paper,
        measured=shortened(measured.encode("utf-8", "backslashreplace").decode(), _LONGEST),
        values=tuple(value if abs(value) <= LARGEST else None for value in numbers),
        seeds=tuple(outcome.seeds) if outcome else (),
        verdict=verdict,
        seconds=round(seconds, 3),
        budget_s=claim.budget_s,
        figure=figure,
    )


def unchecked(paper: Paper, wanted: LookUp) -> ClaimResult:
    """Return the result of what a draft still has to look up in its paper: it is not run."""
    return ClaimResult(
        paper=paper.id,
        claim=wanted.id,
        where=TO_LOOK_UP,
        text=wanted.what,
        scale="unknown",
        reported=TO_LOOK_UP,
        measured=TO_LOOK_UP,
        verdict="not run",
        seconds=0,
        budget_s=0,
    )


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute on one thread, because small kernels lose more to synchronisation than they gain from more threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _call(reference: str) -> Outcome:
    module, _, name = reference.partition(":")
    function: Any = getattr(import_module(module), name)
    outcome: Any = function()
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{reference} must return an axon_core.papers.claims.Outcome, got {outcome!r}")
    return outcome


def _verdict(claim: Claim, outcome: Outcome) -> Verdict:
    if not outcome.passed:
        return "failed"
    # A scaled-down run can show the direction of the paper's result, never its number.
    return "direction holds" if outcome.passed == "direction" or claim.scale == "scaled" else "reproduced"


def _measured(claim: Claim, outcome: Outcome) -> str:
    text = outcome.measured
    if values := list(map(float, outcome.values)):
        finite = all(map(math.isfinite, values))  # of others `stdev` raises an error
        spread = f" ± {statistics.stdev(values) if finite else math.nan:.3g}" if values[1:] else ""
        seeds = f"{len(values)} seeds" if values[1:] else "1 seed"
        text = f"{text} {statistics.fmean(values):.4g}{spread} ({seeds})"
    return f"{text} (scaled)" if claim.scale == "scaled" else text


def _draw(outcome: Outcome, out: Path | None, name: str) -> str | None:
    if out is None or outcome.plot is None or (figure := new_figure()) is None:
        return None
    outcome.plot(figure.add_subplot())
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / name) as draft:
        figure.savefig(draft, dpi=150)  # pyright: ignore[reportUnknownMemberType]
    return name
