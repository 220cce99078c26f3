"""Stop strings: where a stream of text ends, found without emitting any part of what ends it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings", "cut"]


class StopStrings:
    """Passes on a stream of text up to the first complete stop string, which is not emitted.

    Text that may turn out to begin a stop string is held back until that is decided. The pieces that come out, joined,
    thus equal `cut` of the pieces that went in, joined, however the text was divided.

    >>> stop = StopStrings(["END"])
    >>> stop.push("the E"), stop.push("N"), stop.push("T, EN"), stop.push("D."), stop.stopped
    ('the ', '', 'ENT, ', '', True)
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> str:
        """Return the text that is now certain and was not emitted before; nothing once it has stopped."""
        if self.stopped:
            return ""
        text = self._held + text
        kept = cut(text, self._stop)
        if kept is not None:
            self.stopped, self._held = True, ""
            return kept
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """Return what was held back: at the end of the text it does not begin a stop string after all."""
        held, self._held = self._held, ""
        return held


def cut(text: str, stop: Sequence[str]) -> str | None:
    """Return the text before the stop string that is complete first, or None if there is none.

    Of two that end at the same character, the one that begins earlier counts.
    """
    found = [(start + len(end), start) for end in stop if (start := text.find(end)) >= 0]
    return text[: min(found)[1]] if found else None


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop` without completing it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
