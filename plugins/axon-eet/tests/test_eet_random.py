"""Random questions, many at a time, some cancelled: every answer equals the one that the same question gets alone."""

import random

import pytest

from axon_core import ByteTokenizer, Sampling
from axon_eet import Engine, Question

TOKENIZER = ByteTokenizer()
QUESTIONS = 300
"""How many are asked; `benchmarks/serve_soak.py` asks thousands."""
BEGINNINGS = ["", "The same beginning of many", "Another beginning, somewhat longer than a block or two"]


def random_question(draw: random.Random) -> Question:
    """A question with options of every kind; few different ones, so that the answers alone are soon known."""
    temperature = draw.choice([0, 0, 0.7, 1.2])
    sampling = Sampling(
        temperature=temperature,
        top_p=draw.choice([1, 1, 0.8]),
        top_k=draw.choice([None, None, 5]),
        repetition_penalty=draw.choice([1, 1, 1.2]),
    )
    return Question(
        prompt=draw.choice(BEGINNINGS) + draw.choice("abc") * draw.choice([1, 3, 9]),
        max_new_tokens=draw.choice([1, 4, 9, 30]),
        sampling=sampling,
        seed=draw.randrange(2),
        stop=draw.choice([(), (), ("e",), ("xy", "a")]),
        logprobs=draw.choice([None, 2]),
        echo=draw.random() < 0.1,
        n=draw.choice([1, 1, 1, 2]),
        priority=draw.choice([0, 0, 0, 1]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [12, 1000])
def test_questions_beside_others_are_answered_as_each_is_alone(build, blocks):
    draw, model = random.Random(blocks), build()
    known = {}
    with Engine(model, TOKENIZER, rows=16, chunk=24, memory=blocks * 4096) as engine, Engine(model, TOKENIZER) as other:
        before = engine.report().memory
        running, cancelled = [], 0
        for i in range(QUESTIONS):
            question = random_question(draw)
            running.append((question, engine.submit(question), draw.random() < 0.1, draw.randrange(8)))
            if len(running) < 16 and i < QUESTIONS - 1:
                continue
            while running and (len(running) == 16 or i == QUESTIONS - 1):
                question, answer, cancel, after = running.pop(draw.randrange(len(running)))
                if cancel:
                    for _ in zip(range(after), answer, strict=False):
                        pass
                    answer.cancel()
                    cancelled += 1
                    continue
                key = question.model_dump_json(exclude={"priority"})
                if key not in known:
                    alone = other.submit(question)
                    known[key] = list(alone), alone.prompt
                pieces, prompt = known[key]
                found = list(answer)
                for choice in range(question.n):
                    assert [p for p in found if p.choice == choice] == [p for p in pieces if p.choice == choice]
                assert answer.prompt == prompt
        list(engine.submit(prompt="a", max_new_tokens=1))
        report = engine.report()
        assert cancelled > 10 and report.running == report.waiting == 0
        assert (report.memory.used, report.memory.total) == (before.used, before.total)
        assert (report.preemptions > 0) == (blocks == 12)
        assert report.cached_tokens > 300
