"""An answer does not depend on what runs beside it, and an error concerns one answer alone."""

import asyncio
import threading

import pytest
import torch

from axon_core import ByteTokenizer, ContextError, Request, Sampling, UsageError, complete
from axon_eet import Engine, EngineClosed, ModelFailed, Question, QueueFull

TOKENIZER = ByteTokenizer()
QUESTIONS = [
    Question(prompt="a" * 40, max_new_tokens=12, seed=3, sampling=Sampling(temperature=0.8, top_p=0.9)),
    Question(prompt="b", max_new_tokens=30, sampling=Sampling(temperature=0)),
    Question(prompt="The same beginning, another end", max_new_tokens=10, seed=1),
    Question(prompt="The same beginning, and then", max_new_tokens=20, seed=2, logprobs=5),
    Question(prompt="long " * 11, max_new_tokens=40, seed=5, sampling=Sampling(top_k=20, repetition_penalty=1.3)),
    Question(prompt="x y z", max_new_tokens=17, seed=6, n=3, sampling=Sampling(min_p=0.01)),
    Question(prompt="scored as well", max_new_tokens=3, seed=7, echo=True, logprobs=2),
    Question(prompt=[1, 2, 3] * 10, max_new_tokens=25, seed=8),
]


def told(answer):
    """Everything that an answer says, and what it says of the prompt."""
    pieces = list(answer)
    return [[piece for piece in pieces if piece.choice == i] for i in range(answer.question.n)], answer.prompt


@pytest.fixture
def alone(build):
    """Each question's answer when nothing else runs, of one engine each."""
    model, found = build(), []
    for question in QUESTIONS:
        with Engine(model, TOKENIZER) as engine:
            found.append(told(engine.submit(question)))
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk": 1}, {"chunk": 7}, {"rows": 3}, {"memory": 14 * 16 * 256}],
    ids=lambda options: str(options),
)
def test_an_answer_has_the_same_bits_beside_others(build, alone, options):
    with Engine(build(), TOKENIZER, **options) as engine:
        for order in (range(len(QUESTIONS)), range(len(QUESTIONS) - 1, -1, -1)):  # the second time with blocks kept
            answers = {i: engine.submit(QUESTIONS[i]) for i in order}
            for i, answer in answers.items():
                assert told(answer) == alone[i], QUESTIONS[i]
        report = engine.report()
        assert (report.preemptions > 0) == ("memory" in options)
        assert report.memory.used == 0 and report.running == report.waiting == 0


def test_the_prompts_scores_are_complete_before_the_first_piece_of_any_text(build):
    """The first text computes its prompt again to score it; the second, whose prompt is stored, is ahead of it."""
    prompt = list(range(40, 73))  # two blocks of 16, and a token: the second text only has that one left
    question = Question(prompt=prompt, max_new_tokens=4, n=2, echo=True, logprobs=1)
    with Engine(build(), TOKENIZER) as engine:
        alone = told(engine.submit(question))
    with Engine(build(), TOKENIZER, chunk=2) as engine:
        list(engine.submit(prompt=prompt, max_new_tokens=1))  # its blocks are kept
        other = engine.submit(prompt="grows, so that prompts get two tokens a step", max_new_tokens=200, seed=2)
        next(other)
        answer = engine.submit(question)
        first = next(answer)
        assert len(answer.prompt) == answer.usage.prompt_tokens
        assert first.choice == 1, "the second text is not ahead: this test shows nothing"
        other.cancel()
        pieces = [first, *answer]
        assert ([[piece for piece in pieces if piece.choice == i] for i in (0, 1)], answer.prompt) == alone


def test_the_tokens_are_those_that_generation_gives(build, alone):
    fields = Request.model_fields
    requests = [Request(**{name: getattr(q, name) for name in fields}) for q in QUESTIONS]
    for (texts, _), completion in zip(alone, complete(build(), TOKENIZER, requests), strict=True):
        assert [piece.token for piece in texts[0]] == completion.tokens
        assert "".join(piece.text for piece in texts[0]) == completion.text
        assert texts[0][-1].finish == completion.finish


def test_choices_have_the_seeds_after_the_first(build):
    with Engine(build(), TOKENIZER) as engine:
        texts, _ = told(engine.submit(prompt="x y z", seed=5, n=3, max_new_tokens=9))
        for i, text in enumerate(texts):
            single = list(engine.submit(prompt="x y z", seed=5 + i, max_new_tokens=9))
            assert [piece._replace(choice=0) for piece in text] == single


def test_scores_of_prompts_and_tokens_are_those_of_one_pass(build):
    model = build(torch.float64)
    with Engine(model, TOKENIZER, chunk=5) as engine:
        answer = engine.submit(prompt="some prompt of a few tokens", echo=True, logprobs=4, max_new_tokens=8)
        pieces = list(answer)
    tokens = [scored.token for scored in answer.prompt] + [piece.token for piece in pieces]
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]))[0].log_softmax(-1)
    assert answer.prompt[0].logprob is None and answer.prompt[0].top == ()
    for i, found in enumerate([*answer.prompt, *pieces][1:]):
        assert found.logprob == pytest.approx(expected[i, tokens[i + 1]].item(), abs=1e-9)
        assert [token for token, _ in found.top] == expected[i].topk(4).indices.tolist()


def test_tokens_that_the_tokenizer_lacks_count_in_probabilities_and_are_never_drawn(build):
    model = build(vocab_size=300)
    with torch.no_grad():
        model.head.weight[258:] *= 20
    with Engine(model, TOKENIZER) as engine:
        answer = engine.submit(prompt="abc", echo=True, logprobs=20, max_new_tokens=15)
        pieces = list(answer)
    expected = complete(model, TOKENIZER, [Request(prompt="abc", max_new_tokens=15)])[0]
    assert [piece.token for piece in pieces] == expected.tokens
    assert [piece.logprob for piece in pieces] == pytest.approx(expected.logprobs, abs=1e-4)
    assert all(token < 258 for found in (*answer.prompt, *pieces) for token, _ in found.top)


def test_the_likeliest_token_has_the_largest_logprob(build):
    with Engine(build(torch.bfloat16), TOKENIZER) as engine:
        for piece in engine.submit(prompt="a", sampling=Sampling(temperature=0), logprobs=1, max_new_tokens=20):
            assert piece.logprob == piece.top[0][1]


def test_a_text_that_outgrows_the_context_continues_as_generation_does(build):
    question = Question(prompt="c" * 50, max_new_tokens=60, sampling=Sampling(temperature=0.9))
    request = Request(prompt="c" * 50, max_new_tokens=60, sampling=Sampling(temperature=0.9))
    with Engine(build(), TOKENIZER, chunk=3) as engine:
        beside = engine.submit(prompt="d", max_new_tokens=90)
        found = [piece.token for piece in engine.submit(question)]
        beside.cancel()
    assert found == complete(build(), TOKENIZER, [request])[0].tokens


def test_a_shared_beginning_is_computed_once(build):
    prompt = [*range(32), 7]
    with Engine(build(), TOKENIZER) as engine:
        answers = [engine.submit(prompt=[*prompt, i], max_new_tokens=2) for i in range(10)]
        for answer in answers:
            list(answer)
        report = engine.report()
        assert [answer.usage.cached_tokens for answer in answers] == [0] + [32] * 9
        assert report.computed_tokens == 32 + 10 * 2 + 10 and report.cached_tokens == 9 * 32


def test_a_beginning_of_512_tokens_shared_by_16_questions_is_computed_once(build):
    model, prompt = build(context=1024), [i % 200 for i in range(512)]
    questions = [Question(prompt=[*prompt, 200 + i], max_new_tokens=4, seed=i) for i in range(16)]
    with Engine(model, TOKENIZER) as engine:
        answers = [engine.submit(question) for question in questions]
        found = [list(answer) for answer in answers]
        report = engine.report()
    assert [answer.usage.cached_tokens for answer in answers] == [0] + [512] * 15
    assert report.cached_tokens == 15 * 512
    assert report.computed_tokens == 512 + 16 + sum(len(pieces) - 1 for pieces in found)
    with Engine(model, TOKENIZER) as engine:
        assert list(engine.submit(questions[9])) == found[9]


def test_higher_priorities_run_first(build):
    with Engine(build(), TOKENIZER, rows=1) as engine:
        first = engine.submit(prompt="a", max_new_tokens=50)
        next(first)
        low, high = (engine.submit(prompt="b", max_new_tokens=5, priority=p) for p in (-1, 1))
        list(high)
        assert not first.done and low.usage.completion_tokens == 0
        list(low)
        assert first.done


def test_cancelling_frees_memory_and_touches_nobody(build, alone):
    with Engine(build(), TOKENIZER) as engine:
        cancelled = [engine.submit(prompt="z" * 30, max_new_tokens=1000) for _ in range(3)]
        answer = engine.submit(QUESTIONS[0])
        next(cancelled[0])
        for other in cancelled:
            other.cancel()
        assert told(answer) == alone[0]
        assert all(other.done for other in cancelled)
        assert len(list(cancelled[1])) < 1000
        assert engine.report().memory.used == 0
        with engine.submit(prompt="z", max_new_tokens=1000) as left:
            next(left)
        assert left.cancelled


def test_an_answer_can_be_read_in_an_event_loop(build, alone):
    async def read(answer):
        return [piece async for piece in answer]

    async def both(engine):
        answers = [engine.submit(QUESTIONS[i]) for i in (0, 1)]
        return await asyncio.gather(*map(read, answers))

    with Engine(build(), TOKENIZER) as engine:
        first, second = asyncio.run(both(engine))
    assert [first] == alone[0][0] and [second] == alone[1][0]


class Failing(torch.nn.Module):
    """Raises once if token 99 is among the inputs."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.weight, self.state = embedding.weight, embedding.state

    def forward(self, tokens, *others):
        if (tokens == 99).any():
            raise RuntimeError("no token 99, please")
        return self.embedding(tokens, *others)


def test_a_step_that_fails_ends_its_answers_alone(build, alone):
    model = build()
    model.embedding = Failing(model.embedding)
    with Engine(model, TOKENIZER) as engine:
        beside = engine.submit(QUESTIONS[1])
        next(beside)
        wrong = engine.submit(prompt=[5, 99], max_new_tokens=4)
        with pytest.raises(ModelFailed, match="RuntimeError: no token 99, please") as caught:
            list(wrong)
        assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(ModelFailed):
            list(beside)
        assert engine.report().memory.used == 0
        assert told(engine.submit(QUESTIONS[0])) == alone[0]


def test_scores_that_are_not_finite_end_one_answer(build, alone):
    model = build()
    with torch.no_grad():
        model.embedding.weight[255] = float("nan")
    with Engine(model, TOKENIZER) as engine:
        wrong = engine.submit(prompt=[255] * 40, max_new_tokens=5)
        good = engine.submit(QUESTIONS[0])
        with pytest.raises(Exception, match="scores must be finite"):
            list(wrong)
        assert told(good) == alone[0]
        assert all(
            buffer.isfinite().all() for layer in engine._runner.cache.blocks for buffer in layer.buffers.values()
        )


def test_wrong_questions_are_refused_where_they_are_asked(build):
    with Engine(build(), TOKENIZER, memory=4 * 16 * 256, waiting=2) as engine:
        with pytest.raises(UsageError, match="the prompt is empty"):
            engine.submit(prompt="")
        with pytest.raises(UsageError, match=r"tokens run from 0 to 257"):
            engine.submit(prompt=[300])
        with pytest.raises(UsageError, match="logprobs: must be less than or equal to 20, got 21"):
            engine.submit(prompt="a", logprobs=21)
        with pytest.raises(ContextError, match="the model's context is 64"):
            engine.submit(prompt="a" * 65)
        list(engine.submit(prompt="a" * 60, max_new_tokens=4))
    with (
        Engine(build(), TOKENIZER, memory=3 * 16 * 256) as engine,
        pytest.raises(ContextError, match="memory is 12,288"),
    ):
        engine.submit(prompt="a" * 60, max_new_tokens=4)
    with pytest.raises(UsageError, match="rows must be at least 1, got 0"):
        Engine(build(), TOKENIZER, rows=0)
    with pytest.raises(UsageError, match="memory is a number of bytes"):
        Engine(build(), TOKENIZER, memory="much")
    with pytest.raises(UsageError, match="a block of 16 tokens needs 4,096 bytes"):
        Engine(build(), TOKENIZER, memory=100)


def test_a_full_queue_and_a_closed_engine_refuse(build):
    engine = Engine(build(), TOKENIZER, rows=1, waiting=2)
    running = engine.submit(prompt="a", max_new_tokens=1000)
    next(running)
    waiting = [engine.submit(prompt="a") for _ in range(2)]
    with pytest.raises(QueueFull, match="at most 2 texts may wait, and 2 do"):
        engine.submit(prompt="a")
    engine.close()
    for answer in (running, *waiting):
        with pytest.raises(EngineClosed, match="closed before this answer"):
            list(answer)
    with pytest.raises(EngineClosed, match="start another one"):
        engine.submit(prompt="a")
    assert not any(thread.name == "axon-eet" for thread in threading.enumerate())


def test_closing_with_grace_finishes_answers(build, alone):
    engine = Engine(build(), TOKENIZER)
    answer = engine.submit(QUESTIONS[0])
    engine.close(grace=60)
    assert told(answer) == alone[0]
