"""The translator's page: what it shows of one sentence and of several, in a real browser too."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import gradio
import pytest
from matplotlib.image import imread

from axon_core.training import model_folder
from axon_llamachat import PAGES
from axon_transformer import Translator
from axon_transformer.page import TranslatorPage


@pytest.fixture(scope="module")
def page(small_run: Path) -> TranslatorPage:
    made = PAGES["transformer"].load(model_folder(small_run), name="small", device="cpu")
    assert isinstance(made, TranslatorPage)
    return made


def test_one_sentence_has_its_candidates_and_its_attention(page, small_run):
    text, candidates, seen = page.translate("a b c", 4, 0.6)
    (expected,) = Translator.load(model_folder(small_run)).translate(["a b c"])
    assert text == expected[0].text and candidates.visible
    assert len(candidates.value.splitlines()) == 4 and candidates.value.splitlines()[0].endswith(f"  {text}")
    data = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]*">', seen)
    assert min(imread(io.BytesIO(base64.b64decode(data[1]))).shape[:2]) > 100


def test_several_sentences_are_translated_line_by_line(page):
    text, candidates, seen = page.translate("a b\n\nc d", 1, 0.6)
    alone = [page.translate(line, 1, 0.6)[0] for line in ("a b", "", "c d")]
    assert text.split("\n") == alone and not candidates.visible and seen == ""
    assert page.translate("", 1, 0.6)[::2] == ("", "")


@pytest.mark.parametrize(("text", "message"), [("a\n" * 65, "at most 64 lines"), ("a b " * 200, "line 1 has")])
def test_what_cannot_be_translated_is_told(page, text, message):
    with pytest.raises(gradio.Error) as raised:
        page.translate(text, 1, 0.6)
    assert message in raised.value.message
