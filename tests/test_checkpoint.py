"""Checkpoints on disk: complete or not there, refused by name when damaged, without pickle."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from damage import cut, flip
from toy_trainer import Toy

from axon_core.checkpoint.checkpoint import Checkpoints
from axon_core.checkpoint.manifest import new_folder, verify
from axon_core.checkpoint.trees import read_tree, read_whole, write_tree
from axon_core.errors import CheckpointError, UsageError
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.run_folder import RunFolder

OPTIONS = {"save_every": 4, "keep_checkpoints": 5, "dropout": 0.3, "optimizer": {"type": "muon"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fit(Toy.make(**OPTIONS), tmp_path / "run")
    return tmp_path / "run"


DAMAGES = [
    ("tensors.safetensors", flip, "tensors.safetensors does not match its checksum"),
    ("tensors.safetensors", cut, "tensors.safetensors does not match its checksum"),
    ("tensors.safetensors", Path.unlink, "tensors.safetensors is missing"),
    ("state.json", flip, "state.json does not match its checksum"),
    ("model/tokenizer.json", cut, "model/tokenizer.json does not match its checksum"),
    ("manifest.json", cut, "manifest.json is unreadable"),
    ("manifest.json", Path.unlink, "manifest.json is missing"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(run: Path, file: str, damage: Callable[[Path], None], message: str):
    damage(run / "checkpoints/step-12" / file)
    with pytest.raises(CheckpointError) as caught:
        fit(Toy.make(**OPTIONS), run, resume=True)
    assert f"checkpoint step-12 in {run / 'checkpoints'} is damaged: {message}" in str(caught.value)
    assert "resume with --from step-8" in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "5", '{"recipe": 5}', '{"recipe": {"trainer": {}}}', "{"])
def test_a_damaged_run_file_is_refused(run: Path, content: str):
    (run / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run.json is damaged or cannot be read"):
        RunFolder.open(run)


def test_the_one_before_is_used_if_asked_to_the_same_end(run: Path):
    whole = Toy.make(**OPTIONS)
    fit(whole)
    numbers = (run / "metrics.jsonl").read_text()
    for name, step in (("previous", 8), ("step-4", 4)):
        cut(run / "checkpoints/step-12/tensors.safetensors")
        starts = []

        class Watch:
            @hook
            def fit_start(self, fit, starts=starts):
                starts.append(fit.state.step)

        trainer = Toy.make(**OPTIONS)
        fit(trainer, run, resume=name, hooks=[Watch()])
        assert starts == [step] and trainer.digest() == whole.digest()
        assert (run / "metrics.jsonl").read_text() == numbers  # no step is written twice, none is missing
        assert verify(run / "checkpoints/step-12") is None


def test_the_remedy_never_names_another_damaged_one(run: Path):
    for step in (12, 8):
        flip(run / f"checkpoints/step-{step}/state.json")
    with pytest.raises(CheckpointError, match="resume with --from step-4"):
        fit(Toy.make(**OPTIONS), run, resume=True)
    flip(run / "checkpoints/step-4/state.json")
    with pytest.raises(CheckpointError, match="no other checkpoint is intact: start the run again in another folder"):
        fit(Toy.make(**OPTIONS), run, resume=True)


def test_an_unknown_checkpoint_is_a_usage_error(run: Path):
    with pytest.raises(UsageError, match=r"no checkpoint step-5 .* there are: step-4, step-8, step-12"):
        fit(Toy.make(**OPTIONS), run, resume="step-5")


def test_only_the_latest_are_kept_and_the_last_is_always_saved(tmp_path: Path):
    fit(Toy.make(steps=11, save_every=3, keep_checkpoints=2), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-11", "step-9"]


@pytest.mark.parametrize("stops", [(5,), (2, 4, 7), (10,)])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_training_that_was_interrupted_leaves_the_checkpoints_of_one_that_was_not(
    stops: tuple[int, ...], keep: int, tmp_path: Path
):
    options = {"steps": 11, "save_every": 3, "keep_checkpoints": keep}
    run = tmp_path / "run"

    def names() -> list[str]:
        return RunFolder.open(run).checkpoints.names()

    for i, step in enumerate(stops):
        fit(Toy.make(**options), run, resume=i > 0, stop_at=step)
        assert names()[-1] == f"step-{step}"
        assert [name for name in names()[:-1] if int(name.removeprefix("step-")) % 3] == []
        assert len(names()) <= keep + 1
    fit(Toy.make(**options), run, resume=True)
    assert names() == ["step-9", "step-11"][-keep:]


def test_what_a_kill_left_unfinished_is_swept_away(run: Path):
    (run / "checkpoints/.unfinished-0123abcd-step-99").mkdir()
    (run / ".unfinished-0123abcd-model").mkdir()
    (run / ".unfinished-0123abcd-loss.png").write_text("")
    (run / ".unfinished-0123abcd-linked").symlink_to(run / "model")
    (run / ".lock").write_text("")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "spl')
    fit(Toy.make(**OPTIONS), run, resume=True)
    assert not list(run.rglob(".*")) and (run / "model/weights.pt").exists()
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def test_a_kill_before_the_model_is_published_is_made_up_for(run: Path):
    model = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    shutil.rmtree(run / "model")
    assert fit(Toy.make(**OPTIONS), run, resume=True).step == 12
    assert {path.name: path.read_bytes() for path in (run / "model").iterdir()} == model


def test_another_model_or_optimiser_is_refused(run: Path):
    with pytest.raises(CheckpointError, match=r"is not the one that the recipe .* size mismatch"):
        fit(Toy.make(**OPTIONS, dim=8), run, resume=True)
    with pytest.raises(CheckpointError, match="optimiser is muon, but the recipe's is adamw"):
        fit(Toy.make(**{**OPTIONS, "optimizer": {"type": "adamw"}}), run, resume=True)
    with pytest.raises(CheckpointError, match="moving average"):
        fit(Toy.make(**OPTIONS, ema=0.9), run, resume=True)


def test_other_data_is_told(run: Path, caplog: pytest.LogCaptureFixture):
    fit(Toy.make(**{**OPTIONS, "steps": 13}), run, resume=True)
    assert "differ" not in caplog.text
    fit(Toy.make(**{**OPTIONS, "steps": 14, "seed": 1}), run, resume=True)
    assert "seed or batch size differ from those that the run started with" in caplog.text


class Limit:
    """From a step on, no file may grow over 4 kB, as on a full disk."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hook
    def step_end(self, fit):
        if fit.state.step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


@pytest.fixture
def unlimited():
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("unlimited")
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        fit(Toy.make(**OPTIONS), tmp_path / "run", hooks=[Limit(6)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert f"cannot write {tmp_path / 'run/checkpoints/step-8'}: " in str(caught.value)
    assert "File too large" in str(caught.value) and "intact" in str(caught.value)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-4"]
    trainer, whole = Toy.make(**OPTIONS), Toy.make(**OPTIONS)
    fit(trainer, tmp_path / "run", resume=True)
    fit(whole)
    assert trainer.digest() == whole.digest()


def test_a_full_disk_says_so(tmp_path: Path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    errors = [
        full,
        shutil.Error([("source", "target", str(full))]),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {}, lambda folder: None)
    for error in errors:

        def export(folder: Path, error: Exception = error) -> None:
            raise error

        with pytest.raises(CheckpointError, match=r"step-2: .*No space left on device.*; free some space"):
            checkpoints.save(2, {}, export)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-1"]


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/run: Not a directory; choose a writable folder"):
        fit(Toy.make(), tmp_path / "file/run")


def test_a_failing_export_leaves_nothing(tmp_path: Path):
    class Broken(Toy):
        def export(self, folder):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(Broken.make(), tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_a_tree_returns_as_it_was_with_shared_tensors_written_once(tmp_path: Path):
    base = torch.arange(6.0).view(2, 3)
    tree = {
        "weights": {"a": base, "tied": base, "row": base[0], "transposed": base.T, "empty": torch.zeros(0)},
        "list": [1, 0.1, None, "x", {"half": torch.ones(2, dtype=torch.bfloat16)}],
        "scalar": torch.tensor(3),
    }
    write_tree(tmp_path, tree)
    result = read_whole(read_tree(tmp_path))
    for name, tensor in tree["weights"].items():
        assert torch.equal(result["weights"][name], tensor)
    assert result["weights"]["tied"] is result["weights"]["a"]
    assert result["list"][:4] == [1, 0.1, None, "x"] and result["list"][4]["half"].dtype == torch.bfloat16
    assert result["scalar"] == 3
    assert not list(tmp_path.glob("*.p*"))


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path):
    target = tmp_path / "deep/target"
    target.parent.mkdir()
    for text in ("one", "two"):  # the second replaces the first
        with new_folder(target) as folder:
            (folder / "file").write_text(text)
            assert not target.exists() or (target / "file").read_text() == "one"
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        (folder / "file").write_text("three")
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "two" and [path.name for path in target.parent.iterdir()] == ["target"]
