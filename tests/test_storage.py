"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from axon_core.errors import CheckpointError
from axon_core.storage import whole_file


def test_a_whole_file_replaces_what_was_there_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with whole_file(target) as draft:
        assert draft.parent == tmp_path and draft.suffix == ".txt" and not target.exists()
        draft.write_text("first")
    assert target.read_text() == "first"
    with pytest.raises(RuntimeError, match="stop"), whole_file(target) as draft:
        draft.write_text("half of the sec")
        raise RuntimeError("stop")
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]
    for place in (tmp_path, tmp_path / "none" / "out.txt"):
        with pytest.raises(CheckpointError, match=f"cannot write {place}"), whole_file(place):
            raise AssertionError("the work must not begin")
