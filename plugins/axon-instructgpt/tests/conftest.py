"""What several test files share: a pipeline that was done once, and small models."""

import shutil
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_instructgpt import Pipeline, align

TINY = Path(__file__).with_name("tiny.toml").read_text(encoding="utf-8")
STAGE_NAMES = ["pretrain", "excerpts", "comparisons", "reward", "ppo", "report"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A recipe file, and the folder in which it was done."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(3, (900,), generator=generator).tolist()
    words = "".join("ab "[i] for i in letters)
    (folder / "text.txt").write_text(words)
    (folder / "tiny.toml").write_text(TINY.replace("TEXT", str(folder / "text.txt")))
    told = []
    align(Pipeline.load(str(folder / "tiny.toml")), folder / "out", told.append)
    assert told == [f"[{i}/6] {name}" + ", on cpu" * (name != "excerpts") for i, name in enumerate(STAGE_NAMES, 1)]
    return folder


@pytest.fixture
def done(tiny, tmp_path):
    """A copy of the folder, to be changed."""
    shutil.copytree(tiny / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def model_of():
    """Makes a small model with so many tokens."""

    def make(vocab_size, seed=0, context=8):
        torch.manual_seed(seed)
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "context": context}
        return MODELS.build({"type": "xllama", **sizes}, vocab_size=vocab_size).eval()

    return make
