"""The kernels in C++: compiled calls give the same bits, and without a compiler plain torch takes over."""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from axon_core.nn import _native, attend_blocks, pack_products
from axon_core.nn.int8 import Int8Linear

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_compiled_products_have_the_same_bits(kind):
    torch.manual_seed(0)
    linear = nn.Linear(48, 33).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    layer = pack_products(Int8Linear(linear) if kind == "int8" else linear)
    run = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for n in (2, 3, 17):
            x = torch.randn(n, 48).to(linear.weight.dtype)
            assert torch.equal(run(x), layer(x))


@needs_compiler
def test_compiled_attention_has_the_same_bits():
    torch.manual_seed(0)
    keys, values, tables = torch.randn(5, 16, 2, 8), torch.randn(5, 16, 2, 8), torch.tensor([[3, 1]], dtype=torch.int32)
    run = torch.compile(attend_blocks, fullgraph=True, dynamic=True)
    for n in (2, 3, 20):
        q, rows, seen = torch.randn(n, 4, 8), torch.zeros(n, dtype=torch.int32), torch.arange(n, dtype=torch.int32) + 1
        expected = attend_blocks(q, keys, values, tables, rows, seen, window=9)
        assert torch.equal(run(q, keys, values, tables, rows, seen, window=9), expected)


@needs_compiler
def test_a_compiler_makes_them_once(monkeypatch):
    path = _native._built()
    _native._built.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert _native._built() == path and _native.compile_kernels()


WITHOUT = """
    import warnings
    import torch
    from axon_core.nn import attend_blocks, pack_products
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first, second = pack_products(torch.nn.Linear(20, 30)), pack_products(torch.nn.Linear(20, 30))
    print(*(warning.message for warning in told))
    x = torch.randn(9, 20)
    with torch.no_grad():
        y = first(x)
        assert all(torch.equal(first(x[i : i + 1])[0], y[i]) for i in range(9))
        q, index = torch.randn(2, 4, 8), torch.tensor([0, 0], dtype=torch.int32)
        assert attend_blocks(q, *torch.randn(2, 3, 16, 2, 8), index[:1, None], index, index + 1).shape == (2, 4, 8)
"""


def test_without_a_compiler_it_is_said_once_and_they_run(tmp_path):
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("packed products are slower because they are not compiled: ")
    assert done.stdout.count("slower") == 1


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    failing = tmp_path / "compiler"
    failing.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: str(failing))
    _native._built.cache_clear()
    _native._loaded.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="not compiled: no such header"):
            assert not _native.compile_kernels()
        assert _native.lanes() == 8
        assert not [path for path in tmp_path.iterdir() if path.suffix == ".so"]
    finally:
        _native._built.cache_clear()
        _native._loaded.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            monkeypatch.undo()
            assert _native.compile_kernels()


@needs_compiler
def test_several_threads_may_call_at_once():
    torch.manual_seed(0)
    product, x = pack_products(nn.Linear(200, 3000)), torch.randn(8, 200)
    with torch.inference_mode():
        expected = product(x)

    def same(_):
        with torch.inference_mode():
            return all(torch.equal(product(x), expected) for _ in range(50))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(same, range(4)))


FORKED = """
    import os
    import torch
    from axon_core.nn import pack_products
    torch.set_num_threads(2)
    with torch.inference_mode():
        product, x = pack_products(torch.nn.Linear(200, 3000)), torch.randn(8, 200)
        expected = product(x)
        child = os.fork()
        equal = torch.equal(product(x), expected)
    if not child:
        os._exit(not equal)
    assert equal and not os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FORKED)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
