"""One side of the comparison of adapters, in a process of its own: `python -m support.adapter_sides` (adapters.py).

It takes its settings as JSON, tells what its start took, and then makes as many updates as each line of its input says.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from axon_core.checkpoint import load_config
from axon_core.text.corpus import TextData
from axon_core.text.tokenizer import ByteTokenizer
from axon_core.training.hooks import Hooks, hook
from axon_core.training.loop import Fit
from axon_core.training.parallel.strategies import prepare
from axon_core.training.train_state import TrainState
from axon_lora.adapter import AdapterSection
from axon_xllama import CausalLMTrainer, XLlama
from axon_xllama.checkpoints import matrices
from support.machine import peak_memory, reset_peak_memory, resident_memory

LR, BETAS, DECAY = 1e-3, (0.9, 0.95), 0.1


@dataclass(frozen=True)
class Side:
    """What is trained, and how.

    Attributes:
        program: `axon`, `peft` or `full`, which is transformers without an adapter, in bfloat16.
        folder: where `axon` and `hf` have the same weights.
        quantized: whether the weights are frozen in NF4, with double quantisation.
        precision: `fp32`, or `bf16` for autocast.
        rank: of all updates.
        windows, tokens: the size of a batch.
        optimizer: `adamw`, or `adamw8bit`.
        checkpointing: whether a layer is run again in the backward pass.
    """

    program: str
    folder: str
    quantized: bool = False
    precision: str = "fp32"
    rank: int = 16
    windows: int = 8
    tokens: int = 256
    optimizer: str = "adamw"
    checkpointing: bool = False

    def batch(self, step: int, vocabulary: int) -> Tensor:
        """Return the windows of a step, of random tokens."""
        generator = torch.Generator().manual_seed(step)
        return torch.randint(vocabulary, (self.windows, self.tokens + 1), generator=generator)


def start_a(name: str, shape: torch.Size) -> Tensor:
    """Return what the A of a matrix starts from, by the name that transformers gives the matrix."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=generator)


class _Windows(CausalLMTrainer):
    """Axon's trainer, on the windows of the side."""

    side: Side

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"tokens": self.side.batch(step, self.model.config.vocab_size)}


class AxonSide:
    """Axon's own loop."""

    def __init__(self, side: Side) -> None:
        section = AdapterSection(
            AdapterSection.Config.model_validate({"type": "qlora" if side.quantized else "lora", "rank": side.rank})
        )
        folder = Path(side.folder, "axon")
        model = section.load(load_config(folder, XLlama), folder)
        names = {(matrix.ours, matrix.first): matrix.theirs for matrix in matrices(load_config(folder, XLlama))}
        model.loaded_from = folder
        settings: dict[str, Any] = {
            "steps": 10**6,
            "batch_size": side.windows,
            "context": side.tokens,
            "precision": side.precision,
            "max_grad_norm": 1,
            "device": "cpu",
            "optimizer": {"type": side.optimizer, "lr": LR, "weight_decay": DECAY},
            "parallel": {"activation_checkpointing": side.checkpointing},
        }
        tokens = torch.zeros(4096, dtype=torch.int32)
        trainer = _Windows(
            CausalLMTrainer.Config.model_validate(settings),
            {"model": model},
            TextData(ByteTokenizer(), tokens, tokens[:2]),
        )
        trainer.side = side
        section.apply(trainer)
        with torch.no_grad():
            for target, update in section.adapter.updates(model):
                low_rank: Any = target.module.adapter
                ranks = [each.rank for each in low_rank.updates]
                own = low_rank.a.split(ranks)[[each.part for each in low_rank.updates].index(update.part)]
                own.copy_(start_a(names[target.map, target.rows.start], own.shape))
        self.losses: list[float] = []
        self.fit = Fit(trainer, TrainState(trainer), None, Hooks((self,)), prepare(trainer))

    @hook
    def step_end(self, fit: Fit, metrics: dict[str, float]) -> None:
        """Note the loss, as the loop's own hooks do."""
        self.losses.append(metrics["loss"])

    def run(self, updates: int) -> None:
        """Make so many updates."""
        self.fit.run_to(self.fit.state.step + updates)


class TheirSide:
    """transformers, with PEFT or without, in a plain loop; optimiser, groups and clipping are as in Axon."""

    def __init__(self, side: Side) -> None:
        import transformers

        self.side, self.losses = side, list[float]()
        options: dict[str, Any] = {"dtype": torch.bfloat16 if side.program == "full" else torch.float32}
        if side.quantized:
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16 if side.precision == "bf16" else torch.float32,
            )
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(Path(side.folder, "hf"), **options)
        if side.program == "peft":
            self.model = adapted(self.model, side)
        elif side.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if (p.ndim > 1) == wide], "weight_decay": DECAY if wide else 0.0}
            for wide in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        self.trained, self.optimizer = trained, torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

    def run(self, updates: int) -> None:
        """Make so many updates."""
        for _ in range(updates):
            batch = self.side.batch(len(self.losses), self.model.config.vocab_size)
            tokens, targets = batch[:, :-1], batch[:, 1:].contiguous()
            with torch.autocast("cpu", torch.bfloat16, self.side.precision == "bf16" and self.side.program != "full"):
                loss = self.model(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss.item())


def adapted(model: Any, side: Side) -> Any:
    """Return transformers' model with PEFT's updates, on all linear maps but the head."""
    import peft

    if side.quantized:
        model = peft.prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=side.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    elif side.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=side.rank, lora_alpha=side.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                place = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
                parameter.copy_(start_a(place, parameter.shape))
    return model


def serve(side: Side, make: Callable[[Side], AxonSide | TheirSide]) -> None:
    """Start a side, and make the updates that are asked for; each answer is a line of JSON."""
    before = resident_memory()
    reset_peak_memory("cpu")
    begun = time.perf_counter()
    training = make(side)
    answer({"seconds": time.perf_counter() - begun, "loading": peak_memory("cpu") - before})
    reset_peak_memory("cpu")
    for line in sys.stdin:
        known = len(training.losses)
        begun = time.perf_counter()
        training.run(int(line))
        seconds = time.perf_counter() - begun
        answer({"seconds": seconds, "training": peak_memory("cpu") - before, "losses": training.losses[known:]})


def answer(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    given = Side(**json.loads(sys.argv[1]))
    if given.program == "axon":
        import axon_qlora  # noqa: F401  (its code is not what is measured)
    else:
        import peft  # noqa: F401
        import transformers  # noqa: F401

        if given.quantized:
            import bitsandbytes  # noqa: F401
    serve(given, AxonSide if given.program == "axon" else TheirSide)
