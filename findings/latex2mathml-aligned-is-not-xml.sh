#!/usr/bin/env bash
# latex2mathml 3.81.1: `aligned` becomes letters with a bare `&` between them, which is not XML; `align*` becomes a table.
#
# The environments that it knows (`align*`, `cases`, `pmatrix`) become tables. `aligned`, which is how lines are aligned
# inside a displayed equation, raises no error: its `&` becomes <mi>&</mi>, so that an XML parser refuses the result, and
# a browser that reads it as HTML shows the sign.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check latex2mathml==3.81.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version
from xml.etree import ElementTree

from latex2mathml.converter import convert


def made(environment: str) -> str:
    text = convert(rf"\begin{{{environment}}} a &= b \\ c &= d \end{{{environment}}}")
    try:
        return "a table" if ElementTree.fromstring(text).find(".//{*}mtable") is not None else "XML without a table"
    except ElementTree.ParseError as error:
        return f"not XML ({error})"


found = {name: made(name) for name in ("align*", "aligned")}
print(f"latex2mathml {version('latex2mathml')}:", ", ".join(f"{name} becomes {what}" for name, what in found.items()))
raise SystemExit(0 if found["align*"] == "a table" and found["aligned"].startswith("not XML") else 1)
PYTHON
