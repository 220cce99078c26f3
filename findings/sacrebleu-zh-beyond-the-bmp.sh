#!/usr/bin/env bash
# sacrebleu 2.6.0, tokenizer `zh`: Chinese characters at U+20000 and above stay joined.
#
# The tokenizer sets common Chinese characters apart, one token each. Characters of CJK Unified Ideographs Extension B,
# from U+20000 on, are not set apart: two of them in a row are one token.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sacrebleu==2.6.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

split = TokenizerZh()
common, rare = split("\u4f60\u597d").split(), split("\U00020000\U00020001").split()
print(f"sacrebleu {version('sacrebleu')}: U+4F60 U+597D become {len(common)} tokens, U+20000 U+20001 become {len(rare)}")
raise SystemExit(0 if (len(common), len(rare)) == (2, 1) else 1)
PYTHON
