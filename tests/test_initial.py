"""What a recipe's model starts from: a new one by the seed, or a saved one; and what training exports by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_trainer import Toy

from axon_core import MODELS
from axon_core.errors import CheckpointError, ConfigError, ContractError, UnknownKey
from axon_core.interfaces.model import CausalLM, Model
from axon_core.registry.spec import Spec
from axon_core.text.tokenizer import CharTokenizer, Tokenizer
from axon_core.training.initial import InitialModel, new_model

ROOT = Path(__file__).parents[1]
TABLE: dict[str, Any] = {"type": "xllama", "dim": 8, "n_layers": 1, "n_heads": 1, "context": 8}


def weights(model: Model) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    new_model(TABLE, 7, vocab_size=3).save(tmp_path / "saved", CharTokenizer("abc"))
    return tmp_path / "saved"


def test_a_new_model_depends_on_its_seed_and_role_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    first = weights(new_model(TABLE, 1, vocab_size=3))
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(weights(new_model(TABLE, 1, vocab_size=3)), first)
    for other in (new_model(TABLE, 2, vocab_size=3), new_model(TABLE, 1, "value", vocab_size=3)):
        assert not torch.equal(weights(other), first)


def test_a_saved_model_brings_its_tokenizer_and_a_new_one_gets_its_own(saved: Path):
    new = InitialModel(TABLE)
    tokenizer = new.tokenizer(Spec(type="char"), "hello")
    assert (new.folder, new.saved_tokenizer(), tokenizer.vocab_size) == (None, None, len(set("hello")))
    assert torch.equal(
        weights(new.build(CausalLM, 1, tokenizer)), weights(new_model(TABLE, 1, vocab_size=tokenizer.vocab_size))
    )
    begun = InitialModel({"init": str(saved)})
    tokenizer = begun.tokenizer(Spec(type="char"), "hello")
    assert begun.folder == saved and tokenizer.vocab_size == 3
    assert torch.equal(weights(begun.build(CausalLM, 1, tokenizer)), weights(Model.load(saved)))


def test_a_resumed_run_takes_its_own_tokenizer_but_its_model_from_the_recipe(saved: Path, tmp_path: Path):
    for table in (TABLE, {"init": str(tmp_path / "gone")}):
        assert InitialModel(table, saved).folder == saved
    resumed = InitialModel({**TABLE, "dim": 16}, saved)
    assert resumed.build(CausalLM, 1, Tokenizer.load(saved)).config.model_dump()["dim"] == 16
    with pytest.raises(CheckpointError, match="is not a run folder: no such folder"):
        InitialModel({"init": str(tmp_path / "gone")})


def test_tables_are_checked_without_files():
    InitialModel.check(TABLE)
    InitialModel.check({"init": "gone"})
    with pytest.raises(ConfigError, match="init names a saved model"):
        InitialModel.check({"init": "gone", "type": "xllama"})
    with pytest.raises(UnknownKey, match="xlama"):
        InitialModel.check({"type": "xlama"})


def test_by_default_the_first_trained_model_is_exported_with_the_tokenizer_of_the_data(tmp_path: Path):
    class Default(Toy):
        export = Toy.__mro__[1].export

    trainer = Default.make()
    with pytest.raises(ContractError, match="a Bigram cannot be saved, only a Model; let Default define `export`"):
        trainer.export(tmp_path)
    tokenizer = trainer.data.tokenizer
    trainer.models["model"] = MODELS.build(Spec.of(TABLE), vocab_size=tokenizer.vocab_size)
    trainer.export(tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == tokenizer.vocab_size
    assert torch.equal(weights(Model.load(tmp_path)), weights(trainer.models["model"]))


def test_no_plugin_seeds_or_splits_by_hand():
    by_hand = re.compile(r"seed_global|MODELS\.build\(Spec\.of\(recipe|\* \(1 - \w*\.?held_out\)|validate\(Saved,")
    sources = ROOT.glob("plugins/*/axon_*/**/*.py")
    found = [file.name for file in sources if by_hand.search(file.read_text("utf-8"))]
    assert found == []
