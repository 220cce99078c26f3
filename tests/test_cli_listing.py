"""The commands that list, and what `axon` makes of wrong requests, plugins' commands and failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from axon_core.cli import main
from axon_core.errors import DataError

PARTS = """
    import click
    from axon_core.interfaces.norm import Norm

    class Plain(Norm):
        '''Leaves its input as it is: $y = x$.'''
        class Config(Norm.Config):
            scale: float = 1.5
            '''By how much nothing is multiplied.'''
        def forward(self, x):
            return x

    @click.command("fly")
    @click.argument("how", type=click.Choice("high broken away full quiet heavy vast endless long many".split()))
    def fly(how):
        '''Fly a kite.'''
        from axon_core.errors import DataError
        if how == "broken":
            raise ZeroDivisionError("no wind")
        if how == "away":
            raise KeyboardInterrupt
        if how == "full":
            raise OSError(28, "No space left on device", "kite.bin")
        if how == "many":
            raise RuntimeError("std::bad_alloc")
        if how in ("heavy", "vast", "endless", "long"):
            import torch
            if how == "heavy":
                torch.empty(1 << 60)
            if how == "vast":
                torch.empty(1 << 40, 1 << 30)
            if how == "endless":
                torch.zeros(1, 3).expand(1 << 62, 3).clone(memory_format=torch.contiguous_format)
            torch.empty(1 << 64)
        if how == "quiet":
            raise DataError("the wind file is empty; give one with wind in it")
        click.echo(f"flying {how}")
"""
CARD = """
id = "kites"
title = "On [bold]Kites"
authors = ["A. Wind"]
year = 2020
arxiv = "2001.00001"
summary = "Kites fly."
"""


@pytest.fixture(autouse=True)
def kites(site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one plugin only, with one of each kind."""
    groups = {
        "axon.v1.norm": {"plain": "axon_kites.parts:Plain"},
        "axon.v1.paper": {"kites": "axon_kites"},
        "axon.v1.command": {"fly": "axon_kites.parts:fly"},
    }
    monkeypatch.setenv("AXON_PLUGINS", "axon-kites")
    site.install(
        "axon-kites",
        groups,
        {
            "axon_kites/__init__.py": "",
            "axon_kites/parts.py": PARTS,
            "axon_kites/paper.toml": CARD,
            "axon_kites/recipes/small.toml": 'summary = "A small kite."',
        },
    )


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert main(arguments) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def records(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_list(capsys) -> None:
    assert lines(capsys, "list") == [
        ["kind", "key", "plugin"],
        ["command", "fly", "axon-kites", "1.0"],
        ["norm", "plain", "axon-kites", "1.0"],
        ["paper", "kites", "axon-kites", "1.0"],
    ]
    assert records(capsys, "list", "norm") == [
        {
            "group": "norm",
            "key": "plain",
            "distribution": "axon-kites",
            "version": "1.0",
            "target": "axon_kites.parts:Plain",
        }
    ]
    assert failure(capsys, 2, "list", "nrom").startswith("Error: no kind 'nrom' is installed. Near it: 'norm'.")


def test_nothing_installed(capsys, monkeypatch) -> None:
    from axon_core.registry.registry import refresh

    monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-kites")
    refresh()
    assert lines(capsys, "list")[0][:4] == ["No", "plugin", "is", "installed;"]
    assert lines(capsys, "list", "model")[0][:4] == ["No", "model", "is", "installed;"]
    assert lines(capsys, "papers")[0][:4] == ["No", "paper", "is", "installed;"]
    assert lines(capsys, "recipes")[0] == "No installed plugin has a recipe.".split()


def test_papers(capsys) -> None:
    title, row = lines(capsys, "papers")
    assert title == ["paper", "title", "year", "arXiv", "claims", "plugin"]
    assert row == ["kites", "On", "[bold]Kites", "2020", "2001.00001", "0", "axon-kites", "1.0"]
    (record,) = records(capsys, "papers")
    assert record["title"] == "On [bold]Kites" and record["distribution"] == "axon-kites"


def test_a_narrow_terminal_folds_the_cells(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["papers"]) == 0
    out = click.unstyle(capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 40
    assert "[bold" in out  # no markup, in a title


def test_a_damaged_paper_is_a_row(capsys, site) -> None:
    (site.folder / "axon_kites" / "paper.toml").write_text("id = ")
    _, row = lines(capsys, "papers")
    assert row[:2] == ["kites", "damaged:"]
    (record,) = records(capsys, "papers")
    assert record["id"] == "kites" and "cannot be read as TOML" in record["error"]


def test_recipes(capsys, site) -> None:
    assert lines(capsys, "recipes")[1] == ["small", "A", "small", "kite.", "axon-kites"]
    (record,) = records(capsys, "recipes")
    assert record["path"] == str(site.folder / "axon_kites" / "recipes" / "small.toml")


def test_search(capsys) -> None:
    assert [(r["kind"], r["name"], r["get"]) for r in records(capsys, "search", "KITE", "small")] == [
        ("recipe", "small", "installed: axon-kites 1.0")
    ]
    hits = records(capsys, "search", "diffusion")
    assert [(hit["kind"], hit["get"]) for hit in hits] == [
        ("paper", "pip install axon-ddpm, or in a checkout of Axon: pip install ./plugins/axon-ddpm")
    ]
    assert "Nothing matches all of: zzz." in " ".join(lines(capsys, "search", "zzz")[0])
    assert {"norm", "paper", "recipe", "command"} == {r["kind"] for r in records(capsys, "search")}


def test_info(capsys) -> None:
    assert main(["info", "axon-kites:plain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("norm plain: axon-kites 1.0\nclass: axon_kites.parts:Plain\npaper: On [bold]Kites (arXiv ")
    assert "Leaves its input as it is: $y = x$." in out
    rows = [line.split() for line in out.splitlines()]
    assert ["dim", "integer", "required"] in [row[:3] for row in rows]
    assert "scale number 1.5 By how much nothing is multiplied.".split() in rows
    (record,) = records(capsys, "info", "plain")
    assert record["options"]["properties"]["scale"]["default"] == 1.5
    error = failure(capsys, 2, "info", "unet")
    assert (
        "pip install axon-ddpm, or in a checkout of Axon: pip install ./plugins/axon-ddpm" in error
        and "Installed components: plain (axon-kites 1.0)" in error
    )


def test_info_of_a_recipe(capsys, site, tmp_path) -> None:
    shown = '[model]\ntype = "plain"\n\n[trainer]\nsteps = 3\n'
    file = site.folder / "axon_kites" / "recipes" / "glide.toml"
    file.write_text(f'summary = "Kites glide"\n{shown}')
    for name, origin in (("glide", ": axon-kites 1.0"), ("axon-kites:glide", ": axon-kites 1.0"), (str(file), "")):
        assert main(["info", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"recipe glide{origin}\nfile: {file}\n\nKites glide\n\n{shown}")
        assert "--dry-run" in out
    (record,) = records(capsys, "info", "glide")
    assert (record["summary"], record["command"], record["tables"]["trainer"]) == ("Kites glide", "train", {"steps": 3})
    assert "nowhere.toml" in failure(capsys, 2, "info", str(tmp_path / "nowhere.toml"))
    file.write_text("[model\n")
    assert str(file) in failure(capsys, 2, "info", "glide")


def test_a_command_of_a_plugin(capsys, site) -> None:
    assert lines(capsys, "fly", "high") == [["flying", "high"]]
    (site.folder / "axon_kites" / "parts.py").write_text("raise RuntimeError")
    assert main(["--help"]) == 0
    assert "fly  From axon-kites 1.0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        ('[command]\nfly = "Fly a kite."', "Fly a kite."),
        ('[command]\nfly = """\n Fly\n\ta kite. """', "Fly a kite."),
        ('[command]\nfly = "Fly \\u001b[31ma kite."', "Fly \\x1b[31ma kite."),
        ('[command]\nfly = "  "', "From axon-kites 1.0."),
        ("[command]\nfly = 3", "From axon-kites 1.0."),
        ('command = "fly"', "From axon-kites 1.0."),
        ('[command]\nflee = "Fly a kite."', "From axon-kites 1.0."),
        ('[command]\nfly = "Fly a kite', "From axon-kites 1.0."),
        (f"deep = {'[' * 5000}", "From axon-kites 1.0."),
        (f"long = {'9' * 5000}", "From axon-kites 1.0."),
    ],
)
def test_the_line_of_a_plugins_command_is_its_cards(capsys, site, table: str, shown: str) -> None:
    (site.folder / "axon_kites" / "parts.py").write_text("raise RuntimeError")
    (site.folder / "axon_kites" / "__init__.py").write_text("raise RuntimeError")
    (site.folder / "axon_kites" / "paper.toml").write_text(CARD + table + "\n")
    assert main(["--help"]) == 0
    assert f"  fly  {shown}\n" in capsys.readouterr().out
    assert not any(name.startswith("axon_kites") for name in sys.modules)


def test_a_command_of_a_plugin_without_a_card(capsys, site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXON_PLUGINS", "axon-kites,axon-bare")
    (site.folder / "axon_kites" / "paper.toml").write_text(CARD + '[command]\nswim = "Swim with a kite."\n')
    site.install("axon-bare", {"axon.v1.command": {"swim": "axon_bare:swim"}})
    assert main(["--help"]) == 0
    assert "  swim  From axon-bare 1.0.\n" in capsys.readouterr().out  # another plugin's card says nothing of it


def test_an_unknown_command(capsys) -> None:
    assert failure(capsys, 2, "fyl", "high") == "Error: there is no command 'fyl'; did you mean fly?\n"
    assert failure(capsys, 2, "zzz") == "Error: there is no command 'zzz'; `axon --help` lists the commands\n"


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("quiet", DataError.exit_code, "Error: the wind file is empty; give one with wind in it\n"),
        *(
            (
                how,
                1,
                "Error: out of memory; use a smaller model, batch or beam, or a shorter text, or free memory that "
                "other programs use\n",
            )
            for how in ("heavy", "vast", "endless", "long", "many")
        ),
        ("full", 1, "Error: No space left on device: kite.bin\n"),
        (
            "broken",
            1,
            "Error: ZeroDivisionError: no wind. This is a bug in Axon or in a plugin, not an error in your input; "
            "`axon --debug …` shows where it occurred\n",
        ),
        ("away", 130, "\nInterrupted.\n"),
    ],
)
def test_failures_have_one_paragraph_and_an_exit_code(capsys, how: str, code: int, message: str) -> None:
    assert failure(capsys, code, "fly", how) == message


@pytest.mark.parametrize("arguments", [["--debug", "fly", "broken"], ["fly", "broken", "--debug"]])
def test_debug_shows_the_traceback(capsys, arguments: list[str]) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error and error.endswith("ZeroDivisionError: no wind\n")


def test_a_wrong_argument_shows_the_usage(capsys) -> None:
    error = failure(capsys, 2, "fly", "low")
    assert "Usage: axon fly" in error and "'low' is not one of 'high'" in error


def test_version(capsys) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"axon-core {version('axon-core')}\n"


@pytest.mark.parametrize("write", ["click.echo('a')", "print('a')"])
def test_a_reader_that_leaves_early_is_no_fault(write: str) -> None:
    program = f"""
import sys, click
from axon_core.cli import app
app.cli = click.Command("axon", callback=lambda: {write})
sys.exit(app.main([]))
"""
    read, output = os.pipe()
    os.close(read)  # before anything is written, so that the first flush fails for certain
    try:
        done = subprocess.run([sys.executable, "-c", program], stdout=output, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(output)
    assert (done.returncode, done.stderr) == (1, "")


def test_info_of_a_folder_that_is_no_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(tmp_path)]) == 2
    assert f"The path {tmp_path} is not a run folder either: it has no run.json" in capsys.readouterr().err
