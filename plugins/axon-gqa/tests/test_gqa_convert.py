"""`axon convert gqa`: from a trained run to an up-trained one, and every way the input can be wrong."""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from torch import Tensor

from axon_core import ATTENTIONS, MODELS
from axon_core.cli import main
from axon_core.interfaces import CausalLM
from axon_core.text import SentencePieceTokenizer, TextData, Tokenizer
from axon_core.training import Recipe, build_trainer, fit
from axon_gqa import convert_model
from axon_gqa.uptraining import uptraining_recipe

TEXT = "\n".join(topics[name] for name in sorted(topics))[:20_000]
TOKENS = torch.arange(24).view(2, 12)
SIZES = {"context": 16, "dim": 32, "n_layers": 2, "hidden_dim": 48}


def settings(**values: object) -> list[str]:
    """Return `--set` options; `a__b` stands for a.b."""
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the run `run`: X-Llama with multi-head attention, trained for 40 steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    small = settings(**{f"model__{name}": value for name, value in SIZES.items()}, model__attention__type="MHA")
    how = settings(trainer__steps=40, trainer__batch_size=4, trainer__ema=0.9, trainer__precision="fp32")
    data = settings(data__path=folder / "text.txt")
    assert main(["train", "xllama-tiny", *small, *how, *data, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name the trained run, from a fresh current folder."""
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(trained / "run")
    return "run"


def logits(folder: str) -> Tensor:
    with torch.no_grad():
        return CausalLM.load(folder)(TOKENS)


def bits(folder: str) -> dict[str, Tensor]:
    return CausalLM.load(folder).state_dict()


def suggested(text: str) -> list[str]:
    """Return the command after which output says `axon`, as a shell takes it apart."""
    return shlex.split(text[text.index("axon train") :].splitlines()[0])[1:]


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Run `axon convert gqa` with arguments that must fail with `code`, in one paragraph, leaving nothing behind."""
    before = set(Path().iterdir())
    capsys.readouterr()
    assert main(["convert", "gqa", *arguments]) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message and "bug in Axon" not in message
    assert set(Path().iterdir()) == before
    (line,) = [line for line in message.splitlines() if line.startswith("Error: ")]
    return line


def test_convert_uptrain_generate(run: str, capsys) -> None:
    assert main(["convert", "gqa", run, "--groups", "2"]) == 0
    output = capsys.readouterr().out
    model = CausalLM.load("run/model")
    pooled = convert_model(model, 2)
    assert torch.equal(logits("run-gqa2"), pooled(TOKENS))
    assert f"{pooled.n_parameters:,} parameters instead of {model.n_parameters:,}, in run-gqa2" in output
    per_token = 2 * 2 * 4 * 8 * 4  # layers, keys and values, heads, size, bytes
    assert f"{per_token // 2} bytes of cache per token instead of {per_token}" in output

    command = suggested(output)
    assert command == ["train", "run-gqa2/xllama-tiny-gqa2.toml"]
    start = build_trainer(Recipe.load(command[1]))
    assert all(torch.equal(start.models["model"].state_dict()[name], value) for name, value in bits("run-gqa2").items())
    assert main([*command, "--out", "uptrained"]) == 0
    assert "finished after step 2," in capsys.readouterr().out  # 5 % of 40
    assert CausalLM.load("uptrained/model").new_cache(1, 1).nbytes == per_token // 2
    assert not torch.equal(logits("uptrained/model"), logits("run-gqa2"))
    assert main(["generate", "uptrained", "--prompt", "the ", "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith("the ")

    assert main(["convert", "gqa", "uptrained", "--groups", "1", "--out", "mqa"]) == 0  # its recipe begins with `init`
    assert tomllib.loads(Path("mqa/xllama-tiny-gqa2-gqa1.toml").read_text())["model"] == {"init": "mqa"}


def test_the_recipe_is_the_runs_but_for_what_is_shorter(run: str) -> None:
    assert main(["convert", "gqa", run, "--groups", "1", "--out", 'a "quoted" föld\\er']) == 0
    new = Recipe.load(Path('a "quoted" föld\\er/xllama-tiny-gqa1.toml'))
    facts = json.loads(Path("run/run.json").read_text())["recipe"]
    changed = {"seed": 1, "steps": 2, "warmup": 1}
    kept = {name: value for name, value in facts["trainer"].items() if name != "ema"}
    assert new.tables["trainer"] == {**kept, **changed}
    assert new.tables["data"] == facts["data"]
    assert new.model == {"init": 'a "quoted" föld\\er'}


def test_the_share_of_the_steps_and_the_warm_up() -> None:
    def shortened(**options: object) -> dict[str, object]:
        recipe = Recipe.of({"trainer": {"type": "causal_lm", **options}}, "name", "source")
        return uptraining_recipe(recipe, Path("folder"))["trainer"]

    assert shortened(seed=6) == {"type": "causal_lm", "seed": 7, "steps": 50, "warmup": 5}  # of 1,000, the default
    assert shortened(steps=1_000_000, warmup=10_000, schedule="inverse_sqrt") == {
        **{"type": "causal_lm", "schedule": "inverse_sqrt"},
        **{"seed": 1, "steps": 50_000, "warmup": 5_000},
    }
    assert shortened(steps=3)["steps"] == 1


def test_as_many_groups_as_heads_change_no_bit(run: str) -> None:
    assert main(["convert", "gqa", run, "--groups", "4"]) == 0
    before, after = bits("run/model"), bits("run-gqa4")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits("run-gqa4"), logits("run/model"))
    assert Tokenizer.load("run-gqa4").encode("the") == Tokenizer.load("run/model").encode("the")


def test_json_and_the_folder_beside_the_run(run: str, tmp_path: Path, monkeypatch, capsys) -> None:
    capsys.readouterr()
    assert main(["convert", "gqa", run, "--groups", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    parameters = CausalLM.load("run-gqa2").n_parameters
    recipe = "run-gqa2/xllama-tiny-gqa2.toml"
    assert facts == {"parameters": parameters, "cache_bytes_per_token": 256, "model": "run-gqa2", "recipe": recipe}
    Path("here").mkdir()
    CausalLM.load("run-gqa2").save("here")
    Tokenizer.load("run-gqa2").save("here")
    monkeypatch.chdir("here")
    assert main(["convert", "gqa", ".", "--groups", "1"]) == 0
    assert (tmp_path / "here-gqa1" / "config.json").exists()


def test_a_model_from_hugging_face(tmp_path: Path, monkeypatch, capsys) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    SentencePieceTokenizer.train(TEXT, SentencePieceTokenizer.Config(vocab_size=400)).save("hf")
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=32))
    theirs.bfloat16().save_pretrained("hf")
    assert main(["import", "hf", "--out", "imported"]) == 0
    capsys.readouterr()
    assert main(["convert", "gqa", "imported", "--groups", "2"]) == 0
    output = capsys.readouterr().out
    assert "imported has no recipe for training one model" in output
    assert not list(Path("imported-gqa2").glob("*.toml"))

    ours = bits("imported-gqa2")
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    keys = theirs.model.layers[1].self_attn.k_proj.weight
    found = ours["blocks.1.attention.qkv.projection.weight"][32:48]
    assert torch.equal(found[8:], (keys[16:24].float() + keys[24:32].float()).div(2).bfloat16())

    command = [word.replace("RECIPE", "xllama-tiny").replace("=N", "=3") for word in suggested(output)]
    assert main([*command, *settings(data__path="text.txt"), "--out", "uptrained"]) == 0
    assert {value.dtype for value in bits("uptrained/model").values()} == {torch.float32}
    assert main(["generate", "uptrained", "--prompt", "the", "--max-new-tokens", "5"]) == 0


def test_a_run_from_python_gets_no_recipe(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    from axon_xllama import CausalLMTrainer

    data = TextData.of(TEXT)
    model = MODELS["xllama"].build(vocab_size=data.tokenizer.vocab_size, n_heads=4, attention="MHA", **SIZES)
    fit(CausalLMTrainer(CausalLMTrainer.Config(steps=1), {"model": model}, data), "run")
    assert main(["convert", "gqa", "run", "--groups", "2"]) == 0
    assert "run has no recipe for training one model" in capsys.readouterr().out
    assert torch.equal(logits("run-gqa2"), convert_model(model, 2)(TOKENS))


def test_a_recipe_for_several_models_is_not_rewritten(run: str, trained: Path, capsys) -> None:
    shutil.copytree(trained / "run", "several")
    facts = json.loads(Path("several/run.json").read_text())
    facts["recipe"]["model"] = {"policy": facts["recipe"]["model"], "value": {}}
    del facts["sha256"]
    Path("several/run.json").write_text(json.dumps(facts))
    assert main(["convert", "gqa", "several", "--groups", "2"]) == 0
    assert "several has no recipe for training one model" in capsys.readouterr().out
    assert not list(Path("several-gqa2").glob("*.toml"))


@pytest.mark.parametrize(("groups", "message"), [("3", "got 3 for 4; possible: 1, 2, 4"), ("8", "got 8 for 4")])
def test_groups_that_do_not_fit_are_refused(run: str, groups: str, message: str, capsys) -> None:
    assert message in failure([run, "--groups", groups], capsys, 2)


def test_more_groups_than_are_left_are_refused(run: str, capsys) -> None:
    main(["convert", "gqa", run, "--groups", "2"])
    assert "got 4 for 2; possible: 1, 2" in failure(["run-gqa2", "--groups", "4", "--out", "new"], capsys, 2)
    assert "0 is not in the range" in failure([run, "--groups", "0"], capsys, 2)


def test_nothing_is_overwritten(run: str, capsys) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    for out in ("full", "full/notes.txt", "run/model"):
        message = failure([run, "--groups", "2", "--out", out], capsys, 2)
        assert f"{out} is not empty, and nothing is overwritten; choose another folder with --out" in message
    assert Path("full/notes.txt").read_text() == "mine"
    Path("empty").mkdir()
    assert main(["convert", "gqa", run, "--groups", "2", "--out", "empty"]) == 0
    assert CausalLM.load("empty").n_parameters


def test_a_run_without_a_model_is_an_error(run: str, capsys) -> None:
    assert "nothing is not a run folder: no such folder" in failure(["nothing", "--groups", "2"], capsys, 1)
    Path("begun").mkdir()
    Path("begun/run.json").write_text(Path("run/run.json").read_text())
    assert "begun has no model yet; continue with: axon train" in failure(["begun", "--groups", "2"], capsys, 1)
    Path("begun/model").mkdir()
    (Path("begun/model") / "config.json").write_text(Path("run/model/config.json").read_text())
    assert "no model in begun/model: model.safetensors is missing" in failure(["begun", "--groups", "2"], capsys, 1)


def test_other_attentions_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    class Windowed(ATTENTIONS["MHA"]):
        """Multi-head attention that sees less, with the same parameters."""

        class Config(ATTENTIONS["MHA"].Config):
            """Its sizes."""

            window: int = 4
            """Tokens it sees."""

    class Gated(ATTENTIONS["MHA"]):
        """Multi-head attention with a parameter more."""

        def __init__(self, config, rotary=None) -> None:
            super().__init__(config, rotary)
            self.gate = torch.nn.Parameter(torch.ones(1))

    monkeypatch.chdir(tmp_path)
    data = TextData.of(TEXT)
    with ATTENTIONS.override(windowed=Windowed, gated=Gated):
        for name, message in (
            ("windowed", "Windowed cannot become grouped-query attention, which has no option window"),
            ("gated", "Gated cannot become grouped-query attention, whose projections are `qkv` (a QKV) and `out`"),
        ):
            model = MODELS["xllama"].build(vocab_size=data.tokenizer.vocab_size, n_heads=4, attention=name, **SIZES)
            model.save(name)
            data.tokenizer.save(name)
            assert message in failure([name, "--groups", "2"], capsys, 2)
