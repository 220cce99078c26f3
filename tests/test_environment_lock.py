"""Environment locks: the digest of a distribution's files, what differs from a lock, and files that are no lock."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import site as python_site
from importlib import metadata
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.errors import CheckpointError
from axon_core.registry.environment_lock import (
    LOCK,
    EnvironmentLock,
    find_lock,
    lock_environment,
    named_plugins,
    read_lock,
)
from axon_core.registry.installed import files_digest, installed, record_digest, requirements, top_level
from axon_core.registry.lock_comparison import lock_differences, note_differences, restoring_command
from axon_core.registry.registry import refresh

RING = {"axon.v1.norm": {"Ring": "axon_ring.norm:Ring"}}
FILES = {"axon_ring/__init__.py": "", "axon_ring/norm.py": "class Ring: ...\n", "axon_ring/data/table.txt": "1 2\n"}
PART = {"group": "norm", "key": "Ring", "distribution": "axon-ring", "version": "1.0"}


@pytest.fixture
def ring(site):
    site.install("axon-ring", RING, FILES)
    return site


def digest(name: str = "axon-ring") -> str:
    dist = installed(name)
    assert dist is not None
    return files_digest(dist)


def locked() -> EnvironmentLock:
    return lock_environment([PART], at_start=True)


def told(lock: EnvironmentLock) -> dict[str, str]:
    """What differs, by distribution."""
    return {problem.distribution: problem.what for problem in lock_differences(lock)}


def test_the_digest_is_that_of_the_module_s_docstring(ring) -> None:
    whole = hashlib.sha256()
    for path in sorted(FILES):
        contents = hashlib.sha256((ring.folder / path).read_bytes()).hexdigest()
        whole.update(path.encode() + b"\0" + contents.encode() + b"\n")
    points = next(ring.folder.glob("axon_ring-1.0.dist-info")) / "entry_points.txt"
    whole.update(b"entry_points.txt\0" + points.read_bytes())
    assert digest() == f"sha256:{whole.hexdigest()}"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "axon_ring/norm.py").write_text("class Ring: x = 1\n"),
        lambda folder: (folder / "axon_ring/norm.py").unlink(),
        lambda folder: (folder / "axon_ring/norm.py").rename(folder / "axon_ring/norms.py"),
        lambda folder: (folder / "axon_ring/extra.py").write_text(""),
        lambda folder: (folder / "axon_ring/norm").mkdir() or (folder / "axon_ring/norm/__init__.py").write_text(""),
        lambda folder: (folder / "axon_ring/data/table.txt").write_text("1 3\n"),
        lambda folder: (folder / "axon_ring-1.0.dist-info/entry_points.txt").write_text(
            "[axon.v1.norm]\nR = os:path\n"
        ),
        lambda folder: (folder / "axon_ring/link.py").symlink_to(folder / "axon_ring/norm.py"),
        lambda folder: (folder / "axon_ring/broken.py").symlink_to(folder / "nowhere.py"),
        lambda folder: os.mkfifo(folder / "axon_ring/pipe"),
        lambda folder: (folder / "axon_ring/old.pyc").write_bytes(b"imported if there is no source"),
    ],
)
def test_any_change_of_what_is_imported_changes_the_digest(ring, change) -> None:
    before = digest()
    change(ring.folder)
    refresh()
    assert digest() != before


def test_what_python_and_editors_leave_changes_nothing(ring) -> None:
    before = digest()
    (ring.folder / "axon_ring/__pycache__").mkdir()
    (ring.folder / "axon_ring/__pycache__/norm.cpython-311.pyc").write_bytes(b"x")
    (ring.folder / "axon_ring/.norm.py.swp").write_bytes(b"x")
    (ring.folder / "axon_ring/loop").symlink_to(ring.folder / "axon_ring")  # a folder within itself
    os.utime(ring.folder / "axon_ring/norm.py", (0, 0))
    info = next(ring.folder.glob("*.dist-info"))
    (info / "INSTALLER").write_text("uv\n")
    assert digest() == before


def test_an_editable_install_has_the_digest_of_the_wheel(ring, tmp_path: Path) -> None:
    before = digest()
    shutil.move(ring.folder / "axon_ring", tmp_path / "checkout" / "axon_ring")
    (ring.folder / "_axon_ring.pth").write_text(f"{tmp_path / 'checkout'}\n")
    info = next(ring.folder.glob("*.dist-info"))
    (info / "RECORD").write_text("_axon_ring.pth,sha256=abc,10\naxon_ring-1.0.dist-info/METADATA,,\n")
    python_site.addsitedir(str(ring.folder))
    assert digest() == before


def test_the_packages_of_a_distribution(ring) -> None:
    dist = installed("axon-ring")
    assert dist is not None and top_level(dist) == {"axon_ring"}
    info = next(ring.folder.glob("*.dist-info"))
    (info / "RECORD").write_text(
        "axon_ring/norm.py,,\nsingle.py,,\n../../bin/ring,,\n/etc/x.py,,\n__editable___ring.py,,\nring.pth,,\n"
        "axon_ring.libs/lib.so,,\nring.cpython-311-x86_64-linux-gnu.so,,\n"
    )
    (info / "entry_points.txt").write_text("[axon.v1.norm]\na = os:path\nb = axon_core.nn:x\nc = elsewhere.a:b\n")
    assert top_level(dist) == {"axon_ring", "single", "ring", "elsewhere"}


def test_the_build_of_a_library_is_what_its_record_says() -> None:
    numpy, torch = installed("numpy"), installed("torch")
    assert numpy is not None and torch is not None
    assert record_digest(numpy) == record_digest(metadata.distribution("numpy")) != record_digest(torch)


def test_a_record_without_checksums_says_nothing_of_the_build(ring) -> None:
    dist = installed("axon-ring")
    assert dist is not None and record_digest(dist) is None


def test_requirements_know_their_extra(ring) -> None:
    info = next(ring.folder.glob("*.dist-info"))
    with (info / "METADATA").open("r+") as file:
        text = file.read().replace(
            "Version: 1.0\n",
            "Version: 1.0\nRequires-Dist: NumPy>=1\nRequires-Dist: pytest; extra == 'test'\n"
            "Requires-Dist: numpy[x]>=2; python_version > '3' and extra == \"more\"\nRequires-Dist: scipy\n",
        )
        file.seek(0)
        file.write(text)
    dist = installed("axon-ring")
    assert dist is not None and requirements(dist) == {"numpy": "", "pytest": "test", "scipy": ""}


def test_a_lock_has_the_core_the_plugins_and_the_libraries_they_compute_with(ring) -> None:
    lock = lock_environment(
        [PART, {**PART, "key": "Mine", "distribution": "(this session)"}], ["axon-gqa"], at_start=True
    )
    assert [each.name for each in lock.distributions][:3] == ["axon-core", "axon-gqa", "axon-ring"]
    libraries = {each.name: each.version for each in lock.libraries}
    assert libraries["torch"] == metadata.version("torch") and {"numpy", "safetensors"} <= libraries.keys()
    assert not libraries.keys() & {"pytest", "click", "pydantic", "axon-core"}
    assert lock.by_hand == ("norm Mine",) and lock.python == platform.python_version()
    assert EnvironmentLock.model_validate_json(lock.model_dump_json()) == lock


def test_nothing_differs_from_a_lock_of_now(ring) -> None:
    lock = locked()
    assert lock_differences(lock) == []
    assert restoring_command(lock, []) is None


def test_a_changed_file_of_a_plugin_is_found(ring) -> None:
    lock = locked()
    (ring.folder / "axon_ring/norm.py").write_text("class Ring: x = 1\n")
    (problem,) = lock_differences(lock)
    assert problem.what == "axon-ring 1.0 is installed with other files than the lock has"
    assert restoring_command(lock, [problem]) == "pip install --force-reinstall --no-deps axon-ring==1.0"


def test_another_version_and_a_missing_plugin_are_found(ring) -> None:
    lock = locked()
    info = next(ring.folder.glob("*.dist-info"))
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: axon-ring\nVersion: 1.1\n\n")
    assert told(lock) == {"axon-ring": "the lock has axon-ring 1.0, which is installed in version 1.1"}
    shutil.rmtree(info)
    refresh()
    assert told(lock) == {"axon-ring": "the lock has axon-ring 1.0, which is not installed"}


def test_libraries_and_python_are_compared(ring) -> None:
    lock = locked()
    old = {
        "python": "3.10.2",
        "libraries": [{"name": "torch", "version": "1.0+cu99"}, {"name": "axon-gone", "version": "2"}],
    }
    other = EnvironmentLock.model_validate({**lock.model_dump(), **old})
    found = told(other)
    assert found["torch"] == f"the lock has torch 1.0+cu99, which is installed in version {metadata.version('torch')}"
    assert found["axon-gone"] == "the lock has axon-gone 2, which is not installed"
    assert found["python"].startswith("the lock has Python 3.10.2, and this is 3.")
    command = restoring_command(other, lock_differences(other))
    assert command is not None
    assert command.endswith(" --extra-index-url https://download.pytorch.org/whl/cu99 torch==1.0+cu99 axon-gone==2")
    built = {"libraries": [{**each.model_dump(), "build": f"sha256:{'0' * 64}"} for each in lock.libraries]}
    other = EnvironmentLock.model_validate({**lock.model_dump(), **built})
    assert "torch 2" in told(other)["torch"] and "another build" in told(other)["torch"]
    assert lock_differences(other, builds=False) == []


def test_another_plugin_with_a_part_of_the_same_name_is_found(ring) -> None:
    lock = locked()
    ring.install("axon-rival", {"axon.v1.norm": {"Ring": "axon_rival:Ring"}})
    assert told(lock) == {"axon-rival": "axon-rival 1.0 offers the norm 'Ring' too, which the run took from axon-ring"}
    assert restoring_command(lock, lock_differences(lock)) is None


def test_a_plugin_that_is_not_installed_cannot_be_locked(ring) -> None:
    with pytest.raises(CheckpointError, match=r"axon-nothing took part in the run and is not installed: pip install"):
        lock_environment([], ["axon-nothing"], at_start=True)


def test_a_recipe_names_plugins_by_type_or_by_the_group(ring) -> None:
    ring.install("axon-toys", {"axon.v1.toy": {"ball": "axon_toys:Ball"}})
    tables = {"model": {"norm": {"type": "axon-ring:Ring"}}, "data": [{"toy": "ball"}], "trainer": {"path": "GQA"}}
    assert named_plugins(tables) == {"axon-ring", "axon-toys"}
    assert named_plugins([None, 3, {"schedule": "Ring"}]) == set()


@pytest.fixture
def run(ring, tmp_path: Path) -> Path:
    """A run's folder with a lock, as far as locks are concerned."""
    folder = tmp_path / "a run"
    (folder / "checkpoints/step-2/model").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "run.json").write_text("{}")
    (folder / LOCK).write_text(locked().model_dump_json())
    return folder


def test_a_lock_is_found_from_its_run_and_from_the_models_in_it(run: Path, tmp_path: Path) -> None:
    for folder in (run, run / "model", run / "checkpoints/step-2/model"):
        assert find_lock(folder) == run / LOCK
    assert find_lock(tmp_path) is None
    (run / "run.json").unlink()
    assert find_lock(run / "model") is None  # any folder may lie beside a file of that name


def test_doctor_compares_with_the_lock_of_a_run_or_a_file(ring, run: Path, capsys) -> None:
    assert main(["doctor", "--lock", str(run)]) == 0
    assert "all as in the lock." in capsys.readouterr().out
    (ring.folder / "axon_ring/norm.py").write_text("class Ring: x = 1\n")
    assert main(["doctor", "--lock", str(run / LOCK)]) == 1
    out = capsys.readouterr().out
    assert "wrong: axon-ring 1.0 is installed with other files than the lock has" in out
    assert "1 difference." in out
    assert out.splitlines()[-1] == "To restore it: pip install --force-reinstall --no-deps axon-ring==1.0"
    assert main(["doctor", "--lock", str(run), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [each["distribution"] for each in report["differences"]] == ["axon-ring"]
    assert report["at_start"] is True and report["restore"].endswith(" axon-ring==1.0")


def test_using_a_run_warns_in_one_line_of_what_differs(ring, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "axon"):
        note_differences(run / "model")
        assert not caplog.messages
        (ring.folder / "axon_ring/norm.py").write_text("class Ring: x = 1\n")
        note_differences(run / "model")
    (line,) = caplog.messages
    assert line.startswith("made with other software: axon-ring 1.0 is installed with other files")
    command = shlex.split(line.partition("To restore it: ")[2])
    assert command[0] == "axon" and main(command[1:]) == 1


def test_a_damaged_lock_is_a_warning_where_a_model_is_used(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / LOCK).write_text("{")
    with caplog.at_level(logging.WARNING, "axon"):
        note_differences(run)
    assert len(caplog.messages) == 1 and "is damaged or not a lock" in caplog.messages[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": 2}, "is of format 2, and this axon-core reads formats up to 1; upgrade axon-core"),
        ({"format": "x"}, "is damaged or not a lock"),
        ({"format": None}, "is damaged or not a lock"),
        ({"more": 1}, "is damaged or not a lock"),
        ({"python": "3; rm -rf ~"}, "is damaged or not a lock"),
        ({"python": "--help"}, "is damaged or not a lock"),
        ({"distributions": [{"name": "a; rm -rf ~", "version": "1", "files": "sha256:" + "0" * 64}]}, "damaged or not"),
        ({"distributions": [{"name": "--index-url", "version": "1", "files": "sha256:" + "0" * 64}]}, "damaged or not"),
        ({"distributions": [{"name": "a", "version": "$(id)", "files": "sha256:" + "0" * 64}]}, "damaged or not"),
        ({"distributions": [{"name": "a", "version": "1\n", "files": "sha256:" + "0" * 64}]}, "damaged or not"),
        ({"distributions": [{"name": "a", "version": "1", "files": "md5:0"}]}, "damaged or not"),
        ({"libraries": [{"name": "\x1b[2J", "version": "1"}]}, "damaged or not"),
    ],
)
def test_a_lock_with_hostile_or_unknown_contents_is_refused(run: Path, change: dict, what: str, capsys) -> None:
    facts = {**json.loads((run / LOCK).read_text()), **change}
    (run / LOCK).write_text(json.dumps(facts))
    assert main(["doctor", "--lock", str(run)]) == 1
    out, err = capsys.readouterr()
    assert what in err and err.count("\n") == 1 and "\x1b" not in err and not out


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 5000, b"null", b'"format"'])
def test_garbage_is_no_lock(run: Path, text: bytes) -> None:
    (run / LOCK).write_bytes(text)
    with pytest.raises(CheckpointError, match="is damaged or not a lock"):
        read_lock(run)


def test_a_place_without_a_lock_is_an_error_with_the_remedy(tmp_path: Path, capsys) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no lock.json; a run gets one when it begins if a plugin writes locks"
    ):
        read_lock(tmp_path)
    assert main(["doctor", "--lock", str(tmp_path / "gone")]) == 1
    assert "there is no lock" in capsys.readouterr().err


def test_a_part_s_hostile_name_is_escaped(ring, run: Path, capsys) -> None:
    facts = json.loads((run / LOCK).read_text())
    facts["by_hand"] = ["norm \x1b[2J"]
    (run / LOCK).write_text(json.dumps(facts))
    assert main(["doctor", "--lock", str(run)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[2J" in out
