"""What was written is what is loaded: files are compared with the sums they were written with, and so are data."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import TEXT, Toy

from axon_core import MODELS
from axon_core.checkpoint.atomic import is_occupied
from axon_core.checkpoint.digests import digest
from axon_core.checkpoint.locks import lock_output
from axon_core.checkpoint.manifest import MANIFEST, add_to_manifest, check_folder, read_checked, write_manifest
from axon_core.cli import main
from axon_core.errors import CheckpointError, UsageError
from axon_core.interfaces.model import CausalLM
from axon_core.text.corpus import TextData
from axon_core.text.tokenizer import ByteTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer
from axon_core.training.build import build_trainer
from axon_core.training.loop import fit
from axon_core.training.pretrained import load_pretrained
from axon_core.training.recipe import Recipe
from axon_core.training.run_folder import RunFolder
from axon_core.training.trainers import TRAINERS

SIZES = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a language model that has hardly learnt anything."""
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "text.txt").write_text(TEXT[:600])
    tables = {
        "model": SIZES,
        "trainer": {"type": "causal_lm", "batch_size": 4, "steps": 2, "save_every": 1},
        "data": {"path": str(folder / "text.txt")},
    }
    fit(build_trainer(Recipe.of(tables, "tiny", "a test")), folder / "run", recipe={"name": "tiny", **tables})
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def swap_letters(file: Path) -> None:
    state = json.loads(file.read_text())
    first, second, *rest = state["characters"]
    file.write_text(json.dumps({**state, "characters": "".join([second, first, *rest])}))


def change_base(file: Path) -> None:
    facts = json.loads(file.read_text())
    facts["config"]["rotary"]["base"] = 500.0
    file.write_text(json.dumps(facts))


CHANGES = [("tokenizer.json", swap_letters), ("config.json", change_base)]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
@pytest.mark.parametrize("place", ["model", "checkpoints/step-2/model"])
def test_a_changed_file_is_refused_with_a_remedy_wherever_it_is_read(run: Path, place, name, change, capsys):
    folder = run / place
    change(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} was changed after it was written.*remove .*manifest.json"):
        load_pretrained(folder, CausalLM)
    commands = [["generate", str(folder), "--prompt", "the"], ["export", str(folder), "--format", "hf"]]
    if place == "model":
        commands[0][1] = str(run)
    else:  # the whole checkpoint is compared where a run goes on from it or is measured
        commands += [["train", "--resume", "--out", str(run)], ["evaluate", str(run)]]
    for command in commands:
        extra = ["--out", str(run.parent / "out")] if command[0] == "export" else []
        assert main([*command, *extra]) == 1, command
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_who_removes_the_manifest_uses_the_files_as_they_are(run: Path, name: str, change: Callable[[Path], None]):
    change(run / "model" / name)
    (run / "model" / MANIFEST).unlink()
    load_pretrained(run / "model", CausalLM)


def test_models_saved_from_python_have_one_too_and_keep_it_true(tmp_path: Path):
    tokenizer = CharTokenizer("abc")
    model = MODELS.build(SIZES, vocab_size=3)
    for _ in range(2):  # the second time over the first
        model.save(tmp_path, tokenizer)
        check_folder(tmp_path)
    tokenizer = CharTokenizer("acb")
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).piece(1) == b"c"
    swap_letters(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer.json was changed"):
        Tokenizer.load(tmp_path)


def test_the_sentencepiece_model_is_compared_too(tmp_path: Path):
    text = "the quick brown fox jumps over the lazy dog\n" * 20
    for name, size in (("a", 301), ("b", 302)):
        config = SentencePieceTokenizer.Config(vocab_size=size)
        SentencePieceTokenizer.train(text, config).save(tmp_path / name)
    shutil.copyfile(tmp_path / "b/tokenizer.model", tmp_path / "a/tokenizer.model")
    with pytest.raises(CheckpointError, match=r"tokenizer.model was changed after it was written"):
        Tokenizer.load(tmp_path / "a")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": []}', '{"sha256": {"config.json": 5}}'])
def test_a_damaged_manifest_is_no_missing_one(run: Path, content: str):
    (run / "model" / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest.json is unreadable.*restore it, or remove it"):
        load_pretrained(run / "model", CausalLM)


def test_manifests_name_all_files_but_themselves(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).write_text(name)
    for _ in range(2):
        write_manifest(tmp_path)
        assert json.loads((tmp_path / MANIFEST).read_text())["sha256"].keys() == {"a", "deep/b"}
        check_folder(tmp_path)
    (tmp_path / "c").write_text("c")
    assert read_checked(tmp_path / "c") == b"c"  # it was added, not changed
    add_to_manifest(tmp_path, "c")
    (tmp_path / "c").write_text("d")
    with pytest.raises(CheckpointError, match="was changed"):
        check_folder(tmp_path)
    (tmp_path / "c").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        check_folder(tmp_path)


# run.json


@pytest.mark.parametrize("copies", [("recipe",), ("trainer",), ("recipe", "trainer")])
def test_a_setting_edited_in_one_copy_or_all_is_told_and_never_used(run: Path, copies, capsys):
    facts = json.loads((run / "run.json").read_text())
    for copy in copies:
        facts[copy].setdefault("trainer", {}) if copy == "recipe" else None
        table = facts["recipe"]["trainer"] if copy == "recipe" else facts["trainer"]
        table["optimizer"] = {"type": "adamw", "lr": 0.5}
    (run / "run.json").write_text(json.dumps(facts, indent=1))
    for command in (["train", "--resume", "--out", str(run)], ["evaluate", str(run)], ["generate", str(run)]):
        assert main([*command, *(["--prompt", "the"] if command[0] == "generate" else [])]) == 1
        message = capsys.readouterr().err
        assert "run.json was changed after it was written" in message and "--set" in message
    del facts["sha256"]
    (run / "run.json").write_text(json.dumps(facts))
    assert main(["train", "--resume", "--out", str(run), "--set", "trainer.steps=3"]) == 0


def test_another_layout_of_the_same_facts_is_no_change(run: Path):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(dict(reversed(facts.items())), ensure_ascii=False))
    assert "sha256" not in RunFolder.open(run).facts


# Data.


def test_all_data_are_compared_on_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Also what the first batch does not show: the last line, and what is held out."""

    def trainer(text: str, **options) -> Toy:
        return Toy(Toy.Config(**{"steps": 6, "batch_size": 4, "seed": 3, **options}), TextData.of(text))

    fit(trainer(TEXT), tmp_path / "run", stop_at=2)
    middle = len(TEXT) // 2
    changed = [TEXT[:middle] + TEXT[middle : middle + 9][::-1] + TEXT[middle + 9 :], TEXT[:-2] + TEXT[-2:][::-1]]
    for text in changed:
        with pytest.raises(CheckpointError, match="the data are not those that the run started with; restore them"):
            fit(trainer(text), tmp_path / "run", resume=True)
    with caplog.at_level(logging.WARNING, "axon"):
        fit(trainer(TEXT, seed=4), tmp_path / "run", resume=True)
    assert "seed or batch size differ" in caplog.text


def test_digests_tell_type_shape_order_and_length_apart():
    values = [
        *(torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(6, dtype=torch.float64), torch.zeros(0)),
        *(torch.tensor(1), torch.tensor(True), "ab", b"ab", 1, 1.0, True, None, [1, 2], [2, 1], [[1], 2], [1.0, 2.0]),
        *(["a", "bc"], ["ab", "c"], {"a": 1}, {"b": 1}, [True, False], [1, 0], [2**70], []),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) and digest((1, 2)) == digest([1, 2])
    with pytest.raises(TypeError, match="checksum of a object"):
        digest(object())


def test_every_trainer_knows_its_data_again_and_other_data_apart():
    """The parts of a trainer's data all count; those of an environment have none."""
    for kind in TRAINERS.values():
        if not kind.examples or "environment" in kind.examples[0].get("data", {}):
            continue
        first, again = (build_trainer(Recipe.of(dict(kind.examples[0]), "example", "a test")) for _ in range(2))
        assert first.data_digest() and first.data_digest() == again.data_digest(), kind
        tables = dict(kind.examples[0])
        share = "valid" if "valid" in tables["data"] else "held_out"
        other = {**tables["data"], share: {"reverse": 5} if share == "valid" else 0.5}
        assert (
            first.data_digest() != build_trainer(Recipe.of({**tables, "data": other}, "other", "a test")).data_digest()
        )


DIES = """
import os, sys
from axon_core import MODELS
from axon_core.checkpoint import atomic
from axon_core.text.tokenizer import ByteTokenizer
model = MODELS.build({sizes}, vocab_size=258)
atomic._flush = lambda path: path.name.endswith({name!r}) and os._exit(9)
model.save({folder!r}, ByteTokenizer())
"""


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "manifest.json"])
def test_the_next_save_removes_what_a_killed_one_left(name: str, tmp_path: Path):
    folder = tmp_path / "model"
    script = DIES.format(sizes=SIZES, name=name, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    (left,) = folder.glob(f".unfinished-*-{name}")
    other = folder / ".unfinished-0123abcd-rows.jsonl"  # another process writes it just now
    other.touch()
    MODELS.build(SIZES, vocab_size=258).save(folder, ByteTokenizer())
    assert not left.exists()
    files = {"config.json", "manifest.json", "model.safetensors", "tokenizer.json"}
    assert {file.name for file in folder.iterdir()} == {*files, other.name}
    check_folder(folder)


def test_two_processes_do_not_save_into_one_folder(tmp_path: Path):
    with lock_output(tmp_path / MANIFEST), pytest.raises(UsageError, match="is in use: process"):
        MODELS.build(SIZES, vocab_size=258).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_only_a_killed_save_was_is_as_good_as_empty(tmp_path: Path):
    folder = tmp_path / "model"
    script = DIES.format(sizes=SIZES, name="tokenizer.json", folder=str(folder))  # the first file
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert f".{MANIFEST}.lock" in {file.name for file in folder.iterdir()}
    assert not is_occupied(folder)


def test_what_cannot_be_swept_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(folder: Path, name: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("axon_core.checkpoint.manifest.remove_leftovers", forbidden)
    with pytest.raises(CheckpointError, match=r"cannot write .*: Operation not permitted"):
        MODELS.build(SIZES, vocab_size=258).save(tmp_path)
