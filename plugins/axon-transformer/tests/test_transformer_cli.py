"""`axon translate`, and `axon evaluate RUN --src --ref`: what a user gets, and every way the input can be bad."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from axon_core import CheckpointError, UnknownKey, validate
from axon_core.nn import PackedLinear
from axon_core.text import CharTokenizer
from axon_core.training import Recipe, build_trainer, fit, report_progress_to
from axon_transformer import Search, Transformer, TranslationTrainer, Translator, bleu
from axon_transformer import translate as translate_module

SOURCES = ["a b c", "", "  ", "x\u00a0y  z ", "日本 🦄", "e d c b a f", "q w e"]


@pytest.fixture
def translated(small_run: Path) -> list[str]:
    return [best.text for best, *_ in Translator.load(small_run / "model").translate(SOURCES)]


def test_a_file_in_a_file_out_line_by_line(small_run: Path, translated: list[str], tmp_path: Path, said: Any) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(SOURCES) + "\n", encoding="utf-8")
    out, err = said("translate", small_run, "--input", source, "--output", target, "--batch-size", 2)
    assert out == "" and target.read_text(encoding="utf-8").split("\n") == [*translated, ""]
    assert translated[1] == translated[2] == ""
    cut_off = sum(not best.ended for best, *_ in Translator.load(small_run / "model").translate(SOURCES))
    assert f"sentences: 7, empty: 2, translations cut off: {cut_off}," in err
    assert said("translate", small_run, "--input", source)[0].split("\n") == [*translated, ""]


def test_texts_and_the_standard_input(
    small_run: Path, translated: list[str], said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("translate", small_run, *SOURCES)[0].split("\n") == [*translated, ""]
    stream = io.TextIOWrapper(io.BytesIO("\n".join(SOURCES).encode()))
    monkeypatch.setattr("sys.stdin", stream)
    out, err = said("translate", small_run)
    assert out.split("\n") == [*translated, ""] and "sentences: 7" in err


def test_interactive(small_run: Path, translated: list[str], said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    not_utf8 = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    for leave in (EOFError(), KeyboardInterrupt()):  # Ctrl-D and Ctrl-C
        answers = iter([SOURCES[0], "x " * 40, not_utf8, SOURCES[6], leave])

        def ask(prompt: str, answers: Iterator[str | BaseException] = answers) -> str:
            if isinstance(answer := next(answers), BaseException):
                raise answer
            return answer

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, encoding="utf-8"))
        out, err = said("translate", small_run)
        assert out.split("\n") == [translated[0], translated[6], "", ""]
        assert "Error: the sentence has 80 tokens, but the model takes at most 32" in err
        assert "Error: the sentence is not utf-8 text" in err


def test_several_translations_of_each_with_their_scores(small_run: Path, said: Any) -> None:
    rows = [line.split("\t") for line in said("translate", small_run, *SOURCES[5:], "--n-best", 3)[0].splitlines()]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2"] * 3
    scores = [float(row[1]) for row in rows]
    assert scores[0] >= scores[1] >= scores[2] and scores[3] >= scores[4] >= scores[5]
    found = Translator.load(small_run / "model").translate(SOURCES[5:], Search(n_best=3))
    assert [row[2] for row in rows] == [each.text for one in found for each in one]


def test_json_is_a_line_for_each_sentence_and_holds_all_there_is(small_run: Path, said: Any, tmp_path: Path) -> None:
    found = Translator.load(small_run / "model").translate(SOURCES, Search(n_best=2))
    lines = said("translate", small_run, *SOURCES, "--n-best", 2, "--json")[0].splitlines()
    records = [
        {"source": text, "translations": [each._asdict() for each in one]}
        for text, one in zip(SOURCES, found, strict=True)
    ]
    assert [json.loads(line) for line in lines] == records
    assert records[0]["translations"][0].keys() == {"text", "tokens", "logprob", "score", "ended"}


def test_a_translation_is_one_line_whatever_the_model_writes(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the lines of an output file would not be those of the input."""
    translator = Translator.load(small_run / "model")
    monkeypatch.setattr(translator.tokenizer, "decode", lambda tokens: " a\nb\t\u2028c\r ")
    assert translator.translate(["x"])[0][0].text == "a b c"


def test_what_was_in_the_output_file_stays_where_translating_fails(small_run: Path, said: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "long.txt", tmp_path / "out.txt"
    source.write_text("x " * 40)
    target.write_text("the work of a night\n")
    said("translate", small_run, "--input", source, "--output", target, code=2)
    assert target.read_text() == "the work of a night\n"
    said("translate", small_run, "--input", source, "--output", tmp_path / "new.txt", code=2)
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_full_disk_leaves_the_output_file_as_it_was(
    small_run: Path, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a b\n")
    target.write_text("the work of a night\n")
    real = Path.write_text

    def full(self: Path, text: str, *args: Any, **options: Any) -> int:
        real(self, text[:1], *args, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    _, err = said("translate", small_run, "--input", source, "--output", target, code=1)
    assert "free some space" in err
    assert target.read_text() == "the work of a night\n" and sorted(tmp_path.iterdir()) == [source, target]


def test_options_reach_the_search(small_run: Path, said: Any) -> None:
    translator = Translator.load(small_run / "model")
    search = Search(beam=2, length_penalty=1.5)
    expected = [best.text for best, *_ in translator.translate(SOURCES[4:], search)]
    given = ("--beam", 2, "--length-penalty", 1.5)
    assert said("translate", small_run, *SOURCES[4:], *given)[0].splitlines() == expected


def test_an_average_is_translated_with(small_run: Path, said: Any) -> None:
    folders = [small_run / f"checkpoints/step-{step}/model" for step in (6, 4)]
    expected = [best.text for best, *_ in Translator.load(*folders).translate(SOURCES)]
    assert said("translate", small_run, *SOURCES, "--average", 2)[0].split("\n") == [*expected, ""]


def test_a_batch_brings_what_its_sentences_bring_alone(small_run: Path, translated: list[str]) -> None:
    translator = Translator.load(small_run / "model")
    together = translator.translate(SOURCES, Search(n_best=4), batch_size=3)
    for source, found in zip(SOURCES, together, strict=True):
        (alone,) = translator.translate([source], Search(n_best=4))
        assert [(one.text, one.tokens, one.ended) for one in alone] == [
            (one.text, one.tokens, one.ended) for one in found
        ]
        assert [one.score for one in alone] == pytest.approx([one.score for one in found], abs=1e-9)
    assert [found[0].text for found in together] == translated
    assert translator.translate([]) == []


BAD = [
    (["translate", "RUN", "a", "--input", "in.txt"], 2, "give either TEXT or --input"),
    (["translate", "RUN", "a", "--output", "out.txt"], 2, "--output needs --input"),
    (["translate", "RUN", "--input", "none.txt"], 1, "no such file: none.txt"),
    (["translate", "RUN", "--input", "latin1.txt"], 1, "latin1.txt is not UTF-8 text: line 2 has the byte 0xfc"),
    (["translate", "RUN", "--input", "empty.txt"], 1, "empty.txt is empty"),
    (
        ["translate", "RUN", "--input", "long.txt"],
        2,
        "line 2 of long.txt has 80 tokens, but the model takes at most 32, and 2 are too long in all; "
        "split it into sentences. Nothing was translated",
    ),
    (["translate", "RUN", "x " * 40], 2, "sentence 1 has 80 tokens, but the model takes at most 32"),
    (
        ["translate", "RUN", "--input", "in.txt", "--output", "none/out.txt"],
        1,
        "cannot write none/out.txt: No such file",
    ),
    (
        ["translate", "RUN", "--input", "in.txt", "--output", "in.txt"],
        2,
        "--output must not be the same file as --input",
    ),
    (["translate", "RUN", "--input", "in.txt", "--output", "."], 1, "cannot write .: Is a directory"),
    (["translate", "RUN", "a", "--attention", "x.doc"], 2, "a picture's name must end in one of"),
    (["translate", "RUN", "a", "--beam", "0"], 2, "beam: must be greater than or equal to 1, got 0"),
    (["translate", "RUN", "a", "--beam", "1001"], 2, "beam: must be less than or equal to 1000, got 1001"),
    (["translate", "RUN", "a", "--n-best", "9"], 2, "n_best must be at most beam, got 9 > 4"),
    (["translate", "RUN", "a", "--length-penalty", "-1"], 2, "length_penalty: must be greater than or equal to 0"),
    (["translate", "RUN", "a", "--length-penalty", "1000"], 2, "length_penalty: must be less than or equal to 10"),
    (["translate", "RUN", "b", "a\udcff"], 1, "sentence 2: the text has a lone surrogate (U+DCFF, at position 1)"),
    (["translate", "RUN"], 1, "the standard input is empty; give sentences, one per line"),
    (
        ["translate", "RUN", "a", "b", "--attention", "x.png"],
        2,
        "--attention needs exactly one non-empty TEXT, got ['a', 'b']",
    ),
    (
        ["translate", "RUN", "", "--attention", "x.png"],
        2,
        "--attention needs exactly one non-empty TEXT, got ['']",
    ),
    (["translate", "RUN", "a", "--average", "9"], 2, "cannot average 9 checkpoints"),
    (["translate", "none", "a"], 1, "none is not a run folder: no such folder"),
    (["evaluate", "RUN", "--src", "in.txt"], 2, "ref: this field is required"),
    (["evaluate", "RUN", "--src", "in.txt", "--ref"], 2, "the option --ref needs a value"),
    (["evaluate", "RUN", "--srcc", "in.txt"], 2, "srcc: unknown field 'srcc' (did you mean 'src'?)"),
    (["evaluate", "RUN", "in.txt"], 2, "got an unexpected argument 'in.txt'"),
    (["evaluate", "RUN", "--src", "none", "--ref", "in.txt"], 1, "no such file: none"),
    (["evaluate", "RUN", "--src", "in.txt", "--ref", "long.txt"], 1, "in.txt has 2 and long.txt 3"),
    (["evaluate", "RUN", "--src", "long.txt", "--ref", "long.txt"], 2, "line 2 of long.txt has 80 tokens"),
    (["evaluate", "RUN", "--src=in.txt", "--ref=in.txt", "--beam", "x"], 2, "beam: must be a valid integer"),
    (["evaluate", "RUN", "--src=in.txt", "--ref=in.txt", "--length-penalty=99"], 2, "length_penalty: must be less"),
    (["evaluate", "RUN", "--src=in.txt", "--ref=in.txt", "--average=9"], 2, "cannot average 9 checkpoints"),
    (["evaluate", "RUN", "--src", "latin1.txt", "--ref", "in.txt"], 1, "latin1.txt is not UTF-8 text: line 2"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[" ".join(case[0])[:60] for case in BAD])
def test_bad_input_is_one_clear_sentence(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any, arguments: Any, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    Path("in.txt").write_text("a b\nc d\n")
    Path("latin1.txt").write_bytes("gut\nTür\n".encode("latin-1"))
    Path("empty.txt").write_bytes(b"")
    Path("long.txt").write_text("a\n" + "x " * 40 + "\n" + "y " * 50 + "\n")
    out, err = said(*(small_run if word == "RUN" else word for word in arguments), code=code)
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert message in line and out == ""


def test_evaluation_on_files_is_bleu_with_its_signature_and_counts(
    small_run: Path, translated: list[str], tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reference = tmp_path / "source", tmp_path / "reference"
    source.write_text("\n".join(SOURCES), encoding="utf-8")
    references = [f"{text} ." for text in translated]
    reference.write_text("\n".join(references), encoding="utf-8")
    found = json.loads(said("evaluate", small_run, "--src", source, "--ref", reference, "--json")[0])
    score, signature = bleu(translated, references)
    assert found["bleu"] == pytest.approx(score) and found["signature"] == signature
    assert (found["sentences"], found["empty_lines"], found["empty_references"]) == (7, 2, 0)
    assert found["cut_off"] == sum(
        not best.ended for best, *_ in Translator.load(small_run / "model").translate(SOURCES)
    )
    reference.write_text("\n".join([*references[:-1], ""]) + "\n", encoding="utf-8")
    loaded, load = [], Translator.load
    monkeypatch.setattr(
        Translator, "load", lambda *folders, **options: loaded.append(folders) or load(*folders, **options)
    )
    given = ("--src", source, "--ref", reference, "--average", 2)
    assert json.loads(said("evaluate", small_run, *given, "--json")[0])["empty_references"] == 1
    assert loaded == [tuple(small_run / f"checkpoints/step-{step}/model" for step in (6, 4))]
    out, _ = said("evaluate", small_run, "--src", source, "--ref", reference, "--average", 2, "--beam", 1)
    assert "sentences 7, empty lines 2" in out and "signature nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in out
    held_out = json.loads(said("evaluate", small_run, "--json")[0])
    assert held_out.keys() == {"loss", "perplexity", "bleu", "signature"}


def test_an_evaluation_on_files_takes_over_the_tokenizer_that_the_run_named(
    small: Callable[..., Recipe], tmp_path: Path, said: Any
) -> None:
    plan, run = small("trainer.tokenize=char", "trainer.steps=1"), tmp_path / "run"
    fit(build_trainer(plan), run, recipe={"name": plan.name, **plan.tables})
    text = tmp_path / "text"
    text.write_text("a b c\n")
    for given, name in (((), "char"), (("--tokenize", "13a"), "13a")):
        found = json.loads(said("evaluate", run, "--src", text, "--ref", text, "--json", *given)[0])
        assert f"tok:{name}|" in found["signature"]


def test_evaluations_on_files_tell_how_far_they_are(small_run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a b c\n" * 70)
    told: list[tuple[int, int, str]] = []
    with report_progress_to(lambda done, total, doing: told.append((done, total, doing))):
        TranslationTrainer.Evaluation(src=text, ref=text, beam=1).evaluate(small_run / "model", "cpu")
    assert told == [(done, 70, "translating") for done in (0, 64, 70)]


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    model = Transformer.build(vocab_size=11, dim=16, n_heads=4, encoder_layers=1, decoder_layers=1)
    with pytest.raises(CheckpointError, match="the tokenizer has 12 tokens, but the model's vocabulary has only 11"):
        Translator(model, CharTokenizer("abcdefghijkl"))
    with pytest.raises(Exception, match="a char tokenizer does not mark begin and end"):
        Translator(model, CharTokenizer("abc"))


def test_search_settings_are_checked() -> None:
    assert validate(Search, {}) == Search(beam=4, length_penalty=0.6, longer=50, n_best=1)


def test_a_loaded_translator_is_packed_and_8_bits_are_asked_for(small_run: Path, said: Callable[..., Any]) -> None:
    model = small_run / "model"
    loaded, rounded = Translator.load(model), Translator.load(model, quantization="int8")
    assert isinstance(loaded.model.head, PackedLinear) and loaded.model.head.weight.dtype == torch.float32
    assert isinstance(rounded.model.head, PackedLinear) and rounded.model.head.weight.dtype == torch.int8
    plain = Translator(Transformer.load(model), loaded.tokenizer)
    for found, expected in zip(loaded.translate(SOURCES), plain.translate(SOURCES), strict=True):
        assert found[0].tokens == expected[0].tokens
        assert found[0].logprob == pytest.approx(expected[0].logprob, abs=1e-3)
    out, _ = said("translate", small_run, "--quantize", "int8", *SOURCES[:2])
    assert out.splitlines() == [best.text for best, *_ in rounded.translate(SOURCES[:2])]
    with pytest.raises(UnknownKey, match="no quantization 'int3' is installed"):
        Translator.load(model, quantization="int3")


def test_without_a_compiler_a_loaded_translator_stays_as_it_is(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate_module, "compile_kernels", lambda: False)
    translator = Translator.load(small_run / "model")
    assert not isinstance(translator.model.head, PackedLinear)
    assert translator.translate(SOURCES[:1])
