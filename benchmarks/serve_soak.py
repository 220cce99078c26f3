"""A long run of the engine: random questions, many at a time, each answer compared with the one that it gets alone.

    python benchmarks/serve_soak.py --questions 10000
    python benchmarks/serve_soak.py --minutes 30

It prints a line every minute: questions asked and cancelled, preemptions, bytes of the process. It fails at the first
answer that differs, and at the end if blocks are still held, or if the process has grown by more than 1 % since a tenth
of the run.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from axon_core import MODELS, ByteTokenizer, Sampling
from axon_eet import Answer, Engine, Piece, Question

ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10_000, help="how many questions, if no time is given")
    parser.add_argument("--minutes", type=float, help="how long to ask")
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = MODELS["xllama"].build(vocab_size=258, context=96, dim=32, n_layers=2, n_heads=4)
    draw = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    memory = 14 * 16 * 256  # fewer blocks than 16 texts need: some are preempted
    with Engine(model, ByteTokenizer(), rows=ROWS, chunk=24, memory=memory) as engine:
        with Engine(model, ByteTokenizer()) as other:
            run(engine, other, draw, options.questions, end)
        report = engine.report()
        print(report)
        assert report.memory.used == report.running == report.waiting == 0, "texts were left behind"


def run(engine: Engine, other: Engine, draw: random.Random, questions: int, end: float | None) -> None:
    """Ask until `questions` are asked, or until `end`, and compare every answer."""
    known: dict[str, tuple[Sequence[Piece], object]] = {}
    running: list[tuple[Question, Answer]] = []
    asked, cancelled, start, told, early = 0, 0, time.monotonic(), 0.0, 0

    def going() -> bool:
        return asked < questions if end is None else time.monotonic() < end

    while going() or running:
        while going() and len(running) < ROWS:
            question = ask(draw)
            running.append((question, engine.submit(question)))
            asked += 1
        question, answer = running.pop(draw.randrange(len(running)))
        if draw.random() < 0.1:
            for _ in zip(range(draw.randrange(8)), answer, strict=False):
                pass
            answer.cancel()
            cancelled += 1
        else:
            compare(question, answer, other, known)
        share = asked / questions if end is None else (time.monotonic() - start) / (end - start)
        if not early and share > 0.1:
            early = resident()
        if time.monotonic() - told > 60:
            told = time.monotonic()
            preempted = engine.report().preemptions
            print(
                f"{asked:,} asked, {cancelled:,} cancelled, {preempted:,} preemptions, {resident():,} bytes", flush=True
            )
    list(engine.submit(prompt="a", max_new_tokens=1))  # a step after the last cancelled one
    grown = resident() / early - 1
    print(f"{asked:,} asked in {time.monotonic() - start:.0f} s; the process has grown by {grown:.2%}")
    assert grown < 0.01, "the process has grown"


def ask(draw: random.Random) -> Question:
    """Return a random question, of few different ones, so that their answers alone are soon known."""
    beginning = draw.choice(
        ["", "The same beginning of many", "Another beginning, longer than a block or two of tokens"]
    )
    sampling = Sampling(
        temperature=draw.choice([0, 0.7, 1.2]),
        top_p=draw.choice([1, 0.8]),
        repetition_penalty=draw.choice([1, 1, 1.2]),
    )
    return Question(
        prompt=beginning + draw.choice("abc") * draw.choice([1, 3, 9]),
        max_new_tokens=draw.choice([1, 4, 9, 30]),
        sampling=sampling,
        seed=draw.randrange(2),
        stop=draw.choice([(), (), ("e",)]),
        logprobs=draw.choice([None, 2]),
        echo=draw.random() < 0.1,
        n=draw.choice([1, 1, 1, 2]),
        priority=draw.choice([0, 0, 1]),
    )


def compare(
    question: Question, answer: Answer, other: Engine, known: dict[str, tuple[Sequence[Piece], object]]
) -> None:
    """Fail if the answer is not the one that `other` gives to the question alone."""
    key = question.model_dump_json(exclude={"priority"})
    if key not in known:
        alone = other.submit(question)
        known[key] = list(alone), alone.prompt
    found = list(answer)
    for choice in range(question.n):
        expected = [piece for piece in known[key][0] if piece.choice == choice]
        assert [piece for piece in found if piece.choice == choice] == expected, question
    assert answer.prompt == known[key][1], question


def resident() -> int:
    """Return the bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


if __name__ == "__main__":
    main()
