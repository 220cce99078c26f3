"""The last line of `axon train` is a command that works on the run, whatever was trained."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from axon_core import TRAINERS
from axon_core.cli import main
from axon_core.cli.app import cli
from axon_core.training.recipe import Recipe

OWN = {
    "advise": "advise play",
    "ddpm": "sample",
    "ppo_control": "evaluate",
    "reward": "evaluate",
    "translation": "translate",
}
OTHERS = "generate"


def toml(example: dict[str, object]) -> str:
    """A recipe as TOML; JSON's values are TOML's, but for tables."""

    def value(of: object) -> str:
        if isinstance(of, dict):
            return "{" + ", ".join(f"{name} = {value(inner)}" for name, inner in of.items()) + "}"
        return json.dumps(of)

    return "\n".join(f"{name} = {value(table)}" for name, table in example.items())


@pytest.mark.parametrize("key", sorted(TRAINERS))
def test_what_comes_next_is_of_the_runs_kind_and_works(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = dict(TRAINERS[key].examples[0])
    example["trainer"] = {**example["trainer"], "steps": 1}
    Path("small.toml").write_text(toml(example))
    assert Recipe.load("small.toml").tables["trainer"] == example["trainer"]
    assert main(["train", "small.toml", "--out", "a run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next:")]
    axon, *words = shlex.split(line.removeprefix("Next:"))
    command = OWN.get(key, OTHERS).split()
    assert (axon, words[: len(command) + 1]) == ("axon", [*command, "a run"])
    ran = CliRunner().invoke(cli, words, input="abc\n")
    assert ran.exit_code == 0, ran.output
    assert ran.output.strip()
