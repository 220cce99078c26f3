"""The models that a server offers, and the questions that its requests put to them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axon_core import AxonError, ChatTemplate, ContextError, Tokenizer, UsageError, validate
from axon_core.text import Dialogue, Message
from axon_eet import Engine, Question
from axon_llamachat.api_error import ApiError, as_api_error, invalid
from axon_llamachat.wire.chat_body import ChatBody
from axon_llamachat.wire.completion_body import CompletionBody
from axon_llamachat.wire.sampled import SampledBody

__all__ = ["ServedModel", "ServedModels"]


@dataclass(frozen=True)
class ServedModel:
    """A model under a name, with its engine.

    Attributes:
        name: what requests call it.
        engine: what answers.
        tokenizer: the model's tokenizer.
        context: the model's context, in tokens.
        template: how its dialogues are written, or None if it cannot chat.
        fingerprint: changes with the weights and how they are computed: equal seeds give equal texts while it is equal.
        created: when it was loaded, in seconds since 1970.
        converses: whether it has learned dialogues, so that its page begins with the chat.
        sampling: fields of `Sampling` for requests that leave them out, as the model was published with.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    context: int
    template: ChatTemplate | None = None
    fingerprint: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    converses: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def completion_questions(self, body: CompletionBody) -> list[Question]:
        """Return a question for each prompt. Raises `ApiError` if one cannot be encoded or is too long."""
        seed = _seed(body)
        return [
            self._question(
                body,
                self._tokens(prompt, "prompt" if len(body.prompts) == 1 else f"prompt.{i}"),
                "prompt",
                body.max_tokens,
                seed,
                logprobs=body.logprobs,
                echo=body.echo,
            )
            for i, prompt in enumerate(body.prompts)
        ]

    def chat_question(self, body: ChatBody) -> Question:
        """Return the question that a conversation is.

        Raises:
            ApiError: the model has no chat template, the conversation is not one that it can continue, or it is too
                long.
        """
        if self.template is None:
            raise invalid(f"the model {self.name} has no chat template; use /v1/completions", "model")
        try:
            messages = [turn.message for turn in body.messages]
            prompt = self.template(self.tokenizer, _open_dialogue(messages))
        except AxonError as error:
            raise as_api_error(error, "messages") from None
        room = self.context - len(prompt)
        limit = max(room, 1) if body.most_tokens is None else body.most_tokens
        top = body.top_logprobs if body.logprobs else None
        stop = getattr(self.template, "markers", ())  # an answer with one would be refused as part of the next prompt
        return self._question(body, prompt, "messages", limit, _seed(body), logprobs=top, stop=stop)

    def _tokens(self, prompt: str | Sequence[int], param: str) -> list[int]:
        try:
            return validate(Question, {"prompt": prompt}).tokens(self.tokenizer)
        except AxonError as error:
            raise as_api_error(error, param) from None

    def _question(
        self,
        body: SampledBody,
        prompt: Sequence[int],
        param: str,
        limit: int,
        seed: int,
        *,
        logprobs: int | None,
        echo: bool = False,
        stop: Sequence[str] = (),
    ) -> Question:
        if len(prompt) + limit > self.context:
            raise as_api_error(
                ContextError(
                    f"the model's context is {self.context} tokens, but the prompt has {len(prompt)} and up to {limit} "
                    "are asked for; shorten the prompt, or ask for fewer tokens"
                ),
                param,
            )
        return validate(
            Question,
            {
                "prompt": list(prompt),
                "max_new_tokens": max(limit, 1),
                "sampling": body.sampling(self.sampling),
                "stop": (*body.stop, *stop),
                "seed": seed,
                "n": body.n,
                "logprobs": logprobs,
                "echo": echo,
            },
        )


class ServedModels(Mapping[str, ServedModel]):
    """The models of a server by name.

    Raises:
        UsageError: two have one name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            names = ", ".join(sorted(model.name for model in models))
            raise UsageError(f"the models must have different names, got {names}; rename a folder")

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def find(self, name: str | None) -> ServedModel:
        """Return the model of this name, or the only one if None. Raises `ApiError` if there is none."""
        if name is None and len(self) == 1:
            return next(iter(self._models.values()))
        if name is None:
            raise invalid(f"model must be one of {', '.join(self)}", "model")
        if name not in self._models:
            message = f"there is no model {name[:200]!r}; this server has {', '.join(self)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._models[name]


def _open_dialogue(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages of a dialogue that waits for an answer. Raises `UsageError` if it does not."""
    dialogue = validate(Dialogue, {"messages": list(messages)})
    if dialogue.messages[-1].role != "user":
        raise UsageError("a conversation for the model to continue must end with a message of role 'user'")
    return dialogue.messages


def _seed(body: SampledBody) -> int:
    return secrets.randbits(62) if body.seed is None else body.seed
