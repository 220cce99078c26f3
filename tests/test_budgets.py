"""What listing and generating leave unimported. The times themselves are measured by benchmarks/registry.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from axon_core.registry.discovery import discover

HEAVY = {"torch", "numpy", "pydantic", "jaxtyping", "matplotlib", "sentencepiece", "safetensors"}
TRAP = "raise RuntimeError('a plugin was imported')"


def imported(code: str, folder: Path) -> set[str]:
    """Return the modules a fresh interpreter has imported after `code`, with `folder` on its path."""
    report = "\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run([sys.executable, "-c", code + report], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_import_axon_core_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = imported("import axon_core", tmp_path)
    assert not modules & {*HEAVY, "click", "rich"}
    assert not imported("from axon_core import ATTENTIONS; 'x' in ATTENTIONS, list(ATTENTIONS)", tmp_path) & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"], ["list", "norm"]])
def test_listing_imports_neither_torch_nor_a_plugin(site, arguments: list[str]) -> None:
    groups = {"axon.v1.norm": {"trap": "axon_trap:Trap"}, "axon.v1.command": {"spring": "axon_trap:spring"}}
    site.install("axon-trap", groups, {"axon_trap.py": TRAP})
    modules = imported(f"from axon_core.cli import main; assert main({arguments!r}) == 0", site.folder)
    assert not modules & {*HEAVY, "axon_trap"}


def test_help_of_plugins_commands_imports_neither_pydantic_nor_a_plugin() -> None:
    help_of_all = "from axon_core.cli import main; assert main(['--help']) == 0"
    modules = imported(help_of_all, Path())
    assert not modules & {*HEAVY, *(entry.target.partition(".")[0] for entry in discover().entries("command"))}


@pytest.mark.parametrize("command", ["papers", "recipes", "search"])
def test_reading_cards_imports_neither_torch_nor_a_plugin(site, command: str) -> None:
    files = {"axon_trap/__init__.py": TRAP, "axon_trap/recipes/trap.toml": ""}
    site.install("axon-trap", {"axon.v1.paper": {"trap": "axon_trap"}}, files)
    modules = imported(f"from axon_core.cli import main; assert main([{command!r}]) == 0", site.folder)
    assert not modules & {"torch", "axon_trap"}


def test_generating_and_the_loop_import_neither_the_compiler_nor_what_spreads_tensors() -> None:
    generate = """
import axon_core.training.loop
from axon_core import MODELS, generate
from axon_core.text import ByteTokenizer
sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "context": 8}
generate(MODELS.build({"type": "xllama", **sizes}, vocab_size=258), ByteTokenizer(), "a", max_new_tokens=3)
"""
    modules = imported(generate, Path())
    assert "axon_xllama.model" in modules
    assert not modules & {
        "torch._dynamo",
        "torch._inductor",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "sympy",
    }
