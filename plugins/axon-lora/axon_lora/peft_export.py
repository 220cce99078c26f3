"""Writing an adapter as PEFT loads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from axon_core import CheckpointError, to_json
from axon_core.checkpoint import atomic_folder, base_of, claimed_folder, load_config, own_tensors, section_of
from axon_core.training import pinned_model_folder
from axon_lora.adapter import AdapterSection
from axon_lora.lora import LoRA
from axon_lora.low_rank import LowRankUpdate
from axon_lora.peft_files import CONFIG, ENDS, PREFIX, WEIGHTS, A, B, M, Moved, commonest
from axon_lora.targets import Target
from axon_xllama import XLlama
from axon_xllama.checkpoints import Matrix, matrices

__all__ = ["export_peft"]

_Adapted = tuple[Matrix, Target, LowRankUpdate]


def export_peft(run: Path, out: Path) -> Moved:
    """Write the adapter of a run as PEFT loads it, on top of what `axon export --format hf` writes of its base.

    Args:
        run: a run's folder or a model's.
        out: the folder to create; it must be new or empty.

    Raises:
        CheckpointError: the model has no LoRA on an X-Llama that transformers computes, trains parts other than the
            embedding and the head whole, or `out` cannot be written to.
        UsageError: `out` is not empty.
    """
    with claimed_folder(out) as place, pinned_model_folder(run) as folder:
        base, section = base_of(folder), section_of(folder)
        if base is None or not isinstance(section, AdapterSection) or not isinstance(section.adapter, LoRA):
            raise CheckpointError(f"the model in {folder} has no LoRA adapter")
        if base_of(base) is not None:
            raise CheckpointError(f"the adapter in {folder} belongs to an adapted model: merge that one first")
        model, tensors = load_config(folder, XLlama), own_tensors(folder)
        found = {(matrix.ours, matrix.first): matrix for matrix in matrices(model)}
        adapted = [(found[t.map, t.rows.start], t, update) for t, update in section.adapter.updates(model)]
        written = _exported(adapted, tensors) | _whole(model, tensors, [*found.values()])
        config = _config(section.adapter.config, adapted, written, [matrix.theirs for matrix in found.values()])
        with atomic_folder(place) as new:
            save_file({name: tensor.contiguous() for name, tensor in written.items()}, new / WEIGHTS, {"format": "pt"})
            (new / CONFIG).write_text(to_json(config, indent=2), encoding="utf-8")
    return Moved(base, len(adapted), sum(tensor.numel() for tensor in written.values()))


def _exported(adapted: Sequence[_Adapted], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of PEFT's file, the rows of B in transformers' order."""
    written: dict[str, Tensor] = {}
    maps: dict[str, list[tuple[Matrix, LowRankUpdate]]] = {}
    for matrix, target, update in adapted:
        maps.setdefault(target.map, []).append((matrix, update))
    for name, members in maps.items():
        place = f"{name}.adapter"
        a = tensors[f"{place}.a"].split([update.rank for _, update in members])
        magnitude = tensors.get(f"{place}.magnitude")
        m = None if magnitude is None else magnitude.split([update.outputs for _, update in members])
        for i, (matrix, _) in enumerate(members):
            theirs = f"{PREFIX}{matrix.theirs}"
            written[f"{theirs}.{A}"] = a[i].clone()
            written[f"{theirs}.{B}"] = matrix.exported(tensors[f"{place}.b.{i}"])
            if m is not None:
                written[f"{theirs}.{M}"] = matrix.exported(m[i]).clone()
    return written


def _whole(model: XLlama, tensors: Mapping[str, Tensor], found: Sequence[Matrix]) -> dict[str, Tensor]:
    """Return the tensors in PEFT's file of parts that were trained whole."""
    names = [name for name in tensors if ".adapter." not in name]
    if strange := sorted({*names} - {"embedding.weight", "head.weight"}):
        raise CheckpointError(
            f"PEFT's files take only embedding and head trained whole, got {strange[0]}; merge instead"
        )
    if names and model.config.tie_embeddings:
        raise CheckpointError("the embedding of a tied model was trained, which PEFT does not tie; merge instead")
    theirs = {f"{matrix.ours}.weight": matrix.theirs for matrix in found}
    return {f"{PREFIX}{theirs[name]}.weight": tensors[name] for name in names}


def _config(
    config: LoRA.Config, adapted: Sequence[_Adapted], written: Mapping[str, Tensor], everything: Sequence[str]
) -> dict[str, Any]:
    """Return `adapter_config.json`: modules by the end of their name, if all that end so are adapted alike."""
    ranks = {matrix.theirs: update.rank for matrix, _, update in adapted}
    alphas = {
        matrix.theirs: update.scale * (update.rank**0.5 if config.rslora else update.rank)
        for matrix, _, update in adapted
    }
    saved = [name.removeprefix(PREFIX).removesuffix(".weight") for name in written if not name.endswith(ENDS)]
    ends = {name.rpartition(".")[2] for name in ranks}
    short = {end for end in ends if all(name in ranks for name in everything if name.rpartition(".")[2] == end)}
    r, alpha = commonest(ranks.values()), commonest(alphas.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "target_modules": sorted({end if (end := name.rpartition(".")[2]) in short else name for name in ranks}),
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "modules_to_save": [name.rpartition(".")[2] for name in saved] or None,
        "inference_mode": True,
    }
