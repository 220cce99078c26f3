"""`axon generate` for one prompt: what it prints, what it refuses and when, and how the options have it compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from axon_core import MODELS
from axon_core.cli import main
from axon_core.errors import CheckpointError
from axon_core.generation.api import Request, complete, generate
from axon_core.generation.batch_file import record
from axon_core.generation.compile import Step, compiled
from axon_core.generation.sampling import Sampling
from axon_core.interfaces.model import CausalLM
from axon_core.nn.quantization import quantize
from axon_core.text.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    MODELS["xllama"].build(vocab_size=258, context=32, dim=32, n_layers=1, n_heads=4).save("model")
    ByteTokenizer().save("model")
    return "model"


def test_one_prompt_as_text_and_as_json(saved: str, capsys):
    arguments = ["generate", saved, "--prompt", "The ", "--max-new-tokens", "9", "--temperature", "0"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert main([*arguments, "--json", "--logprobs", "--repetition-penalty", "1.0", "--min-p", "0.1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["prompt"] + row["text"] + "\n" == text
    assert row["finish"] == "length" and len(row["tokens"]) == len(row["logprobs"]) == 9
    assert max(row["logprobs"]) <= 0
    penalised = [*arguments, "--json", "--repetition-penalty", "5"]
    assert main(penalised) == 0
    assert len(set(json.loads(capsys.readouterr().out)["tokens"])) == 9  # so dear that none comes twice


def test_a_model_saved_with_its_tokenizer_in_python(tmp_path: Path, capsys):
    model = MODELS["xllama"].build(vocab_size=7, context=8, dim=32, n_layers=1, n_heads=4)
    tokenizer = CharTokenizer("The dog")
    model.save(tmp_path / "mine", tokenizer)
    assert type(model).load(tmp_path / "mine").config == model.config
    assert main(["generate", str(tmp_path / "mine"), "--prompt", "The ", "--max-new-tokens", "3", "--seed", "5"]) == 0
    said = generate(model, tokenizer, "The ", max_new_tokens=3, sampling=Sampling(temperature=0.8), seed=5)
    assert capsys.readouterr().out == f"The {said}\n"
    with pytest.raises(CheckpointError, match="the tokenizer has 258 tokens, but the model's vocabulary has only 7"):
        model.save(tmp_path / "other", ByteTokenizer())
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --prompt or --input"),
        (["--prompt", "a", "--input", "b", "--output", "c"], "give either --prompt or --input"),
        (["--input", "b"], "--input and --output need each other"),
        (["--prompt", "a", "--output", "c"], "--input and --output need each other"),
        (["--prompt", "a", "--logprobs"], "--logprobs needs --json or --output"),
        (["--prompt", "a", "--stop", ""], "stop: a stop string needs at least one character"),
        (["--prompt", "a", "--min-p", "2"], "min_p: must be less than or equal to 1, got 2.0"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--device", "moon"], "device must be auto or a device that PyTorch finds here, got 'moon'"),
        (["--prompt", "a", "--device", "meta"], "got 'meta' (it stores no numbers)"),
        (["--input", "in.txt", "--output", "in.txt"], "--output must not be the same file as --input"),
        (
            ["--input", "in.txt", "--output", "none/out"],
            "cannot write none/out: No such file or directory",
        ),
    ],
)
def test_options_that_do_not_fit(saved: str, arguments: list[str], message: str, capsys, monkeypatch):
    Path("in.txt").write_text("one\n")
    monkeypatch.setattr("axon_core.checkpoint.models.load_into", lambda *_: pytest.fail("weights were read"))
    assert main(["generate", saved, *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


def spoil(folder: str) -> None:
    """Change one bit of the weights: whoever reads them all finds out."""
    file = Path(folder) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


EARLY = [
    (["--prompt", ""], "the prompt is empty"),
    (["--prompt", "x" * 33], "the prompt has 33 tokens, but the model's context is 32"),
    (["--prompt", "a", "--temperature", "-1"], "temperature: must be greater"),
    (["--input", "empty.txt", "--output", "out.jsonl"], "empty.txt has no prompts"),
    (["--input", "long.txt", "--output", "out.jsonl"], "the prompt 1 has 33 tokens"),
    (["--input", "in.txt", "--output", "letter.txt"], "does not end with a row of results"),
]


@pytest.mark.parametrize(("arguments", "message"), EARLY)
def test_what_is_wrong_is_said_before_the_weights_are_read_or_hashed(
    saved: str, arguments: list[str], message: str, capsys
):
    spoil(saved)
    for name, text in {"in.txt": "one", "empty.txt": "\n", "long.txt": "x" * 33, "letter.txt": "Dear"}.items():
        Path(name).write_text(text)
    assert main(["generate", saved, *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert main(["generate", saved, "--prompt", "a"]) == 1
    assert "model.safetensors is damaged: it does not match the checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer in"),
        (
            lambda folder: CharTokenizer("".join(map(chr, range(40, 299)))).save(folder),
            "the tokenizer has 259 tokens, but the model's vocabulary has only 258",
        ),
    ],
    ids=["missing", "too large"],
)
def test_a_tokenizer_that_does_not_fit_is_found_before_the_weights_are_read_or_hashed(
    saved: str, spoilt, message: str, capsys
):
    spoil(saved)
    spoilt(Path(saved))
    assert main(["generate", saved, "--prompt", "a"]) == 1
    assert message in capsys.readouterr().err


def as_saved(model: CausalLM) -> CausalLM:
    return model


def small(model: CausalLM) -> CausalLM:
    return quantize(model).bfloat16()


def row_of_both(saved: str, arguments: list[str], change, compile: bool, capsys) -> tuple[dict, dict]:
    """What the command prints with these options, and what Python makes of the model as `change` leaves it."""
    request = Request(prompt="The ", max_new_tokens=9, sampling=Sampling(temperature=0))
    (found,) = complete(change(CausalLM.load(saved)), ByteTokenizer(), [request], compile=compile)
    options = [*arguments, "--max-new-tokens", "9", "--temperature", "0"]
    assert main(["generate", saved, "--prompt", "The ", "--json", "--logprobs", *options]) == 0
    return json.loads(capsys.readouterr().out), record("The ", found, logprobs=True)


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        ([], as_saved),
        (["--dtype", "bf16"], CausalLM.bfloat16),
        (["--dtype", "fp32"], as_saved),
        (["--quantize", "int8"], quantize),
        (["--quantize", "int8", "--dtype", "bf16"], small),
    ],
)
def test_options_of_the_computation_are_those_of_python(saved: str, arguments: list[str], change, capsys):
    printed, expected = row_of_both(saved, arguments, change, False, capsys)
    assert printed == expected
    plain, _ = row_of_both(saved, [], as_saved, False, capsys)
    assert (printed["logprobs"] == plain["logprobs"]) == (change is as_saved)  # each option changes something


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore:the model is not compiled")  # where there is no compiler
def test_compiled_as_in_python(saved: str, capsys, monkeypatch):
    models = list[CausalLM]()

    def counted(model: CausalLM) -> Step:
        models.append(model)
        return compiled(model)

    monkeypatch.setattr("axon_core.generation.decoder.compiled", counted)
    printed, expected = row_of_both(saved, ["--quantize", "int8", "--dtype", "bf16", "--compile"], small, True, capsys)
    assert len(models) == 2 and printed == expected
