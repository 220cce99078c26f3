"""Model folders written before the core's modules moved into packages: they load, and compute what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axon_core import ByteTokenizer, CausalLM, Sampling, Tokenizer, generate
from axon_core.cli import main
from axon_ddpm import Dali
from axon_transformer import Search, Translator

SAVED = Path(__file__).parent / "saved"
CONTINUED = "berg make ight ice sunbe"
# Computed by axon-core 0.1.0 torch 2.13.0.
TRANSLATIONS, LOGPROBS = [" " * 8, "t" + " " * 7], [-8.804715, -10.535203]
MEANS = [-0.0625, -0.00296863]


def test_a_language_model_continues_a_text_as_it_did() -> None:
    model, tokenizer = CausalLM.load(SAVED / "xllama"), Tokenizer.load(SAVED / "xllama")
    assert (
        generate(model.eval(), tokenizer, "sun and ", max_new_tokens=24, sampling=Sampling(temperature=0)) == CONTINUED
    )


def test_the_command_reads_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--prompt", "sun and ", "--max-new-tokens", "24", "--temperature", "0"]
    assert main(["generate", str(SAVED / "xllama"), *given]) == 0
    assert CONTINUED in capsys.readouterr().out


def test_a_translator_scores_as_it_did() -> None:
    translator = Translator.load(SAVED / "transformer")
    assert isinstance(translator.tokenizer, ByteTokenizer)
    ((best, second),) = translator.translate(["a b c"], Search(beam=2, n_best=2, longer=2))
    assert [translator.tokenizer.decode(found.tokens) for found in (best, second)] == TRANSLATIONS
    assert [best.logprob, second.logprob] == pytest.approx(LOGPROBS, abs=1e-4)


def test_a_diffusion_model_paints_what_it_did() -> None:
    *_, last = Dali.load(SAVED / "unet", steps=4, seed=3).sample(2, classes=[4, 7])
    assert last.x.mean((1, 2, 3)).tolist() == pytest.approx(MEANS, abs=1e-4)
    assert torch.isfinite(last.x).all()
