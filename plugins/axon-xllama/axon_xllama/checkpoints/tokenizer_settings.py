"""How the tokenizer of a Hugging Face folder is used: its markers, the ids that end a text, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axon_core import CheckpointError
from axon_core.text import PipelineTokenizer
from axon_xllama.checkpoints.hugging_face import read_json


def read_pipeline(file: Path, folder: Path) -> PipelineTokenizer:
    """Return the tokenizer of a `tokenizer.json`, with its markers and chat template as the `folder` says.

    Raises:
        CheckpointError: a file of the folder is damaged, or asks for a `bos` that no file names.
        ValueError: the tokenizer cannot be used.
        OSError: it cannot be read.
        UsageError: the tokenizers library is not installed.
    """
    content = file.read_bytes()
    ids = PipelineTokenizer(content).markers
    first = _first_special(read_json(file).get("post_processor"), file)
    begin, end = _begin(folder, ids, first), ids.get(_content(_tokenizer_config(folder).get("eos_token")))
    stated, last = _stated_add_bos(folder), ends(folder)
    if stated and begin is None:
        raise CheckpointError(
            f"add_bos_token is true in {folder / 'tokenizer_config.json'}, but there is no bos: bos_token there, the "
            f"post_processor of {file.name} or bos_token_id in config.json must name a special token"
        )
    return PipelineTokenizer(
        content,
        bos=begin,
        eos=end if end is not None else next(iter(last), None),
        add_bos=first is not None if stated is None else stated,
        other_ends=last,
        chat_template=chat_template(folder),
    )


def _begin(folder: Path, ids: Mapping[str, int], first: int | None) -> int | None:
    """Return the `bos` of a tokenizer with these markers, whose post-processor puts `first` before a text.

    The id in `config.json` counts only if it is a marker: many configs still have the default of their class.
    """
    named: Any = _tokenizer_config(folder).get("bos_token", ...)
    if (found := ids.get(_content(named), first)) is not None or named is None:
        return found
    config = folder / "config.json"
    token: Any = read_json(config).get("bos_token_id") if config.exists() else None
    return token if type(token) is int and token in ids.values() else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.exists() else {}


def _content(token: Any) -> str:
    """Return the text of a marker, which older files give as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def add_bos(folder: Path) -> bool:
    """Return whether a text begins with `bos`, as Llama's do unless the folder says otherwise.

    `add_bos_token` in `tokenizer_config.json` decides. If it is absent, as in what transformers 5 saves, the steps
    after encoding in `tokenizer.json` decide.

    Raises:
        CheckpointError: a file is damaged.
    """
    stated, pipeline = _stated_add_bos(folder), folder / "tokenizer.json"
    if stated is None and pipeline.exists():
        return _first_special(read_json(pipeline).get("post_processor"), pipeline) is not None
    return stated is not False


def _stated_add_bos(folder: Path) -> bool | None:
    """Return the `add_bos_token` of `tokenizer_config.json`, or None if it is absent."""
    added: Any = _tokenizer_config(folder).get("add_bos_token")
    if added is not None and not isinstance(added, bool):
        raise CheckpointError(
            f"add_bos_token must be true or false in {folder / 'tokenizer_config.json'}, got {added!r:.60}"
        )
    return added


def _first_special(step: Any, file: Path) -> int | None:
    """Return the id of the special token that a post-processor of the tokenizers library puts before a text, if any.

    Raises:
        CheckpointError: the post-processor, which is in `file`, is malformed.
    """
    match step:
        case None:
            return None
        case {"type": "Sequence", "processors": list(inner)}:
            return next((found for part in inner if (found := _first_special(part, file)) is not None), None)
        case {"type": "TemplateProcessing", "single": [] | [{"Sequence": _}, *_]}:
            return None
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(name)}}, *_]}:
            tokens: Any = step.get("special_tokens")
            named: Any = tokens.get(name) if isinstance(tokens, dict) else None
            if isinstance(named, dict) and isinstance(ids := named.get("ids"), list) and ids and type(ids[0]) is int:
                return ids[0]
        case {"type": str(kind)} if kind not in ("Sequence", "TemplateProcessing"):
            return None
        case _:
            pass
    raise CheckpointError(f"the post_processor of {file} is malformed: {step!r:.80}")


def ends(folder: Path) -> list[int]:
    """Return the ids that end a text, by `generation_config.json` or, if that does not say, by `config.json`.

    Raises:
        CheckpointError: a file is damaged, or they are not ids.
    """
    for file in (folder / "generation_config.json", folder / "config.json"):
        found: Any = read_json(file).get("eos_token_id") if file.exists() else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise CheckpointError(f"eos_token_id must be an id or a list of ids in {file}, got {found!r:.60}")
        return ids
    return []


def chat_template(folder: Path) -> str:
    """Return the chat template that the folder holds, in Jinja's language; empty if there is none.

    Raises:
        CheckpointError: a file is damaged.
    """
    alone, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if alone.exists():
        return alone.read_bytes().decode("utf-8", "replace")
    found: Any = read_json(settings).get("chat_template") if settings.exists() else None
    if isinstance(found, list):  # several by name, as in files of 2024
        named = (each for each in found if isinstance(each, dict) and each.get("name") == "default")
        found = next(named, {}).get("template")
    return found if isinstance(found, str) else ""
