"""TRL's part of `benchmarks/rlhf.py`: its trainers' own `training_step`, then clipping and AdamW, as its loop does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, RLOOConfig, RLOOTrainer

from support.shapes import Shape, transformers_like
from support.work import BETA, BETAS, LR, Work, reward, written

GENERATIONS = 2
"""Responses to each prompt, the fewest that RLOO can do with."""


class TRLSide:
    """A trainer of TRL, and AdamW, both prepared as its own loop prepares them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, optimizer)
        trainer.model_wrapped = self.model
        trainer.current_gradient_accumulation_steps = 1
        self.model.train()

    def update(self, inputs: Any) -> float:
        """Make one update and return its loss."""
        loss = self.trainer.training_step(self.model, inputs, None)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class TRLDPO(TRLSide):
    """`DPOTrainer`; the reference's log-probabilities are computed here, before the first step."""

    def __init__(self, shape: Shape, work: Work, precision: str, folder: Path) -> None:
        examples = work.examples(shape.vocab_size)
        data = Dataset.from_list([{name: written(part) for name, part in row._asdict().items()} for row in examples])
        end = written(examples[0].chosen[-1:])
        config = DPOConfig(
            **settings(work, precision, folder), beta=BETA, precompute_ref_log_probs=True, max_length=None
        )
        tokenizer = tokenizer_of(shape, end)
        super().__init__(DPOTrainer(saved(shape, folder), args=config, train_dataset=data, processing_class=tokenizer))

    def step(self) -> float:
        """Do one step and return its loss."""
        return self.update(self.trainer.data_collator(list(self.trainer.train_dataset)))


class TRLRLOO(TRLSide):
    """`RLOOTrainer`: responses, then `epochs` clipped updates on them."""

    def __init__(self, shape: Shape, work: Work, precision: str, folder: Path) -> None:
        self.prompts = [{"prompt": written(row.prompt)} for row in work.examples(shape.vocab_size)]
        self.epochs = work.epochs
        config = RLOOConfig(
            **settings(work, precision, folder),
            beta=0.05,
            max_completion_length=work.response,
            num_generations=GENERATIONS,
            num_iterations=work.epochs,
            steps_per_generation=1,
        )
        data, tokenizer = Dataset.from_list(self.prompts), tokenizer_of(shape, "<end>")
        super().__init__(
            RLOOTrainer(saved(shape, folder), _reward, args=config, train_dataset=data, processing_class=tokenizer)
        )
        self.response = work.response

    def step(self) -> None:
        """Do one iteration."""
        asked = self.prompts[: len(self.prompts) // GENERATIONS]
        inputs = [prompt for prompt in asked for _ in range(GENERATIONS)]
        for _ in range(self.epochs):
            self.update(inputs)  # only the first draws responses

    @torch.no_grad()
    def logprobs(self, tokens: Tensor) -> Tensor:
        """Return the log-probability of each row's response `(b)`."""
        found = self.trainer._get_per_token_logps_and_entropies(
            self.model, tokens, torch.ones_like(tokens), self.response
        )
        return found[0].sum(1)


def saved(shape: Shape, folder: Path) -> str:
    """Return where the model is, from which TRL reads policy and reference."""
    path = folder / "llama"
    if not path.exists():
        model: Any = copy.deepcopy(transformers_like(shape.axon()))  # which shares no memory among its weights
        for config in (model.config, model.generation_config):  # nothing ends a response
            config.bos_token_id = config.eos_token_id = None
        model.save_pretrained(path)
    return str(path)


def tokenizer_of(shape: Shape, end: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer for which every token is a character; `end` may be one that the model does not have."""
    vocabulary = {written([token]): token for token in range(shape.vocab_size)}
    vocabulary.setdefault(end, shape.vocab_size)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=end))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def settings(work: Work, precision: str, folder: Path) -> dict[str, Any]:
    """Return what both trainers are told; checkpointing and bfloat16, which are on by default, are Axon's here."""
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": work.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": precision == "bf16",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _reward(completions: list[str], **_: object) -> list[float]:
    return reward(completions)
