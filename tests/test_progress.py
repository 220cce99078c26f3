"""What a training from Python shows of how far it has come: once, where it is seen, and only where it is wanted."""

from __future__ import annotations

import io
import os
import pty
import select
import sys
from types import ModuleType, SimpleNamespace

import pytest
from toy_trainer import Toy

from axon_core.training.callbacks.progress import Progress
from axon_core.training.loop import fit


class Notebook:
    """What IPython has in a kernel: `display`, of which each output can be replaced later."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, shown: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw and display_id
        versions = [shown["text/plain"]]
        self.outputs.append(versions)
        return SimpleNamespace(update=lambda shown, raw: versions.append(shown["text/plain"]))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """Have a process look as a notebook's kernel does, whose standard error is no terminal."""
    found = Notebook()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    display.display = found.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return found


def test_a_training_from_python_shows_how_far_it_has_come(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Toy.make(eval_every=12))
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert first.startswith("step 12/12  loss ") and last.startswith("step 12/12  held out: loss ") and not out


def test_it_is_quiet_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Toy.make(eval_every=12), progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_progress_line_of_ones_own_takes_the_place_of_the_usual_one(capsys: pytest.CaptureFixture[str]) -> None:
    shown = io.StringIO()
    fit(Toy.make(eval_every=12), hooks=[Progress(shown, seconds=0.0)])
    assert len(shown.getvalue().splitlines()) == 13 and not capsys.readouterr().err


def test_a_program_without_a_standard_error_trains(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert fit(Toy.make()).status == "finished"
    assert not caplog.records


def test_only_the_first_of_several_processes_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("axon_core.training.hooks.is_first", lambda: False)
    fit(Toy.make())
    assert not capsys.readouterr().err


def test_on_a_terminal_it_is_one_line_that_renews_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    above, below = pty.openpty()
    with os.fdopen(below, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        fit(Toy.make(eval_every=12))
        terminal.flush()
        written = b""
        while select.select([above], [], [], 0.5)[0]:  # a terminal hands over what was written in pieces
            written += os.read(above, 1 << 16)
        shown = written.decode()
    os.close(above)
    assert "step 12/12  loss " in shown and "step 12/12  held out: loss " in shown
    assert "\x1b[2K" in shown  # the line before is taken away


def test_in_a_notebook_it_is_one_output_of_the_cell(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Toy.make(eval_every=6))
    fit(Toy.make())
    versions, second = notebook.outputs  # one for each training
    *kept, last = versions[-1].splitlines()
    assert [line.split("  ")[0] for line in kept] == ["step 6/12", "step 12/12"] and second
    assert all("held out: loss " in line for line in kept) and last.startswith("step 12/12  loss ")
    assert not capsys.readouterr().err and "\x1b" not in versions[-1]


def test_a_terminal_of_ipython_is_a_terminal(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in (None, SimpleNamespace()):
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda shell=shell: shell)
        fit(Toy.make())
        assert capsys.readouterr().err.startswith("step 12/12  loss ")
    assert not notebook.outputs


def test_a_stream_that_is_given_is_written_to_in_a_notebook_too(notebook: Notebook) -> None:
    shown = io.StringIO()
    fit(Toy.make(), hooks=[Progress(shown)])
    assert shown.getvalue().startswith("step 12/12  loss ") and not notebook.outputs
