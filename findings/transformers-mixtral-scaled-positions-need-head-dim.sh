#!/usr/bin/env bash
# transformers 5.23.0: a Mixtral with scaled rotary positions is not made unless its config names `head_dim`.
#
# `MixtralConfig` leaves `head_dim` at None, and the model takes dim / heads instead; with `rope_type` yarn or dynamic
# the tables of the rotation take None, and making the model ends with a TypeError. `default`, `linear` and `llama3` positions
# work, and so does each of the five in a Mistral, whose config computes `head_dim`.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$folder/ask.py" <<'PYTHON'
import torch
import transformers
from transformers import AutoModelForCausalLM, MistralConfig, MixtralConfig

SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SCALINGS = {"default": {}, "dynamic": {"factor": 4.0}, "linear": {"factor": 4.0}, "llama3": LLAMA3}
SCALINGS["yarn"] = {"factor": 4.0, "original_max_position_embeddings": 32}


def works(kind, scaling, **more):
    rope = {"rope_type": scaling, "rope_theta": 10_000.0, **SCALINGS[scaling]}
    try:
        model = AutoModelForCausalLM.from_config(kind(**SIZES, rope_parameters=rope, **more))
        model(torch.arange(8)[None])
    except TypeError as error:
        print(f"{kind.__name__} {scaling} {more}: TypeError: {error}")
        return False
    return True


open_ = {scaling: works(MixtralConfig, scaling) for scaling in SCALINGS}
named = all(works(MixtralConfig, scaling, head_dim=16) for scaling in SCALINGS)
mistral = all(works(MistralConfig, scaling) for scaling in SCALINGS)
print(f"transformers {transformers.__version__}: Mixtrals that are made without head_dim: {open_}; with it all: {named}; Mistrals without: {mistral}")
expected = {"default": True, "dynamic": False, "linear": True, "llama3": True, "yarn": False}
raise SystemExit(0 if (open_, named, mistral) == (expected, True, True) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
