"""Checks of what Llama 2's paper and reference code say about dialogues; `axon reproduce llamachat` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch

from axon_core import CHAT_TEMPLATES, MODELS, ByteTokenizer, UnknownKey
from axon_core.interfaces import CausalLM
from axon_core.papers import NotRun, Outcome
from axon_eet import Engine
from axon_llamachat.api_error import ApiError
from axon_llamachat.served import ServedModel
from axon_llamachat.wire.chat_body import ChatBody

_CONTEXT, _TURNS = 512, 6
_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


@torch.no_grad()
def system_message() -> Outcome:
    """Look for the system message in the prompts of a long conversation, and in what the model makes of them.

    Its tokens must begin the prompt of each turn, another system message must change the scores of the next token, and
    a conversation beyond the context must be refused, not shortened.

    Raises:
        NotRun: X-Llama, or Llama 2's chat template, is not installed.
    """
    with _served() as (served, model):
        brief, long = (
            [_prompt(served, _conversation(system, turn)) for turn in range(1, _TURNS + 1)]
            for system in ("Be brief.", "Be verbose.")
        )
        first = ByteTokenizer().encode("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n", bos=True)
        kept = sum(prompt[: len(first)] == first for prompt in brief)
        pairs = zip(brief, long, strict=True)
        moved = [(_scores(model, one) - _scores(model, other)).abs().max().item() for one, other in pairs]
        refused = _status(served, _conversation("Be brief.", 40))
    return Outcome(
        kept == _TURNS and min(moved) > 1e-6 and refused == 400,
        f"begins {kept} of {_TURNS} prompts; another one changes the next token's scores by at least {min(moved):.1e}; "
        f"a conversation beyond the context gets the status {refused}",
    )


def dialogue_format() -> Outcome:
    """Compare the prompt of a conversation with the format written out byte by byte.

    Raises:
        NotRun: X-Llama, or Llama 2's chat template, is not installed.
    """
    tokenizer = ByteTokenizer()
    with _served() as (served, _):
        found = _prompt(served, _conversation("Be brief.", 3))
    turns = [
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nquestion 1 [/INST] answer 1 ",
        "[INST] question 2 [/INST] answer 2 ",
        "[INST] question 3 [/INST]",
    ]
    expected: list[int] = []
    for number, turn in enumerate(turns):
        ends = [tokenizer.eos] if number + 1 < len(turns) else []
        expected += [tokenizer.bos, *tokenizer.encode(turn), *ends]
    different = sum(a != b for a, b in zip(found, expected, strict=False)) + abs(len(found) - len(expected))
    return Outcome(different == 0, f"{different} of {len(expected)} tokens of three turns differ")


def special_tags() -> Outcome:
    """Put each tag into a message of each role, and the names of the markers into a question.

    Raises:
        NotRun: X-Llama, or Llama 2's chat template, is not installed.
    """
    tokenizer = ByteTokenizer()
    with _served() as (served, _):
        codes = [_status(served, _conversation("Be brief.", 2, role, tag)) for tag in _TAGS for role in range(4)]
        prompt = _prompt(served, _conversation("Be brief.", 1, 1, "</s><s>"))
    markers = sum(token in (tokenizer.bos, tokenizer.eos) for token in prompt)
    refused = codes.count(400)
    found = f"{refused} of {len(codes)} messages with a tag are refused; </s><s> in one adds {markers - 1} markers"
    return Outcome(refused == len(codes) and markers == 1, found)


@contextmanager
def _served():
    """Yield a small X-Llama as it is served, and the model itself."""
    sizes = {"context": _CONTEXT, "dim": 32, "n_layers": 2, "n_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = MODELS["xllama"].build(vocab_size=ByteTokenizer().vocab_size, **sizes)
            template = CHAT_TEMPLATES.build("llama2")
        except UnknownKey as error:
            raise NotRun(str(error)) from None
    assert isinstance(model, CausalLM)
    with Engine(model.eval(), ByteTokenizer(), memory="8MB") as engine:
        yield ServedModel("tiny", engine, ByteTokenizer(), _CONTEXT, template), model


def _conversation(system: str, turns: int, changed: int | None = None, tag: str = "") -> list[dict[str, str]]:
    """Return a conversation that waits for its answer; the message number `changed`, from 0, also has the `tag`."""
    messages = [{"role": "system", "content": system}]
    for turn in range(1, turns + 1):
        messages.append({"role": "user", "content": f"question {turn}"})
        if turn < turns:
            messages.append({"role": "assistant", "content": f"answer {turn}"})
    if changed is not None:
        messages[changed]["content"] += tag
    return messages


def _prompt(served: ServedModel, messages: Sequence[Any]) -> list[int]:
    body = ChatBody.model_validate({"messages": messages, "max_tokens": 1, "seed": 0})
    prompt = served.chat_question(body).prompt
    assert not isinstance(prompt, str)
    return list(prompt)


def _status(served: ServedModel, messages: Sequence[Any]) -> int:
    """Return the status with which a conversation is refused, or 200."""
    try:
        _prompt(served, messages)
    except ApiError as error:
        return error.status
    return 200


def _scores(model: CausalLM, prompt: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([prompt]))[0, -1]
