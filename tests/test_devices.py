"""Where commands and trainings compute: by themselves on a GPU that works, as told otherwise, and said first."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click
import pytest
import torch
from torch import nn
from toy_trainer import Toy

from axon_core import MODELS
from axon_core.cli import main
from axon_core.cli.app import COMMANDS, load_command
from axon_core.registry.discovery import discover
from axon_core.text.tokenizer import ByteTokenizer
from axon_core.training import devices, muon, trainer
from axon_core.training.devices import choose_device

COMPUTES_NOT = {"adapter export", "adapter import", "merge"} | {
    "advise play",
    "advise report",
    "board",
    "board check",
    "board enter",
    "board page",
    "board show",
    "diary",
    "diary add",
    "diary export",
    "diary list",
    "diary pages",
    "diary search",
    "doctor",
    "export",
    "import",
    "info",
    "list",
    "lock",
    "new",
    "papers",
    "plan",
    "pseudocode",
    "recipes",
    "search",
    "tokenize",
}
"""Commands without a device: they list, copy weights file by file, or read tables and counts."""
EXAMINES = {"check", "reproduce"}
"""Commands whose known answers are those of the CPU, or of what a claim's own recipe says."""


@pytest.mark.parametrize(
    ("there", "working", "chosen"),
    [
        (("cuda", "mps"), ("cuda", "mps"), "cuda"),
        (("cuda",), (), "cpu"),  # too old for this PyTorch
        (("mps",), ("mps",), "mps"),
        (("mps",), (), "cpu"),  # without float64
        ((), ("cuda", "mps"), "cpu"),
    ],
)
def test_auto_takes_the_best_device_that_works(there, working, chosen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "_is_there", lambda kind: kind in there)
    monkeypatch.setattr(devices, "_works", lambda kind: kind in working)
    assert choose_device() == choose_device("auto") == chosen


def test_what_works_is_tried():
    assert devices._works("cpu") and not devices._works("meta")  # meta tensors hold no numbers to sum
    assert not devices._is_there("cuda") or torch.cuda.device_count()


def test_a_device_that_fails_without_a_word_is_told(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ValueError, match=r"finds here, got 'cuda:9' \(AssertionError\)"):
        choose_device("cuda:9")


def commands() -> dict[str, click.Command]:
    """All commands of the core and the plugins, those of groups among them."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        found[name] = __import__(f"axon_core.cli.{name}", fromlist=["command"]).command
    for entry in discover().entries("command"):
        command = load_command(entry)
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        found |= {f"{entry.key} {name}".strip(): each for name, each in inner.items()}
    return found


@pytest.mark.parametrize(("can", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_precision_left_to_the_device_is_what_it_is_fast_in(can, precision, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(trainer, "multiplies_bf16", lambda device: asked.append(device) or can)
    assert Toy.Config(precision="auto", device="cpu").precision == precision
    assert Toy.Config(precision="bf16", device="cpu").precision == "bf16" and asked == ["cpu"]
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: can)
    assert muon._dtype(torch.zeros(1, dtype=torch.float32)) == (torch.bfloat16 if can else torch.float32)
    assert muon._dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64


def test_what_multiplies_bf16_is_asked_of_the_device_itself():
    assert isinstance(devices.multiplies_bf16("cpu"), bool) and not devices.multiplies_bf16("meta")


def test_every_command_that_computes_takes_a_device():
    options = {
        name: [p for p in command.params if p.name == "device"]
        for name, command in commands().items()
        if name not in COMPUTES_NOT | EXAMINES
    }
    assert {"train", "generate", "evaluate", "translate", "sample", "chat", "convert gqa", "align"} <= options.keys()
    assert [name for name, found in options.items() if not found] == []
    defaults = {name: found[0].default for name, found in options.items()}
    by_recipe = {name for name, default in defaults.items() if default != "auto"}
    assert by_recipe == {"train", "align", "compare"}
    assert Toy.Config.model_json_schema()["properties"]["device"]["default"] == "auto"


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where modules are moved to, in turn; a test's device is the CPU under a name of its own."""
    places: list[str] = []
    move = nn.Module.to

    def to(self: nn.Module, *args, **kwargs):
        places.extend(str(arg) for arg in args if isinstance(arg, str))
        return move(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", to)
    return places


def test_train_and_evaluate_compute_where_they_are_told(tmp_path: Path, moved, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    sizes = ["--set", "model.n_layers=1", "--set", "model.dim=16", "--set", "trainer.steps=1"]
    sizes += ["--set", "data.path=text.txt", "--set", "trainer.prompt=the"]
    assert main(["train", "xllama-tiny", *sizes, "--device", "cpu:0", "--out", "run"]) == 0
    assert " parameters, on cpu:0, into run" in capsys.readouterr().err.splitlines()[0]
    assert "cpu:0" in moved
    assert json.loads(Path("run/run.json").read_text())["trainer"]["device"] == "cpu:0"
    moved.clear()
    assert main(["evaluate", "run", "--json"]) == 0  # by itself, not where the training was
    assert capsys.readouterr().err.splitlines()[0] == f"on {devices.describe_device(choose_device())}"
    assert "cpu:0" not in moved
    assert main(["evaluate", "run", "--device", "cpu:0"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "on cpu:0" and "cpu:0" in moved
    assert main(["train", "xllama-tiny", *sizes, "--device", "moon", "--out", "other"]) == 2
    assert (
        "trainer.device: device must be auto or a device that PyTorch finds here, got 'moon'" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["generate", "model", "--prompt", "a", "--max-new-tokens", "1"], "xllama"),
        (["chat", "model"], "xllama"),
        (["convert", "gqa", "model", "--groups", "1", "--out", "converted"], "xllama"),
        (["translate", "model", "a"], "transformer"),
    ],
)
def test_commands_compute_where_they_are_told(arguments, made, tmp_path, moved, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {"n_layers": 1} if made == "xllama" else {"encoder_layers": 1, "decoder_layers": 1}
    attention = {"attention": "MHA"} if made == "xllama" else {}
    model = MODELS[made].build(vocab_size=258, context=32, dim=16, n_heads=2, **sizes, **attention)
    model.save("model", ByteTokenizer())
    monkeypatch.setattr("sys.stdin", io.StringIO())  # chat reads its end at once
    assert main([*arguments, "--device", "cpu:0"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "on cpu:0" and "cpu:0" in moved
    moved.clear()
    assert main([*(word.replace("converted", "again") for word in arguments)]) == 0
    assert capsys.readouterr().err.splitlines()[0] == f"on {devices.describe_device(choose_device())}"
    assert "cpu:0" not in moved


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 1 of this machine finds only 1: start fewer processes"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="process 1 of this machine cuda:1, not cuda:0"):
        choose_device("cuda:0")
    asked: list[str] = []
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device) or torch.zeros(size))
    assert choose_device("cuda") == "cuda:1" and asked == ["cuda:1"]
    assert choose_device("cpu") == "cpu"
