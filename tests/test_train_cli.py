"""`axon train` and `axon evaluate`: what a user reads and gets, and every way the input can be wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import TEXT, Toy

from axon_core.cli import main
from axon_core.config import validate
from axon_core.errors import UsageError
from axon_core.text.corpus import TextData
from axon_core.training.loop import fit
from axon_core.training.trainer import Trainer
from axon_core.training.trainers import TRAINERS

RECIPE = """
summary = "A bigram model on a pangram"
[trainer]
type = "toy"
steps = 10
batch_size = 4
dropout = 0.3
[data]
path = "{text}"
"""


@pytest.fixture
def recipe(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a recipe file, in a fresh current folder, for an installed toy trainer."""
    site.install("axon-toy", {"axon.v1.trainer": {"toy": "toy_trainer:Toy"}})
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("pangram.toml").write_text(RECIPE.format(text="text.txt"))
    return "pangram.toml"


def whole(**values: object) -> Toy:
    trainer = Toy(validate(Toy.Config, {"steps": 10, "batch_size": 4, "dropout": 0.3, **values}), TextData.of(TEXT))
    fit(trainer)
    return trainer


def weights(run: str) -> bytes:
    return (Path(run) / "model/weights.pt").read_bytes()


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Run `axon train` with arguments that must fail with `code`, in one paragraph and no traceback."""
    capsys.readouterr()
    assert main(["train", *arguments]) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message and "bug in Axon" not in message
    (line,) = [line for line in message.splitlines() if line.startswith("Error: ")]
    return line


def test_training_ends_with_what_came_out_where_it_is_and_what_is_next(recipe: str, capsys):
    assert main(["train", recipe]) == 0
    output = capsys.readouterr()
    assert "runs/pangram-1" in output.err and "step 10/10  loss " in output.err and "tokens/s  ETA" in output.err
    assert "finished after step 10" in output.out
    assert "nats per token, bits per byte " in output.out
    assert "Run folder: runs/pangram-1\nLoss plot:  runs/pangram-1/loss.png\nNext:" in output.out
    assert Path("runs/pangram-1/loss.png").exists()
    facts = json.loads(Path("runs/pangram-1/run.json").read_text())
    assert {"group": "trainer", "key": "toy", "distribution": "axon-toy", "version": "1.0"} in facts["parts"]
    assert main(["train", recipe]) == 0
    assert Path("runs/pangram-2").is_dir()


def test_evaluate_agrees_with_training_and_with_the_library(recipe: str, capsys):
    main(["train", recipe, "--out", "run", "--set", "trainer.ema=0.5"])
    capsys.readouterr()
    assert main(["evaluate", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert found == {line["name"]: line["value"] for line in lines if line["split"] == "held_out"}
    assert found["tokens"] == len(whole().data.held_out) - 1
    assert main(["evaluate", "run"]) == 0
    assert f"run at step-10: loss {found['loss']:.4f} nats per token" in capsys.readouterr().out


def test_a_trainer_may_be_measured_on_what_the_user_gives(recipe: str, capsys, monkeypatch: pytest.MonkeyPatch):
    main(["train", recipe, "--out", "run"])
    capsys.readouterr()
    assert main(["evaluate", "run", "--text", "text.txt"]) == 2
    assert "no such option: --text; this trainer evaluates only on its own held-out data" in capsys.readouterr().err

    class Evaluation(Trainer.Evaluation):
        text: Path
        half_size: bool = False

        def evaluate(self, folder: Path, device: str) -> dict[str, float | str]:
            assert (folder / "weights.pt").exists() and device == "cpu"
            return {"characters": len(self.text.read_text()) / (1 + self.half_size), "kind": "by hand"}

    monkeypatch.setattr(TRAINERS["toy"], "Evaluation", Evaluation)
    Path("text.txt").rename("other.txt")  # what the run was trained on need not be there
    assert main(["evaluate", "run", "--text=other.txt", "--half-size", "true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"characters": len(TEXT) / 2, "kind": "by hand"}
    assert main(["evaluate", "run", "--text", "other.txt"]) == 0
    assert f"run at step-10: characters {len(TEXT):,}, kind by hand" in capsys.readouterr().out
    for arguments, message in (
        (["--txt", "x"], "the options of axon evaluate: text: this field is required; txt: unknown field 'txt'"),
        (["--text"], "the option --text needs a value"),
        (["text.txt"], "got an unexpected argument 'text.txt'; an option has the form --name VALUE"),
    ):
        assert main(["evaluate", "run", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_an_evaluation_may_have_other_settings_of_the_trainer(recipe: str, capsys, monkeypatch: pytest.MonkeyPatch):
    main(["train", recipe, "--out", "run"])
    before = Path("run/run.json").read_text(), Path("run/metrics.jsonl").read_text()
    seen: list[float] = []
    evaluate = Toy.evaluate
    monkeypatch.setattr(Toy, "evaluate", lambda toy: seen.append(toy.config.dropout) or evaluate(toy))
    capsys.readouterr()
    assert main(["evaluate", "run", "--set", "trainer.dropout=0.1", "--json"]) == 0
    assert main(["evaluate", "run"]) == 0
    assert seen == [0.1, 0.3]
    assert before == (Path("run/run.json").read_text(), Path("run/metrics.jsonl").read_text())
    for arguments, message in (
        (["trainer.dropuot=1"], "trainer.dropuot: unknown field 'dropuot'"),
        (
            ["data.path=other.txt"],
            "a run keeps its data: --set changes only fields of the trainer, for example trainer.precision=fp32",
        ),
        (["model.type=unet"], "a run keeps its model: --set changes"),
        (["trainer.type=other"], "a run keeps its trainer, toy; got other"),
        (["trainer.seed"], "--set takes table.field=value, got 'trainer.seed'"),
        (["trainer.seed=1", "--text", "text.txt"], "but --text selects other data; leave one of them out"),
    ):
        capsys.readouterr()
        assert main(["evaluate", "run", "--set", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_overrides_reach_the_trainer(recipe: str):
    assert main(["train", recipe, "--out", "run", "--set", "trainer.steps=3", "--set", "trainer.seed=7"]) == 0
    facts = json.loads(Path("run/run.json").read_text())
    assert facts["recipe"]["trainer"] == {"type": "toy", "steps": 3, "batch_size": 4, "dropout": 0.3, "seed": 7}
    assert facts["trainer"]["seed"] == 7


def test_a_run_in_parts_is_the_run_in_one(recipe: str, capsys):
    assert main(["train", recipe, "--out", "whole"]) == 0
    assert main(["train", recipe, "--out", "parts", "--stop-at", "4"]) == 0
    assert "Continue with: axon train --resume --out parts" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", "parts"]) == 0
    assert weights("parts") == weights("whole")
    assert Path("parts/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()


def test_a_finished_run_may_be_given_more_steps(recipe: str):
    main(["train", recipe, "--out", "whole", "--set", "trainer.steps=20"])
    main(["train", recipe, "--out", "more"])
    assert main(["train", recipe, "--out", "more", "--set", "trainer.steps=20", "--resume"]) == 0
    assert weights("more") == weights("whole")


def test_a_damaged_checkpoint_is_refused_and_the_one_before_used_if_asked(recipe: str, capsys):
    main(["train", recipe, "--out", "run", "--set", "trainer.save_every=5"])
    before = weights("run")
    file = Path("run/checkpoints/step-10/tensors.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    message = failure(["--resume", "--out", "run"], capsys, 1)
    assert "step-10 in run/checkpoints is damaged: tensors.safetensors does not match" in message
    assert "--from step-5" in message
    assert main(["evaluate", "run"]) == 1
    assert main(["train", "--resume", "--out", "run", "--from", "step-5"]) == 0
    assert weights("run") == before


def test_ctrl_c_saves_says_how_to_resume_and_exits_with_130(recipe: str, tmp_path: Path):
    code = "import sys; from axon_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", recipe, "--out", "run", "--set", "trainer.steps=1000000"]
    path = os.pathsep.join([str(tmp_path / "site-packages"), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (Path("run/metrics.jsonl").exists() and Path("run/metrics.jsonl").stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error and "axon train --resume --out run" in error
    saved = int(next(Path("run/checkpoints").iterdir()).name.removeprefix("step-"))
    assert f"interrupted after step {saved}" in error
    assert main(["train", "--resume", "--out", "run", "--stop-at", str(saved + 1)]) == 0


BAD = [
    (["--set", "trainer.stepz=3"], 2, "pangram.toml with --set trainer.stepz=3: trainer.stepz: unknown field 'stepz'"),
    (["--set", "trainer.steps=-3"], 2, "trainer.steps: must be greater than 0, got -3"),
    (["--set", "trainer.optimizer.type=sgd"], 2, "trainer.optimizer.type: must be one of adamw, "),
    (["--set", "trainer.optimizer.lrr=3"], 2, "trainer.optimizer.lrr: unknown field 'lrr' (did you mean 'lr'?)"),
    (["--set", "trainer.type=nowhere"], 2, "no trainer 'nowhere' is installed"),
    (["--set", "model.type=nowhere"], 2, "no model 'nowhere' is installed"),
    (["--set", "data.pth=x"], 2, "data.pth: unknown field 'pth' (did you mean 'path'?)"),
    (["--set", "data.tokenizer.type=morse"], 2, "data.tokenizer.type: must be one of"),
    (["--set", "data.path=nowhere.txt"], 1, "no such file or folder: nowhere.txt"),
    (["--set", "data.path=empty.txt"], 1, "empty.txt has no text"),
    (["--set", "trainer.context=100000"], 1, "at least context + 1 = 100001 tokens"),
    (["--set", "trainer.spoil_at=3"], 1, "after 3 steps, the loss is not finite: loss nan"),
    (["--set", "data.path="], 1, "path '' is empty; give a file or a folder"),
    (["--out", "text.txt"], 2, "text.txt is a file, but a run needs a folder: choose another name with --out"),
    (["--out", "text.txt/run"], 1, "cannot write text.txt/run: Not a directory"),
    (["--from", "step-1"], 2, "--from needs --resume"),
    (["--resume"], 2, "--resume needs --out"),
    (["--set", "steps"], 2, "--set takes table.field=value, got 'steps'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_clear_sentence(recipe: str, arguments: list[str], code: int, message: str, capsys):
    Path("empty.txt").write_text("")
    assert message in failure([recipe, *arguments], capsys, code)
    if "spoil_at" not in message and code == 2:
        assert not Path("runs").exists()  # nothing is left behind


def test_recipes_and_runs_that_are_not_there(recipe: str, capsys):
    assert "cannot read the recipe nowhere.toml" in failure(["nowhere.toml"], capsys, 2)
    assert "no recipe 'nowhere' is installed" in failure(["nowhere"], capsys, 2)
    assert "name a recipe or a TOML file" in failure([], capsys, 2)
    message = failure(["--resume", "--out", "nowhere"], capsys, 1)
    assert "nowhere is not a run folder: no such folder" in message
    assert main(["evaluate", "nowhere"]) == 1
    assert "nowhere is not a run folder: no such folder" in capsys.readouterr().err


def test_a_run_is_never_overwritten_nor_its_data_exchanged(recipe: str, capsys):
    main(["train", recipe, "--out", "run"])
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert "run is not empty" in failure([recipe, "--out", "run"], capsys, 2)
    message = failure(["--resume", "--out", "run", "--set", "data.held_out=0.5"], capsys, 2)
    assert "data.held_out was None in run and is now 0.5" in message
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_an_error_says_what_was_added_on_its_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(*_: object, **__: object) -> None:
        error = UsageError("the judge has left")
        error.add_note("Resume with: axon train --resume --out run")
        raise error

    monkeypatch.setattr("axon_core.cli.app.cli.main", fail)
    assert main([]) == 2
    assert capsys.readouterr().err == "Error: the judge has left\nResume with: axon train --resume --out run\n"
