"""What a conversion keeps in memory, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axon_xllama.checkpoints.hugging_face import names_of
from axon_xllama.checkpoints.layout import checkpoint_tensors, skeleton
from axon_xllama.model import XLlama

# One process imports everything, and forks a child for each conversion.
SCRIPT = """
import json, os, sys, tempfile, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from axon_core.checkpoint.models import load_config, load_into
from axon_core.nn.quantization import quantize
from axon_core.text.tokenizer import Tokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint, load_checkpoint

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

def load_small(folder):
    model = load_config(folder, XLlama)
    load_into(model, folder, quantize(model))

WORKS = {
    "import hf": lambda folder: import_checkpoint(folder / "hf", folder / "ours"),
    "load hf": lambda folder: load_checkpoint(folder / "hf"),
    "export hf": lambda folder: export_checkpoint(folder / "ours", folder / "back", format="hf"),
    "load": lambda folder: XLlama.load(folder / "ours"),
    "load int8": lambda folder: load_small(folder / "ours"),
    "export meta": lambda folder: export_checkpoint(folder / "ours", folder / "meta", format="meta"),
    "import meta": lambda folder: import_checkpoint(folder / "meta", folder / "again"),
}

def small():  # all code is loaded, in the child too, and counts as the interpreter's
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))
    (folder / "hf").symlink_to(Path(sys.argv[1], "small"))
    for work in WORKS.values():
        work(folder)

def growth(name):
    small()
    base = peak()
    WORKS[name](Path(sys.argv[1]))
    Path(sys.argv[1], "growth").write_text(str(peak() - base))

small()
found = {}
for name in WORKS:
    if (child := os.fork()) == 0:
        status = 1
        try:
            growth(name)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, name
    found[name] = int(Path(sys.argv[1], "growth").read_text())
print(json.dumps(found))
"""


def write(folder: Path, words: Path, **sizes: int) -> int:
    """Write a float16 folder in two files, and return how many bytes its weights have."""
    folder.mkdir(parents=True)
    attention = {"type": "GQA", "n_kv_heads": 2}
    model = skeleton(XLlama.Config(vocab_size=400, context=64, n_heads=4, attention=attention, **sizes))
    tensors = {
        part.theirs: torch.zeros(part.shape, dtype=torch.float16) for part in checkpoint_tensors(model, names_of(model))
    }
    names = sorted(tensors)
    places = {}
    for i, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: tensors[name] for name in half}, folder / f"{i}.safetensors")
        places |= dict.fromkeys(half, f"{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {
        "model_type": "llama",
        "vocab_size": 400,
        "max_position_embeddings": 64,
        "hidden_size": model.config.dim,
        "num_hidden_layers": model.config.n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": model.config.hidden_dim,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(words.read_bytes())
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_peak_memory(tmp_path, words):
    write(tmp_path / "small", words, dim=16, n_layers=1)
    weights = write(tmp_path / "hf", words, dim=1024, n_layers=8)

    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    # Peak memory above the interpreter's, in sizes of the weights.
    growth = {work: found / weights for work, found in json.loads(done.stdout).items()}
    # A few tensors at a time: the largest, an input matrix of a feed-forward, is 3 % of the weights.
    assert growth["import hf"] < 0.3
    assert growth["load hf"] < 1.3
    assert growth["export hf"] < 0.3
    assert growth["load"] < 1.3
    assert growth["load int8"] < 0.7  # half of float16, and one tensor
    # All weights at once, as a .pth file is written as a whole; and mapped in when it is read.
    assert growth["export meta"] < 1.3
    assert growth["import meta"] < 1.3
    assert growth["load"] > 0.9  # what a child keeps is counted
