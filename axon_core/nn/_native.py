"""The operators of this package that are written in C++, compiled when they are first needed."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch

__all__ = ["compile_kernels", "lanes", "library"]

library = torch.library.Library("axon", "FRAGMENT")
"""Where operators are defined, each with a version in plain torch that runs where there is no C++ compiler."""

_SOURCES = Path(__file__).with_name("kernels")
_WITHOUT = 8  # numbers of a register, where there are no kernels


def compile_kernels() -> bool:
    """Compile and load the kernels for this processor, once; return whether there are any.

    The library stays in the cache of `torch.compile`, whose compiler makes it in some seconds. Without one, a warning
    says so, and the operators run in plain torch.
    """
    return _loaded()


# It is called while `torch.compile` traces. `torch.compiler.assume_constant_result` does the same, but imports the
# compiler, which takes a second, where nothing is compiled.
compile_kernels._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@cache
def _loaded() -> bool:
    try:
        torch.ops.load_library(_built())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        told = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = next((line for line in (told or "").splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"packed products are slower because they are not compiled: {reason}", RuntimeWarning, stacklevel=3
        )
        return False
    return True


def lanes() -> int:
    """Return how many float32 numbers a register of this processor holds, as the kernels use it."""
    return ctypes.CDLL(_built()).axon_lanes() if compile_kernels() else _WITHOUT


@cache
def _built() -> str:
    """The path of the compiled library, made if it is not there."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    command = [get_cpp_compiler(), *_flags(), str(_SOURCES / "operators.cpp")]
    key = sha256(repr((command, torch.__version__, platform.platform(), torch.cpu.get_capabilities())).encode())
    for source in sorted(_SOURCES.iterdir()):
        key.update(source.read_bytes())
    path = Path(cache_dir()) / f"axon-{key.hexdigest()[:32]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run([*command, *_libraries(), "-o", str(made)], check=True, capture_output=True, text=True)
            os.replace(made, path)  # whole or not there, for others who look
    return str(path)


def _flags() -> list[str]:
    # None of them lets a compiler reorder sums, or fuse a product and a sum in one place and not in another.
    flags = [
        "-O3",
        "-std=c++20",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-shared",
        "-fPIC",
        "-pthread",
        "-w",
    ]
    major, minor = torch.__version__.split(".")[:2]
    flags.append(f"-DTORCH_TARGET_VERSION={int(major) << 56 | int(minor) << 48:#x}")
    if sys.platform == "darwin":
        return [*flags, "-undefined", "dynamic_lookup", f"-I{_torch() / 'include'}"]
    return [*flags, "-march=native", f"-I{_torch() / 'include'}"]


def _libraries() -> list[str]:
    return [f"-L{_torch() / 'lib'}", "-ltorch_cpu"]


def _torch() -> Path:
    return Path(torch.__file__).parent
