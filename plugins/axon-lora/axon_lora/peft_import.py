"""Reading an adapter that PEFT wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from axon_core import CheckpointError, parse_json, printable, validate
from axon_core.checkpoint import atomic_folder, claimed_folder, load_config, read_tensor, whole_weights
from axon_core.text import Tokenizer
from axon_core.training import pinned_model_folder
from axon_lora.adapter import AdapterSection, set_tensor
from axon_lora.peft_config import PEFTConfig, read_peft_config
from axon_lora.peft_files import CONFIG, ENDS, PREFIX, WEIGHTS, A, B, M, Moved, commonest
from axon_lora.targets import ALL, find_targets
from axon_xllama import XLlama
from axon_xllama.checkpoints import Matrix, matrices

__all__ = ["import_peft"]

_BASE = "base_layer.weight"


def import_peft(path: Path, base: Path, out: Path) -> Moved:
    """Write the model of `base` with PEFT's adapter in the folder `path`, as a training with an adapter would.

    Every tensor of the file must belong to a matrix of the base: PEFT itself only warns of others, and leaves what they
    should have set as it was.

    Args:
        path: the folder that `save_pretrained` of PEFT wrote.
        base: a run's folder or a model's: an imported checkpoint, the one that the adapter was trained on.
        out: the folder to create; it must be new or empty.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor has no place in the base or another shape, or the
            adapter has a setting that is not computed here.
        UsageError: `out` is not empty.
    """
    with claimed_folder(out) as place, pinned_model_folder(base) as folder:
        config, tensors = _read(path)
        model = load_config(folder, XLlama)
        halves, whole, base_weights = _assigned(tensors, [*matrices(model)], config, model)
        _check_base(folder, base_weights)
        section = AdapterSection(validate(AdapterSection.Config, _options(config, model, halves, whole)))
        model.loaded_from = folder
        section.attach(model)
        own = {**_imported(section, model, halves), **whole}
        for name in model.overlay.names if model.overlay else ():
            set_tensor(model, name, own[name])
        with atomic_folder(place) as new:
            model.save(new, Tokenizer.load(folder))
    return Moved(folder, len(halves), sum(tensor.numel() for tensor in tensors.values()))


def _read(path: Path) -> tuple[PEFTConfig, dict[str, Tensor]]:
    try:
        config = read_peft_config(parse_json((path / CONFIG).read_text(encoding="utf-8-sig")))
        return config, load_file(path / WEIGHTS)
    except FileNotFoundError:
        missing = WEIGHTS if (path / CONFIG).exists() else CONFIG  # safetensors does not say which
        pickled = missing == WEIGHTS and (path / "adapter_model.bin").exists()
        remedy = "; its adapter_model.bin is a pickle: load and save it with PEFT first" if pickled else ""
        raise CheckpointError(f"no PEFT adapter in {path}: {missing} is missing{remedy}") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"the adapter in {path} is damaged: {error}") from None


def _assigned(
    tensors: Mapping[str, Tensor], found: Sequence[Matrix], config: PEFTConfig, model: XLlama
) -> tuple[dict[Matrix, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of each matrix's adapter, and, by our names, parts that were trained whole, and of the base.

    Raises:
        CheckpointError: a tensor has no place in the model, or another shape; or one is missing.
    """
    by_name = {matrix.theirs: matrix for matrix in found}
    halves: dict[Matrix, dict[str, Tensor]] = {}
    whole, base = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise CheckpointError(f"the adapter's {printable(name)} must begin with {PREFIX}, as PEFT saves it")
        module, half = _split(name.removeprefix(PREFIX))
        if "lora_embedding_" in name:
            raise CheckpointError(f"the adapter has {printable(name)}: adapters of embeddings are not computed here")
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise CheckpointError(f"the adapter's {printable(name)} must hold finite numbers of a floating-point type")
        if module not in by_name or not half:
            raise CheckpointError(f"the adapter's {printable(name)} has no place in the model; is it another base's?")
        matrix = by_name[module]
        if half == "weight":
            if module.rpartition(".")[2] not in (config.modules_to_save or ()):
                base[f"{matrix.ours}.weight"] = tensor
                continue
            _check_whole(model, matrix, name, tensor)
            whole[f"{matrix.ours}.weight"] = tensor.float()
        elif half == _BASE:
            base[f"{matrix.ours}.weight"] = tensor
        else:
            halves.setdefault(matrix, {})[half] = tensor.float()
    for matrix, parts in halves.items():
        _check_halves(model, matrix, parts, config)
    if not halves:
        raise CheckpointError("the adapter has no lora_A and lora_B")
    return {matrix: halves[matrix] for matrix in found if matrix in halves}, whole, base


def _check_base(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Check weights of the base that the adapter's file holds too: PEFT adds embedding and head if the head is adapted.

    Raises:
        CheckpointError: they are not those of the base.
    """
    for name, tensor in weights.items():
        own = read_tensor(whole_weights(folder), name)
        if own.shape != tensor.shape or not torch.equal(own.float(), tensor.float()):
            raise CheckpointError(
                f"the adapter has another {name} than the base, which modules_to_save does not name: it was trained on "
                "another model, or with a larger vocabulary"
            )


def _split(name: str) -> tuple[str, str]:
    """Return the module and the rest of a tensor's name."""
    for end in (*ENDS, _BASE, "weight"):
        if name.endswith(f".{end}"):
            return name.removesuffix(f".{end}"), end
    return name, ""


def _check_whole(model: XLlama, matrix: Matrix, name: str, tensor: Tensor) -> None:
    ours = cast(Tensor, model.get_submodule(matrix.ours).weight)
    if model.config.tie_embeddings:
        raise CheckpointError(f"the adapter has {printable(name)}, but embedding and head of the model are tied")
    if tensor.shape != ours.shape:
        raise CheckpointError(
            f"the adapter's {printable(name)} must have the shape {tuple(ours.shape)}, got {tuple(tensor.shape)}"
        )


def _check_halves(model: XLlama, matrix: Matrix, parts: Mapping[str, Tensor], config: PEFTConfig) -> None:
    weight = cast(Tensor, model.get_submodule(matrix.ours).weight)
    rank, outputs, inputs = config.rank_of(matrix.theirs), matrix.outputs, weight.shape[1]
    shapes = {A: (rank, inputs), B: (outputs, rank), **({M: (outputs,)} if config.use_dora else {})}
    for half, shape in shapes.items():
        if half not in parts:
            raise CheckpointError(f"the adapter lacks {PREFIX}{matrix.theirs}.{half}")
        if (got := tuple(parts[half].shape)) != shape:
            raise CheckpointError(f"the adapter's {matrix.theirs}.{half} must have the shape {shape}, got {got}")
    if strange := sorted(parts.keys() - shapes.keys()):
        raise CheckpointError(f"the adapter has {matrix.theirs}.{strange[0]}, but use_dora is false")


def _options(
    config: PEFTConfig, model: XLlama, halves: Mapping[Matrix, Any], whole: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the table `[adapter]` of such an adapter."""
    places = {(t.map, t.rows.start): t.place for t in find_targets(model, [ALL, *_heads(model, halves)])}
    named = {matrix: places[matrix.ours, matrix.first] for matrix in halves}
    ranks = {place: config.rank_of(matrix.theirs) for matrix, place in named.items()}
    alphas = {place: config.alpha_of(matrix.theirs) for matrix, place in named.items()}
    r, alpha = commonest(ranks.values()), commonest(alphas.values())
    everything = named.keys() >= {*matrices(model)} - {m for m in matrices(model) if m.ours in ("embedding", "head")}
    return {
        "type": "lora",
        "rank": r,
        "alpha": alpha,
        "targets": [ALL, *_heads(model, halves)] if everything else list(named.values()),
        "ranks": {place: rank for place, rank in ranks.items() if rank != r},
        "alphas": {place: value for place, value in alphas.items() if value != alpha},
        "dropout": config.lora_dropout,
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "also": [name.removesuffix(".weight") for name in whole],
    }


def _heads(model: XLlama, halves: Mapping[Matrix, Any]) -> list[str]:
    return ["head"] if any(matrix.ours == "head" for matrix in halves) else []


def _imported(
    section: AdapterSection, model: XLlama, halves: Mapping[Matrix, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return our tensors of an adapter: the A's of a stack one below the other, the rows of B in our order."""
    maps: dict[str, list[Matrix]] = {}
    for matrix in halves:
        maps.setdefault(matrix.ours, []).append(matrix)
    own: dict[str, Tensor] = {}
    for name, members in maps.items():
        own[f"{name}.adapter.a"] = torch.cat([halves[matrix][A] for matrix in members])
        for i, matrix in enumerate(members):
            own[f"{name}.adapter.b.{i}"] = matrix.imported(halves[matrix][B])
        if all(M in halves[matrix] for matrix in members):
            own[f"{name}.adapter.magnitude"] = torch.cat([m.imported(halves[m][M]) for m in members])
    return own
