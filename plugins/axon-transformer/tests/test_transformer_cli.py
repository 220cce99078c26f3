"""`axon translate`, and `axon evaluate RUN --src --ref`: what a user gets, and every way the input can be bad."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from axon_core.cli import main
from axon_core.config import validate
from axon_core.errors import CheckpointError, UsageError
from axon_core.tokenizer import CharTokenizer
from axon_transformer import Search, Transformer, Translator, bleu, cross_attention
from axon_transformer.heatmap import draw

SOURCES = ["a b c", "", "  ", "x\u00a0y  z ", "日本 🦄", "e d c b a f", "q w e"]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Return a function that runs `axon`, checks the exit code, and returns what it printed and reported."""

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        output = capsys.readouterr()
        assert "Traceback" not in output.err and "fault of Axon" not in output.err
        return output.out, output.err

    return run


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
    assert f"7 sentences, 2 of them empty, {cut_off} translations cut off" in err
    assert said("translate", small_run, "--input", source)[0].split("\n") == [*translated, ""]


def test_texts_and_the_standard_input(
    small_run: Path, translated: list[str], said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("translate", small_run, *SOURCES)[0].split("\n") == [*translated, ""]
    stream = io.TextIOWrapper(io.BytesIO("\n".join(SOURCES).encode()))
    monkeypatch.setattr("sys.stdin", stream)
    out, err = said("translate", small_run)
    assert out.split("\n") == [*translated, ""] and "7 sentences" in err


def test_interactive(small_run: Path, translated: list[str], said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([SOURCES[0], "x " * 40, SOURCES[6]])

    def ask(prompt: str) -> str:
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    out, err = said("translate", small_run)
    assert out.split("\n") == [translated[0], translated[6], "", ""]
    assert "Error: sentence 1 has 80 tokens, but the model takes 32 at most" in err


def test_several_translations_of_each_with_their_scores(small_run: Path, said: Any) -> None:
    rows = [line.split("\t") for line in said("translate", small_run, *SOURCES[5:], "--n-best", 3)[0].splitlines()]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2"] * 3
    scores = [float(row[1]) for row in rows]
    assert scores[0] >= scores[1] >= scores[2] and scores[3] >= scores[4] >= scores[5]
    found = Translator.load(small_run / "model").translate(SOURCES[5:], Search(n_best=3))
    assert [row[2] for row in rows] == [each.text for one in found for each in one]


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
    assert [translator.translate([source])[0][0].text for source in SOURCES] == translated
    assert translator.translate([]) == []


BAD = [
    (["translate", "RUN", "a", "--input", "in.txt"], 2, "give either TEXT or --input"),
    (["translate", "RUN", "a", "--output", "out.txt"], 2, "--output needs --input"),
    (["translate", "RUN", "--input", "none.txt"], 1, "no such file: none.txt"),
    (["translate", "RUN", "--input", "latin1.txt"], 1, "latin1.txt is not UTF-8 text: line 2 holds the byte 0xfc"),
    (["translate", "RUN", "--input", "empty.txt"], 1, "empty.txt is empty"),
    (
        ["translate", "RUN", "--input", "long.txt"],
        2,
        "line 2 of long.txt has 80 tokens, but the model takes 32 at most, and 1 others are too long; cut them into "
        "sentences. Nothing was translated",
    ),
    (["translate", "RUN", "x " * 40], 2, "sentence 1 has 80 tokens, but the model takes 32 at most"),
    (
        ["translate", "RUN", "--input", "in.txt", "--output", "none/out.txt"],
        1,
        "cannot write none/out.txt: No such file",
    ),
    (["translate", "RUN", "a", "--beam", "0"], 2, "beam: must be greater than 0, got 0"),
    (["translate", "RUN", "a", "--n-best", "9"], 2, "n_best must be at most beam, got 9 > 4"),
    (["translate", "RUN", "a", "--length-penalty", "-1"], 2, "length_penalty: must be greater than or equal to 0"),
    (
        ["translate", "RUN", "a", "b", "--attention", "x.png"],
        2,
        "--attention draws one TEXT that is not empty, got ['a', 'b']",
    ),
    (
        ["translate", "RUN", "", "--attention", "x.png"],
        2,
        "--attention draws one TEXT that is not empty, got ['']",
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
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[" ".join(case[0])[:60] for case in BAD])
def test_bad_input_is_one_clear_sentence(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any, arguments: Any, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a b\nc d\n")
    Path("latin1.txt").write_bytes("gut\nTür\n".encode("latin-1"))
    Path("empty.txt").write_bytes(b"")
    Path("long.txt").write_text("a\n" + "x " * 40 + "\n" + "y " * 50 + "\n")
    out, err = said(*(small_run if word == "RUN" else word for word in arguments), code=code)
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert message in line and out == ""


def test_evaluation_on_files_is_bleu_with_its_signature_and_counts(
    small_run: Path, translated: list[str], tmp_path: Path, said: Any
) -> None:
    source, reference = tmp_path / "source", tmp_path / "reference"
    source.write_text("\n".join(SOURCES), encoding="utf-8")
    references = [f"{text} ." for text in translated]
    reference.write_text("\n".join(references), encoding="utf-8")
    found = json.loads(said("evaluate", small_run, "--src", source, "--ref", reference, "--json")[0])
    score, signature = bleu(translated, references)
    assert found["bleu"] == pytest.approx(score) and found["signature"] == signature
    assert found["sentences"] == 7 and found["empty_lines"] == 2 and found["cut_off"] >= 0
    out, _ = said("evaluate", small_run, "--src", source, "--ref", reference, "--average", 2, "--beam", 1)
    assert "sentences 7, empty lines 2" in out and "signature nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in out
    held_out = json.loads(said("evaluate", small_run, "--json")[0])
    assert held_out.keys() == {"loss", "perplexity", "bleu"}


def test_heat_maps_are_the_weights_of_every_layer_and_head(small_run: Path, tmp_path: Path, said: Any) -> None:
    path = tmp_path / "maps.png"
    out, err = said("translate", small_run, "a b c", "--attention", path)
    assert str(path) in err and out == said("translate", small_run, "a b c")[0]
    picture = imread(path)
    assert min(picture.shape[:2]) > 100 and len({round(float(value), 2) for value in picture[..., 0].flat}) > 20


@pytest.mark.parametrize("attention", ["MHA", "GQA"])
def test_recorded_weights_are_the_formulas(attention: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "dim": 16, "n_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    model = Transformer.build(**sizes, attention=attention).eval()
    source, target = torch.tensor([3, 4, 5, 2]), torch.tensor([1, 7, 8])
    seen = []
    handle = model.decoder[1].cross.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    maps = cross_attention(model, source, target)
    handle.remove()
    assert maps.shape == (2, 4, 3, 4)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 3))
    with torch.no_grad():
        cross, features = model.decoder[1].cross, model.encode(source[None]).features
        q, (k, _) = cross.qkv.query(seen[0])[0], cross.qkv.key_value(features)
        for head in range(4):
            key = k[0, :, head * k.shape[2] // 4]
            expected = (q[:, head] @ key.T / 2).softmax(-1)
            torch.testing.assert_close(maps[1, head], expected)


def test_an_attention_without_maps_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Transformer.build(vocab_size=11, dim=16, n_heads=4, encoder_layers=1, decoder_layers=1)
    monkeypatch.setattr("axon_transformer.attention.attend", lambda q, k, v, scope: q)
    with pytest.raises(UsageError, match="the cross-attention 'MHA' has no one map a head"):
        cross_attention(model, torch.tensor([3, 2]), torch.tensor([1]))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib"):
        draw(torch.ones(1, 1, 1, 1), ["a"], ["b"], tmp_path / "x.png")


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    model = Transformer.build(vocab_size=11, dim=16, n_heads=4, encoder_layers=1, decoder_layers=1)
    with pytest.raises(CheckpointError, match="the tokenizer has 12 tokens, but the model's vocabulary only 11"):
        Translator(model, CharTokenizer("abcdefghijkl"))
    with pytest.raises(Exception, match="a char tokenizer does not mark begin and end"):
        Translator(model, CharTokenizer("abc"))


def test_search_settings_are_checked() -> None:
    assert validate(Search, {}) == Search(beam=4, length_penalty=0.6, longer=50, n_best=1)
