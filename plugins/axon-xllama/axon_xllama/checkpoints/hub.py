"""Checkpoints from the Hugging Face hub: settings first, which are checked, and then weights as safetensors alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from axon_core import AxonError, CheckpointError
from axon_core.registry import import_optional
from axon_xllama.checkpoints.hugging_face import config_from_hugging_face, read_json

__all__ = ["download", "is_hub_name"]

_SETTINGS = ("*.json", "*.jinja", "tokenizer.model")
_WEIGHTS = ("*.safetensors",)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_name(text: str) -> bool:
    """Whether a text is `ORGANISATION/NAME`, and nothing of that name is here."""
    return _NAME.fullmatch(text) is not None and not Path(text).exists()


def download(name: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint of the hub, in the cache that `huggingface_hub` keeps; it is copied there once.

    Only JSON, chat templates, `tokenizer.model` and safetensors are taken. A download that was interrupted goes on
    where it ended. The access token is the one that `hf auth login` has stored, or `HF_TOKEN`.

    Args:
        name: `ORGANISATION/NAME`.
        revision: a branch, tag or commit; left out, the newest.

    Raises:
        CheckpointError: there is no such checkpoint or revision, it must be asked for first, the hub cannot be reached,
            or it is not a model that X-Llama can be, which is found before the weights are copied.
        UsageError: `huggingface_hub` is not installed.
    """
    hub: Any = import_optional("huggingface_hub", "hub")
    errors: Any = import_optional("huggingface_hub.errors", "hub")
    at = f" at revision {revision!r}" if revision else ""

    def fetched(patterns: tuple[str, ...]) -> Path:
        address = os.environ.get("HF_ENDPOINT")  # which the library reads only once
        only = {"allow_patterns": patterns, "ignore_patterns": "*/*"}
        return Path(hub.snapshot_download(name, revision=revision, endpoint=address, **only))

    try:
        folder = fetched(_SETTINGS)
        config_from_hugging_face(read_json(folder / "config.json"))
        return fetched(_WEIGHTS)
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} must be asked for: agree to its terms on its page, and log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"the hub has no {name}, or not for you; check the name, and log in with `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision!r}") from None
    except AxonError:
        raise
    except Exception as error:  # also of the HTTP client, of which the library has had several
        raise CheckpointError(
            f"{name}{at} cannot be copied from the hub: {str(error).splitlines()[0]}; the same command goes on where "
            "it ended"
        ) from None
