"""Allow-lists of administrators: what they refuse, before any code of it runs, and what cannot widen them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from axon_core.cli import main
from axon_core.errors import UnknownKey
from axon_core.registries import NORMS
from axon_core.registry import allowed
from axon_core.registry.discovery import discover, scan
from axon_core.registry.installed import files_digest, installed
from axon_core.registry.registry import refresh

RAN = "open({ran!r}, 'w').close()\n"
WHOEVER_IS_ROOT = os.geteuid() == 0


@pytest.fixture
def allow(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install `axon-ring`, which leaves a file if its code runs, and return what writes the allow-list."""
    file = tmp_path / "etc" / "plugins.toml"
    file.parent.mkdir(mode=0o755)
    monkeypatch.setattr(allowed, "allow_files", lambda: [tmp_path / "nowhere" / "plugins.toml", file])
    points = {"axon.v1.norm": {"Ring": "axon_ring:Ring"}, "axon.v1.command": {"ringing": "axon_ring:ringing"}}
    site.install("axon-ring", points, {"axon_ring/__init__.py": RAN.format(ran=str(tmp_path / "ran"))})

    def write(text: str | bytes) -> Path:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        file.chmod(0o644)
        refresh()
        return file

    return write


def offered() -> bool:
    return any(entry.distribution == "axon-ring" for entry in scan().entries("norm"))


def digest() -> str:
    dist = installed("axon-ring")
    assert dist is not None
    return files_digest(dist)


def test_without_a_file_everything_is_allowed(allow) -> None:
    assert offered()
    assert scan().refused == {}


@pytest.mark.parametrize("rule", ['"*"', '"1.0"', '["0.9", "1.0"]', '"sha256:{digest}"', '["2.0", "sha256:{digest}"]'])
@pytest.mark.parametrize("name", ["axon-ring", "Axon_Ring"])
def test_what_is_named_with_its_version_or_files_is_allowed(allow, name: str, rule: str) -> None:
    allow(f"[plugins]\n{name} = {rule.format(digest=digest().removeprefix('sha256:'))}\n")
    assert offered()
    found = scan()
    assert "axon-ring" not in found.refused
    assert "axon-gqa" in found.refused and "axon-core" not in found.refused  # the core needs no line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[plugins]\n", "does not name it"),
        ('[plugins]\naxon-rin = "*"\n', "does not name it"),
        ('[plugins]\naxon-ring = "1.0.1"\n', "allows only 1.0.1, and it is axon-ring 1.0"),
        (f'[plugins]\naxon-ring = "sha256:{"0" * 64}"\n', "and its files are sha256:"),
    ],
)
def test_what_is_not_allowed_is_refused_before_its_code_runs(
    allow, text: str, reason: str, capsys, tmp_path: Path
) -> None:
    file = allow(text)
    assert not offered()
    assert reason in scan().refused["axon-ring"] and str(file) in scan().refused["axon-ring"]
    with pytest.raises(UnknownKey) as error:
        NORMS["Ring"]
    assert "no norm 'Ring' is installed. axon-ring offers it, but" in str(error.value)
    assert "Ask the administrator of this machine to put the line axon-ring = " in str(error.value)
    assert str(file) in str(error.value)
    assert main(["ringing"]) == 2
    assert "there is no command 'ringing': axon-ring offers it, but" in capsys.readouterr().err
    assert main(["list"]) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if "axon-ring" in line)
    assert said.startswith("refused: ") and reason in said
    main(["doctor", "--json"])
    assert reason in json.loads(capsys.readouterr().out)["refused"]["axon-ring"]
    assert not (tmp_path / "ran").exists()


def test_a_changed_file_of_an_allowed_plugin_is_refused_and_the_remedy_is_the_new_line(allow, site) -> None:
    allow(f'[plugins]\naxon-ring = "{digest()}"\n')
    assert offered()
    (site.folder / "axon_ring" / "more.py").write_text("x = 1\n")
    assert not offered()
    assert f'put the line axon-ring = "{digest()}" there' in scan().refused["axon-ring"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "it must have the table [plugins] and nothing else, got nothing"),
        ("[plugin]\naxon-ring = '*'", "it must have the table [plugins] and nothing else, got plugin"),
        (
            "[plugins]\naxon-ring = '*'\n[more]\n",
            "it must have the table [plugins] and nothing else, got plugins, more",
        ),
        ("plugins = 3", "it must have the table [plugins]"),
        ("[plugins]\naxon-ring = true", 'axon-ring must be "*", a version, or "sha256:"'),
        ("[plugins]\naxon-ring = []", 'axon-ring must be "*"'),
        ("[plugins]\naxon-ring = 'sha256:12'", 'axon-ring must be "*"'),
        ("[plugins]\naxon-ring = '*'\naxon_ring = '*'", "each line must name another distribution"),
        ("[plugins]\n'axon ring' = '*'", "each line must name another distribution"),
        ("[plugins\n", "it is malformed"),
        (b"\xff\xfe", "it is malformed"),
        ("x = " + "[" * 5000, "it is malformed"),
    ],
)
def test_a_malformed_file_refuses_all_plugins_with_one_message(allow, text: str | bytes, what: str, capsys) -> None:
    file = allow(text)
    found = scan()
    assert {entry.distribution for entries in found.groups.values() for entry in entries} == {"axon-core"}
    (problem,) = [problem for problem in found.problems if problem.distribution == "allow-list"]
    assert problem.what.startswith(f"{file} cannot be used: ") and what in problem.what
    refresh()
    assert main(["list"]) == 0
    assert capsys.readouterr().err.count(str(file)) == 1


def test_a_file_that_anyone_may_write_to_refuses_all_plugins(allow) -> None:
    file = allow('[plugins]\naxon-ring = "*"\n')
    file.chmod(0o666)
    assert f"anyone may write to {file}" in scan().refused["axon-ring"]
    file.chmod(0o644)
    file.parent.chmod(0o777)
    assert f"anyone may write to {file.parent}" in scan().refused["axon-ring"]
    file.parent.chmod(0o1777)
    assert offered()


def test_a_file_that_cannot_be_read_refuses_all_plugins(allow) -> None:
    file = allow("")
    file.unlink()
    file.mkdir()
    assert "it cannot be read: Is a directory" in scan().refused["axon-ring"]
    file.rmdir()
    file.symlink_to(file.parent / "gone")
    assert "it cannot be read: No such file" in scan().refused["axon-ring"]


@pytest.mark.skipif(WHOEVER_IS_ROOT, reason="root reads every file")
def test_a_file_without_permission_refuses_all_plugins(allow) -> None:
    allow('[plugins]\naxon-ring = "*"\n').chmod(0)
    assert "it cannot be read: Permission denied" in scan().refused["axon-ring"]


def test_variables_of_a_user_narrow_and_never_widen(allow, monkeypatch: pytest.MonkeyPatch) -> None:
    allow('[plugins]\naxon-gqa = "*"\naxon-ring = "*"\n')
    monkeypatch.setenv("AXON_PLUGINS", "axon-ring, axon-rmsnorm")
    assert offered()
    assert {e.distribution for entries in scan().groups.values() for e in entries} == {"axon-ring"}
    monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-ring,allow-list")
    assert not offered()
    allow("[plugins]\n")
    monkeypatch.delenv("AXON_DISABLE_PLUGINS")
    assert not offered()
    allow("damaged")
    monkeypatch.setenv("AXON_DISABLE_PLUGINS", "allow-list")
    assert not offered() and any(problem.distribution == "allow-list" for problem in scan().problems)


def test_no_variable_moves_the_files(tmp_path: Path) -> None:
    program = "from axon_core.registry.allowed import allow_files; print(*allow_files(), sep='\\n')"
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for more in ({}, {"HOME": str(tmp_path), "AXON_ALLOW_FILE": str(tmp_path), "VIRTUAL_ENV": str(tmp_path)})
    ]
    assert found[0] == found[1]
    assert found[0][0] == "/etc/axon/plugins.toml"
    assert str(Path(sys.prefix, "etc/axon/plugins.toml")) in found[0]


def test_every_file_must_allow(allow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = allow('[plugins]\naxon-ring = "*"\n')
    second = tmp_path / "second.toml"
    second.write_text('[plugins]\naxon-gqa = "*"\n')
    second.chmod(0o644)
    monkeypatch.setattr(allowed, "allow_files", lambda: [first, second])
    refused = scan().refused
    assert str(second) in refused["axon-ring"] and str(first) in refused["axon-gqa"]


def test_files_are_hashed_only_where_a_line_asks_for_it(allow, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(allowed, "_digest", lambda name: hashed.append(name) or "sha256:")
    allow('[plugins]\naxon-ring = "*"\naxon-gqa = "sha256:' + "0" * 64 + '"\naxon-dpo = ["0.2.0"]\n')
    scan()
    assert hashed == ["axon-gqa"]


def test_a_name_from_the_file_cannot_control_a_terminal(allow, capsys) -> None:
    allow("[plugins]\n'\\u001b[2Jx' = '*'\n")
    assert main(["list"]) == 0
    assert "\x1b" not in capsys.readouterr().err
    assert discover().refused
