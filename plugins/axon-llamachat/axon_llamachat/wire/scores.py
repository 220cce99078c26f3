"""Log-probabilities on the wire: of completions, with offsets in the text, and of chat completions, with bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axon_core import Tokenizer
from axon_eet import Scored

__all__ = ["chat_scores", "completion_scores", "token_text"]

_LEAST = -9999.0  # JSON has no −∞


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""Return the text of one token: `<bos>`, `<eos>` or `<3>` where it has none, `bytes:\xe2` for part of a character.

    >>> from axon_core import ByteTokenizer
    >>> [token_text(ByteTokenizer(), token) for token in (97, 0xE2, 257)]
    ['a', 'bytes:\\xe2', '<eos>']
    """
    piece = tokenizer.piece(token)
    if not piece:
        return {tokenizer.bos: "<bos>", tokenizer.eos: "<eos>"}.get(token, f"<{token}>")
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def completion_scores(
    tokenizer: Tokenizer, scores: Sequence[Scored], offsets: Sequence[int], top: int
) -> dict[str, list[Any]]:
    """Return the `logprobs` of a completion, or of a piece of one; `offsets` say where each token's text begins.

    The likeliest tokens at a place are keyed by text; of several with one text the likeliest counts. The token itself
    is among them, so that they are one more if it is not one of the `top` likeliest.
    """
    likeliest: list[dict[str, float] | None] = []
    for token, logprob, others in scores:
        named: dict[str, float] = {}
        for other, value in (*others[:top], (token, logprob or 0.0)):
            named.setdefault(token_text(tokenizer, other), _number(value))
        likeliest.append(None if logprob is None else named)
    return {
        "tokens": [token_text(tokenizer, score.token) for score in scores],
        "token_logprobs": [None if score.logprob is None else _number(score.logprob) for score in scores],
        "top_logprobs": likeliest,
        "text_offset": list(offsets),
    }


def chat_scores(tokenizer: Tokenizer, scores: Sequence[Scored], top: int) -> dict[str, Any]:
    """Return the `logprobs` of a chat completion, or of a piece of one, with the `top` likeliest tokens at a place."""
    content = [
        _entry(tokenizer, token, logprob) | {"top_logprobs": [_entry(tokenizer, *other) for other in likeliest[:top]]}
        for token, logprob, likeliest in scores
    ]
    return {"content": content, "refusal": None}


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    piece, text = tokenizer.piece(token), token_text(tokenizer, token)
    return {"token": text, "logprob": _number(logprob or 0.0), "bytes": list(piece) if piece else None}


def _number(logprob: float) -> float:
    return max(logprob, _LEAST)
