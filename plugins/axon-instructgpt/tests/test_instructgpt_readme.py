"""The README's pipeline, run with tiny settings on lines of the kinds that its table of data shows."""

import json
import re
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.text import ByteTokenizer
from axon_instructgpt import Pipeline, align

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TINY = ["sft.trainer.steps=1", "reward.trainer.steps=1", "ppo.trainer.steps=2", "ppo.trainer.response_tokens=3"]
SMALL = [f"{stage}.trainer.batch_size=2" for stage in ("sft", "reward", "ppo")]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with what the pipeline names: a model, demonstrations, rankings and prompts."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = ByteTokenizer()
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "context": 24}
    MODELS.build("xllama", vocab_size=tokenizer.vocab_size, **sizes).save("runs/my-model")
    tokenizer.save(Path("runs/my-model"))
    records = {
        "demonstrations": [{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(4)],
        "rankings": [{"prompt": f"{a}+1=", "responses": ["no", str(a + 1), "?"], "ranking": [1, 0, 2]} for a in (1, 2)],
        "prompts": [{"prompt": f"{a}+2="} for a in range(4)],
    }
    for name, lines in records.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_pipeline_runs_and_ends_with_a_policy(files):
    (text,) = re.findall(r"^```toml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    Path("pipeline.toml").write_text(text)
    pipeline, told = Pipeline.load("pipeline.toml", [*TINY, *SMALL]), []
    align(pipeline, Path("out"), told.append)
    assert told == [f"[{i}/3] {name}, on cpu" for i, name in enumerate(("sft", "reward", "ppo"), 1)]
    names = {json.loads(line)["name"] for line in Path("out/ppo/metrics.jsonl").read_text().splitlines()}
    assert {"loss/ptx_avg", "objective/kl", "objective/scores"} <= names
    assert (Path("out/ppo/model/config.json")).exists()
