"""Made-up rows in the shapes of public data, and the same content as Axon's own records, written out by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

Rows = list[dict[str, Any]]


class Case(NamedTuple):
    """Rows of one schema.

    Attributes:
        schema: its name.
        rows: as they are published.
        own: the same content by purpose: `demonstration`, `preference`, `feedback`, `prompt`.
        ignored: the fields that nothing reads.
    """

    schema: str
    rows: Rows
    own: dict[str, Rows]
    ignored: tuple[str, ...] = ()


def said(*texts: str, system: str = "") -> Rows:
    """Messages of user and assistant in turn, perhaps after the system's."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def dialogues(*them: Rows) -> dict[str, Rows]:
    """Dialogues, and the prompts in them."""
    return {
        "demonstration": [{"messages": messages} for messages in them],
        "prompt": [{"prompt": messages[:-1]} for messages in them],
    }


def pairs(*them: tuple[Any, str, str]) -> dict[str, Rows]:
    """Comparisons, both of their answers as feedback, and their prompts."""
    return {
        "preference": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in them],
        "feedback": [
            {"prompt": p, "completion": text, "label": label}
            for p, *both in them
            for text, label in zip(both, (True, False), strict=True)
        ],
        "prompt": [{"prompt": p} for p, _, _ in them],
    }


def _sharegpt(*texts: str, system: str = "") -> Rows:
    names = ("human", "gpt")
    turns = [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]
    return [{"from": "system", "value": system}, *turns] if system else turns


def _node(key: str, role: str, text: str, rank: int | None = None, replies: Rows | None = None) -> dict[str, Any]:
    return {
        **{"message_id": key, "text": text, "role": role, "lang": "en", "rank": rank, "deleted": False},
        "replies": replies or [],
    }


_TREES = [
    _node(
        "m1",
        "prompter",
        "Name a tree.",
        replies=[
            _node("m2", "assistant", "A brick.", 1),
            _node(
                "m3",
                "assistant",
                "An oak.",
                0,
                [
                    _node(
                        "m4",
                        "prompter",
                        "Another?",
                        replies=[
                            _node("m5", "assistant", "No.", 2),
                            _node("m6", "assistant", "A beech.", 0),
                            _node("m7", "assistant", "An elm.", 1),
                        ],
                    )
                ],
            ),
        ],
    ),
    _node(
        "m8",
        "prompter",
        "Count to two.",
        replies=[_node("m9", "assistant", "One, two.", 0), _node("m10", "assistant", "Two.", 1)],
    ),
    _node(
        "m11",
        "prompter",
        "Is it late?",
        replies=[_node("m12", "assistant", "It is.", 0), _node("m13", "assistant", "Late is it.", 1)],
    ),
]


def _flat(node: dict[str, Any], parent: str | None = None) -> Rows:
    own = {name: value for name, value in node.items() if name != "replies"}
    rows = [{**own, "parent_id": parent, "message_tree_id": "t"}]
    return rows + [row for reply in node["replies"] for row in _flat(reply, node["message_id"])]


_OASST = {
    "demonstration": [
        {"messages": said("Name a tree.", "An oak.", "Another?", "A beech.")},
        {"messages": said("Count to two.", "One, two.")},
        {"messages": said("Is it late?", "It is.")},
    ],
    "preference": [
        {"prompt": said("Name a tree."), "responses": ["An oak.", "A brick."], "ranking": [0, 1]},
        {
            "prompt": said("Name a tree.", "An oak.", "Another?"),
            "responses": ["No.", "An elm.", "A beech."],
            "ranking": [2, 1, 0],
        },
        {"prompt": said("Count to two."), "responses": ["One, two.", "Two."], "ranking": [0, 1]},
        {"prompt": said("Is it late?"), "responses": ["It is.", "Late is it."], "ranking": [0, 1]},
    ],
    "prompt": [{"prompt": said(text)} for text in ("Name a tree.", "Count to two.", "Is it late?")],
}

_SHORT = [("Add 1 and 2.", "3"), ("Spell cat.", "c, a, t"), ("Which sea is salt?", "All of them.")]
_CHOICES = [("Add 1 and 2.", "3", "4"), ("Spell cat.", "c, a, t", "k, a, t"), ("Sing.", "La la.", "No.")]


def _assistant(text: str) -> Rows:
    return [{"role": "assistant", "content": text}]


CASES = [
    Case(
        "alpaca",
        [
            {"instruction": "Add the numbers.", "input": "1, 2", "output": "3", "text": "Below is an instruction."},
            {"instruction": "Spell cat.", "input": "", "output": "c, a, t", "text": "Below is an instruction."},
            {"instruction": "Which sea is salt?", "input": "", "output": "All of them.", "text": "Below …"},
        ],
        dialogues(said("Add the numbers.\n\n1, 2", "3"), *(said(*pair) for pair in _SHORT[1:])),
        ("text",),
    ),
    Case(
        "dolly",
        [
            {"instruction": "Who came?", "context": "Ann came.", "response": "Ann.", "category": "closed_qa"},
            {"instruction": "Spell cat.", "context": "", "response": "c, a, t", "category": "open_qa"},
            {"instruction": "Which sea is salt?", "context": "", "response": "All of them.", "category": "open_qa"},
        ],
        dialogues(said("Who came?\n\nAnn came.", "Ann."), *(said(*pair) for pair in _SHORT[1:])),
        ("category",),
    ),
    Case(
        "sharegpt",
        [
            {"id": "a_0", "conversations": _sharegpt("Hi", "Hello", "Who?", "Me", system="Be brief.")},
            {"id": "b_0", "conversations": _sharegpt(*_SHORT[1])},
            {"id": "c_0", "conversations": _sharegpt(*_SHORT[2])},
        ],
        dialogues(said("Hi", "Hello", "Who?", "Me", system="Be brief."), said(*_SHORT[1]), said(*_SHORT[2])),
        ("id",),
    ),
    Case(
        "messages",
        [
            {"messages": [{**one, "name": "x", "weight": 1} for one in said("Hi", "Hello", system="Be brief.")]},
            {"messages": said("Spell cat.", "c, a, t", "Why?", "It is one.")},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, *_assistant("Ho")]},
        ],
        dialogues(
            said("Hi", "Hello", system="Be brief."),
            said("Spell cat.", "c, a, t", "Why?", "It is one."),
            said("Hi", "Ho"),
        ),
        ("messages.name", "messages.weight"),
    ),
    Case(
        "guanaco",
        [
            {"text": "### Human: Hi there### Assistant: Hello!### Human: Who?### Assistant: Me."},
            {"text": "### Human: Spell cat.\n### Assistant: c, a, t\n"},
            {"text": "### Human: Which sea is salt? ### Assistant: All of them."},
        ],
        dialogues(said("Hi there", "Hello!", "Who?", "Me."), said(*_SHORT[1]), said(*_SHORT[2])),
    ),
    Case(
        "inst-text",
        [
            {"text": "<s>[INST] Hi there [/INST] Hello! </s><s>[INST] Who? [/INST] Me. </s>"},
            {"text": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nSpell cat. [/INST] c, a, t </s>"},
            {"text": "<s>[INST] Which sea is salt? [/INST] All of them. </s>"},
        ],
        dialogues(
            said("Hi there", "Hello!", "Who?", "Me."),
            said("Spell cat.", "c, a, t", system="Be brief."),
            said(*_SHORT[2]),
        ),
    ),
    Case(
        "completion",  # TRL's conversational form: only the completion is learned
        [{"prompt": said("Hi", "Ho", ask), "completion": _assistant(answer)} for ask, answer in _SHORT],
        {
            "demonstration": [{"prompt": said("Hi", "Ho", ask), "completion": answer} for ask, answer in _SHORT],
            "prompt": [{"prompt": said("Hi", "Ho", ask)} for ask, _ in _SHORT],
        },
    ),
    Case(
        "hh-rlhf",
        [
            {
                "chosen": f"\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: {ask}\n\nAssistant: {good}",
                "rejected": f"\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: {ask}\n\nAssistant: {bad}",
            }
            for ask, good, bad in _CHOICES
        ],
        pairs(*((said("Hi", "Ho", ask), good, bad) for ask, good, bad in _CHOICES)),
    ),
    Case(
        "ultrafeedback",
        [
            {
                **{"prompt": ask, "prompt_id": "0a1b", "score_chosen": 8.5, "score_rejected": 7.0},
                **{"chosen": said(ask, good), "rejected": said(ask, bad), "messages": said(ask, good)},
            }
            for ask, good, bad in _CHOICES
        ],
        {
            **pairs(*((said(ask), good, bad) for ask, good, bad in _CHOICES)),
            "demonstration": [{"messages": said(ask, good)} for ask, good, _ in _CHOICES],
        },
        ("prompt_id", "score_chosen", "score_rejected"),
    ),
    Case(
        "comparison",  # TRL's conversational form with the prompt in a field of its own
        [
            {"prompt": said(ask, system="Be brief."), "chosen": _assistant(good), "rejected": _assistant(bad)}
            for ask, good, bad in _CHOICES
        ],
        pairs(*((said(ask, system="Be brief."), good, bad) for ask, good, bad in _CHOICES)),
    ),
    Case(
        "comparison",  # TRL's standard form
        [{"prompt": ask, "chosen": f" {good}", "rejected": f" {bad}"} for ask, good, bad in _CHOICES],
        pairs(*((ask, f" {good}", f" {bad}") for ask, good, bad in _CHOICES)),
    ),
    Case(
        "implicit-comparison",  # TRL's standard form
        [
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            {"chosen": "Add 1 and 2: 3", "rejected": "Add 1 and 2: 4"},
            {"chosen": "Snow is white, says Ann.", "rejected": "Snow is white, say I."},
        ],
        pairs(
            ("The sky is", " blue.", " black."),
            ("Add 1 and 2:", " 3", " 4"),
            ("Snow is white,", " says Ann.", " say I."),
        ),
    ),
    Case(
        "implicit-comparison",  # TRL's conversational form
        [{"chosen": said(ask, good), "rejected": said(ask, bad)} for ask, good, bad in _CHOICES],
        pairs(*((said(ask), good, bad) for ask, good, bad in _CHOICES)),
    ),
    Case(
        "feedback",  # TRL's conversational form
        [
            {"prompt": said(ask), "completion": _assistant(text), "label": label}
            for ask, *both in _CHOICES
            for text, label in zip(both, (True, False), strict=True)
        ],
        {
            "feedback": pairs(*((said(ask), good, bad) for ask, good, bad in _CHOICES))["feedback"],
            "prompt": [{"prompt": said(ask)} for ask, _, _ in _CHOICES for _ in range(2)],
        },
    ),
    Case(
        "feedback",  # TRL's standard form
        [
            {"prompt": ask, "completion": f" {text}", "label": len(text) > 3, "id": 7}
            for ask, *both in _CHOICES
            for text in both
        ],
        {
            "feedback": [
                {"prompt": ask, "completion": f" {text}", "label": len(text) > 3}
                for ask, *both in _CHOICES
                for text in both
            ],
            "prompt": [{"prompt": ask} for ask, _, _ in _CHOICES for _ in range(2)],
        },
        ("id",),
    ),
    Case(
        "prompt",
        [{"prompt": said("Hi", "Ho", ask), "source": "me"} for ask, _ in _SHORT],
        {"prompt": [{"prompt": said("Hi", "Ho", ask)} for ask, _ in _SHORT]},
        ("source",),
    ),
    Case(
        "prompt",
        [{"prompt": ask} for ask, _ in _SHORT],
        {"prompt": [{"prompt": ask} for ask, _ in _SHORT]},
    ),
    Case(
        "oasst-trees",
        [{"message_tree_id": node["message_id"], "tree_state": "ready_for_export", "prompt": node} for node in _TREES],
        _OASST,
        ("tree_state",),
    ),
    Case("oasst-messages", [row for node in _TREES for row in _flat(node)], _OASST, ("lang", "message_tree_id")),
]
"""Every schema, some in two forms."""
