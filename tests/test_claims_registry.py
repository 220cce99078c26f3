"""Every claim of every package is kept: three at least, none missing in the release's file, tolerances as checked."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from axon_core.papers.card import Card, Claim, LookUp
from axon_core.papers.claims_file import CLAIMS, ClaimsFile, read_claims, write_claims
from axon_core.papers.scaffold import placeholders
from axon_core.registry.packages import package_folders

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(ROOT / "tools")]

import claims as tool  # noqa: E402

from axon_docs import claims, papers  # noqa: E402

LEAST = 3
RELEASES = claims.releases(ROOT / "docs" / "claims")


def written(cards: Sequence[Card]) -> list[Card]:
    """The papers whose card is no draft."""
    return [card for card in cards if card.paper and not placeholders(card.paper)]


def missing(cards: Sequence[Card], contents: ClaimsFile) -> list[str]:
    """The claims of the cards that a file lacks, or has of another statement."""
    return [
        f"{card.entry.key}/{claim.id}"
        for card in written(cards)
        for claim in card.paper.claim
        if not ((found := contents.find(card.entry.key, claim.id)) and found.states(claim))
    ]


PAPERS = papers.installed(ROOT)


@pytest.mark.parametrize("card", written(PAPERS), ids=lambda card: card.entry.key)
def test_a_paper_that_is_no_draft_has_three_claims(card: Card) -> None:
    assert len(card.paper.claim) >= LEAST, (
        f"a paper needs at least {LEAST} claims, and {card.entry.key} has {len(card.paper.claim)}; look up more, or "
        "keep entries [[look_up]] in its card while it is a draft"
    )


def test_the_latest_release_has_every_claim() -> None:
    assert not missing(PAPERS, RELEASES[next(reversed(RELEASES))]), (
        f"measure them: axon reproduce PAPER --out docs/claims/{next(reversed(RELEASES))}.json, then "
        f"python tools/claims.py docs/claims/{next(reversed(RELEASES))}.json"
    )


def test_each_package_has_its_part_of_the_latest_release() -> None:
    wanted = tool.files(RELEASES[next(reversed(RELEASES))], ROOT)
    assert len(wanted) == len([card for card in PAPERS if card.paper.claim])
    assert [
        file for file, part in wanted.items() if not file.is_file() or read_claims(file).claims != part.claims
    ] == []


def test_a_claim_that_is_missing_or_restated_is_found() -> None:
    latest, card = RELEASES[next(reversed(RELEASES))], written(PAPERS)[0]
    name, first = card.entry.key, card.paper.claim[0]
    without = latest.without(name, [claim.id for claim in card.paper.claim[1:]])
    assert missing([card], without) == [f"{name}/{first.id}"]
    restated = card.paper.model_copy(update={"claim": (first.model_copy(update={"text": "Other."}),)})
    assert missing([Card(card.entry, restated)], latest) == [f"{name}/{first.id}"]
    draft = card.paper.model_copy(update={"look_up": (LookUp(id="x", what="y"),), "claim": ()})
    assert written([Card(card.entry, draft)]) == []


def test_a_package_gets_its_own_claims_and_what_took_part_in_them() -> None:
    latest = RELEASES[next(reversed(RELEASES))]
    card = next(card for card in PAPERS if card.entry.key == "rmsnorm")
    part = tool.of_package(latest, card)
    assert {claim.paper for claim in part.claims} == {"rmsnorm"} and len(part.claims) == len(card.paper.claim)
    for environment in part.environments:
        assert {"axon-core", "axon-rmsnorm", "torch"} <= environment.packages.keys()
        assert "axon-gqa" not in environment.packages


def test_the_tool_finds_a_file_that_is_out_of_date_and_changes_nothing(monkeypatch, capsys, tmp_path: Path) -> None:
    release = ROOT / "docs" / "claims" / f"{next(reversed(RELEASES))}.json"
    monkeypatch.setattr(sys, "argv", ["claims.py", str(release), "--check"])
    assert tool.main() == 0
    changed = tmp_path / "0.0.0.json"
    write_claims(changed, RELEASES[release.stem].without("rmsnorm", ["invariances"]))
    monkeypatch.setattr(sys, "argv", ["claims.py", str(changed), "--check"])
    assert tool.main() == 1
    assert "axon_rmsnorm/claims.json is out of date: python tools/claims.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["claims.py", str(tmp_path / "none.json")])
    assert tool.main() == 1 and "cannot read" in capsys.readouterr().err


def function(claim: Claim) -> tuple[ast.Module, ast.FunctionDef]:
    """The source of a claim's check, and of its module."""
    module, _, name = claim.check.partition(":")
    tree = ast.parse(Path(find_spec(module).origin).read_text("utf-8"))
    return tree, next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def numbers(node: ast.AST) -> Iterator[float]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, int | float):
            yield float(inner.value)


STATED = [(card, c) for card in PAPERS for c in card.paper.claim if isinstance(c.tolerance, float) and c.tolerance]


@pytest.mark.parametrize(("card", "claim"), STATED, ids=[f"{card.entry.key}-{c.id}" for card, c in STATED])
def test_a_tolerance_in_the_card_is_the_one_of_the_check(card: Card, claim: Claim) -> None:
    module, check = function(claim)
    constants = [n for node in module.body if isinstance(node, ast.Assign) for n in numbers(node)]
    assert claim.tolerance in {*numbers(check), *constants}


def test_a_release_is_shipped_with_its_package() -> None:
    for card in PAPERS:
        (folder,) = package_folders(card.entry)
        build = (folder.parent / "pyproject.toml").read_text("utf-8")
        assert f'packages = ["{folder.name}"]' in build and CLAIMS not in build  # the whole package is in the wheel
