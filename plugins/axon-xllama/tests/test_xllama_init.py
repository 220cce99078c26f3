"""`[model] init`: training that begins with a saved model."""

from __future__ import annotations

import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from axon_core import ConfigError
from axon_core.cli import main
from axon_core.interfaces import CausalLM
from axon_core.text import ByteTokenizer, CharTokenizer, TextData, train_tokenizer
from axon_core.training import Recipe, build_trainer
from axon_xllama import CausalLMTrainer, XLlama

TEXT = "\n".join(topics[name] for name in sorted(topics))[:8_000]
RECIPE = """
[model]
init = "{init}"
[data]
path = "text.txt"
[trainer]
type = "causal_lm"
steps = 4
batch_size = 2
"""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> XLlama:
    """Return a model whose folder `saved` is in the current one, beside the recipe `more.toml` that begins with it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("more.toml").write_text(RECIPE.format(init="saved"))
    tokenizer = train_tokenizer("char", TEXT + "→")  # a character that the recipe's text does not have
    torch.manual_seed(0)
    model = XLlama.build(vocab_size=tokenizer.vocab_size, context=8, dim=16, n_layers=1, n_heads=2)
    model.save("saved")
    tokenizer.save("saved")
    return model


def built(**replaced: str):
    return build_trainer(Recipe.of(Recipe.load("more.toml").tables | {"model": replaced}, "more", "more.toml"))


def failure(capsys, code: int, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["train", "more.toml", *arguments]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert not Path("runs").exists()
    return line


def test_it_begins_with_the_weights_and_the_tokenizer_of_the_folder(saved: XLlama) -> None:
    trainer = build_trainer(Recipe.load("more.toml"))
    assert trainer.models["model"].config == saved.config
    state = trainer.models["model"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.state_dict().items())
    assert trainer.data.tokenizer.encode("→") == CharTokenizer.load("saved").encode("→")
    assert all(p.requires_grad for p in trainer.models["model"].parameters())


def test_weights_of_half_precision_are_trained_in_float32(saved: XLlama) -> None:
    saved.bfloat16().save("saved")
    state = build_trainer(Recipe.load("more.toml")).models["model"].state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in saved.state_dict().items())
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_recipe_takes_a_saved_model_in_place_of_its_own(saved: XLlama) -> None:
    options = ["--set", 'model={init="saved"}', "--set", "data.path=text.txt", "--set", "trainer.steps=2"]
    assert main(["train", "xllama-tiny", *options, "--out", "run"]) == 0
    assert CausalLM.load("run/model").config == saved.config
    assert built(init="run").models["model"].state_dict().keys() == saved.state_dict().keys()  # a run's folder will do


def test_its_context_may_be_longer_than_the_passages(saved: XLlama, capsys) -> None:
    trainer = build_trainer(Recipe.load("more.toml", ["trainer.context=5"]))
    assert trainer.batch(0)["tokens"].shape == (2, 6) and trainer.model.config.context == 8
    assert "trainer.context: must be at most the model's context of 8, got 9" in failure(
        capsys, 2, "--set", "trainer.context=9"
    )


def test_variables_in_the_place_are_filled_in(saved: XLlama, monkeypatch) -> None:
    monkeypatch.setenv("MODELS_HERE", str(Path.cwd()))
    assert built(init="$MODELS_HERE/saved").models["model"].config == saved.config


def test_such_a_run_resumes_exactly_though_the_folder_is_gone(saved: XLlama, capsys) -> None:
    assert main(["train", "more.toml", "--out", "whole"]) == 0
    assert main(["train", "more.toml", "--out", "parts", "--stop-at", "2"]) == 0
    shutil.rmtree("saved")
    assert main(["train", "--resume", "--out", "parts"]) == 0
    assert Path("parts/model/model.safetensors").read_bytes() == Path("whole/model/model.safetensors").read_bytes()
    assert main(["evaluate", "whole"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "parts", "--set", "model.init=other"]) == 2
    assert "model.init was 'saved' in parts and is now 'other'" in capsys.readouterr().err


def test_what_is_wrong_is_said(saved: XLlama, capsys) -> None:
    assert "model.dim: unknown field 'dim' (known: init)" in failure(capsys, 2, "--set", "model.dim=8")
    assert "model.init: must be a valid string, got 3" in failure(capsys, 2, "--set", "model.init=3")
    assert "gone is not a run folder: no such folder" in failure(capsys, 1, "--set", "model.init=gone")
    Path("saved/tokenizer.json").unlink()
    assert "tokenizer.json" in failure(capsys, 1)


def test_a_prompt_that_the_text_cannot_spell_is_refused_before_training(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc abd abe\n" * 400)
    with pytest.raises(ConfigError, match=r"trainer\.prompt.*'T'.*another prompt"):
        build_trainer(Recipe.load("xllama-tiny", [f"data.path={text}"]))
    assert (
        build_trainer(Recipe.load("xllama-tiny", [f"data.path={text}", "trainer.prompt=ab"])).sample().startswith("ab")
    )


def test_the_sample_goes_on_from_the_held_out_tokens_themselves() -> None:
    """Half a character at their end would be three bytes of another one, were its text encoded again."""
    tokenizer = ByteTokenizer()
    data = TextData(
        tokenizer, torch.tensor(tokenizer.encode("ab" * 40)), torch.tensor([97, *tokenizer.encode("é" * 20)])
    )
    torch.manual_seed(0)
    model = XLlama.build(vocab_size=tokenizer.vocab_size, context=16, dim=16, n_layers=1, n_heads=2)
    trainer = CausalLMTrainer(CausalLMTrainer.Config(), {"model": model}, data)
    assert trainer.sample().startswith("aééééééé")
