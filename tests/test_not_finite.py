"""Numbers that are not finite: refused as settings, stopped in training, never saved, and never written as JSON."""

from __future__ import annotations

import ast
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import TEXT, Toy

from axon_core.checkpoint.manifest import verify
from axon_core.checkpoint.trees import read_tree, write_tree
from axon_core.cli import main
from axon_core.config import LARGEST, Config, validate
from axon_core.errors import ConfigError, DataError, TrainingError
from axon_core.generation.sampling import Sampling
from axon_core.json_text import to_json
from axon_core.registry.registry import registries
from axon_core.text.records import read_json_lines
from axon_core.training.callbacks.curves import draw_curves
from axon_core.training.hooks import hook
from axon_core.training.loop import fit
from axon_core.training.optim import AdamW
from axon_core.training.run_folder import RunFolder
from axon_core.training.train_state import TrainState

ROOT = Path(__file__).parents[1]


def configs(kind: type[Config] = Config) -> set[type[Config]]:
    return {kind, *(found for sub in kind.__subclasses__() for found in configs(sub))}


def numbers(kind: type[Config]) -> list[str]:
    """The fields whose schema takes a number."""
    return [name for name, field in kind.model_fields.items() if "float" in str(field.annotation)]


def test_no_config_of_any_part_takes_or_has_a_number_that_is_not_finite():
    for registry in registries():
        list(registry.values())  # imports them all
    found = [(kind, name) for kind in configs() for name in numbers(kind)]
    assert len(found) > 30
    for kind, name in found:
        default = kind.model_fields[name].default
        assert not (isinstance(default, float) and not math.isfinite(default)), (kind, name)
        for number in (math.inf, -math.inf, math.nan, "inf", "nan"):
            with pytest.raises(ConfigError) as caught:
                validate(kind, {name: number})
            told = [message for path, message in caught.value.problems if path and path[0] == name]
            assert told, (kind, name, number)


@pytest.mark.parametrize("options", [{"lr": 1e308}, {"weight_decay": 3.5e38}, {"eps": 1e39}])
def test_a_number_that_float32_cannot_hold_is_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"within ±3\.4e\+38, the range of float32, got"):
        validate(AdamW, options)
    assert LARGEST == torch.finfo(torch.float32).max


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize("field", ["optimizer.lr", "optimizer.eps", "max_grad_norm", "ema"])
def test_recipes_and_overrides_refuse_them(site, tmp_path: Path, monkeypatch, capsys, field: str, number: str):
    site.install("axon-toy", {"axon.v1.trainer": {"toy": "toy_trainer:Toy"}})
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("a.toml").write_text('[trainer]\ntype = "toy"\n[data]\npath = "text.txt"\n')
    assert main(["train", "a.toml", "--set", f"trainer.{field}={number}"]) == 2
    assert f"{field}: must be " in capsys.readouterr().err
    if number != "1e999":  # which TOML itself may refuse
        Path("b.toml").write_text(f'[trainer]\ntype = "toy"\n{field} = {number}\n[data]\npath = "text.txt"\n')
        assert main(["train", "b.toml"]) == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_sampling_refuses_them_in_python_and_on_the_command_line(name: str, capsys):
    for number in (math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"{name}: must be "):
            validate(Sampling, {name: number})
        assert main(["generate", "nowhere", "--prompt", "x", f"--{name.replace('_', '-')}", str(number)]) == 2
        assert f"{name}: must be " in capsys.readouterr().err


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_json_lines_refuse_what_json_has_no_word_for(tmp_path: Path, number: str):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "x", "margin": {number}}}\n')
    with pytest.raises(DataError, match=f"line 1 of .*{number} is not a number"):
        list(read_json_lines(tmp_path / "a.jsonl"))


# What training does.


def lr(value: float) -> dict:
    return {"optimizer": {"type": "adamw", "lr": value}}


def test_a_rate_that_ruins_the_weights_in_the_last_step_is_no_finished_training(tmp_path: Path):
    for out in (None, tmp_path / "run"):
        with pytest.raises(TrainingError, match=r"after 1 steps, the weight model\.\S+ has a number that is not fin"):
            fit(Toy.make(steps=1, **lr(1e38), dropout=0.1), out)
    assert not list((tmp_path / "run/checkpoints").glob("*")) and not (tmp_path / "run/model").exists()


def test_the_good_checkpoint_stays_and_the_remedy_works(site, tmp_path: Path, monkeypatch, capsys):
    site.install("axon-toy", {"axon.v1.trainer": {"toy": "toy_trainer:Toy"}})
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("a.toml").write_text(
        '[trainer]\ntype = "toy"\nsteps = 8\nkeep = 1\nsave_every = 1\nema = 0.9\n[trainer.optimizer]\nlr = 0.002\n'
        '[data]\npath = "text.txt"\n'
    )
    assert main(["train", "a.toml", "--out", "run", "--stop-at", "4"]) == 0
    good = (Path("run/checkpoints/step-4/tensors.safetensors")).read_bytes()
    for _ in range(2):  # the advice is good however often it is not taken
        assert main(["train", "--resume", "--out", "run", "--set", "trainer.optimizer.lr=3e38"]) == 1
        message = capsys.readouterr().err
        assert "not finite" in message and "The last checkpoint is step-4" in message
        assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-4"]
        assert Path("run/checkpoints/step-4/tensors.safetensors").read_bytes() == good
    command = shlex.split(message.strip().splitlines()[-1].partition("Resume with: axon ")[2])
    assert command[-2:] == ["--set", "trainer.optimizer.lr=0.002"]
    assert main(command) == 0
    assert "finished after step 8" in capsys.readouterr().out


def test_without_a_good_rate_known_the_remedy_is_a_tenth(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"There is no checkpoint yet.*trainer\.optimizer\.lr=1e\+37"):
        fit(Toy.make(**lr(1e38)), tmp_path / "run")


class Spoil:
    """Puts a number into what belongs to a parameter after step 6."""

    def __init__(self, what: str, number: float) -> None:
        self.what, self.number = what, number

    @hook
    def step_end(self, fit):
        if fit.state.step != 6:
            return
        name, parameter = next(iter(fit.state.parameters.items()))
        state: TrainState = fit.state
        if self.what == "weight":
            parameter.data.view(-1)[-1] = self.number
        elif self.what == "average":
            state.average[name].view(-1)[-1] = self.number
        else:
            state.optimizers[0].state[parameter]["exp_avg_sq"].view(-1)[-1] = self.number


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("what", ["weight", "average", "optimiser's exp_avg_sq"])
def test_weights_average_and_moments_are_checked_before_a_checkpoint_replaces_one(tmp_path: Path, what, number):
    options = {"save_every": 3, "keep_checkpoints": 1, "ema": 0.9, **lr(1e-3)}
    with pytest.raises(TrainingError, match=f"after 6 steps, the {what}"):
        fit(Toy.make(**options), tmp_path / "run", hooks=[Spoil(what, number)])
    checkpoints = RunFolder.open(tmp_path / "run").checkpoints
    assert checkpoints.names() == ["step-3"] and verify(checkpoints.folder / "step-3") is None
    trainer, whole = Toy.make(**options), Toy.make(**options)
    fit(trainer, tmp_path / "run", resume=True)
    fit(whole)
    assert trainer.digest() == whole.digest()


def test_a_gradient_whose_norm_overflows_never_reaches_the_weights():
    trainer = Toy.make(max_grad_norm=1.0)
    before = trainer.digest()
    trainer.models["model"].head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"after 0 steps, the norm of the gradients is (nan|inf)"):
        fit(trainer)
    assert trainer.digest() == before


def test_what_fails_because_of_such_weights_says_so(tmp_path: Path):
    class Failing(Toy):
        def collect(self, batch, key):
            if not self.models["model"].head.weight.isfinite().all():
                raise ValueError("probabilities must not be NaN")
            return batch

    with pytest.raises(TrainingError, match="the weight"):
        fit(Failing.make(dropout=0.1, **lr(1e38)), tmp_path / "run")


# What is written.


def test_a_held_out_loss_that_is_not_finite_is_null_with_a_word_and_never_the_best(tmp_path: Path):
    class Odd(Toy):
        def evaluate(self):
            self.calls += 1
            return {"loss": (math.nan, math.inf, 2.0)[self.calls - 1], "value": -math.inf}

    trainer = Odd.make(steps=6, eval_every=2)
    fit(trainer, tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    lines = [strict(line) for line in run.metrics.read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "held_out" and line["name"] == "loss"]
    assert [line["value"] for line in held_out] == [None, None, 2.0]
    assert [line.get("not_finite") for line in held_out] == [{"value": "nan"}, {"value": "inf"}, None]
    draw_curves(run, {"loss": ["loss"], "value": ["value"]}, "curves.png")  # holes, no errors
    state = run.checkpoints.read(run.checkpoints.folder / "step-6")
    assert state["best"] == 2.0 and state["evaluation"] == {"loss": 2.0, "value": -math.inf}


def strict(text: str):
    def refuse(name: str):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_a_tree_keeps_them_in_json_that_any_reader_takes(tmp_path: Path):
    write_tree(tmp_path, {"a": [math.inf, -math.inf, 1.5], "b": math.nan, "c": torch.zeros(1)})
    strict((tmp_path / "state.json").read_text())
    tree = read_tree(tmp_path)
    assert tree["a"] == [math.inf, -math.inf, 1.5] and math.isnan(tree["b"])


def test_json_for_programs_holds_null_and_the_word(capsys):
    from axon_core.cli.output import print_json

    print_json([{"loss": math.nan, "deep": {"values": [1.0, math.inf]}, "text": "NaN"}])
    assert strict(capsys.readouterr().out) == [
        {
            "loss": None,
            "deep": {"values": [1.0, None], "not_finite": {"values.1": "inf"}},
            "text": "NaN",
            "not_finite": {"loss": "nan"},
        }
    ]
    assert to_json([math.nan, (math.inf, 1)]) == "[null, [null, 1]]"


def test_all_json_is_written_so():
    sources = [ROOT / "axon_core", *ROOT.glob("plugins/axon-*/axon_*")]
    for file in (file for folder in sources for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                assert any(word.arg == "allow_nan" for word in node.keywords), f"{file}:{node.lineno}: use to_json"
