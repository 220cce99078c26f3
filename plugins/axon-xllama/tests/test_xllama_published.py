"""Checkpoints with a tokenizer.json and a chat template: imported, talked to, exported, and as in transformers."""

from __future__ import annotations

import io
import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from axon_core import CheckpointError
from axon_core.cli import main
from axon_core.text import Message, PipelineTokenizer, Tokenizer, published_template, read_text
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def pipeline() -> tokenizers.Tokenizer:
    """A byte-level BPE of 397 tokens and three markers, of which the first begins a text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=397, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(read_text()[:60_000].splitlines(keepends=True), trainer)
    made.add_special_tokens(MARKERS)
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 397)]
    )
    return made


@pytest.fixture
def published(tmp_path, llama, pipeline):
    """The folder of such a checkpoint."""
    folder = tmp_path / "hf"
    llama().save_pretrained(folder)
    pipeline.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|endoftext|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 7, "eos_token_id": [399, 397]}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder


def test_its_tokenizer_markers_and_template_are_read(published, tmp_path, capsys):
    assert main(["import", str(published), "--out", str(tmp_path / "ours")]) == 0
    assert f"axon chat {tmp_path / 'ours'}" in capsys.readouterr().out
    ours = Tokenizer.load(tmp_path / "ours")
    assert isinstance(ours, PipelineTokenizer)
    assert (ours.bos, ours.eos, ours.ends, ours.add_bos) == (397, 399, {399, 397}, True)
    theirs = AutoTokenizer.from_pretrained(published)
    said = [{"role": "user", "content": "Hi, you!"}]
    template = published_template(ours)
    assert template is not None
    wanted = theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert template(ours, [Message(**message) for message in said]) == wanted
    assert ours.encode_prompt("A text") == theirs("A text")["input_ids"]


def test_one_can_talk_to_it(published, tmp_path, capsys, monkeypatch):
    import_checkpoint(published, tmp_path / "ours")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n<|im_end|>\n"))
    assert main(["chat", str(tmp_path / "ours"), "--max-new-tokens", "4"]) == 0
    assert "contains <|im_end|>, which is a marker of the tokenizer" in capsys.readouterr().err


def test_exported_it_has_the_same_files_and_ids(published, pipeline, tmp_path):
    import_checkpoint(published, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "again", format="hf")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    theirs, again = (AutoTokenizer.from_pretrained(folder) for folder in (published, tmp_path / "again"))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert again.apply_chat_template(said, tokenize=False) == theirs.apply_chat_template(said, tokenize=False)
    assert again("A text")["input_ids"] == theirs("A text")["input_ids"]
    values = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert values["temperature"] == 0.6 and values["top_k"] == 7 and sorted(values["eos_token_id"]) == [397, 399]


def test_a_tokenizer_that_disagrees_with_the_weights_is_refused(published, pipeline, tmp_path):
    pipeline = tokenizers.Tokenizer.from_str(pipeline.to_str())
    pipeline.add_special_tokens([f"<|more {i}|>" for i in range(9)])
    pipeline.save(str(published / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="it has 400 and the tokenizer 409; give the right tokenizer"):
        import_checkpoint(published, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
