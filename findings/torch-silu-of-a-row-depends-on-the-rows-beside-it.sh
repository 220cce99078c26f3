#!/usr/bin/env bash
# torch 2.13.0 on a CPU: silu, sigmoid, softplus, mish and elu of the same float32 number differ in their last bit with the
# numbers beside it; tanh and exp do not.
#
# The functions work number by number, so `f(x)[:1]` and `f(x[:1])` should be the same bits. They are not for many widths
# of x: the last numbers of a tensor, too few for a vector, are computed in another way, and which numbers are the last
# depends on how many rows there are. A model that serves several texts at once then gives a text other bits than alone.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional

torch.set_num_threads(1)
functions = {
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "elu": functional.elu,
    "tanh": torch.tanh,
    "exp": torch.exp,
}
found = {}
for name, function in functions.items():
    generator = torch.Generator().manual_seed(0)
    found[name] = 0
    for width in range(1, 201):
        x = 4 * torch.randn(5, width, generator=generator)
        found[name] += not torch.equal(function(x)[:1], function(x[:1].clone()))
print(
    f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}: widths of 1 to 200 at which the first of 5 "
    f"rows has other bits than alone: {', '.join(f'{name} {count}' for name, count in found.items())}"
)
changed = [name for name, count in found.items() if (count == 0) != (name in ("tanh", "exp"))]
raise SystemExit(1 if changed else 0)
PYTHON
