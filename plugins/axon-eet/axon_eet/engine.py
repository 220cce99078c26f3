"""The engine: a thread that answers many questions at once, each as if it were the only one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import torch

from axon_core import CausalLM, Tokenizer, UsageError, validate
from axon_core.checkpoint import check_vocabulary
from axon_core.generation import TextStream, check_prompt
from axon_eet.answer import Answer, AnswerPiece, EngineClosed, ModelFailed, Question, QueueFull, Scored
from axon_eet.choosing import choose, score_prompt
from axon_eet.runners import EngineMemory, Limits, Runner, Work
from axon_eet.setup import make_runner
from axon_eet.text import RunningText

__all__ = ["Engine", "EngineReport"]


@dataclass(frozen=True)
class EngineReport:
    """What an engine does, and has done so far."""

    running: int
    """Texts that are being written."""
    waiting: int
    """Texts that have not begun, or have given their memory back."""
    questions: int
    """Questions asked so far."""
    prompt_tokens: int
    """Tokens of their prompts."""
    cached_tokens: int
    """Those of them that were not computed again."""
    computed_tokens: int
    """Tokens that the model read so far, including those computed again."""
    completion_tokens: int
    """Tokens generated so far."""
    preemptions: int
    """How often a text gave its memory back to another."""
    steps: int
    """Passes of the model."""
    memory: EngineMemory
    """Bytes of keys, values and other states."""


class Engine:
    """Answers questions to one model, many at once: each gets the tokens that it would get alone.

    The model runs in a thread of the engine's own. Every step computes the next token of each running text, and a piece
    of the prompts that wait, without padding. Keys and values are stored in blocks of 16 tokens, taken from memory that
    is allocated at the start; texts that begin alike share them. When blocks run out, the text that arrived last gives
    its back and is computed again later, with the same result.

    Use it as a context manager, or call `close`. What concerns a question is raised where it is asked or where its
    answer is read, and never ends the engine.

    Args:
        model: any causal language model; the engine uses a copy that shares its weights.
        tokenizer: the one the model was trained with.
        memory: for keys and values, beside the weights: bytes, or a text such as `"2GB"`. By default, enough for
            `rows` texts of the model's whole context, but at most a quarter of the memory that is free.
        rows: how many texts run at once.
        chunk: the most prompt tokens in a step in which texts grow, and twice as many as for one or two prompts: more
            finish prompts sooner, fewer keep the pace.
        waiting: how many texts may wait before `submit` raises `QueueFull`.
        compile: whether the pass is compiled, once and before this returns, which takes a minute or more. A model that
            is computed text by text is not compiled; a note says so.

    Raises:
        UsageError: a number is below 1; the memory is not a size, or holds no text at all.
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        memory: int | str | None = None,
        rows: int = 16,
        chunk: int = 64,
        waiting: int = 1024,
        compile: bool = False,
    ) -> None:
        for name, value in (("rows", rows), ("chunk", chunk), ("waiting", waiting)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        check_vocabulary(tokenizer, model.config.vocab_size)
        self.model, self.tokenizer = model, tokenizer
        self.notes: list[str] = []
        """What a user must know: how the model is served, and whether its tokens may depend on other questions."""
        limits = Limits(rows, chunk, max(chunk, _ALONE))
        self._runner: Runner = make_runner(model, limits, memory, self.notes, compile=compile)
        self._most_waiting = waiting
        self._changed = threading.Condition()
        self._texts: list[RunningText] = []  # in their order; the engine's thread changes it
        self._new: list[RunningText] = []
        self._arrivals = count()
        self._closing = self._closed = False
        self._computed = self._completed = self._steps = 0
        self._asked = self._prompts = 0
        self._thread = threading.Thread(target=self._loop, name="axon-eet", daemon=True)
        self._thread.start()

    def submit(self, question: Question | None = None, **values: Any) -> Answer:
        """Ask a question, given as such or by its fields; the answer's pieces arrive as they are generated.

        Raises:
            ConfigError: a field breaks a rule.
            UsageError: the prompt is empty, or holds a number that is not a token of the model.
            DataError: the prompt cannot be encoded.
            ContextError: the prompt is longer than the model's context, or the text does not fit into the memory.
            QueueFull: too many texts wait.
            EngineClosed: the engine is closed.
        """
        question = validate(Question, values) if question is None else question
        prompt = question.tokens(self.tokenizer)
        check_prompt(self.model, prompt)
        self._runner.check(len(prompt), question.max_new_tokens)
        streams = [TextStream(self.tokenizer, question, prompt) for _ in range(question.n)]
        answer = Answer(question, len(prompt), self._wake)
        if question.echo:
            answer.prompt.append(Scored(prompt[0], None, ()))
        with self._changed:
            if self._closing:
                raise EngineClosed("the engine is closed; start another one")
            waiting = self._waiting()
            if waiting >= self._most_waiting:
                raise QueueFull(
                    f"at most {self._most_waiting} texts may wait, and {waiting} do; ask again later, or give the "
                    "engine a longer queue"
                )
            self._asked += 1
            self._prompts += len(prompt)
            for choice, stream in enumerate(streams):
                text = RunningText(answer, choice, next(self._arrivals), len(prompt), list(prompt), stream)
                self._new.append(text)
            self._changed.notify_all()
        return answer

    def report(self) -> EngineReport:
        """Return what the engine does now, and has done so far."""
        with self._changed:
            waiting = self._waiting()
            return EngineReport(
                running=len(self._texts) + len(self._new) - waiting,
                waiting=waiting,
                questions=self._asked,
                prompt_tokens=self._prompts,
                cached_tokens=self._runner.cached,
                computed_tokens=self._computed,
                completion_tokens=self._completed,
                preemptions=self._runner.preempted,
                steps=self._steps,
                memory=self._runner.memory,
            )

    def close(self, grace: float = 0.0) -> None:
        """Accept no more questions, wait up to `grace` seconds for answers, and end the others with `EngineClosed`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._texts or self._new), timeout=grace)
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _waiting(self) -> int:
        return sum(not text.computed for text in (*self._texts, *self._new))

    @torch.inference_mode()
    def _loop(self) -> None:
        while self._next():
            try:
                work = self._runner.schedule(self._texts)
                if not work:
                    raise RuntimeError("no text can advance")
            except Exception as error:  # a bug
                self._fail(self._texts, error)
                continue
            try:
                self._step(work)
            except Exception as error:
                self._fail([text for text, _, _ in work], error)
        closed = EngineClosed("the engine was closed before this answer was complete")
        for text in self._texts:
            text.answer.fail(closed)
            self._runner.release(text)
        self._texts.clear()

    def _next(self) -> bool:
        """Wait for work, take new texts and drop those that ended; return whether the engine goes on."""
        with self._changed:
            while True:
                for text in self._texts:
                    if text.answer.cancelled:
                        self._runner.release(text)
                self._texts = sorted(
                    (text for text in (*self._texts, *self._new) if not text.answer.cancelled),
                    key=lambda text: text.order,
                )
                self._new.clear()
                if self._closed:
                    return False
                if self._texts:
                    return True
                self._changed.notify_all()  # nothing is left: `close` may be waiting for that
                self._changed.wait()

    def _step(self, work: Sequence[Work]) -> None:
        starts = [text.computed for text, _, _ in work]
        scores = self._runner.run(work)
        self._steps += 1
        self._computed += sum(n for _, n, _ in work)
        grown = list[RunningText]()
        last = list[torch.Tensor]()
        for (text, n, scored), start, own in zip(work, starts, scores, strict=True):
            if scored > 1 or (scored and text.pending):
                score_prompt(text, start + n - scored, own, self.tokenizer.vocab_size)
            if scored and not text.pending:
                grown.append(text)
                last.append(own[-1:])
        if not grown:
            return
        chosen = choose(grown, torch.cat(last), self.tokenizer.vocab_size)
        for text, choice in zip(grown, chosen, strict=True):
            if isinstance(choice, Exception):
                text.answer.fail(choice)
                self._end(text.answer, failed=True)
                continue
            added, finish = text.stream.push(choice.token)
            text.tokens.append(choice.token)
            self._completed += 1
            if finish:
                self._drop([text])
            text.answer.put(AnswerPiece(text.choice, added, choice.token, choice.logprob, choice.top, finish))

    def _fail(self, texts: Sequence[RunningText], error: Exception) -> None:
        """End the answers of texts whose step failed."""
        for answer in {id(text.answer): text.answer for text in texts}.values():
            failure = ModelFailed(f"the model failed in a step of this answer: {type(error).__name__}: {error}")
            failure.__cause__ = error
            answer.fail(failure)
            self._end(answer, failed=True)

    def _end(self, answer: Answer, *, failed: bool) -> None:
        self._drop([text for text in self._texts if text.answer is answer], failed=failed)

    def _drop(self, texts: Sequence[RunningText], *, failed: bool = False) -> None:
        with self._changed:
            for text in texts:
                self._runner.release(text, failed=failed)
            self._texts = [text for text in self._texts if text not in texts]


_ALONE = 512  # prompt tokens in a step in which no text grows
