"""Every attention, rotary embedding and norm of the shipped papers fits into X-Llama by its name."""

import itertools
import json

import pytest
from click.testing import CliRunner

from axon_core.cli.app import cli

SMALL = ["trainer.steps=20", "trainer.batch_size=4", "model.context=32", "model.dim=32", "model.n_layers=2"]


def axon(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize(
    ("attention", "rotary", "norm"),
    list(itertools.product(("MHA", "GQA", "MQA"), ("rotary", "linear", "dynamic"), ("rmsnorm", "layernorm"))),
)
def test_swap(attention, rotary, norm, tmp_path, short_text):
    run = str(tmp_path / "run")
    swap = settings(f"model.attention.type={attention}", f"model.rotary.type={rotary}", f"model.norm.type={norm}")
    axon("train", "xllama-tiny", *settings(f"data.path={short_text}", *SMALL), *swap, "--out", run)

    facts = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    # The recipe's norm of queries and keys stays: another attention changes nothing else.
    plain = {"token", "plain", "none", "swiglu"}  # what the recipe does not name
    assert {part["key"] for part in facts["parts"]} == {"xllama", attention, rotary, norm, "rmsnorm", *plain}
    assert facts["config"]["attention"]["qk_norm"] == "rmsnorm"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
    assert len(losses) == 20 and losses[-1] < losses[0]

    text = axon("generate", run, "--prompt", "the ", "--max-new-tokens", "40")  # past the context of 32
    assert text.startswith("the ") and len(text.rstrip("\n")) >= 40
