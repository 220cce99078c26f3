"""Paths with `~` and variables, and one that is not set."""

from __future__ import annotations

from pathlib import Path

import pytest

from axon_core.errors import CheckpointError, DataError
from axon_core.paths import expanded


def test_what_people_abbreviate_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PART", "text")
    assert expanded("~/$PART/a.txt") == expanded(Path("~/${PART}/a.txt")) == tmp_path / "text" / "a.txt"
    assert expanded("a.txt") == Path("a.txt")


def test_an_unset_variable_is_named_by_an_error_of_the_right_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    for given, kind in (({}, DataError), ({"error": CheckpointError}, CheckpointError)):
        with pytest.raises(kind, match=r"path '\$NOT_SET/a' names an environment variable that is not set; set it"):
            expanded("$NOT_SET/a", **given)
    (tmp_path / "costs$NOT_SET").touch()  # a file may be called so
    assert expanded(tmp_path / "costs$NOT_SET") == tmp_path / "costs$NOT_SET"


def test_a_file_that_a_package_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = expanded("axon_lora:example/sums.txt")
    assert place.is_absolute() and place.read_text().startswith("Ten an")
    with pytest.raises(DataError, match=r"path axon_nobody:a.txt is in the package axon_nobody, which is not"):
        expanded("axon_nobody:a.txt")
    with pytest.raises(DataError, match=r"path axon_lora:../a.txt must stay within the package"):
        expanded("axon_lora:../a.txt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "axon_lora:a.txt").touch()  # a file may be called so
    assert expanded("axon_lora:a.txt") == Path("axon_lora:a.txt")


@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_path_is_not_the_current_folder(given: str):
    with pytest.raises(DataError, match="is empty; give a file or a folder"):
        expanded(given)
