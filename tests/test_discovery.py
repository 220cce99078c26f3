"""Discovery: what is found in the metadata of installed distributions, and what is made of damaged ones."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import site as python_site
import sys
from pathlib import Path

import pytest

from axon_core.registry import discovery
from axon_core.registry.discovery import Entry, discover, forget, normalised_name, scan
from axon_core.registry.registry import refresh

NORM = {"axon.v1.norm": {"Ring": "axon_ring.norm:Ring"}}


def problems(of: str) -> list[str]:
    return [str(problem) for problem in scan().problems if problem.distribution == of]


def keys(group: str) -> list[str]:
    return [entry.key for entry in scan().entries(group)]


def test_a_problem_that_quotes_a_page_is_shortened():
    problem = discovery.Problem("axon-bad", f"the paper names {9_000 * 'x'}, which is not there", "Correct it")
    assert len(problem.what) <= 1_000 and problem.what.startswith("the paper names xxx")
    assert problem.what.endswith("xxx, which is not there")


def test_an_entry_knows_its_origin_and_is_not_imported(site) -> None:
    site.install("Axon_Ring", NORM, {"axon_ring/__init__.py": "raise RuntimeError"}, version="2.0.1")
    entry = next(e for e in discover().entries("norm") if e.key == "Ring")
    assert entry == Entry("Ring", "axon-ring", "2.0.1", "axon_ring.norm:Ring", "norm")
    assert entry.qualified == "axon-ring:Ring"
    assert "axon_ring" not in sys.modules


@pytest.mark.parametrize("name", ["axon_ring", "Axon.Ring", "axon-ring", " axon--ring "])
def test_names_are_compared_as_package_indexes_do(name: str) -> None:
    assert normalised_name(name) == "axon-ring"


def test_an_editable_install_is_found(site, tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    (source / "axon_ring").mkdir(parents=True)
    (source / "axon_ring" / "__init__.py").write_text("")
    (source / "axon_ring" / "norm.py").write_text("class Ring: ...")
    site.install("axon-ring", NORM)
    (site.folder / "_axon_ring.pth").write_text(f"{source}\n")
    python_site.addsitedir(str(site.folder))
    assert next(e for e in scan().entries("norm") if e.key == "Ring").load().__name__ == "Ring"


def test_the_environment_is_scanned_once(site, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    real = importlib.metadata.distributions
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: scans.append(1) or real())
    forget()
    assert discover() is discover()
    assert len(scans) == 1
    forget()
    discover()
    assert len(scans) == 2


def test_no_lock_is_held_while_a_plugin_is_imported(site) -> None:
    """A plugin whose import waits for a thread that itself discovers would hang otherwise."""
    site.install(
        "axon-ring",
        NORM,
        {
            "axon_ring/__init__.py": "",
            "axon_ring/norm.py": """
                import threading
                from axon_core.registry.discovery import discover, forget

                class Ring: ...

                forget()
                thread = threading.Thread(target=discover, daemon=True)
                thread.start()
                thread.join(timeout=60)
                finished = not thread.is_alive()
            """,
        },
    )
    next(e for e in discover().entries("norm") if e.key == "Ring").load()
    assert sys.modules["axon_ring.norm"].finished


class TestSelection:
    @pytest.fixture(autouse=True)
    def _two_plugins(self, site) -> None:
        site.install("axon-ring", NORM)
        site.install("axon-disc", {"axon.v1.norm": {"Disc": "axon_disc:Disc"}})

    def test_an_allow_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AXON_PLUGINS", "Axon_Ring, ")
        assert keys("norm") == ["Ring"]
        assert "axon-disc:Disc" in [e.qualified for e in scan().disabled]

    def test_a_refusal_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AXON_PLUGINS", "axon-ring,axon-disc")
        monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-disc")
        assert keys("norm") == ["Ring"]

    @pytest.mark.parametrize("variable", ["AXON_PLUGINS", "AXON_DISABLE_PLUGINS"])
    def test_a_name_nobody_has_is_a_problem(self, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, "axon-rin")
        (problem,) = problems("axon-rin")
        assert problem.startswith(
            f"axon-rin: {variable} names it, but no plugin with that name is installed. Correct {variable}; installed: "
        )

    def test_a_refused_plugin_is_no_problem(self, site, monkeypatch: pytest.MonkeyPatch) -> None:
        site.install("axon-bad", "[axon.v1.norm]\nBad")
        assert problems("axon-bad")
        monkeypatch.setenv("AXON_DISABLE_PLUGINS", "axon-bad")
        assert not problems("axon-bad")


# Raw entry points, and what is wrong with them; `{info}` stands for the metadata folder.
MALFORMED = {
    "no equals sign": (
        "[axon.v1.norm]\nGood = axon_bad:Good\n\nBad axon_bad:Bad\n",
        "{info}/entry_points.txt is malformed: line 4 is 'Bad axon_bad:Bad'; nothing it offers is used. Reinstall it "
        "(pip install --force-reinstall axon-bad), or report this to its authors.",
    ),
    "a long line": (
        "[axon.v1.norm]\n" + 3000 * "Bad" + "\n",
        f"{{info}}/entry_points.txt is malformed: line 2 is '{43 * 'Bad'}Ba… ad{21 * 'Bad'}'; nothing it offers is "
        "used. Reinstall it (pip install --force-reinstall axon-bad), or report this to its authors.",
    ),
    "no closing bracket": (
        "[axon.v1.norm]\nGood = axon_bad:Good\n[axon.v1.model\nBad = axon_bad:Bad\n",
        "{info}/entry_points.txt is malformed: line 3 is '[axon.v1.model'; nothing it offers is used. Reinstall it "
        "(pip install --force-reinstall axon-bad), or report this to its authors.",
    ),
    "no text": (
        b"[axon.v1.norm]\nGood = axon_bad:G\xff\xfe\n",
        "{info}/entry_points.txt cannot be read (UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position "
        "32: invalid start byte); nothing it offers is used. Reinstall it (pip install --force-reinstall axon-bad), "
        "or report this to its authors.",
    ),
    "no reference": (
        "[axon.v1.norm]\nBad = axon bad!\n",
        "[axon.v1.norm] Bad = 'axon bad!' is not an object reference such as 'package.module:Name'. Correct the entry "
        "points of axon-bad and reinstall it.",
    ),
    "colon in a key": (
        "[axon.v1.norm]\na:b = axon_bad:Bad\n",
        "[axon.v1.norm] a:b = 'axon_bad:Bad' has a ':' in its key, which qualified names reserve. Correct the entry "
        "points of axon-bad and reinstall it.",
    ),
    "key twice": (
        "[axon.v1.norm]\nBad = axon_bad:A\nBad = axon_bad:B\n",
        "[axon.v1.norm] Bad = 'axon_bad:B' repeats a key; only the first one is used. Correct the entry points "
        "of axon-bad and reinstall it.",
    ),
    "another version": (
        "[axon.v2.norm]\nBad = axon_bad:Bad\n",
        "[axon.v2.norm] Bad = 'axon_bad:Bad' is not for axon.v1, the plugin interface of this axon-core; it is not "
        "used. Install the axon-bad made for axon.v1, or the axon-core that reads its group.",
    ),
    "unknown group": (
        "[axon.v1.nrom]\nBad = axon_bad:Bad\n",
        "'Bad' is in group axon.v1.nrom, which nothing reads. Use one of adapter, attention, auxiliary_loss, "
        "chat_template, checkpoint_family, command, embedding, environment, feed_forward, feedback, hooks, model, "
        "noise_schedule, norm, optimizer, page, paper, preference_loss, quantization, recipe_section, registry, "
        "reliability, residual, reward, rotary_embedding, sampler, stage, token_mixer, trainer, weight_decay, "
        "or install the plugin that defines that group.",
    ),
}


def test_a_group_that_an_extra_of_its_name_would_have_read_is_no_problem(site) -> None:
    site.install("axon-shy", "[axon.v1.dance_hall]\nWaltz = axon_shy:Waltz\n", extra="dance-hall")
    site.install("axon-bold", "[axon.v1.dance_hall]\nTango = axon_bold:Tango\n", extra="other")
    assert problems("axon-shy") == []
    assert "which nothing reads" in problems("axon-bold")[0]


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_distribution_hurts_no_other(site, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, expected = MALFORMED[kind]
    site.install("axon-ring", NORM)
    info = site.install("axon-bad", raw)
    assert "Ring" in keys("norm")
    assert problems("axon-bad") == ["axon-bad: " + expected.format(info=info)]
    assert not problems("axon-ring")


def test_a_distribution_without_metadata_is_not_used(site) -> None:
    info = site.install("axon-bad", {"axon.v1.norm": {"Bad": "axon_bad:Bad"}}, metadata=False)
    assert "Bad" not in keys("norm")
    assert problems("axon-bad") == [
        f"axon-bad: {info} has no METADATA, as after an interrupted install or uninstall; nothing it offers is used. "
        "Reinstall it (pip install --force-reinstall axon-bad) or delete that folder."
    ]


def test_what_an_interrupted_pip_leaves_is_not_used(site) -> None:
    info = site.install("~xon-ring", NORM)
    assert "Ring" not in keys("norm")
    assert problems("~xon-ring") == [
        f"~xon-ring: {info} is left over from an interrupted pip run. Delete the folder {info}."
    ]


def test_a_distribution_found_twice_is_used_once(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = site.install("axon-ring", {"axon.v1.norm": {"Old": "axon_ring:Old"}}, version="1.0")
    front = tmp_path / "front"
    front.mkdir()
    monkeypatch.syspath_prepend(str(front))
    site.folder = front
    new = site.install("axon-ring", NORM, version="2.0")
    assert keys("norm").count("Ring") == 1
    assert "Old" not in keys("norm")
    assert problems("axon-ring") == [
        f"axon-ring: it is installed twice: {new} is used and {old} is not. Uninstall it until pip finds no "
        "further copy "
        "(pip uninstall axon-ring), then install it once."
    ]


def test_a_folder_twice_on_the_path_is_no_duplicate(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("axon-ring", NORM)
    os.symlink(site.folder, tmp_path / "link")
    monkeypatch.syspath_prepend(str(tmp_path / "link"))
    importlib.invalidate_caches()
    assert keys("norm").count("Ring") == 1
    assert not problems("axon-ring")


def test_only_a_thorough_scan_examines_other_distributions(site) -> None:
    site.install("other-tool", "[console_scripts]\nother = other:main\n", metadata=False)
    assert not problems("other-tool")
    (problem,) = [p for p in scan(thorough=True).problems if p.distribution == "other-tool"]
    assert "has no METADATA" in problem.what


def test_an_egg_info_has_a_version_too(site) -> None:
    info = site.install("axon-ring", NORM, metadata=False)
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: axon-ring\nVersion: 0.9\n")
    info.rename(site.folder / "axon_ring.egg-info")
    refresh()
    assert [e.source for e in discover().entries("norm") if e.key == "Ring"] == ["axon-ring 0.9"]


def test_groups_are_of_the_current_interface() -> None:
    assert discovery.API == "axon.v1"
    assert set(discovery.GROUPS) <= discover().served
