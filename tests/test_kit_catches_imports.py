"""The conformance kit catches plugins whose import does more than define things: each by the check for its mistake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from caught import Row, assert_caught

from axon_core.registry.discovery import Entry
from axon_core.testing import examine
from axon_core.testing.imports import ImportedPlugin, ImportReport, imported_plugin, report_of
from axon_core.testing.kit import Case
from axon_core.testing.suites import suites

SOURCES = {
    "Imports": ("raise RuntimeError('no')", "imports"),
    "ImportsGone": ("import axon_gone_and_away", "imports"),
    "Exits": ("raise SystemExit(3)", "imports"),
    "EndsTheProcess": ("import os; os._exit(0)", "imports"),
    "Prints": ("print('hello')", "silent"),
    "PrintsInC": ("import os; os.write(2, b'hello')", "silent"),
    "Warns": ("import warnings; warnings.warn('old', UserWarning)", "silent"),
    "SetsDtype": ("import torch; torch.set_default_dtype(torch.float64)", "torch_state"),
    "SetsThreads": ("import torch; torch.set_num_threads(torch.get_num_threads() + 1)", "torch_state"),
    "TurnsGradientsOff": ("import torch; torch.set_grad_enabled(False)", "torch_state"),
    "IsDeterministic": ("import torch; torch._C._set_deterministic_algorithms(True)", "torch_state"),
    "Benchmarks": ("import torch; torch.backends.cudnn.benchmark = True", "torch_state"),
    "Seeds": ("import torch; torch.manual_seed(1)", "random_state"),
    "Draws": ("import torch; TABLE = torch.randn(3)", "random_state"),
    "SeedsPython": ("import random; random.seed(1)", "random_state"),
    "SeedsNumpy": ("import numpy; numpy.random.seed(1)", "random_state"),
    "SetsAVariable": ("import os; os.environ['AXON_X'] = '1'", "environment"),
    "RemovesAVariable": ("import os; os.environ.pop('PATH')", "environment"),
    "ChangesFolder": ("import os; os.chdir('/')", "process_state"),
    "HandlesSignals": ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "process_state"),
    "RecursesDeeper": ("import sys; sys.setrecursionlimit(12345)", "process_state"),
    "IgnoresNumpysErrors": ("import numpy; numpy.seterr(all='ignore')", "process_state"),
    "AddsAPath": ("import sys; sys.path.insert(0, '/nowhere')", "import_path"),
    "FiltersWarnings": ("import warnings; warnings.filterwarnings('ignore', 'nothing')", "warning_filters"),
    "ConfiguresLogging": ("import logging; logging.basicConfig()", "logging"),
    "AddsAHandler": ("import logging; logging.getLogger('axon').addHandler(logging.StreamHandler())", "logging"),
    "StartsAThread": ("import threading; threading.Thread(target=print, args=('',), daemon=True).start()", "started"),
    "StartsAProcess": ("import subprocess; subprocess.run(['true'])", "started"),
    "Forks": ("import os\nif (pid := os.fork()) == 0:\n    os._exit(0)\nos.waitpid(pid, 0)", "started"),
    "LooksUpAHost": ("import socket\ntry: socket.getaddrinfo('127.0.0.1', 9)\nexcept OSError: pass", "network"),
    "Connects": (
        "import socket\nwith socket.socket() as s:\n try: s.connect(('127.0.0.1', 9))\n except OSError: pass",
        "network",
    ),
    "Writes": ("open('left.txt', 'w').close()", "files"),
    "MakesAFolder": ("import os; os.mkdir('left')", "files"),
    "MakesATemporaryFile": ("import tempfile; kept = tempfile.NamedTemporaryFile()", "files"),
    "IsSlow": (
        "import time\nuntil = time.process_time() + 30\nwhile time.process_time() < until: pass",
        "import_time",
    ),
}
ALSO = {"StartsAThread": {"silent"}, "Warns": set(), "MakesATemporaryFile": {"random_state"}}


def mutant(name: str) -> type[ImportedPlugin]:
    return type(name, (ImportedPlugin,), {"examples": ({"modules": (f"axon_mutant_{name.lower()}",)},)})


ROWS: list[Row] = [(mutant(name), caught_by, ALSO.get(name, set())) for name, (_, caught_by) in SOURCES.items()]


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the mutants on `sys.path`."""
    for name, (source, _) in SOURCES.items():
        (tmp_path / f"axon_mutant_{name.lower()}.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(("broken", "caught_by", "also"), [row for row in ROWS if row[1] != "import_time"])
def test_a_plugin_that_does_more_than_define_things_is_caught(broken, caught_by, also, tmp_path: Path) -> None:
    before = {*os.listdir(tmp_path)}
    assert_caught(broken, caught_by, also)
    assert {*os.listdir(tmp_path)} == before  # no cache of bytecode either


def test_a_slow_import_is_told_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = ImportReport(torch_seconds=1.0, seconds=5.1)
    monkeypatch.setattr("axon_core.testing.imports._report", lambda *asked: slow)
    failures = examine(mutant("IsSlow"))
    assert failures.keys() == {"import_time"}
    assert "found: 5.1 s of CPU time, and torch 1.0 s" in failures["import_time"]


def test_the_time_is_measured(tmp_path: Path) -> None:
    (tmp_path / "axon_busy.py").write_text(SOURCES["IsSlow"][0].replace("30", "0.3"))
    (case, *_) = cases_of_modules("axon_busy")
    report = report_of(case.part)
    assert 0.3 <= report.seconds < 3 and report.torch_seconds > 0.1
    assert report.effects == {} and report.failed == {}


def cases_of_modules(*modules: str) -> Iterator[Case]:
    entries = [Entry(module, "axon-mine", "1", f"{module}:X", "norm") for module in modules]
    suite = next(suite for suite in suites() if suite.interface is ImportedPlugin)
    return (Case(imported_plugin("axon-mine", entries), check) for check in suite.checks)


def test_a_healthy_plugin_passes_whatever_its_libraries_do(tmp_path: Path) -> None:
    (tmp_path / "axon_healthy.py").write_text(
        "import logging\nimport noisy_library\nfrom axon_core import Norm\n"
        "logging.getLogger('axon_healthy').addHandler(logging.NullHandler())\nopen(__file__).close()\n"
    )
    (tmp_path / "noisy_library.py").write_text(
        "import os, warnings\nprint('hello')\nwarnings.simplefilter('ignore')\nos.environ['NOISE'] = '1'\n"
    )
    assert [failure for case in cases_of_modules("axon_healthy") if (failure := case.failure())] == []


def test_a_failure_names_module_effect_and_cause() -> None:
    lines = examine(mutant("SetsDtype"))["torch_state"].splitlines()
    assert lines[1:3] == [
        "  input: importing axon_mutant_setsdtype",
        "  found: the default dtype is torch.float64, and was torch.float32",
    ]
    assert lines[3].startswith("  usual cause: `torch.set_default_dtype`")


def test_the_first_module_with_the_effect_is_named_of_several(tmp_path: Path) -> None:
    (tmp_path / "axon_quiet.py").write_text("x = 1\n")
    part = next(cases_of_modules("axon_quiet", "axon_mutant_prints")).part
    assert report_of(part).effects == {"silent": [("axon_mutant_prints", r"it printed 'hello\n'")]}
