"""`axon lock`: a run's lock is written when the run begins, or later where that is true of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from axon_core import CheckpointError
from axon_core.cli import main
from axon_core.registry import LOCK, lock_differences, read_lock
from axon_core.training import RunFolder
from axon_lab.lock.hook import WritesLock
from axon_lab.lock.writing import late_lock, lock_text, write_lock_at_start

SMALL = ["trainer.steps=2", "model.n_layers=1", "model.dim=32", "model.n_heads=2"]


def train(folder: Path, *options: str) -> int:
    return main(["train", "xllama-tiny", *(f"--set={each}" for each in SMALL), "--out", str(folder), *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("lab-lock") / "run"
    assert train(folder) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change_lock(run: Path, name: str, **values: str) -> None:
    """Let a run's lock say something else of a distribution."""
    facts = json.loads((run / LOCK).read_text())
    next(each for each in facts["distributions"] if each["name"] == name).update(values)
    (run / LOCK).write_text(json.dumps(facts))


def test_a_run_is_locked_when_it_begins(trained: Path) -> None:
    lock = read_lock(trained)
    assert lock.at_start and lock_differences(lock) == []
    found = {each.name: [part.key for part in each.parts] for each in lock.distributions}
    assert found.keys() == {"axon-core", "axon-gqa", "axon-rmsnorm", "axon-roformer", "axon-xllama"}
    assert found["axon-gqa"] == ["GQA"] and "xllama" in found["axon-xllama"]
    assert {"torch", "numpy", "safetensors"} <= {each.name for each in lock.libraries}


def test_the_lock_names_nothing_of_the_machine(trained: Path, run: Path) -> None:
    text = (trained / LOCK).read_text()
    assert str(Path.cwd()) not in text and str(trained) not in text
    (run / LOCK).unlink()
    write_lock_at_start(RunFolder.open(run), 0)
    assert (run / LOCK).read_text() == text  # equal installations have equal files


def test_a_training_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InMemory:
        run = None

    monkeypatch.chdir(tmp_path)
    WritesLock().fit_start(InMemory())
    assert not list(tmp_path.iterdir())


def test_lock_shows_the_lock_of_a_run_and_copies_it(run: Path, tmp_path: Path, capsys) -> None:
    before = (run / LOCK).read_bytes()
    assert main(["lock", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "written when the run began" in out and "axon-gqa " in out and "torch " in out and not err
    assert main(["lock", str(run), "--json", "--out", str(tmp_path / "copy.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before)
    assert (tmp_path / "copy.json").read_bytes() == before == (run / LOCK).read_bytes()
    assert main(["doctor", "--lock", str(tmp_path / "copy.json")]) == 0


def test_a_lock_is_written_later_if_the_versions_agree(run: Path, capsys) -> None:
    (run / LOCK).unlink()
    assert main(["lock", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "written after the run began, when the versions in its run.json agreed" in out
    assert err == f"written to {run / LOCK}\n"
    assert not read_lock(run).at_start
    assert main(["doctor", "--lock", str(run)]) == 0
    assert "This lock was written after the run began" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (("versions", "torch"), "torch 0.1 (now 2"),
        (("versions", "axon-core"), "axon-core 0.1 (now 0"),
        (("hardware", "python"), "Python 0.1 (now 3."),
        (("parts", 0, "version"), " 0.1 (now 0"),
        (("parts", 0, "distribution"), "0.1 "),
    ],
)
def test_a_later_lock_is_refused_where_it_would_not_be_true(run: Path, place: tuple, what: str, capsys) -> None:
    (run / LOCK).unlink()
    facts = json.loads((run / "run.json").read_text())
    del facts["sha256"]
    inner = facts
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = "0.1"
    (run / "run.json").write_text(json.dumps(facts))
    assert main(["lock", str(run)]) == 1
    err = capsys.readouterr().err
    assert what in err and "would not be true of it" in err and "train again" in err
    assert not (run / LOCK).exists()


def test_a_run_that_is_resumed_with_other_software_keeps_its_lock_and_gets_another(run: Path, capsys) -> None:
    change_lock(run, "axon-gqa", files=f"sha256:{'0' * 64}")
    before = (run / LOCK).read_bytes()
    assert main(["train", "--resume", "--out", str(run), "--set", "trainer.steps=3"]) == 0
    err = capsys.readouterr().err
    warning = "made with other software: axon-gqa 0.2.0 is installed with other files than the lock has"
    assert sum(warning in line for line in err.splitlines()) == 1
    assert (run / LOCK).read_bytes() == before
    again = read_lock(run / "lock-step-2.json")
    assert again.at_start and lock_differences(again) == []


def test_a_run_that_is_resumed_with_the_same_software_says_and_writes_nothing(run: Path, capsys) -> None:
    before = (run / LOCK).read_bytes()
    assert main(["train", "--resume", "--out", str(run), "--set", "trainer.steps=3"]) == 0
    assert "other software" not in capsys.readouterr().err
    assert [file.name for file in run.glob("lock*")] == [LOCK] and (run / LOCK).read_bytes() == before


def test_loading_a_model_warns_of_what_differs_and_generates(run: Path, capsys) -> None:
    change_lock(run, "axon-gqa", version="0.1")
    assert main(["generate", str(run), "--prompt", "a", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().err.count("the lock has axon-gqa 0.1, which is installed in version 0.") == 1


def test_without_a_run_lock_prints_an_allow_list(capsys) -> None:
    from axon_core import parse_toml

    assert main(["lock"]) == 0
    lines = parse_toml(capsys.readouterr().out)["plugins"]
    assert lines["axon-lab"].startswith("sha256:") and {"axon-gqa", "axon-core"} <= lines.keys()


def test_wrong_uses_are_one_message(tmp_path: Path, run: Path, capsys) -> None:
    assert main(["lock", str(tmp_path / "gone")]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    (run / LOCK).write_text("{")
    assert main(["lock", str(run)]) == 1
    assert "is damaged or not a lock" in capsys.readouterr().err
    assert main(["lock", str(run), "--out", str(tmp_path)]) == 2


def test_a_lock_that_cannot_be_written_is_an_error_with_the_reason(run: Path, tmp_path: Path) -> None:
    (run / LOCK).unlink()
    (tmp_path / "file").write_text("")
    lock = late_lock(RunFolder.open(run))
    assert lock_text(lock).endswith("}\n")
    assert main(["lock", str(run), "--out", str(tmp_path / "file" / "lock.json")]) == 1
    assert not (run / LOCK).exists()
    with pytest.raises(CheckpointError):
        read_lock(run)
