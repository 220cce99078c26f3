"""The schemas that are recognised: Axon's own, and those in which public data come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from axon_core.text.records import Comparison, CompletionRecord, Dialogue, Feedback, PromptRecord, Ranking
from axon_core.text.schemas.messages import is_list, message, messages, paragraphs, reply
from axon_core.text.schemas.pairs import explicit_pair, implicit_pair, transcript_pair
from axon_core.text.schemas.schema import Fields, Made, Purpose, RowSchema
from axon_core.text.schemas.transcripts import (
    by_headings,
    by_instructions,
    has_headings,
    has_instructions,
    has_speakers,
)
from axon_core.text.schemas.trees import best_dialogue, first_prompt, rankings, trees

__all__ = ["SCHEMAS"]

Gives = dict[Purpose, Made]


def _prompt(row: Fields) -> dict[str, Any]:
    """Return the prompt in a field of its own; one that is a text is the user's where messages follow it."""
    prompt = row["prompt"]
    if is_list(prompt):
        return {"prompt": messages(prompt, "prompt")}
    if is_list(row.get("chosen")) or is_list(row.get("rejected")):
        return {"prompt": explicit_pair(row)["prompt"]}
    return {"prompt": [message("user", prompt)] if is_list(row.get("completion")) else prompt}


_PROMPT = Made(PromptRecord, lambda row: [_prompt(row)])
"""One for all schemas with a `prompt`, so that their rows can stand in one file of prompts."""


def _prompts_of(values: Callable[[Fields], dict[str, Any]]) -> Made:
    """Return the prompts of other records: of messages, those before the answer that they end with."""

    def prompt(row: Fields) -> dict[str, Any]:
        record = values(row)
        if "prompt" in record:
            return {"prompt": record["prompt"]}
        said = record["messages"]
        return {"prompt": said[:-1] if said and said[-1]["role"] == "assistant" else said}

    return Made(PromptRecord, lambda row: [prompt(row)])


def _dialogues(values: Callable[[Fields], dict[str, Any]]) -> Gives:
    return {"demonstration": Made(Dialogue, lambda row: [values(row)]), "prompt": _prompts_of(values)}


def _preferences(values: Callable[[Fields], dict[str, Any]], prompts: Made | None = None) -> Gives:
    """Comparisons, with their rater; their two answers as feedback, the chosen one desirable; their prompts."""
    return {
        "preference": Made(Comparison, lambda row: [{**values(row), **_rater(row)}]),
        "feedback": Made(Feedback, lambda row: _judged(values(row))),
        "prompt": prompts or _prompts_of(values),
    }


def _rater(row: Fields) -> dict[str, Any]:
    return {"rater": row["rater"]} if "rater" in row else {}


def _judged(pair: Fields) -> Iterable[Fields]:
    for name, label in (("chosen", True), ("rejected", False)):
        yield {"prompt": pair["prompt"], "completion": pair[name], "label": label}


def _completion(row: Fields) -> dict[str, Any]:
    return {**_prompt(row), "completion": reply(row["completion"], "completion")}


def _instruction(context: str, answer: str) -> Callable[[Fields], dict[str, Any]]:
    """Return what makes a dialogue of an instruction, with its context as a paragraph after it, and the answer."""

    def values(row: Fields) -> dict[str, Any]:
        asked = paragraphs(row["instruction"], row.get(context))
        return {"messages": [message("user", asked), message("assistant", row[answer])]}

    return values


def _conversation(row: Fields) -> dict[str, Any]:
    said = messages(row["conversations"], "conversations")
    begins = bool(said) and said[0]["role"] == "system"
    return {"messages": said if begins or not row.get("system") else [message("system", row["system"]), *said]}


def _ranking(row: Fields) -> dict[str, Any]:
    kept = {name: row[name] for name in ("responses", "ranking", "unfinished") if name in row}
    return {**_prompt(row), **kept, **_rater(row)}


_MESSAGES = _dialogues(lambda row: {"messages": messages(row["messages"], "messages")})
_TREES: Gives = {
    "demonstration": Made(Dialogue, best_dialogue),
    "preference": Made(Ranking, rankings),
    "prompt": Made(PromptRecord, first_prompt),
}

SCHEMAS: tuple[RowSchema, ...] = (
    RowSchema("prompt", frozenset({"prompt"}), {"prompt": _PROMPT}),
    RowSchema(
        "completion",
        frozenset({"prompt", "completion"}),
        {"demonstration": Made(CompletionRecord, lambda row: [_completion(row)]), "prompt": _PROMPT},
    ),
    RowSchema("messages", frozenset({"messages"}), _MESSAGES),
    RowSchema(
        "comparison",
        frozenset({"prompt", "chosen", "rejected"}),
        _preferences(explicit_pair, _PROMPT),
        frozenset({"margin", "unfinished", "rater"}),
    ),
    RowSchema(
        "ranking",
        frozenset({"prompt", "responses", "ranking"}),
        {"preference": Made(Ranking, lambda row: [_ranking(row)]), "prompt": _PROMPT},
        frozenset({"unfinished", "rater"}),
    ),
    RowSchema(
        "feedback",
        frozenset({"prompt", "completion", "label"}),
        {"feedback": Made(Feedback, lambda row: [{**_completion(row), "label": row["label"]}]), "prompt": _PROMPT},
    ),
    RowSchema(
        "alpaca",
        frozenset({"instruction", "output"}),
        _dialogues(_instruction("input", "output")),
        frozenset({"input"}),
    ),
    RowSchema(
        "dolly",
        frozenset({"instruction", "response"}),
        _dialogues(_instruction("context", "response")),
        frozenset({"context"}),
    ),
    RowSchema(
        "sharegpt",
        frozenset({"conversations"}),
        _dialogues(_conversation),
        frozenset({"system"}),
    ),
    RowSchema(
        "guanaco",
        frozenset({"text"}),
        _dialogues(lambda row: {"messages": by_headings(row["text"])}),
        fits=lambda row: has_headings(row["text"]),
    ),
    RowSchema(
        "inst-text",
        frozenset({"text"}),
        _dialogues(lambda row: {"messages": by_instructions(row["text"])}),
        fits=lambda row: has_instructions(row["text"]),
    ),
    RowSchema(
        "implicit-comparison",
        frozenset({"chosen", "rejected"}),
        _preferences(implicit_pair),
        fits=lambda row: not _are_transcripts(row),
    ),
    RowSchema(
        "hh-rlhf",
        frozenset({"chosen", "rejected"}),
        _preferences(transcript_pair),
        fits=lambda row: _are_transcripts(row),
    ),
    RowSchema(
        "ultrafeedback",
        frozenset({"prompt", "chosen", "rejected", "messages"}),
        {**_MESSAGES, **_preferences(explicit_pair, _PROMPT)},
    ),
    RowSchema(
        "oasst-trees",
        frozenset({"message_tree_id", "prompt"}),
        _TREES,
        fits=lambda row: isinstance(row["prompt"], Mapping),
    ),
    RowSchema(
        "oasst-messages",
        frozenset({"message_id", "text", "role"}),
        _TREES,
        frozenset({"parent_id", "rank", "deleted", "review_result"}),
        assemble=trees,
    ),
)
"""All schemas; a row is of the one that has most of its fields."""


def _are_transcripts(row: Fields) -> bool:
    return has_speakers(row["chosen"]) and has_speakers(row["rejected"])
