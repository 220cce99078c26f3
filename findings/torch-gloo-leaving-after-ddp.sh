#!/usr/bin/env bash
# torch 2.13.0, gloo: once a model was wrapped in DistributedDataParallel, `destroy_process_group` closes no connection.
#
# Without DDP, a process that calls `destroy_process_group` closes its connections, and another one that waits for it in
# a collective gets "Connection closed by peer" at once. With DDP, even when the wrapped model is deleted and collected
# first, all connections stay open as long as the process lives, and the other one waits until its time-out.
#
# Run it anywhere with Python and pip. It ends with 0 while this is so, and with 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/leave.py" <<'PYTHON'
import gc
import os
import socket
import stat
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = 8


def sockets():
    """Return how many sockets this process has open."""
    found = 0
    for name in os.listdir("/dev/fd"):
        try:
            found += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:  # the listing's own
            pass
    return found


def work(rank, port, with_ddp, said):
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT),
    )
    if with_ddp:
        model = DistributedDataParallel(torch.nn.Linear(2, 2))
        del model
        gc.collect()
    dist.barrier()
    if rank == 1:  # it leaves, and lives on
        before = sockets()
        dist.destroy_process_group()
        gc.collect()
        time.sleep(1)
        said.put((before, sockets()))
        time.sleep(TIMEOUT + 2)
    else:  # it waits for the one that left
        started, text = time.monotonic(), "no error"
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            text = "closed by peer" if "closed by peer" in str(error) else "timed out"
        said.put((time.monotonic() - started, text))
    os._exit(0)


if __name__ == "__main__":
    spawned = mp.get_context("spawn")
    found = {}
    for with_ddp in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said = [spawned.SimpleQueue(), spawned.SimpleQueue()]
        both = [spawned.Process(target=work, args=(rank, port, with_ddp, said[rank])) for rank in range(2)]
        for process in both:
            process.start()
        (waited, text), (before, after) = said[0].get(), said[1].get()
        for process in both:
            process.join()
        print(
            f"torch {torch.__version__}, {'after DDP' if with_ddp else 'without DDP'}: sockets of the process that left "
            f"{before} -> {after}; the other one: {text} after {waited:.1f} s"
        )
        found[with_ddp] = text, after < before
    raise SystemExit(0 if found == {False: ("closed by peer", True), True: ("timed out", False)} else 1)
PYTHON
"$folder/venv/bin/python" "$folder/leave.py"
