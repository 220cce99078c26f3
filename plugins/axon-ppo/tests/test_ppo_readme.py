"""The README's commands and its recipe, run with tiny settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from axon_core import MODELS
from axon_core.cli import main
from axon_core.interfaces import Model
from axon_core.text import ByteTokenizer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TINY = {
    "ppo-tiny": ["trainer.steps=1", "trainer.batch_size=4"],
    "steering": ["trainer.steps=1", "trainer.batch_size=4", "trainer.length=5", "trainer.episodes=2"],
    "my-recipe.toml": ["trainer.steps=1", "trainer.batch_size=2", "trainer.response_tokens=3"],
}


class Judge(Model):
    """The score of a prefix is a number of its last token."""

    class Config(Model.Config):
        """How many tokens there are."""

        vocab_size: int

    def __init__(self, config):
        super().__init__(config)
        self.worth = nn.Embedding(config.vocab_size, 1)

    def forward(self, tokens, *, valid=None):
        return self.worth(tokens.clamp(min=0))[..., 0]


def commands():
    (block,) = re.findall(r"^```\n(axon .*?)^```", README, re.DOTALL | re.MULTILINE)
    return {words[2]: words[1:] for words in (shlex.split(line, comments=True) for line in block.splitlines())}


def test_every_recipe_is_run():
    assert commands().keys() - {"cartpole"} == TINY.keys()  # cartpole needs an extra


@pytest.mark.parametrize("recipe", TINY)
def test_the_commands_run(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = ByteTokenizer()
    torch.manual_seed(0)
    with MODELS.override(judge=Judge):
        if recipe.endswith(".toml"):
            (text,) = re.findall(r"^```toml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
            Path(recipe).write_text(text)
            Path("prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "bc", "completion": "d"}\n')
            sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "context": 8}
            MODELS.build("xllama", vocab_size=tokenizer.vocab_size, **sizes).save("runs/sft")
            MODELS.build("judge", vocab_size=tokenizer.vocab_size).save("runs/reward")
            for folder in ("runs/sft", "runs/reward"):
                tokenizer.save(Path(folder))
        settings = [word for text in TINY[recipe] for word in ("--set", text)]
        assert main([*commands()[recipe], *settings, "--out", "out"]) == 0
    assert Path("out/ppo.png").exists() and Path("out/model").exists()
