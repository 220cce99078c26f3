"""Whole answers in every precision, eager and compiled, are the same beside others as alone."""

import pytest
import torch
from torch._dynamo.utils import counters

from axon_core import ByteTokenizer, Sampling
from axon_core.nn import quantize
from axon_eet import Engine, Question

TOKENIZER = ByteTokenizer()
QUESTIONS = [
    Question(prompt="a" * 40, max_new_tokens=12, seed=3, sampling=Sampling(temperature=0.8, top_p=0.9)),
    Question(prompt="b", max_new_tokens=30, sampling=Sampling(temperature=0), logprobs=2),
    Question(prompt="The same beginning, another end", max_new_tokens=10, seed=1),
    Question(prompt="The same beginning, and then", max_new_tokens=20, seed=2, n=2),
    Question(prompt="scored as well", max_new_tokens=3, seed=7, echo=True, logprobs=2),
]
PRECISIONS = {
    "float32": lambda model: model,
    "bf16": lambda model: model.to(torch.bfloat16),
    "int8": lambda model: quantize(model.to(torch.bfloat16)),
    "int4": lambda model: quantize(model.to(torch.bfloat16), "int4"),
    "nf4": lambda model: quantize(model.to(torch.bfloat16), "nf4"),
}


def told(answer):
    """Everything that an answer says: of its texts, and of its prompt."""
    pieces = list(answer)
    return [[piece for piece in pieces if piece.choice == i] for i in range(answer.question.n)], answer.prompt


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", "nf4"])
def test_answers_in_half_precision_8_and_4_bits_are_the_same_beside_others(build, precision):
    model, alone = PRECISIONS[precision](build()), []
    for question in QUESTIONS:
        with Engine(model, TOKENIZER) as engine:
            alone.append(told(engine.submit(question)))
    with Engine(model, TOKENIZER, rows=4, chunk=7) as engine:
        answers = [engine.submit(question) for question in reversed(QUESTIONS)]
        assert [told(answer) for answer in answers] == alone[::-1]
        assert engine.notes == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_answers_are_the_same_beside_others_and_nothing_is_compiled_meanwhile(build, precision):
    with Engine(PRECISIONS[precision](build()), TOKENIZER, compile=True, rows=4, chunk=5) as engine:
        assert engine.notes == []
        graphs = counters["stats"]["unique_graphs"]
        alone = [told(engine.submit(question)) for question in QUESTIONS]
        answers = [engine.submit(question) for question in reversed(QUESTIONS)]
        assert [told(answer) for answer in answers] == alone[::-1]
        assert engine.report().steps < sum(len(text) for texts, _ in alone for text in texts) * 2
        assert counters["stats"]["unique_graphs"] == graphs


def test_a_pass_that_cannot_be_compiled_runs_eagerly_and_says_so(build, monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("no compiler here\nat all\n(or so)")

    monkeypatch.setattr("torch.compile", fail)
    with Engine(build(), TOKENIZER, compile=True) as engine:
        assert engine.notes == ["its passes run uncompiled: no compiler here at all"]
        assert len(list(engine.submit(QUESTIONS[0]))) == 12
