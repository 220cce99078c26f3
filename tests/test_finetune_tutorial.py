"""The tutorial on fine-tuning, from its first `axon` command to its last, with a small model in SmolLM2's place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tokenizers
import torch
from new_user import environment_of_its_own
from tokenizers import decoders, models, pre_tokenizers, trainers

from axon_core.checkpoint import base_of
from axon_core.registry import Spec
from axon_core.text import PipelineTokenizer, read_demonstrations, read_text
from axon_core.training import model_folder
from axon_instructgpt.demonstrations import DemonstrationConfig, Demonstrations
from axon_xllama import XLlama
from axon_xllama.gguf.writing import export_gguf

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "finetune.md"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OUTSIDE = ("pip ", "unzip ")  # what would ask the network
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def tokenizer() -> PipelineTokenizer:
    """A byte-level BPE with SmolLM2's markers and template."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=397, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(read_text()[:60_000].splitlines(keepends=True), trainer)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PipelineTokenizer(made.to_str().encode(), bos=398, eos=399, chat_template=CHATML)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of the wheel's name, that holds a small model with random weights."""
    folder = tmp_path_factory.mktemp("tutorial") / "work"
    folder.mkdir()
    torch.manual_seed(0)
    attention = {"type": "GQA", "n_kv_heads": 1}
    sizes = {"vocab_size": 400, "context": 1024, "dim": 64, "n_layers": 1, "n_heads": 2, "hidden_dim": 96}
    XLlama.build(**sizes, attention=attention).save(folder / "made", tokenizer())
    export_gguf(folder / "made", folder / GGUF, notice=print)
    return folder


def test_rows_are_learned_in_the_models_template_with_one_beginning_and_with_their_end(tmp_path: Path):
    (rows,) = re.findall(r"^cat > rows.jsonl <<'END'\n(.*?)^END", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "rows.jsonl").write_text(rows)
    settings = DemonstrationConfig(path=str(tmp_path / "rows.jsonl"))
    own = tokenizer()
    data = Demonstrations.of(read_demonstrations(settings.path, settings), own, 1024, settings)
    tokens, scored = data.train[0]
    question = "When does the bakery open?"
    answer = "We open at six in the morning, every day but Monday."
    assert tokens == own.encode_marked(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    )
    learned = [token for token, learn in zip(tokens, scored, strict=True) if learn]
    assert learned == own.encode_marked(f"{answer}<|im_end|>\n")
    plain = settings.model_copy(update={"template": Spec(type="plain")})
    assert Demonstrations.of(read_demonstrations(settings.path, plain), own, 1024, plain).train[0].tokens != tokens


def commands() -> list[str]:
    """The blocks of the page, without what asks the network; `axon serve` and `curl` are separate."""
    found = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return ["".join(line for line in block.splitlines(True) if not line.startswith(OUTSIDE)) for block in found]


@pytest.fixture(scope="module")
def done(work: Path) -> Iterator[dict[str, str]]:
    """What the page's blocks printed, in its order; its server answers while the block after it runs."""
    environment = os.environ | environment_of_its_own(work.parent / "environment") | {"OMP_NUM_THREADS": "1"}
    printed, server = dict[str, str](), None
    try:
        for block in commands():
            serving = re.search(r"^axon serve (.*)\n", block, re.MULTILINE)
            script = block.replace("http://127.0.0.1:8000", printed.get("server", ""))
            if serving:
                script = script.replace(serving[0], "")
            result = subprocess.run(
                ["sh", "-ec", script],
                cwd=work,
                env=environment,
                input="When do you open?\n",
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert result.returncode == 0, f"{script}\n{result.stdout}{result.stderr}"
            printed[block] = result.stdout
            if serving:
                command = [sys.executable, "-m", "axon_core", "serve", *serving[1].split()]
                server = subprocess.Popen(
                    [*command, "--no-page", "--port", "0", "--memory", "8MB"],
                    cwd=work,
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert server.stdout is not None
                for line in server.stdout:
                    if match := re.search(r"at (http://\S+)/v1", line):
                        printed["server"] = match[1]
                        printed["models"] = httpx.get(f"{match[1]}/v1/models").text
                        break
        yield printed
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=60)


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom_and_leaves_what_it_says(done: dict[str, str], work: Path):
    assert base_of(model_folder(work / "bakery")) == work / "smollm2"
    assert base_of(work / "merged") is None
    for file in ("merged.gguf", "merged-hf/config.json", "bakery-peft/adapter_config.json", "smollm2-hf/config.json"):
        assert (work / file).exists(), file
    losses = [json.loads(line) for line in (work / "bakery" / "metrics.jsonl").read_text().splitlines()]
    trained = [line["value"] for line in losses if line["split"] == "train" and line["name"] == "loss"]
    assert trained[-1] < trained[0]


@pytest.mark.slow
def test_the_pages_request_is_answered_by_the_model_that_it_names(done: dict[str, str]):
    assert [model["id"] for model in json.loads(done["models"])["data"]] == ["smollm2", "bakery", "baker"]
    (answer,) = (text for block, text in done.items() if block.startswith("curl"))
    assert json.loads(answer)["model"] == "bakery"
