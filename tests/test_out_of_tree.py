"""Five attentions of third parties, installed by pip as real distributions: each works with no change to anything else.

They were chosen because each strains the interface in another way: a cache that forgets, a bias on the scores, two
softmax maps, a compressed cache, and a recurrent state without softmax.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parent / "out_of_tree"
ATTENTIONS = {
    "sliding_window": "axon-test-sliding",
    "alibi": "axon-test-alibi",
    "differential": "axon-test-differential",
    "MLA": "axon-test-mla",
    "linear": "axon-test-linear",
}
SMALL = {
    "model": {"dim": 32, "n_layers": 2, "n_heads": 4, "context": 32},
    "trainer": {"steps": 20, "warmup": 2, "batch_size": 4},
    "data": {"held_out": 0.01},
}


class Site:
    """A folder into which distributions are installed, and processes that find them there."""

    def __init__(self, folder: Path) -> None:
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def python(self, code: str, *arguments: str | Path) -> str:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        run = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def axon(self, *arguments: str | Path) -> str:
        return self.python("from axon_core.cli import main; raise SystemExit(main())", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    sources = [str(PLUGINS / name) for name in ATTENTIONS.values()]
    command = [*pip, "--no-build-isolation", "--target", str(folder), *sources]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return Site(folder)


def test_axon_list_shows_them(installed: Site) -> None:
    listed = {(entry["group"], entry["key"]): entry for entry in json.loads(installed.axon("list", "--json"))}
    for key, distribution in ATTENTIONS.items():
        assert listed["attention", key]["distribution"] == distribution
        assert listed["attention", key]["version"] == "0.1.0"


def test_x_llama_knows_them_by_its_own_name_for_the_registry(installed: Site) -> None:
    code = """
import json, sys
from axon_xllama import LLAMA_ATTENTIONS_CLASSES
print(json.dumps({key: LLAMA_ATTENTIONS_CLASSES[key].__name__ for key in sys.argv[1:]}))
"""
    assert json.loads(installed.python(code, *ATTENTIONS)) == {
        "sliding_window": "SlidingWindowAttention",
        "alibi": "AlibiAttention",
        "differential": "DifferentialAttention",
        "MLA": "LatentAttention",
        "linear": "LinearAttention",
    }


@pytest.mark.parametrize("key", ATTENTIONS)
def test_passes_the_conformance_kit(installed: Site, key: str) -> None:
    results: list[dict[str, Any]] = json.loads(installed.axon("check", ATTENTIONS[key], "--json"))
    assert [result for result in results if not result["passed"]] == []
    assert {result["check"] for result in results} >= {"causal", "documents", "cached_steps", "cached_ragged", "state"}


# What generation gives for a batch of prompts of different lengths, against a loop that runs everything each time.
DECODE = """
import sys, torch
from axon_core.generation import decode
from axon_core.interfaces.model import CausalLM
from axon_core.generation.sampling import Sampling

model = CausalLM.load(sys.argv[1]).eval()
prompts = [[5, 9, 2, 7, 1, 3, 8], [4], [6, 2, 6]]
greedy = Sampling(temperature=0)
cached = [list(row) for row in zip(*decode(model, prompts, [0, 0, 0], max_new_tokens=16, sampling=greedy))]
plain = []
for row in prompts:
    tokens = torch.tensor([row])
    with torch.no_grad():
        for _ in range(16):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    plain.append(tokens[0, len(row):].tolist())
assert cached == plain, (cached, plain)

tokens = torch.randint(model.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
cache = model.new_cache(2, 20)
with torch.no_grad():
    pieces = [model(piece, cache=cache) for piece in tokens.split([11, 1, 1, 7], 1)]
    difference = (torch.cat(pieces, 1) - model(tokens)).abs().max().item()
assert difference < 1e-4, difference
print(cache.nbytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("key", ATTENTIONS)
def test_trains_inside_x_llama_and_decodes_with_a_cache(installed: Site, key: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = [f"{table}.{name}={value}" for table, fields in SMALL.items() for name, value in fields.items()]
    options = {"sliding_window": ["model.attention.window=6"]}.get(key, [])
    sets = [f"--set={change}" for change in [f"model.attention.type={key}", *options, *changes]]
    installed.axon("train", "xllama-tiny", *sets, "--out", run)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [line["value"] for line in lines if line["split"] == "train" and line["name"] == "loss"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.3  # it learns: nats per character
    nbytes = installed.python(DECODE, run / "model")
    layers, batch, heads, head_dim, slots, size = 2, 2, 4, 8, 20, 4
    floats = {
        "sliding_window": 6 * 2 * heads * head_dim,  # those of the window, however long the text
        "alibi": slots * 2 * heads * head_dim,
        "differential": slots * 2 * heads * head_dim,
        "MLA": slots * (4 * head_dim + head_dim // 2),  # one latent and one rotated key for all heads
        "linear": heads * head_dim * (head_dim + 1),  # the same for any number of tokens
    }
    assert int(nbytes) == layers * batch * size * floats[key]
