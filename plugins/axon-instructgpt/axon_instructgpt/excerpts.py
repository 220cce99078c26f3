"""The stage `excerpts`: demonstrations cut out of a text, so that a pipeline needs no data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field, PositiveInt

from axon_core import DataError, Key, to_json
from axon_core.checkpoint import new_folder
from axon_core.text import read_text
from axon_instructgpt.stage import Stage

__all__ = ["Excerpts", "write_lines"]


class Excerpts(Stage):
    """Writes `train.jsonl` and `held_out.jsonl`: words of a text as a prompt, and how the text continues.

    Each is `{"prompt", "completion"}`, and begins with a word; no prompt occurs twice. Those held out are from the end
    of the text, which training on the text keeps for evaluation.
    """

    class Config(Stage.Config):
        """Where excerpts are from, how many there are, and how long they are."""

        path: str | None = None
        """A UTF-8 text file, or a folder of them; left out, the English text that Python carries."""
        end: float = Field(default=0.1, gt=0, lt=1)
        """The share of the text, at its end, that the held-out excerpts are from."""
        train: PositiveInt = 1000
        """Excerpts to train on."""
        held_out: PositiveInt = 100
        """Excerpts that are held out."""
        prompt: PositiveInt = 16
        """Characters of a prompt."""
        completion: PositiveInt = 12
        """Characters of a completion."""
        seed: int = 0
        """What the choice of excerpts depends on."""

    config: Config

    def run(self, out: Path) -> None:
        """Cut and write them. Raises `DataError` if the text has too few."""
        c = self.config
        text = read_text(c.path)
        cut = int(len(text) * (1 - c.end))
        with new_folder(out) as folder:
            for name, part, n in (("train", text[:cut], c.train), ("held_out", text[cut:], c.held_out)):
                write_lines(folder / f"{name}.jsonl", self._excerpts(part, n, Key((c.seed, name))))

    def _excerpts(self, text: str, n: int, key: Key) -> list[dict[str, str]]:
        c, found = self.config, dict[str, str]()
        last = len(text) - c.prompt - c.completion
        begins = [i for i in range(1, last + 1) if text[i - 1].isspace() and not text[i].isspace()]
        for i in torch.randperm(len(begins), generator=key.generator()).tolist():
            middle, end = begins[i] + c.prompt, begins[i] + c.prompt + c.completion
            found.setdefault(text[begins[i] : middle], text[middle:end])
            if len(found) == n:
                return [{"prompt": prompt, "completion": completion} for prompt, completion in found.items()]
        raise DataError(f"the text has only {len(found)} different excerpts, not {n}; request fewer, or give more text")


def write_lines(file: Path, records: Iterable[object]) -> None:
    """Write JSON lines."""
    file.write_text("".join(to_json(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
