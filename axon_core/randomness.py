"""Random numbers keyed by what they are for, so that a resumed or re-sharded run draws the same ones.

Nothing here keeps state: a key such as `(seed, step, "noise", example)` is hashed into the seed of a fresh generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Key", "forked"]

KeyPart = int | str


@dataclass(frozen=True)
class Key:
    """A place at which random numbers are drawn; extend it with `key("noise", 3)`.

    Equal keys draw equal numbers, on every machine and in every process; different keys, independent ones.

    >>> key = Key((0,))
    >>> torch.equal(torch.rand(3, generator=key("a").generator()), torch.rand(3, generator=Key((0, "a")).generator()))
    True
    """

    parts: tuple[KeyPart, ...]

    def __call__(self, *parts: KeyPart) -> Key:
        """Return the key extended by `parts`."""
        return Key(self.parts + parts)

    @property
    def seed(self) -> int:
        """The 63-bit seed this key stands for, a stable hash of its parts."""
        return int.from_bytes(hashlib.blake2b(repr(self.parts).encode(), digest_size=8).digest()) >> 1

    def generator(self) -> torch.Generator:
        """Return a fresh generator; always on the CPU, so that every device sees the same numbers."""
        return torch.Generator().manual_seed(self.seed)

    def uniform(self, shape: tuple[int, ...]) -> Float[Tensor, ...]:
        """Return numbers from [0, 1), uniform and in float32: a half-precision default would leave few of them."""
        return torch.rand(shape, generator=self.generator(), dtype=torch.float32)

    def normal(self, examples: Iterable[int], shape: tuple[int, ...]) -> Float[Tensor, "b ..."]:
        """Return one independent standard normal tensor for each example, stacked: `(b, *shape)`, in float32.

        An example's noise depends on its own number alone, not on the batch or the process it is part of.
        """
        generators = (self(int(example)).generator() for example in examples)
        return torch.stack([torch.randn(shape, generator=own, dtype=torch.float32) for own in generators])

    def seed_global(self) -> None:
        """Seed the global generators of the CPU and all GPUs, the ones that `torch.nn.Dropout` draws from."""
        torch.default_generator.manual_seed(self.seed)  # `torch.manual_seed` also asks every backend: 100 times as slow
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(self.seed)

    @contextmanager
    def seeded(self, device: str) -> Generator[None]:
        """Within the block the global generators start from this key; then those of the CPU and `device` are restored.

        >>> with Key((0, "weights")).seeded("cpu"):
        ...     first = torch.rand(3)
        >>> with Key((0, "weights")).seeded("cpu"):
        ...     torch.equal(torch.rand(3), first)
        True
        """
        with forked(device):
            self.seed_global()
            yield


def forked(device: str) -> AbstractContextManager[None]:
    """Within the block the global generators may be seeded; after it, those of the CPU and `device` are restored."""
    kind = torch.device(device)
    return torch.random.fork_rng(devices=[] if kind.type == "cpu" else [kind.index or 0], device_type=kind.type)
