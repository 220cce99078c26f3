"""Trees of messages, as OpenAssistant publishes them: each message has replies, and replies have ranks.

A tree is a row of its own, whose `prompt` has `replies`, or a row for each message, which names its parent. Messages
that were deleted, or that did not pass their review, are left out with all that follows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from axon_core.escaping import shortened
from axon_core.text.schemas.messages import RawMessage, message
from axon_core.text.schemas.rows import DataRow

__all__ = ["best_dialogue", "first_prompt", "rankings", "trees"]

Tree = Mapping[str, Any]
"""A message: `text`, `role`, and, if there are any, `rank` and `replies`."""


def best_dialogue(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the dialogue of a tree's best replies: at each message the one of the lowest rank, up to an answer.

    A tree without an answer yields nothing. Raises `ValueError` if it has something else than messages.
    """
    path, node = [_plain(_root(row))], _root(row)
    while replies := _replies(node):
        node = replies[0]
        path.append(_plain(node))
    while path and path[-1]["role"] != "assistant":
        path.pop()
    if path:
        yield {"messages": path}


def rankings(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a ranking for each message of a tree that has two answers with ranks, or more, the earliest first.

    Raises:
        ValueError: the tree has something else than messages.
    """
    open_ = [((_plain(_root(row)),), _root(row))]
    while open_:
        path, node = open_.pop()
        replies = _replies(node)
        texts = [reply["text"] for reply in replies if reply.get("rank") is not None]
        if path[-1]["role"] == "user" and len(texts) > 1:
            yield {"prompt": path, "responses": texts, "ranking": [*range(len(texts))]}
        open_ += [((*path, _plain(reply)), reply) for reply in reversed(replies)]


def first_prompt(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the message that a tree begins with. Raises `ValueError` if it is something else."""
    yield {"prompt": [_plain(_root(row))]}


def trees(rows: Iterable[DataRow]) -> Iterator[DataRow]:
    """Yield the trees of a file that has a row for each message, each with the number and name of its first row.

    Raises:
        ValueError: two messages have one id, or a message's parent is not in the file or follows it; the text names the
            row.
    """
    nodes: dict[object, tuple[int, str, dict[str, Any]]] = {}
    parents: dict[object, object] = {}
    for number, place, row in rows:
        key = row["message_id"]
        if not isinstance(key, str):
            raise ValueError(f"{place}: message_id must be a text, got {shortened(repr(key), 60)}")
        if key in nodes:
            raise ValueError(f"{place} has the message_id of {nodes[key][1]}, {shortened(repr(key), 60)}; remove one")
        kept = {name: row[name] for name in ("text", "role", "rank", "deleted", "review_result") if name in row}
        nodes[key] = number, place, {**kept, "replies": []}
        if (parent := row.get("parent_id")) is not None:
            parents[key] = parent
    for key, parent in parents.items():
        if not isinstance(parent, str) or parent not in nodes:
            raise ValueError(
                f"{nodes[key][1]} is a reply to {shortened(repr(parent), 60)}, which is not in the file; give the "
                "whole tree, or remove the reply"
            )
        nodes[parent][2]["replies"].append(nodes[key][2])
    _refuse_circles(nodes, parents)
    for key, (number, place, node) in nodes.items():
        if key not in parents:
            yield DataRow(number, place, {"message_tree_id": key, "prompt": node})


def _refuse_circles(nodes: Mapping[object, tuple[int, str, Any]], parents: Mapping[object, object]) -> None:
    """Raise `ValueError` if a message replies to one that follows it, so that no tree would have either."""
    rooted = {key for key in nodes if key not in parents}
    for key in nodes:
        path = dict[object, None]()
        while key not in rooted:
            if key in path:
                raise ValueError(f"{nodes[key][1]} is a reply to a message that follows it; remove one of them")
            path[key] = None
            key = parents[key]
        rooted |= path.keys()


def _root(row: Mapping[str, Any]) -> Tree:
    return _node(row["prompt"])


def _node(value: object) -> Tree:
    if not isinstance(value, Mapping) or not {"text", "role"} <= cast("Mapping[str, object]", value).keys():
        raise ValueError(f"a message of a tree must have text and role, got {shortened(repr(value), 60)}")
    return cast("Tree", value)


def _plain(node: Tree) -> RawMessage:
    return message(node["role"], node["text"])


def _replies(node: Tree) -> list[Tree]:
    """Return the replies to a message, the best first; those without a rank come last, in the order of the file."""
    found = node.get("replies") or []
    if not isinstance(found, list):
        raise ValueError(f"replies: must be a list, got {shortened(repr(found), 60)}")
    replies = [_node(reply) for reply in cast("list[object]", found)]
    replies = [one for one in replies if not one.get("deleted") and one.get("review_result") is not False]
    return sorted(replies, key=_rank)


def _rank(node: Tree) -> float:
    rank = node.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
        raise ValueError(f"rank: must be a number, got {shortened(repr(rank), 60)}")
    return float("inf") if rank is None else rank
