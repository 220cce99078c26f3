"""Advice to install something of Axon: from the index, and as long as nothing is there, from a checkout."""

import re
import tomllib
from pathlib import Path

import pytest

from axon_core.errors import CheckpointError
from axon_core.registry import provenance
from axon_core.registry.suggest import install_line, known_papers

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("axon_core/**/*.py"), *ROOT.glob("plugins/*/axon_*/**/*.py")]


def test_the_folders_of_a_checkout_are_there():
    for paper in known_papers():
        folder = install_line(paper.distribution).rpartition(" ")[2]
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))["project"]
        assert project["name"] == paper.distribution


def test_every_extra_that_is_advised_exists():
    advised = {
        found
        for file in SOURCES
        for found in re.findall(r"install_line\([\"']([\w-]+)[\"'],\s*[\"'](\w+)[\"']\)", file.read_text("utf-8"))
    }
    wanted = (
        re.findall(r"import_optional\([\"'][\w.]+[\"'], [\"'](\w+)[\"']\)", f.read_text("utf-8")) for f in SOURCES
    )
    advised |= {("axon-core", extra) for extras in wanted for extra in extras}
    assert {("axon-core", "plot"), ("axon-core", "wandb"), ("axon-ppo", "control"), ("axon-ddpm", "digits")} <= advised
    for distribution, extra in advised:
        folder = ROOT if distribution == "axon-core" else ROOT / "plugins" / distribution
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        assert extra in project["optional-dependencies"]


def test_no_message_names_an_extra_without_saying_the_checkouts_form():
    by_hand = [file for file in SOURCES if re.search(r"pip install '?axon-[\w-]+\[", file.read_text("utf-8"))]
    assert {file.relative_to(ROOT).as_posix() for file in by_hand} <= {
        "axon_core/registry/suggest.py",  # whose docstring has an example
        "plugins/axon-ppo/axon_ppo/gym.py",  # the module's own docstring
    }


def test_a_missing_part_of_axons_own_is_installed_from_a_checkout_too(monkeypatch):
    monkeypatch.setattr(provenance, "_installed", lambda part: False)
    parts = [{"distribution": name, "version": "0.1.0"} for name in ("axon-gqa", "axon-theirs")]
    with pytest.raises(CheckpointError) as caught:
        provenance.require(parts, "the model")
    assert str(caught.value) == (
        "the model needs parts that are not installed: pip install axon-gqa==0.1.0 axon-theirs==0.1.0, or those of "
        "Axon in a checkout of it: pip install ./plugins/axon-gqa"
    )
