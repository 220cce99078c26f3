#!/usr/bin/env bash
# tokenizers 0.23.3: a tokenizer.json gives each added token an `id`, which is not used if the model's vocabulary lacks it.
#
# `Tokenizer.from_str` (and `from_file`) numbers such tokens on from the vocabulary's size, in the order of their list; the
# file's ids, if they leave a gap or come in another order, are dropped without an error or a warning. A model trained with
# the file's ids then reads other rows of its embedding. A token that the vocabulary has keeps the vocabulary's id.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > "$folder/ask.py" <<'PYTHON'
import json

import tokenizers
from tokenizers import Tokenizer, models

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
file = json.loads(Tokenizer(models.WordLevel({"a": 0, "b": 1, "<z>": 2}, unk_token="a")).to_str())
file["added_tokens"] = [{"id": i, "content": content, **FLAGS} for i, content in ((10, "<x>"), (7, "<y>"), (2, "<z>"))]
read = Tokenizer.from_str(json.dumps(file))
ids = {content: read.token_to_id(content) for content in ("<x>", "<y>", "<z>")}
print(f"tokenizers {tokenizers.__version__}: the file says <x> 10, <y> 7, <z> 2; read are {ids}")
raise SystemExit(0 if ids == {"<x>": 3, "<y>": 4, "<z>": 2} else 1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
