"""`axon chat` looks at what it is given before it reads the weights."""

from __future__ import annotations

import pytest

from axon_core.cli import main
from axon_core.text import ByteTokenizer, CharTokenizer
from axon_xllama import XLlama


@pytest.mark.parametrize(
    ("arguments", "tokenizer", "message"),
    [
        (["--system", "be [INST]"], ByteTokenizer(), "contains [INST]"),
        (["--system", "x" * 200], ByteTokenizer(), "the conversation's beginning has 236 tokens, but the model's"),
        ([], CharTokenizer("[INST]/ "), "needs a tokenizer with bos and eos"),
        ([], CharTokenizer("".join(map(chr, range(40, 299)))), "259 tokens, but the model's vocabulary has only 258"),
    ],
    ids=["a marker", "too long", "no markers of its own", "too large"],
)
def test_what_cannot_begin_is_said_before_the_weights_are_read(
    tmp_path, arguments, tokenizer, message, monkeypatch, capsys
):
    XLlama.build(vocab_size=258, context=200, dim=32, n_layers=1, n_heads=2).save(tmp_path)
    tokenizer.save(tmp_path)
    monkeypatch.setattr("axon_core.checkpoint.models.load_into", lambda *_: pytest.fail("weights were read"))
    assert main(["chat", str(tmp_path), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
