"""Two answers to one prompt, which may stand in a field of its own or be what both begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from axon_core.text.schemas.messages import RawMessage, is_list, message, messages, reply, without_prompt
from axon_core.text.schemas.transcripts import by_speakers

__all__ = ["explicit_pair", "implicit_pair", "transcript_pair"]

Values = dict[str, Any]
"""The fields of a record, not yet checked."""


def explicit_pair(row: Mapping[str, Any]) -> Values:
    """Return a comparison of a row with `prompt`, `chosen` and `rejected`, each a text or messages.

    Messages of an answer may repeat those of the prompt, and a prompt that is a text may be repeated as the user's last
    message, as in UltraFeedback; then what both lists begin with is the prompt. With answers that are messages, a
    prompt that is a text is the user's message.

    Raises:
        ValueError: an answer is not one message of the assistant.
    """
    chosen, rejected, asked = row["chosen"], row["rejected"], _asked(row)
    if asked is not None:
        chosen, rejected = without_prompt(chosen, asked, "chosen"), without_prompt(rejected, asked, "rejected")
    kept = {name: row[name] for name in ("margin", "unfinished") if name in row}
    return {
        "prompt": row["prompt"] if asked is None else asked,
        "chosen": reply(chosen, "chosen"),
        "rejected": reply(rejected, "rejected"),
        **kept,
    }


def _asked(row: Mapping[str, Any]) -> list[RawMessage] | None:
    """Return the messages of the prompt, or None if it is a text that a text follows."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if is_list(prompt):
        return messages(prompt, "prompt")
    if not is_list(chosen) and not is_list(rejected):
        return None
    asked = message("user", prompt)
    if not (is_list(chosen) and is_list(rejected)):
        return [asked]
    shared = _shared(messages(chosen, "chosen"), messages(rejected, "rejected"))
    if shared and shared[-1] != asked:
        raise ValueError("prompt: must be the user's last message that chosen and rejected begin with")
    return shared or [asked]


def implicit_pair(row: Mapping[str, Any]) -> Values:
    """Return a comparison of a row with `chosen` and `rejected`, whose common beginning is the prompt.

    Of two texts it ends before the last space or newline that they share, so that no word is cut.

    Raises:
        ValueError: they have no beginning in common, or only one of them goes on after it.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if is_list(chosen) or is_list(rejected):
        return _split(messages(chosen, "chosen"), messages(rejected, "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise ValueError("chosen and rejected: both must be texts, or both messages")
    shared = chosen[: _alike(chosen, rejected)]
    end = max(shared.rfind(space) for space in " \n\t")
    if not shared[: max(end, 0)].strip():
        raise ValueError("chosen and rejected: must begin with the same prompt, or the prompt must be a field `prompt`")
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def transcript_pair(row: Mapping[str, Any]) -> Values:
    """Return a comparison of a row whose `chosen` and `rejected` are transcripts that begin with the same messages.

    Raises:
        ValueError: after those, an answer is not one message of the assistant.
    """
    return _split(by_speakers(row["chosen"]), by_speakers(row["rejected"]))


def _split(chosen: list[RawMessage], rejected: list[RawMessage]) -> Values:
    prompt = _shared(chosen, rejected)
    if not prompt:
        raise ValueError("chosen and rejected: must begin with the same messages, the prompt")
    n = len(prompt)
    return {"prompt": prompt, "chosen": reply(chosen[n:], "chosen"), "rejected": reply(rejected[n:], "rejected")}


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many items two sequences have in common at their beginning."""
    different = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(different, min(len(one), len(other)))


def _shared(chosen: list[RawMessage], rejected: list[RawMessage]) -> list[RawMessage]:
    """Return the messages that both begin with, up to one of the user."""
    n = _alike(chosen, rejected)
    while n and chosen[n - 1]["role"] != "user":
        n -= 1
    return chosen[:n]
