"""What is killed: each installed trainer by its own example, and each command that writes files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tomli_w
import torch
from safetensors.torch import save_file

from axon_core.text.corpus import TextData
from axon_core.text.tokenizer import SentencePieceTokenizer
from axon_core.training.direct_trainer import DirectTrainer
from axon_core.training.trainers import TRAINERS

STEPS = {"steps": 3, "save_every": 1, "eval_every": 2, "keep_checkpoints": 1, "ema": 0.9}
PROMPTS = ["the", "of a", "import", "class", "return", "a list"]


class Subject(NamedTuple):
    """A command line that writes below one folder."""

    first: list[str]
    again: list[str]
    """The line that goes on after the first was killed."""
    moves: bool = False
    """Whether its folder may be moved meanwhile, and is then gone on with there."""
    timed: frozenset[str] = frozenset()
    """Names of files that hold times, and are not compared."""


COMMANDS = ("generate", "import", "align", "export-hf", "export-meta", "convert", "sample", "translate", "new")


def names() -> list[str]:
    """Return the names of all subjects."""
    return [*(f"train-{key}" for key in TRAINERS), *COMMANDS]


def needs(name: str) -> str | None:
    """Return the subject whose model another one reads."""
    readers = {"sample": "ddpm", "translate": "translation"}
    if name in ("generate", "export-hf", "export-meta", "convert"):
        return "train-causal_lm"
    return f"train-{readers[name]}" if name in readers else None


def subject(name: str, inputs: Path, work: Path) -> Subject:
    """Write what a subject reads into `inputs`, and return it; it writes to `work`."""
    if name.startswith("train-"):
        return _training(name.removeprefix("train-"), inputs, work / "out")
    return {"generate": _generate, "import": _import, "align": _align}.get(name, _other(name))(inputs, work / "out")


def _training(key: str, inputs: Path, out: Path) -> Subject:
    examples = TRAINERS[key].examples
    example = examples[1 % len(examples)]  # the second: the first of `ddpm` trains a classifier in each evaluation
    recipe = inputs / f"{key}.toml"
    direct = issubclass(TRAINERS[key], DirectTrainer)  # which has no weights to average
    steps = {name: value for name, value in STEPS.items() if name != "ema"} if direct else STEPS
    tables = {**example, "trainer": {**example["trainer"], **steps}}
    recipe.write_text(tomli_w.dumps({"summary": "An example", **tables}), encoding="utf-8")
    line = ["train", str(recipe), "--out", str(out)]
    return Subject(line, [*line, "--resume"], moves=True, timed=frozenset({"run.json"}))


def _generate(inputs: Path, out: Path) -> Subject:
    prompts = inputs / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    run = str(inputs / "train-causal_lm/out")
    line = ["generate", run, "--input", str(prompts), "--output", f"{out}.jsonl", "--max-new-tokens", "6"]
    return Subject(line, line)


def _other(name: str) -> Callable[[Path, Path], Subject]:
    """Return what makes the subject of a command that reads a run, or nothing at all."""

    def make(inputs: Path, out: Path) -> Subject:
        model = str(inputs / "train-causal_lm/out")
        source = inputs / "sentences.txt"
        source.write_text("abc\nbca\ncab\n", encoding="utf-8")
        line = {
            "export-hf": ["export", model, "--format", "hf", "--out", str(out)],
            "export-meta": ["export", model, "--format", "meta", "--out", str(out)],
            "convert": ["convert", "gqa", model, "--groups", "1", "--out", str(out)],
            "sample": ["sample", str(inputs / "train-ddpm/out"), "--n", "4", "--out", f"{out}.png"],
            "translate": [
                *("translate", str(inputs / "train-translation/out"), "--beam", "1"),
                *("--input", str(source), "--output", f"{out}.txt"),
            ],
            "new": ["new", "some-paper", "--kind", "norm", "--out", str(out)],
        }[name]
        return Subject(line, line)

    return make


def _import(inputs: Path, out: Path) -> Subject:
    """Write a Llama of one layer as Hugging Face's library does."""
    folder = inputs / "llama"
    folder.mkdir(exist_ok=True)
    text = TextData.load({"held_out": 0.5}).tokenizer.decode(range(3, 60)) * 9
    words = SentencePieceTokenizer.train(text, SentencePieceTokenizer.Config(vocab_size=330))
    words.save(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    facts = {"vocab_size": words.vocab_size, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, **sizes}
    facts |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    shapes = {"input_layernorm": (8,), "post_attention_layernorm": (8,)}
    shapes |= {f"self_attn.{kind}_proj": (8, 8) for kind in "qkvo"}
    shapes |= {"mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12)}
    whole = {f"model.layers.0.{part}.weight": shape for part, shape in shapes.items()}
    whole |= {"model.embed_tokens.weight": (words.vocab_size, 8), "model.norm.weight": (8,)}
    generator = torch.Generator().manual_seed(0)
    tensors = {tensor: torch.randn(shape, generator=generator) for tensor, shape in whole.items()}
    save_file(tensors, folder / "model.safetensors")
    line = ["import", str(folder), "--out", str(out)]
    return Subject(line, line)


def _align(inputs: Path, out: Path) -> Subject:
    """Take the pipeline of its plugin's own tests, of three letters and responses of two."""
    file = Path(__file__).parents[1] / "plugins/axon-instructgpt/tests/tiny.toml"
    letters = torch.randint(3, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    (inputs / "letters.txt").write_text("".join("ab "[i] for i in letters), encoding="utf-8")
    recipe = inputs / "align.toml"
    recipe.write_text(file.read_text(encoding="utf-8").replace("TEXT", str(inputs / "letters.txt")), encoding="utf-8")
    line = ["align", str(recipe), "--out", str(out)]
    return Subject(line, line, moves=True, timed=frozenset({"run.json", "align.json"}))
