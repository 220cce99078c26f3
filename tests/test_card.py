"""Paper cards and recipes: found without import, read strictly, and damaged ones isolated."""

from __future__ import annotations

import site as python_site
import sys
from pathlib import Path

import pytest

from axon_core.errors import AmbiguousKey, ConfigError, PluginLoadError, UnknownKey
from axon_core.papers.card import Paper, cards, find_card, find_recipe, read_card, recipes
from axon_core.registry.discovery import discover
from axon_core.registry.packages import command_line

CARD = """
id = "kites"
title = "On Kites"
authors = ["A. Wind", "B. Gust"]
year = 2020
arxiv = "2001.00001"
summary = "Kites fly."

[[claim]]
id = "flight"
where = "Section 2, Eq. 3"
text = "A kite flies."
paper = "exact"
check = "axon_kites.claims:flight"
scale = "exact"
budget_s = 5
"""
RAISES = "raise RuntimeError('imported')"
GROUP = {"axon.v1.paper": {"kites": "axon_kites"}}


def install(site, card: str = CARD, **files: str) -> Path:
    extra = {f"axon_kites/recipes/{name}.toml": text for name, text in files.items()}
    package = {"axon_kites/__init__.py": RAISES, "axon_kites/paper.toml": card}
    site.install("axon-kites", GROUP, {**package, **extra})
    return site.folder / "axon_kites"


def damaged(site, card_text: str) -> str:
    install(site, card_text)
    found = find_card("kites")
    assert found.paper is None
    with pytest.raises(type(found.error)) as error:
        read_card(found.entry)
    assert str(error.value) == str(found.error)
    return str(found.error).replace(str(site.folder), "{site}")


def test_a_card_is_read_without_importing_its_package(site) -> None:
    install(site)
    paper = find_card("kites").paper
    assert paper is not None
    assert (paper.title, paper.authors, paper.year) == ("On Kites", ("A. Wind", "B. Gust"), 2020)
    assert [claim.where for claim in paper.claim] == ["Section 2, Eq. 3"]
    assert find_card("axon-kites:kites").paper == paper
    assert paper in [c.paper for c in cards()]
    assert "axon_kites" not in sys.modules


def test_a_card_in_a_subpackage_is_read_without_importing_its_parents(site) -> None:
    files = {"big/__init__.py": RAISES, "big/kites/__init__.py": RAISES, "big/kites/paper.toml": CARD}
    site.install("big", {"axon.v1.paper": {"kites": "big.kites"}}, files)
    assert find_card("kites").paper is not None
    assert "big" not in sys.modules


def test_a_card_of_an_editable_install_is_read(site, tmp_path: Path) -> None:
    source = tmp_path / "checkout" / "axon_kites"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(RAISES)
    (source / "paper.toml").write_text(CARD)
    site.install("axon-kites", GROUP)
    (site.folder / "_axon_kites.pth").write_text(f"{source.parent}\n")
    python_site.addsitedir(str(site.folder))
    assert find_card("kites").paper is not None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('title = "On Kites"', "", "title: this field is required"),
        ('title = "On Kites"', 'titel = "x"\ntitle = "x"', "titel: unknown field 'titel' (did you mean 'title'?)"),
        ("year = 2020", 'year = "soon"', "year: must be a valid integer"),
        ('"2001.00001"', '"v1"', "arxiv: "),
        ('["A. Wind", "B. Gust"]', "[]", "authors: "),
        ('where = "Section 2, Eq. 3"', 'where = " "', "claim.0.where: "),
        ('scale = "exact"', 'scale = "small"', "claim.0.scale: must be 'exact', 'scaled' or 'full', got 'small'"),
        ("budget_s = 5", "budget_s = 0", "claim.0.budget_s: must be greater than 0, got 0"),
        ("kites.claims:flight", "kites.claims", "claim.0.check: "),
        ("budget_s = 5", "budget_s = 5\n[command]\nfly = 3", "command.fly: must be a valid string"),
        ('id = "kites"', 'id = "kits"', "id: must be 'kites', as in the entry point; got 'kits'"),
        ("year = 2020", "year = ", "cannot be read as TOML: Invalid value (at line 4, column 8)"),
    ],
)
def test_a_damaged_card_names_file_and_field(site, old: str, new: str, expected: str) -> None:
    assert old in CARD
    message = damaged(site, CARD.replace(old, new, 1))
    assert message.startswith("in {site}/axon_kites/paper.toml: ")
    assert expected in message


def test_claims_have_ids_of_their_own(site) -> None:
    claim = CARD[CARD.index("[[claim]]") :]
    assert "each claim needs a different id, but flight is given more than once" in damaged(site, CARD + claim)


def test_a_missing_card_or_package(site) -> None:
    install(site)
    (site.folder / "axon_kites" / "paper.toml").unlink()
    assert str(find_card("kites").error) == (
        "the paper 'kites' of axon-kites 1.0 has no card: there is no paper.toml beside the package axon_kites. "
        "Reinstall it: pip install --force-reinstall axon-kites"
    )
    site.install("axon-gone", {"axon.v1.paper": {"gone": "axon_gone"}})
    assert isinstance(find_card("gone").error, PluginLoadError)
    assert "names the package axon_gone, but there is none" in str(find_card("gone").error)


def test_a_damaged_card_hurts_no_other(site) -> None:
    install(site, "id = ")
    site.install(
        "axon-other",
        {"axon.v1.paper": {"other": "axon_other"}},
        {"axon_other/__init__.py": "", "axon_other/paper.toml": CARD.replace('id = "kites"', 'id = "other"')},
    )
    readable = {c.entry.key: c.paper is not None for c in cards()}
    assert readable["other"] and not readable["kites"]


def test_an_unknown_paper(site) -> None:
    install(site)
    with pytest.raises(UnknownKey) as error:
        find_card("kits")
    assert str(error.value).startswith(
        "no paper 'kits' is installed. `axon search` finds papers that are not installed. Near it: 'kites'. "
        "Installed papers: "
    )


def test_recipes_are_listed_by_their_summary(site) -> None:
    folder = install(site, small='summary = "A small kite."', broken="summary = ")
    found = {r.name: r for r in recipes() if r.distribution == "axon-kites"}
    assert list(found) == ["broken", "small"]
    assert found["small"].summary == "A small kite."
    assert found["broken"].summary == "damaged: cannot be read as TOML: Invalid value (at end of document)"
    assert find_recipe("small").path == folder / "recipes" / "small.toml"
    with pytest.raises(UnknownKey, match="no recipe 'smal' is installed. Near it: 'small'"):  # noqa: RUF043
        find_recipe("smal")
    site.install(
        "axon-rival",
        {"axon.v1.paper": {"rival": "axon_rival"}},
        {"axon_rival/__init__.py": "", "axon_rival/recipes/small.toml": ""},
    )
    with pytest.raises(AmbiguousKey) as error:
        find_recipe("small")
    assert str(error.value) == ("2 plugins have a recipe 'small'; choose one: 'axon-kites:small' or 'axon-rival:small'")
    assert find_recipe("axon-kites:small").distribution == "axon-kites"


def test_a_card_is_checked_where_no_distribution_is() -> None:
    with pytest.raises(ConfigError, match="this field is required"):
        from axon_core.config import validate

        validate(Paper, {"id": "kites"})


def test_every_installed_card_is_readable() -> None:
    unreadable = {c.entry.key: str(c.error) for c in cards() if c.error}
    assert not unreadable
    assert len(cards()) == len(discover().entries("paper"))


@pytest.mark.parametrize("entry", discover().entries("command"), ids=lambda entry: entry.key)
def test_every_installed_command_has_its_line(entry) -> None:
    assert not command_line(entry).startswith("From ")


def test_cards_name_commands_that_there_are() -> None:
    commands = {(entry.distribution, entry.key) for entry in discover().entries("command")}
    named = {(c.entry.distribution, name) for c in cards() if c.paper is not None for name in c.paper.command}
    assert named == commands and commands
