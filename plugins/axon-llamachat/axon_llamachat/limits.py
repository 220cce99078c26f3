"""How much one client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServerLimits"]


@dataclass(frozen=True)
class ServerLimits:
    """The limits of a server; times are in seconds, sizes in bytes."""

    body: int = 4 << 20
    """The largest body of a request."""
    header_bytes: int = 16 << 10
    """The most that the names and values of a request's headers may have together."""
    headers: int = 100
    """The most headers of a request."""
    choices: int = 128
    """The most texts that one request may ask for: prompts times `n`."""
    connections: int = 1000
    """The most connections; more are closed at once."""
    header_seconds: float = 10.0
    """How long the head of a request may take to arrive."""
    idle_seconds: int = 5
    """How long a connection may be open between requests."""
    body_seconds: float = 30.0
    """How long a body may take to arrive."""
    stall_seconds: float = 30.0
    """How long a client may leave what is sent to it unread."""
    answer_seconds: float = 600.0
    """How long an answer may take."""
