"""A broken plugin breaks look-ups of its own keys only; its message, and `axon doctor`, say what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import DistributionFinder, PathDistribution
from pathlib import Path

import pytest

from axon_core import NORMS
from axon_core.cli import main
from axon_core.errors import AmbiguousKey, AxonError, ContractError, PluginLoadError
from axon_core.registry.registry import refresh

GOOD = """
    from axon_core.interfaces.norm import Norm

    class Plain(Norm):
        '''Leaves its input as it is.'''
        def forward(self, x):
            return x
"""


def norm(**entries: str) -> dict[str, dict[str, str]]:
    return {"axon.v1.norm": entries}


@pytest.fixture
def zoo(site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install one good plugin, and one of every broken kind."""
    site.install("axon-good", norm(plain="axon_good:Plain", shared="axon_good:Plain"), {"axon_good.py": GOOD})
    site.install("axon-rival", norm(shared="axon_good:Plain"))
    raising = "\n\nraise ValueError('no licence key')\n"
    site.install("axon-raises", norm(raises="axon_raises:Plain"), {"axon_raises.py": raising})
    site.install("axon-exits", norm(exits="axon_exits:Plain"), {"axon_exits.py": "raise SystemExit(3)"})
    site.install("axon-needs", norm(needs="axon_needs:Plain"), {"axon_needs.py": "import not_there"})
    site.install("axon-syntax", norm(syntax="axon_syntax:Plain"), {"axon_syntax.py": "class Plain:\n    def f(:\n"})
    site.install("axon-target", norm(target="axon_target:Plian"), {"axon_target.py": GOOD})
    site.install("axon-gone", norm(gone="axon_gone.norm:Plain"))
    abstract = "from axon_core.interfaces.norm import Norm\nclass Lazy(Norm): ..."
    site.install("axon-contract", norm(contract="axon_contract:Lazy"), {"axon_contract.py": abstract})
    site.install("axon-malformed", "[axon.v1.norm]\nmalformed axon_good:Plain")
    site.install("axon-damaged", norm(damaged="axon_good:Plain"), metadata=False)
    site.install("axon-next", {"axon.v2.norm": {"next": "axon_good:Plain"}})
    monkeypatch.setenv("AXON_PLUGINS", ",".join(WRONG) + ",axon-good,axon-rival")
    refresh()
    return site.folder


# Distribution -> what is wrong with it, as `axon doctor` says it, and what to do. `{site}` is where it is installed.
WRONG = {
    "axon-raises": (
        "the norm 'raises' of axon-raises 1.0 cannot be loaded: importing axon_raises:Plain raised ValueError: no "
        "licence key ({site}/axon_raises.py, line 1)",
        "To repair it, upgrade axon-raises, or report this to its authors; to leave it out, "
        "set AXON_DISABLE_PLUGINS=axon-raises",
    ),
    "axon-exits": (
        "the norm 'exits' of axon-exits 1.0 cannot be loaded: importing axon_exits:Plain raised SystemExit: 3 "
        "({site}/axon_exits.py, line 1)",
        "To repair it, upgrade axon-exits, or report this to its authors; to leave it out, "
        "set AXON_DISABLE_PLUGINS=axon-exits",
    ),
    "axon-needs": (
        "the norm 'needs' of axon-needs 1.0 cannot be loaded: importing axon_needs:Plain raised ModuleNotFoundError: "
        "No module named 'not_there' ({site}/axon_needs.py, line 1)",
        "To repair it, install what provides the module 'not_there'; to leave it out, set "
        "AXON_DISABLE_PLUGINS=axon-needs",
    ),
    "axon-syntax": (
        "the norm 'syntax' of axon-syntax 1.0 cannot be loaded: importing axon_syntax:Plain raised SyntaxError: "
        "invalid syntax ({site}/axon_syntax.py, line 2)",
        "To repair it, upgrade axon-syntax, or report this to its authors; to leave it out, "
        "set AXON_DISABLE_PLUGINS=axon-syntax",
    ),
    "axon-target": (
        "the norm 'target' of axon-target 1.0 cannot be loaded: importing axon_target:Plian raised AttributeError: "
        "module 'axon_target' has no attribute 'Plian'",
        "To repair it, upgrade axon-target, or report this to its authors; to leave it out, "
        "set AXON_DISABLE_PLUGINS=axon-target",
    ),
    "axon-gone": (
        "the norm 'gone' of axon-gone 1.0 cannot be loaded: importing axon_gone.norm:Plain raised "
        "ModuleNotFoundError: No module named 'axon_gone'",
        "To repair it, reinstall it: pip install --force-reinstall axon-gone; to leave it out, set "
        "AXON_DISABLE_PLUGINS=axon-gone",
    ),
    "axon-contract": (
        "the norm 'contract' of axon-contract 1.0 (axon_contract:Lazy) does not keep the contract of its interface: "
        "it does not define forward",
        "Upgrade axon-contract, or ask its authors to run: axon check axon-contract",
    ),
    "axon-malformed": (
        "{site}/axon_malformed-1.0.dist-info/entry_points.txt is malformed: line 2 is 'malformed axon_good:Plain'; "
        "nothing it offers is used",
        "Reinstall it (pip install --force-reinstall axon-malformed), or report this to its authors",
    ),
    "axon-damaged": (
        "{site}/axon_damaged-1.0.dist-info has no METADATA, as after an interrupted install or uninstall; nothing "
        "it offers is used",
        "Reinstall it (pip install --force-reinstall axon-damaged) or delete that folder",
    ),
    "axon-next": (
        "[axon.v2.norm] next = 'axon_good:Plain' is not for axon.v1, the plugin interface of this axon-core; it is "
        "not used",
        "Install the axon-next made for axon.v1, or the axon-core that reads its group",
    ),
}
SHARED = (
    "the norm 'shared' is offered by axon-good 1.0 and axon-rival 1.0",
    "Write 'axon-good:shared' or 'axon-rival:shared' where you use it, or uninstall all but one",
)


def test_every_other_look_up_works(zoo: Path) -> None:
    assert NORMS["plain"].__name__ == "Plain"
    assert NORMS["axon-good:shared"] is NORMS["axon-rival:shared"] is NORMS["plain"]
    x = object()
    assert NORMS.build("plain", dim=3)(x) is x
    # What offers nothing usable is not listed; the others are, though they cannot be loaded.
    assert sorted(NORMS) == [
        "axon-good:shared",
        "axon-rival:shared",
        "contract",
        "exits",
        "gone",
        "needs",
        "plain",
        "raises",
        "syntax",
        "target",
    ]


@pytest.mark.parametrize("key", ["raises", "exits", "needs", "syntax", "target", "gone"])
def test_a_plugin_that_cannot_be_imported(zoo: Path, key: str) -> None:
    what, remedy = WRONG[f"axon-{key}"]
    for _ in range(2):  # the second time as the first
        with pytest.raises(PluginLoadError) as error:
            NORMS[key]
        assert str(error.value) == f"{what.format(site=zoo)}. {remedy}. Other plugins are not affected"
        assert error.value.__cause__ is not None


def test_a_class_that_breaks_the_contract(zoo: Path) -> None:
    with pytest.raises(ContractError) as error:
        NORMS["contract"]
    assert str(error.value) == WRONG["axon-contract"][0]


def test_a_key_claimed_twice(zoo: Path) -> None:
    with pytest.raises(AmbiguousKey) as error:
        NORMS["shared"]
    assert str(error.value) == f"{SHARED[0]}; choose one: 'axon-good:shared' or 'axon-rival:shared'"


def test_doctor_names_each_and_says_what_to_do(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)["problems"]
    named = {p["distribution"]: (p["what"], p["remedy"]) for p in report}
    assert len(report) == len(named)
    expected = {name: (what.format(site=zoo), remedy) for name, (what, remedy) in WRONG.items()}
    assert named.items() >= expected.items()
    assert named["axon-good, axon-rival"] == SHARED
    assert "axon-good" not in named and "axon-rival" not in named

    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    for what, remedy in (*expected.values(), SHARED):
        assert f"  wrong: {what}\n  to do: {remedy}\n" in text
    assert re.search(r"^9 plugins with 10 entries: \d+ problems\.$", text, re.MULTILINE)


def test_list_shows_them_without_running_them(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "norm"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["norm", "raises", "axon-raises", "1.0"] in rows
    assert ["norm", "axon-rival:shared", "axon-rival", "1.0"] in rows
    assert err == "3 problems with installed plugins: `axon doctor` explains.\n"


def test_the_command_line_prints_one_paragraph(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "raises"]) == PluginLoadError.exit_code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: the norm 'raises' of axon-raises 1.0 cannot be loaded")
    assert err.count("\n") == 1
    assert main(["--debug", "info", "raises"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_doctor_is_content_with_a_sound_plugin(site, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("axon-good", norm(plain="axon_good:Plain"), {"axon_good.py": GOOD})
    monkeypatch.setenv("AXON_PLUGINS", "axon-good")
    assert main(["doctor"]) == 0
    assert "1 plugin with 1 entry: no problem." in capsys.readouterr().out


def problems(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)["problems"]
    return [(p["distribution"], p["what"], p["remedy"]) for p in report]


def test_doctor_reads_with_an_independent_parser(site, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A section written twice, as by a careless merge, is read by importlib.metadata and refused by entrypoints."""
    twice = "[axon.v1.norm]\nplain = axon_good:Plain\n[axon.v1.norm]\nother = axon_good:Plain\n"
    file = site.install("axon-good", twice, {"axon_good.py": GOOD}) / "entry_points.txt"
    monkeypatch.setenv("AXON_PLUGINS", "axon-good")
    assert problems(capsys) == [
        (
            "axon-good",
            f"the package entrypoints cannot read {file}: While reading from '{file}' [line 3]: section "
            "'axon.v1.norm' already exists",
            "Reinstall it (pip install --force-reinstall axon-good) and run axon doctor again",
        )
    ]


def test_doctor_compares_with_an_independent_scan(site, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An import hook may show importlib.metadata a distribution that is nowhere on sys.path, and no tool uninstalls."""
    site.install("axon-good", norm(plain="axon_good:Plain"), {"axon_good.py": GOOD})
    elsewhere = site.folder.parent / "elsewhere"
    site.folder, folder = elsewhere, site.folder
    info = site.install("axon-ghost", norm(ghost="axon_good:Plain"))
    site.folder = folder

    class Ghost(DistributionFinder):
        def find_distributions(self, context=None):
            return [PathDistribution(info)]

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Ghost()])
    monkeypatch.setenv("AXON_PLUGINS", "axon-good,axon-ghost")
    assert problems(capsys) == [
        (
            "axon-ghost",
            "importlib.metadata finds [axon.v1.norm] ghost, but the package entrypoints does not",
            "Uninstall axon-ghost until pip finds no further copy, then install it once",
        )
    ]


def test_doctor_loads_the_checks_of_claims(site, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    card = """
        id = "good"
        title = "On Norms"
        authors = ["A. Norm"]
        year = 2020
        arxiv = "2001.00001"
        summary = "Norms are good."
        [[claim]]
        id = "plain"
        where = "Section 1"
        text = "Plain is plain."
        paper = "exact"
        check = "axon_good.claims:plain"
        scale = "exact"
        budget_s = 1
    """
    files = {"axon_good/__init__.py": "", "axon_good/paper.toml": card}
    site.install("axon-good", {"axon.v1.paper": {"good": "axon_good"}}, files)
    monkeypatch.setenv("AXON_PLUGINS", "axon-good")
    ((name, what, _),) = problems(capsys)
    assert name == "axon-good"
    assert what == (
        "the claim 'plain' of axon-good 1.0 cannot be loaded: importing axon_good.claims:plain raised "
        "ModuleNotFoundError: No module named 'axon_good.claims'"
    )


@pytest.mark.parametrize(
    ("group", "target", "source", "expected"),
    [
        ("command", "axon_odd:run", "def run(): ...", "axon_odd:run of axon-odd 1.0 must be a click command"),
        ("hooks", "axon_odd:gone", "", "the hooks 'list' of axon-odd 1.0 cannot be loaded"),
        ("registry", "axon_odd:R", "R = {}", "axon_odd:R of axon-odd 1.0 must be the Registry of group 'list'"),
        ("paper", "axon_odd", "", "the paper 'list' of axon-odd 1.0 names the package axon_odd, but axon_odd is a "),
    ],
)
def test_doctor_examines_every_group(site, monkeypatch, capsys, group, target, source, expected) -> None:
    key = "list" if group != "command" else "odd"
    site.install("axon-odd", {f"axon.v1.{group}": {key: target}}, {"axon_odd.py": source})
    monkeypatch.setenv("AXON_PLUGINS", "axon-odd")
    ((name, what, remedy),) = problems(capsys)
    assert name == "axon-odd"
    assert what.startswith(expected)
    assert remedy


def test_a_plugin_cannot_replace_a_command(site, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import click\n\n@click.command()\ndef run(): click.echo('stolen')"
    site.install("axon-odd", {"axon.v1.command": {"list": "axon_odd:run"}}, {"axon_odd.py": source})
    monkeypatch.setenv("AXON_PLUGINS", "axon-odd")
    assert main(["list"]) == 0
    assert "stolen" not in capsys.readouterr().out
    assert main(["doctor"]) == 1
    assert "the command 'list' can never run: axon itself has a command of that name" in capsys.readouterr().out


@pytest.mark.parametrize(
    "use",
    [
        "from axon_core import NORMS; print(NORMS['plain'].__name__)",
        "from axon_core import NORMS; print(type(NORMS.build('plain', dim=3)).__name__)",
        "from axon_core.cli import main; main(['info', 'plain'])",
    ],
)
def test_a_malformed_distribution_does_not_keep_torch_and_pydantic_from_being_imported(site, use: str) -> None:
    """Both call importlib.metadata.entry_points as they are imported, which fails on the malformed file."""
    site.install("axon-good", norm(plain="axon_good:Plain"), {"axon_good.py": GOOD})
    site.install("other-tool", "[console_scripts]\nbroken")
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    environment.pop("PYDANTIC_DISABLE_PLUGINS", None)
    run = subprocess.run([sys.executable, "-c", use], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Plain" in run.stdout


def test_all_kinds_of_error_are_axon_errors() -> None:
    assert issubclass(PluginLoadError, AxonError) and issubclass(ContractError, AxonError)
