"""The conformance kit over every part of every installed distribution, and the ways to run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from axon_core.cli.check import command
from axon_core.errors import UsageError
from axon_core.registry.discovery import GROUPS, discover
from axon_core.testing import conformance
from axon_core.testing.suites import cases

_WITHOUT_SUITE = (
    "chat_template",
    "optimizer",
    "recipe_section",
    "weight_decay",
    "paper",
    "command",
    "hooks",
    "registry",
)

test_every_installed_part = conformance()

BROKEN = {
    "axon_broken.py": """
        from axon_core.interfaces.norm import Norm

        class Forgetful(Norm):
            def forward(self, x):
                return x / x.float().square().mean(-1, keepdim=True).sqrt().to(x.dtype)
    """
}
GROUP = {"axon.v1.norm": {"forgetful": "axon_broken:Forgetful", "gone": "axon_broken:Gone"}}


def test_no_installed_part_is_left_out() -> None:
    parts = {case.part.name.partition("[")[0] for case in cases()}
    groups = [group for group in GROUPS if group not in _WITHOUT_SUITE]
    installed = {f"{group}:{entry.key}" for group in groups for entry in discover().entries(group)}
    assert installed <= parts
    checks = {name: sum(case.part.name.startswith(f"{name}") for case in cases()) for name in installed}
    assert min(checks.values()) >= 5, checks  # not merely loaded


def test_ids_name_part_and_check() -> None:
    assert "attention:GQA:causal" in {case.id for case in cases("axon-gqa")}
    parts = {case.part.name.partition("[")[0] for case in cases("axon_gqa")}
    assert parts == {"attention:GQA", "attention:MQA", "plugin:axon-gqa"}


def test_distribution_without_parts_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no installed distribution 'axon-nothing' offers parts; these do: .*gqa"):
        list(cases("axon-nothing"))


def test_axon_check_explains_each_failure_and_exits_with_1(site) -> None:
    site.install("axon-broken", GROUP, BROKEN)
    result = CliRunner().invoke(command, ["axon-broken"])
    assert result.exit_code == 1
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "norm:forgetful 10 of 11 zero" in rows
    assert "norm:gone 0 of 1 loads" in rows
    assert "norm:forgetful breaks the rule 'zero': A vector of zeros has a finite result and a finite gradient." in rows
    assert "found: 64 of 64 values are not finite, the first at [0, 0]" in rows
    assert "usual cause: a missing ε, or an ε added after the square root" in rows
    assert any("module 'axon_broken' has no attribute 'Gone'" in row for row in rows)
    assert "plugin:axon-broken 13 of 13 -" in rows
    assert any(row.startswith("axon-broken: its import took 0.") for row in rows)
    assert rows[-1] == "25 checks on 3 parts: 2 failed."


def test_axon_check_prints_json(site) -> None:
    site.install("axon-broken", GROUP, BROKEN)
    result = CliRunner().invoke(command, ["axon-broken", "--json"])
    assert result.exit_code == 1
    failed = [entry for entry in json.loads(result.stdout) if not entry["passed"]]
    assert [(entry["part"], entry["check"]) for entry in failed] == [("norm:forgetful", "zero"), ("norm:gone", "loads")]
    assert failed[0]["input"] == "a vector of zeros"


def test_every_installed_plugin_is_imported_also_those_without_parts() -> None:
    known = {entry.distribution for entries in discover().groups.values() for entry in entries}
    checked = {case.part.name.removeprefix("plugin:") for case in cases() if case.part.name.startswith("plugin:")}
    assert checked == known and "axon-eet" in checked
    assert {case.part.name for case in cases("axon-eet")} == {"plugin:axon-eet"}


def test_a_plugin_whose_import_changes_torch_fails(site) -> None:
    files = {"axon_loud.py": "import torch\ntorch.set_default_dtype(torch.float64)\ncommand = None\n"}
    site.install("axon-loud", {"axon.v1.command": {"loud": "axon_loud:command"}}, files)
    result = CliRunner().invoke(command, ["axon-loud", "--json"])
    assert result.exit_code == 1
    (failed,) = [entry for entry in json.loads(result.stdout) if not entry["passed"]]
    assert (failed["part"], failed["check"], failed["input"]) == (
        "plugin:axon-loud",
        "torch_state",
        "importing axon_loud",
    )
    assert failed["found"] == "the default dtype is torch.float64, and was torch.float32"


def test_axon_check_takes_a_paper_and_exits_with_0() -> None:
    result = CliRunner().invoke(command, ["rmsnorm"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith("on 2 parts: none failed.")


def test_one_line_runs_the_kit_in_a_plugin_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from axon_core.testing import conformance\ntest_conformance = conformance('axon-rmsnorm')\n"
    )
    run = _pytest(tmp_path, "-v", "--strict-markers")
    assert run.returncode == 0, run.stdout
    assert "test_mine.py::test_conformance[norm:rmsnorm:zero] PASSED" in run.stdout


def test_pytest_plugin_imports_no_torch_where_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_other(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.hasplugin('axon')\n    assert 'torch' not in sys.modules\n"
    )
    run = _pytest(tmp_path, "-p", "no:jaxtyping")  # jaxtyping brings a pytest plugin of its own
    assert run.returncode == 0, run.stdout


def _pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
