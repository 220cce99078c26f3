"""Memory in huge pages: what it holds and where it is stays; on Linux the pages really are huge."""

import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from axon_core.nn._huge_pages import use_huge_pages

HUGE = 2 << 20


def huge_kib(tensor: Tensor) -> int:
    """KiB in huge pages of the mapping that holds the tensor's middle."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            start, end = (int(number, 16) for number in name.split("-"))
            inside = start <= middle < end
        elif inside and name == "AnonHugePages:":
            return int(rest[0])
    raise AssertionError("the tensor lies in no mapping")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no huge pages")
def test_the_memory_of_a_tensor_becomes_huge_pages() -> None:
    memory = mmap.mmap(-1, 5 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.int32)
    tensor.copy_(torch.arange(tensor.numel()))
    assert huge_kib(tensor) == 0
    use_huge_pages([tensor])
    assert huge_kib(tensor) >= 4 * HUGE / 1024
    assert torch.equal(tensor, torch.arange(tensor.numel(), dtype=torch.int32))


def test_values_and_addresses_stay() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(n) for n in (0, 1, 1000, 300_000, 3_000_000)]
    tensors += [tensors[-1], tensors[-1][7:100_007], tensors[-2].expand(3, -1)]
    copies, addresses = [t.clone() for t in tensors], [t.data_ptr() for t in tensors]
    use_huge_pages(tensors)
    assert [t.data_ptr() for t in tensors] == addresses
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


def test_memory_of_a_file_and_other_devices_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (3 * HUGE // 256))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    weights = torch.frombuffer(mapped, dtype=torch.uint8)
    use_huge_pages([weights, torch.empty(1000, device="meta")])
    assert bytes(weights.numpy()) == path.read_bytes()


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("asked"))
    use_huge_pages([torch.zeros(10)])
