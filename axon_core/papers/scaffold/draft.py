"""The placeholders that `axon new` leaves in a card for its author to fill in."""

from __future__ import annotations

from axon_core.papers.card import Paper

__all__ = ["placeholders"]

_LEFT = {
    "authors": "The authors of the paper",
    "arxiv": "0000.00000",
    "summary": "What the paper shows, in one sentence.",
}
_EXAMPLE = "Example: "


def placeholders(paper: Paper) -> list[str]:
    """Return the fields of a card that still have placeholders, such as `arxiv` or `claim uniform: where`.

    What is to be looked up is one too: `look_up main-result`.
    """
    fields = [name for name, text in _LEFT.items() if getattr(paper, name) in (text, (text,))]
    fields += [f"claim {claim.id}: where" for claim in paper.claim if claim.where.startswith(_EXAMPLE)]
    return fields + [f"look_up {wanted.id}" for wanted in paper.look_up]
