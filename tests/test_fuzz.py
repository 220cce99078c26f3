"""Whatever a file or an option holds, a command ends with a result or a message.

Valid inputs are changed a little: 2,000 cases by default, of all subjects together, and always the same; as many as the
variable AXON_FUZZ says, as in `AXON_FUZZ=50000 python -m pytest tests/test_fuzz.py`. No case may end in a traceback or
in words about a bug in Axon, take more than 20 seconds or 1 GB, leave half a file, or use a file that is not the one
that was written. A failure shows the smallest case that was found; `subject.run(Case(…))` repeats it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz import bases
from fuzz.edits import nodes
from fuzz.running import import_modules, in_child, run, write_modules
from fuzz.subjects import SUBJECTS, Options, Subject
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("AXON_FUZZ", 2000))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder of valid inputs."""
    folder = tmp_path_factory.mktemp("fuzz")
    modules = folder.with_name("modules")

    def work() -> None:
        bases.make(folder)
        write_modules(modules)

    in_child(work, folder.with_name("log"))
    import_modules(modules)
    _read_constants()
    return folder


@settings(max_examples=1, derandomize=True, database=None, deadline=None)
@given(st.lists(st.integers(), min_size=300))
def _read_constants(numbers) -> None:
    """Have hypothesis look for constants in our modules here, which takes a second, and in no child."""


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_every_change_ends_in_a_result_or_a_message(subject: Subject | Options, inputs: Path, tmp_path: Path):
    log = tmp_path / "case"

    @settings(
        max_examples=CASES * subject.share // 100,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(case=subject.cases())
    def every_case(case):
        log.write_text(repr(case))
        subject.run(case)

    def work() -> None:
        os.chdir(inputs)
        every_case()

    in_child(work, log)


_COUNTS = ("layers", "grid", "bound_steps", "epochs", "minibatches", "response_tokens", "length", "blocks", "limit")


@pytest.mark.parametrize("value", [2**31, 2**63 - 1])
def test_a_count_that_is_a_slip_of_the_pen_is_refused_at_once(value: int, inputs: Path, tmp_path: Path):
    def work() -> None:
        os.chdir(inputs)
        for name, recipe in bases.RECIPES.items():
            for place in (".".join(map(str, path)) for path in nodes(recipe)):
                if place.endswith((*_COUNTS, "schedule.steps")):
                    arguments = ["train", f"{name}.toml", "--out", str(tmp_path / "run"), "--set", f"{place}={value}"]
                    outcome = run(arguments)
                    assert outcome.code == 2 and "must be less than or equal to 65536" in outcome.err, outcome.text

    in_child(work, tmp_path / "case")
