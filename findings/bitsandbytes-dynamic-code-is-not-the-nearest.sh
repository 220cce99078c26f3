#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, on a CPU: one number in 800 is not rounded to the nearest of the 256 dynamic numbers.
#
# `quantize_blockwise` divides each block by its largest number and stores the code of a number of `create_dynamic_map`.
# For about 0.12 % of normal numbers that is the second nearest: -0.00324 becomes -0.00353, though -0.00297 is nearer.
# The scales of NF4 with double quantisation and the moments of 8-bit AdamW are stored so. A program that takes the
# nearest number has other bytes there, and a smaller error.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.50.2 numpy
cat > "$folder/ask.py" <<'PYTHON'
from importlib.metadata import version

import torch
from bitsandbytes import functional

torch.manual_seed(0)
numbers, levels = torch.randn(1 << 16), functional.create_dynamic_map().float()
codes, state = functional.quantize_blockwise(numbers, blocksize=256)
parts = (numbers.view(-1, 256) / state.absmax.view(-1, 1)).flatten().double()
distances = (parts.unsqueeze(-1) - levels.double()).abs()
taken = distances.gather(1, codes.flatten().long().unsqueeze(1)).squeeze(1)
least = distances.min(1).values
farther = taken > least * 1.001  # not for the rounding of a tie
example = int((taken - least).argmax())
print(f"bitsandbytes {version('bitsandbytes')}, torch {version('torch')}")
print(f"{farther.double().mean():.3%} of {len(parts):,} numbers have a code that is not the nearest")
print(f"{parts[example]:.5f} becomes {levels[codes.flatten()[example].long()]:.5f}; "
      f"the nearest is {levels[distances[example].argmin()]:.5f}")
raise SystemExit(0 if 0.0005 < farther.double().mean() < 0.005 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
