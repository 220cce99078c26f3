"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Toy

from axon_core import Tokenizer
from axon_core.checkpoint.atomic import atomic_file, atomic_folder, claimed_folder, write_text
from axon_core.errors import CheckpointError, UsageError
from axon_core.training.loop import fit


def test_a_whole_file_replaces_what_was_there_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with atomic_file(target) as draft:
        assert draft.parent == tmp_path and draft.suffix == ".txt" and not target.exists()
        draft.write_text("first")
    assert target.read_text() == "first"
    with pytest.raises(RuntimeError, match="stop"), atomic_file(target) as draft:
        draft.write_text("half of the sec")
        raise RuntimeError("stop")
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]
    for place in (tmp_path, tmp_path / "none" / "out.txt"):
        with pytest.raises(CheckpointError, match=f"cannot write {place}"), atomic_file(place):
            raise AssertionError("the work must not begin")


def test_drafts_of_two_processes_of_one_id_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers
    with atomic_file(tmp_path / "a") as one, atomic_file(tmp_path / "a") as other:
        assert one != other
    with atomic_folder(tmp_path / "b") as one, atomic_folder(tmp_path / "b") as other:
        assert one != other


def test_links_in_the_place_of_drafts_are_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / ".unfinished-00000000-a").symlink_to(mine)
    with pytest.raises(CheckpointError, match="File exists"):
        write_text(tmp_path / "a", "theirs")
    out = tmp_path / "out"
    for name in (".run.json", ".metrics.jsonl", "run.json"):
        out.mkdir(exist_ok=True)
        (out / name).symlink_to(mine)
        with pytest.raises(UsageError, match="not empty"):
            fit(Toy.make(), out)
        (out / name).unlink()
    (out / ".unfinished-00000000-run.json").symlink_to(mine)
    fit(Toy.make(), out)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to(mine)
    Toy.make().data.tokenizer.save(folder)
    assert isinstance(Tokenizer.load(folder), Tokenizer)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_all_files_have_the_mode_of_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        fit(Toy.make(), tmp_path / "run")
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    assert {"run.json", "metrics.jsonl", "tensors.safetensors", "loss.png", "manifest.json"} <= modes.keys()
    assert set(modes.values()) == {mode}, modes


def test_a_model_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    from test_model import Square

    from axon_core import NORMS  # noqa: F401

    Square.build(dim=3).save(tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {stat.S_IMODE(plain.stat().st_mode)}


def test_a_claimed_folder_is_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    with pytest.raises(UsageError, match="is not empty, and nothing is overwritten"), claimed_folder(tmp_path / "full"):
        raise AssertionError("the work must not begin")
    with claimed_folder(tmp_path / "deep/new") as place, atomic_folder(place) as folder:
        (folder / "file").write_text("")
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["new", "file"]
