#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0: FSDP that is asked for on CPUs becomes DDP, without an error or a warning.
#
# Two processes on CPUs make an `Accelerator` with a `FullyShardedDataParallelPlugin` of version 2, with
# ACCELERATE_USE_FSDP set. `prepare` wraps the model in DistributedDataParallel: each process keeps all weights. PyTorch's
# own `fully_shard` shards the same model in the same processes, over gloo.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 accelerate==1.15.0
cat > "$folder/ask.py" <<'PYTHON'
import os
import socket
import warnings
from importlib.metadata import version

import torch
import torch.multiprocessing as mp


def numbers(model):
    """Return how many numbers of a model's weights this process keeps."""
    parameters = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return sum(p.numel() for p in parameters)


def work(rank, port, said):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_FSDP": "true"}
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import fully_shard

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
        model = accelerator.prepare(torch.nn.Linear(64, 64))
    about = [str(warning.message) for warning in caught if "fsdp" in str(warning.message).lower()]
    sharded = fully_shard(torch.nn.Linear(64, 64))
    said.put((type(model).__name__, numbers(model), about, numbers(sharded)))
    os._exit(0)


if __name__ == "__main__":
    spawned = mp.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = spawned.SimpleQueue()
    both = [spawned.Process(target=work, args=(rank, port, said)) for rank in range(2)]
    for process in both:
        process.start()
    name, kept, about, sharded = said.get()
    for process in both:
        process.join()
    print(
        f"accelerate {version('accelerate')}, torch {torch.__version__}: FSDP asked for on 2 CPU processes gives {name}; "
        f"each keeps {kept} of 4160 numbers, with {len(about)} warnings about it; with fully_shard {sharded}"
    )
    raise SystemExit(0 if (name, kept, about, sharded) == ("DistributedDataParallel", 4160, [], 2080) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
