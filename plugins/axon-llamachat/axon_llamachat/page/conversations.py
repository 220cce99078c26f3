"""Conversations as the browser keeps them: what is said, and how it changes. The server keeps none."""

from __future__ import annotations

import secrets
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["SavedTalks", "Talk", "Turn"]

_MOST = 100
_TITLE = 40  # characters


class _Value(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return what the browser sent, or an empty one if that is not valid."""
        try:
            return cls.model_validate(value)
        except ValidationError:
            return cls()

    def json_value(self) -> dict[str, Any]:
        """Return it for the browser."""
        return self.model_dump(mode="json")


class Turn(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class Talk(_Value):
    """A conversation: the user and the assistant take turns."""

    key: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Tells it from the others."""
    turns: tuple[Turn, ...] = ()
    """What has been said."""
    busy: bool = False
    """Whether an answer is being written."""

    @property
    def title(self) -> str:
        """The beginning of its first message."""
        text = " ".join(self.turns[0].content.split()) if self.turns else ""
        return text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"

    def ask(self, text: str) -> Self:
        """Return it with the user's next message, in place of one without an answer; if it is empty, unchanged."""
        if not text.strip() or self.busy:
            return self
        before = self._settled_turns()
        before = before[:-1] if before and before[-1].role == "user" else before
        return self._with(*before, Turn(role="user", content=text), busy=True)

    def answer(self, text: str) -> Self:
        """Return it with what the assistant has written so far after the user's last message."""
        return self._with(*self._asked(), Turn(role="assistant", content=text), busy=True)

    def retry(self) -> Self:
        """Return it without the answer to the user's last message."""
        return self._with(*self._asked(), busy=bool(self._asked()))

    def edit(self, index: int, text: str) -> Self:
        """Return it up to the user's message `index`, which says `text` now; if there is none, unchanged."""
        mine = 0 <= index < len(self.turns) and self.turns[index].role == "user" and bool(text.strip())
        return self._with(*self.turns[:index], Turn(role="user", content=text), busy=True) if mine else self

    def settle(self) -> Self:
        """Return it when nothing is written any more: without an answer that has no text."""
        return self._with(*self._settled_turns(), busy=False)

    def _settled_turns(self) -> tuple[Turn, ...]:
        empty = self.turns and self.turns[-1].role == "assistant" and not self.turns[-1].content
        return self.turns[:-1] if empty else self.turns

    def _asked(self) -> tuple[Turn, ...]:
        """Return the turns up to the user's last message."""
        return self.turns[:-1] if self.turns and self.turns[-1].role == "assistant" else self.turns

    def _with(self, *turns: Turn, busy: bool) -> Self:
        return self.model_copy(update={"turns": turns, "busy": busy})


class SavedTalks(_Value):
    """The conversations that a browser keeps, the latest first."""

    conversations: tuple[Talk, ...] = ()
    """They; at most a hundred."""

    def put(self, one: Talk) -> Self:
        """Return them with this one, in its place if it is known; one without turns is not kept."""
        if not one.turns:
            return self
        settled = one.settle()
        if self.find(one.key) is None:
            return self._with(settled, *self.conversations[: _MOST - 1])
        return self._with(*(settled if each.key == one.key else each for each in self.conversations))

    def without(self, key: str) -> Self:
        """Return them without one."""
        return self._with(*(each for each in self.conversations if each.key != key))

    def find(self, key: str) -> Talk | None:
        """Return the one with this key, if there is one."""
        return next((each for each in self.conversations if each.key == key), None)

    def listing(self, open_key: str) -> dict[str, Any]:
        """Return what the list of conversations shows."""
        return {"open": open_key, "titles": [[each.key, each.title] for each in self.conversations]}

    def _with(self, *conversations: Talk) -> Self:
        return self.model_copy(update={"conversations": conversations})
