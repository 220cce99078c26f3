"""Which chat template a model's dialogues are written in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from axon_core import CHAT_TEMPLATES, AxonError, ChatTemplate, CheckpointError, Tokenizer, UsageError
from axon_core.text import Message, published_template
from axon_core.training import RunFolder

__all__ = ["ChosenTemplate", "choose_template"]

_USUAL = "llama2"


class ChosenTemplate(NamedTuple):
    """The chat template of a model."""

    name: str
    """Its name."""
    template: ChatTemplate
    """The template."""
    learned: bool
    """Whether the model learned dialogues in it, or the user named it."""


def choose_template(
    run: Path, tokenizer: Tokenizer, name: str | None, notice: Callable[[str], object] = warnings.warn
) -> ChosenTemplate | None:
    """Return the chat template of a model, or None if it cannot chat.

    That is the template `name`; or the one that its run learned dialogues in; or the one that it was published with;
    or, as in `axon chat`, Llama 2's, if the tokenizer has what it needs. `notice` is called with the reason why the
    one that it was published with cannot be used.

    Raises:
        UsageError: there is no template `name`, or it does not suit the tokenizer.
    """
    known = name or _learned(run)
    probe = [Message(role="user", content="a")]
    if known is None and (published := published_template(tokenizer)):
        try:
            published(tokenizer, probe)
        except AxonError as error:
            notice(str(error))
            return None
        return ChosenTemplate("published", published, True)
    chosen = known or _USUAL
    try:
        template = CHAT_TEMPLATES.build(chosen)
        template(tokenizer, probe)
    except AxonError as error:
        if name is None:
            return None
        raise UsageError(f"the chat template {name!r} cannot be used with the model in {run}: {error}") from None
    return ChosenTemplate(chosen, template, known is not None)


def _learned(run: Path) -> str | None:
    """Return the template in the recipe of a run's folder, if it names one."""
    try:
        recipe = RunFolder.open(run).facts.get("recipe", {})
    except CheckpointError:
        return None
    template = recipe.get("data", {}).get("template")
    return template if isinstance(template, str) else None
