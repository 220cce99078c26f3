"""The picture of the front page: papers on the left register parts, the core holds them, models take them by name."""

from __future__ import annotations

import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

from axon_docs.papers import installed, offers

_REGISTRIES = {
    "attention": "ATTENTIONS",
    "rotary_embedding": "ROTARY_EMBEDDINGS",
    "norm": "NORMS",
    "model": "MODELS",
    "trainer": "TRAINERS",
}
_ROW, _WIDTH = 44, 860


def svg(root: Path) -> str:
    """Return the picture: a line from every paper to each registry it adds to, with what it adds."""
    papers = [card.entry.distribution for card in installed(root)]
    height = _ROW * len(papers) + 60
    place = {name: 50 + _ROW * i for i, name in enumerate(papers)}
    gap = (height - 60) / len(_REGISTRIES)
    shelf = {group: 50 + gap * (i + 0.5) - _ROW / 2 for i, group in enumerate(_REGISTRIES)}
    lines, boxes = [], [_label(20, 28, "papers: one package each"), _label(540, 28, "axon-core: registries")]
    for name, y in place.items():
        boxes.append(_box(20, y, 190, name))
        for group in _REGISTRIES:
            if any(e.group == group for e in offers(name)):
                end = shelf[group] + 16
                lines.append(f'<path d="M210 {y + 16:g} C370 {y + 16:g} 380 {end:g} 540 {end:g}"/>')
    for group, y in shelf.items():
        keys = [e.key for name in papers for e in offers(name) if e.group == group]
        boxes += [_box(540, y, 190, _REGISTRIES[group]), *_keys(540, y + 48, keys)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="14">'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
        f'<g fill="none" stroke="#7aa6da" stroke-width="1.5">{"".join(lines)}</g>{"".join(boxes)}</svg>\n'
    )


def _box(x: float, y: float, width: float, text: str) -> str:
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="32" rx="5" fill="#eef4fb" stroke="#4a7ebb"/>'
    return f'{rect}<text x="{x + 10:g}" y="{y + 21:g}" fill="#123">{escape(text)}</text>'


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="#555">{escape(text)}</text>'


def _keys(x: float, y: float, keys: list[str]) -> list[str]:
    lines = textwrap.wrap(", ".join(keys), 48)[:2]
    return [
        f'<text x="{x:g}" y="{y + 14 * i:g}" fill="#555" font-size="12">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
