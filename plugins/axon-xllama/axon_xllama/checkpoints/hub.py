"""Checkpoints from the Hugging Face hub: settings first, which are checked, and then weights as safetensors alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from axon_core import CheckpointError, first_line
from axon_core.registry import import_optional
from axon_xllama.checkpoints.hugging_face import INDEX, WEIGHTS, check_has_weights, indexed
from axon_xllama.checkpoints.importing import check_settings

__all__ = ["download", "is_hub_name"]

_SETTINGS = ("*.json", "*.jinja", "tokenizer.model")
_FILES = (".bin", ".gguf", ".pth", ".safetensors")
_NAMED = 4  # files that a message lists
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_name(text: str) -> bool:
    """Whether a text is `ORGANISATION/NAME`, does not end as a file of weights does, and is not a path of anything."""
    return _NAME.fullmatch(text) is not None and not text.endswith(_FILES) and not Path(text).exists()


def download(name: str, revision: str | None = None, check: Callable[[Path], object] = check_settings) -> Path:
    """Return the folder of a checkpoint of the hub, in the cache that `huggingface_hub` keeps; it is copied there once.

    Only JSON, chat templates, `tokenizer.model` and the safetensors of the model are taken. A download that was
    interrupted goes on where it ended. The access token is the one that `hf auth login` has stored, or `HF_TOKEN`.

    Args:
        name: `ORGANISATION/NAME`.
        revision: a branch, tag or commit; left out, the newest.
        check: called with the folder before it has the weights, which are not copied if this raises.

    Raises:
        CheckpointError: there is no such checkpoint or revision, it must be asked for first, the hub cannot be reached,
            or it is not a model that X-Llama can be, which is found before the weights are copied.
        UsageError: `huggingface_hub` is not installed.
    """
    library: Any = import_optional("huggingface_hub", "hub")
    address = os.environ.get("HF_ENDPOINT")  # which the library reads only once
    hub = library.HfApi(endpoint=address)

    def fetched(patterns: Sequence[str], commit: str | None) -> Path:
        with _telling(name, revision):
            only = {"allow_patterns": patterns, "ignore_patterns": "*/*"}
            return Path(hub.snapshot_download(name, revision=commit, **only))

    folder = fetched(_SETTINGS, revision)
    commit = folder.name  # what is checked is what is copied, even if the hub has a newer one by then
    if not (folder / "config.json").exists() or not any((folder / file).exists() for file in (WEIGHTS, INDEX)):
        with _telling(name, revision):
            files = hub.list_repo_files(name, revision=commit)
        _check_files(name, files)
    check(folder)
    fetched([WEIGHTS], commit)
    if not (folder / WEIGHTS).exists():
        fetched([escape(file) for file in {*indexed(folder).values()}], commit)
    return folder


def _check_files(name: str, files: Collection[str]) -> None:
    """Check that the files of a repository are a checkpoint. Raises `CheckpointError` if they are not."""
    quantised = sorted(file for file in files if file.endswith(".gguf"))
    if quantised and not {WEIGHTS, INDEX} & {*files}:
        more = f" and {len(quantised) - _NAMED} more" if len(quantised) > _NAMED else ""
        raise CheckpointError(
            f"{name} holds GGUF files ({', '.join(quantised[:_NAMED])}{more}); copy one with `hf download {name} "
            f"{quantised[0]} --local-dir .`, and import that file: `axon import {quantised[0]} --out FOLDER`"
        )
    if "config.json" not in files:
        raise CheckpointError(f"{name} is not a checkpoint of Hugging Face transformers: it has no config.json")
    check_has_weights(name, files)


@contextmanager
def _telling(name: str, revision: str | None) -> Generator[None]:
    """Say in Axon's words what the hub refuses in the block."""
    errors: Any = import_optional("huggingface_hub.errors", "hub")
    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} must be asked for: agree to its terms on its page, and log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no folder {name} here, and the hub has no {name}, or not for you; check the name, and log in "
            "with `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision!r}") from None
    except Exception as error:  # also of the HTTP client, of which the library has had several
        raise CheckpointError(
            f"{name}{at} cannot be copied from the hub: {first_line(error)}; the same command goes on where it ended"
        ) from None
