"""Meta's own layout, `params.json` and `consolidated.<nn>.pth`, one for each GPU it runs on: as X-Llama's, and back.

Meta rotates feature pairs (2i, 2i + 1). X-Llama does the same with rotary layout `interleaved`, so that what is
imported keeps its bits and its order; rows are permuted only on the way from or to a format that rotates differently.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_core import CheckpointError, to_json
from axon_core.text import Tokenizer
from axon_xllama.checkpoints.hugging_face import read_json
from axon_xllama.checkpoints.layout import Names, Settings, Stored, configured, real
from axon_xllama.model import XLlama

_LAYER = "layers.{}."
NAMES: Names = {
    "embedding": ["tok_embeddings.weight"],
    "attention.qkv.projection": [f"{_LAYER}attention.w{part}.weight" for part in "qkv"],
    "attention.out": [f"{_LAYER}attention.wo.weight"],
    "attention_norm": [f"{_LAYER}attention_norm.weight"],
    "feed_forward.gate_up": [f"{_LAYER}feed_forward.w1.weight", f"{_LAYER}feed_forward.w3.weight"],
    "feed_forward.down": [f"{_LAYER}feed_forward.w2.weight"],
    "feed_forward_norm": [f"{_LAYER}ffn_norm.weight"],
    "norm": ["norm.weight"],
    "head": ["output.weight"],
}
_PARAMS = "params.json"
_SHARDS = "consolidated.*.pth"


def open_meta(folder: Path, tokenizer: Tokenizer) -> tuple[XLlama.Config, dict[str, Stored]]:
    """Return the config and the tensors of a folder as Meta distributes it, its shards merged.

    `params.json` does not state the context: it is 2,048 tokens for Llama 1 (whose norm_eps is 1e-6), else 4,096 as for
    Llama 2.

    Raises:
        CheckpointError: a file is missing or damaged, holds more than tensors, or it is not a Llama that X-Llama can
            be.
    """
    params = read_json(folder / _PARAMS)
    if params.get("use_scaled_rope"):
        raise CheckpointError(
            "use_scaled_rope (Llama 3.1) does not say by which factor; import Hugging Face's folder instead"
        )
    try:
        dim, n_heads, eps = params["dim"], params["n_heads"], real(params["norm_eps"])
        shards = _shards(folder)
        tensors = {name: _merged(name, [shard[name] for shard in shards], dim) for name in _same_names(shards)}
        hidden_dim = next(iter(tensors["layers.0.feed_forward.w1.weight"].shape), 0)
        config = configured(
            _PARAMS,
            vocab_size=tokenizer.vocab_size if params.get("vocab_size", -1) == -1 else params["vocab_size"],
            context=2048 if eps == 1e-6 else 4096,
            dim=dim,
            n_layers=params["n_layers"],
            n_heads=n_heads,
            hidden_dim=hidden_dim,
            attention={"type": "GQA", "n_kv_heads": params.get("n_kv_heads") or n_heads},
            rotary={"type": "rotary", "base": real(params.get("rope_theta", 10000.0)), "layout": "interleaved"},
            norm={"type": "rmsnorm", "eps": eps},
        )
    except KeyError as error:
        raise CheckpointError(f"{folder} is incomplete: {error.args[0]!r} is missing") from None
    return config, tensors


def write_folder(folder: Path, model: XLlama, tensors: Mapping[str, Tensor]) -> None:
    """Write `params.json` and the weights as one `consolidated.00.pth`."""
    c, settings = model.config, Settings.of(model)
    params = {
        "dim": c.dim,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": settings.n_kv_heads,
        "vocab_size": c.vocab_size,
        "norm_eps": settings.eps,
        **hidden_settings(c.dim, c.hidden_dim),
    }
    if settings.base != 10000.0:
        params["rope_theta"] = settings.base
    (folder / _PARAMS).write_text(to_json(params), encoding="utf-8")
    torch.save(dict(tensors), folder / "consolidated.00.pth")


def _shards(folder: Path) -> list[dict[str, Tensor]]:
    """Map the shards into memory, in their order."""
    files = sorted(folder.glob(_SHARDS))
    names = [f"consolidated.{i:02}.pth" for i in range(len(files))]
    if missing := sorted(set(names) - {file.name for file in files}):
        raise CheckpointError(f"{folder / missing[0]} is missing, so the checkpoint is incomplete; copy it again")
    if not files:
        raise CheckpointError(f"{folder} has no weights: no {_SHARDS}")
    shards = []
    for file in files:
        _check_sums(file)
        try:
            shard = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the bytes of a damaged pickle decide what torch raises: IndexError, KeyError, …
            raise CheckpointError(f"{file} is refused: {_refused(error)}") from None
        if not isinstance(shard, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided and _whole(tensor)
            for name, tensor in shard.items()
        ):
            raise CheckpointError(f"{file} must contain tensors by name, got a {type(shard).__name__} of other values")
        shards.append(shard)
    return shards


def _check_sums(file: Path) -> None:
    """Compare what a zip file holds with its checksums, which torch ignores. A damaged zip is left to torch."""
    try:
        with zipfile.ZipFile(file) as entries:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
                return  # torch refuses it
            wrong = entries.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return
    if wrong is not None:
        raise CheckpointError(
            f"{file} is damaged: {wrong} in it does not match its checksum; copy the file again (or, if it was saved "
            "with torch.serialization.set_crc32_options(False), save it with checksums)"
        )


def _whole(tensor: Tensor) -> bool:
    """Whether the file has every number of the tensor, rather than one for many places."""
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


def _refused(error: Exception) -> str:
    """Why torch refuses a file; its own message explains how to run what is in it."""
    if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it contains more than tensors, and reading it might run code ({forbidden[1]})"
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged or contains more than tensors, and reading it might run code"
    return "it is damaged, truncated, or not a file of tensors written by PyTorch 1.6 or later"


def _same_names(shards: list[dict[str, Tensor]]) -> Iterable[str]:
    """Return the names of the tensors; tables of the rotation, which some files hold, are computed again."""
    first, *others = ({name for name in shard if not name.endswith("rope.freqs")} for shard in shards)
    for i, names in enumerate(others, 1):
        if names != first:
            odd = min(names ^ first)
            raise CheckpointError(
                f"consolidated.{i:02}.pth does not fit consolidated.00.pth: only one of them has {odd!r}"
            )
    return sorted(first)


def _merged(name: str, shards: list[Tensor], dim: int) -> Stored:
    """Return one tensor of all shards, joined along the axis that Meta splits its kind of layer by."""
    if len({(shard.shape, shard.dtype) for shard in shards}) > 1:
        raise CheckpointError(f"the shards of {name!r} differ in shape or dtype")
    first = shards[0]
    if first.dim() != 2 or len(shards) == 1:  # norms are in every shard
        return Stored.of(first)
    kind = name.removesuffix(".weight").rpartition(".")[2]
    # The embedding is split by features, in later models by tokens; then its rows are whole.
    columns = kind in ("wo", "w2") or (kind == "tok_embeddings" and first.shape[1] != dim)
    rows, width = first.shape
    shape = (rows, width * len(shards)) if columns else (rows * len(shards), width)
    return Stored(shape, first.dtype, partial(torch.cat, shards, int(columns)))


def hidden_settings(dim: int, hidden_dim: int) -> dict[str, Any]:
    """Return the settings by which Meta's code computes `hidden_dim`: ⅔ · 4d, scaled, rounded up to a multiple."""
    plain = int(2 * 4 * dim / 3)
    for multiple in (256, *(1 << i for i in range(12, -1, -1))):
        if -(-plain // multiple) * multiple == hidden_dim:
            return {"multiple_of": multiple}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden_dim + 0.5) / plain}  # it rounds down
