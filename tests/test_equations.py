"""Equations of the papers are typeset: each becomes MathML, and one that cannot is refused."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "_ext"))

from axon_core.papers.card import cards
from axon_docs.mathml import mathml

EQUATIONS = [
    pytest.param(equation.latex, id=f"{card.paper.id}-{number}")
    for card in cards()
    if card.paper
    for number, equation in enumerate(card.paper.equation)
]


def test_most_papers_show_an_equation():
    assert len({parameter.id.rpartition("-")[0] for parameter in EQUATIONS}) >= 14


@pytest.mark.parametrize("latex", EQUATIONS)
def test_an_equation_of_a_card_becomes_mathml(latex: str):
    tree = ElementTree.fromstring(mathml(latex, display=True))
    assert tree.get("display") == "block" and len(list(tree.iter())) > 5


def test_a_fraction_is_a_fraction():
    tree = ElementTree.fromstring(mathml(r"\frac{1}{\sqrt{d}}", display=False))
    assert [part.tag.rpartition("}")[2] for part in tree.iter()][2:] == [
        "mfrac",
        "mrow",
        "mn",
        "mrow",
        "msqrt",
        "mrow",
        "mi",
    ]


@pytest.mark.parametrize(
    ("latex", "why"), [(r"\softmaxx x", "softmaxx"), (r"\begin{aligned}a &= b\end{aligned}", "does not become MathML")]
)
def test_what_latex2mathml_gets_wrong_without_a_word_is_refused(latex: str, why: str):
    with pytest.raises(ValueError, match=why):
        mathml(latex, display=True)
