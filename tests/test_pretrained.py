"""Saved models: found by the name of a run or a folder, loaded for training, their tokenizers compared."""

import pytest
import torch

from axon_core import MODELS
from axon_core.config import validate
from axon_core.errors import CheckpointError
from axon_core.interfaces.model import CausalLM
from axon_core.text.tokenizer import ByteTokenizer, CharTokenizer
from axon_core.training.pretrained import Saved, load_pretrained, model_folder, named_model_folder, tokenizer_difference


class Marked(CharTokenizer):
    """One whose first character ends a text."""

    eos = 0


def save(folder, vocab_size=3):
    model = MODELS["xllama"].build(vocab_size=vocab_size, context=8, dim=16, n_layers=1, n_heads=2)
    model.bfloat16().save(folder)
    CharTokenizer("abc").save(folder)
    return model


def test_a_saved_model_is_loaded_in_float32(tmp_path, monkeypatch):
    original = save(tmp_path / "model")
    monkeypatch.setenv("WHERE", str(tmp_path))
    folder = validate(Saved, {"init": "$WHERE/model"}).folder
    assert folder == tmp_path / "model"
    model, tokenizer = load_pretrained(folder, CausalLM)
    assert tokenizer_difference(tokenizer, CharTokenizer("abc")) is None
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


def test_what_does_not_fit_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    save(tmp_path / "model", vocab_size=2)
    monkeypatch.setattr("axon_core.training.sections.load_into", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(
        CheckpointError, match="model: the tokenizer has 3 tokens, but the model's vocabulary has only 2"
    ):
        load_pretrained(tmp_path / "model", CausalLM)
    with pytest.raises(CheckpointError, match="nothing"):
        model_folder(tmp_path / "nothing")


def test_how_tokenizers_differ():
    letters = CharTokenizer("abc")
    assert tokenizer_difference(letters, CharTokenizer("abc")) is None
    assert tokenizer_difference(letters, ByteTokenizer()) == "they have 3 and 258 tokens"
    assert tokenizer_difference(letters, CharTokenizer("axc")) == "token 1 is b'b' in one and b'x' in the other"
    assert tokenizer_difference(letters, Marked("abc")) == "their bos and eos are (None, None) and (None, 0)"


def test_a_folder_after_an_unset_variable_is_refused_by_its_name(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(CheckpointError, match=r"'\$NOT_SET/run' names an environment variable that is not set"):
        named_model_folder("$NOT_SET/run")
