"""Models on disk: they return as they were, and are refused by name when damaged or not what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))  # for what several test modules share
from damage import cut, flip_last

from axon_core import MODELS
from axon_core.checkpoint.model_folder import check_weights
from axon_core.checkpoint.models import load_config, load_into, save_config
from axon_core.errors import CheckpointError
from axon_core.interfaces.model import Model


class Square(Model):
    """A model with tied weights."""

    class Config(Model.Config):
        dim: int
        """Features."""

    def __init__(self, config):
        super().__init__(config)
        self.inner = torch.nn.Linear(config.dim, config.dim, bias=False)
        self.tied = torch.nn.Linear(config.dim, config.dim, bias=False)
        self.tied.weight = self.inner.weight


def test_a_model_returns_with_its_class_config_and_ties(tmp_path: Path):
    model = Square.build(dim=3)
    model.save(tmp_path)
    loaded = Square.load(tmp_path)
    assert loaded.config == model.config and loaded.tied.weight is loaded.inner.weight
    assert torch.equal(loaded.inner.weight, model.inner.weight)
    with MODELS.override(square=Square):
        model.save(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["type"] == "square"
        assert type(Model.load(tmp_path)) is Square


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", flip_last, "model.safetensors is damaged: it does not match the checksum"),
        ("model.safetensors", cut, "model.safetensors is damaged: .*not fully covered"),
        ("model.safetensors", lambda file: file.write_bytes(b""), "model.safetensors is damaged: .*too small"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("config.json", cut, "config.json was changed after it was written"),
        ("config.json", Path.unlink, "config.json is missing"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, file: str, damage: Callable[[Path], None], message: str):
    Square.build(dim=3).save(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(CheckpointError, match=message):
        Square.load(tmp_path)


def test_the_config_and_the_header_are_checked_alone_and_the_weights_as_they_are_read(tmp_path: Path):
    Square.build(dim=3).save(tmp_path)
    check_weights(tmp_path)
    flip_last(tmp_path / "model.safetensors")
    model = load_config(tmp_path, Square)
    assert model.inner.weight.is_meta
    for read in (partial(load_into, model), check_weights):
        with pytest.raises(CheckpointError, match="does not match the checksum"):
            read(tmp_path)


class Several(Model):
    """Tensors of all kinds."""

    class Config(Model.Config):
        """There is nothing to choose."""

    def __init__(self, config):
        super().__init__(config)
        self.scalar = torch.nn.Parameter(torch.tensor(0.5))
        self.none = torch.nn.Parameter(torch.zeros(0, 3))
        self.coarse = torch.nn.Parameter(torch.randn(3).half())
        self.frozen = torch.nn.Parameter(torch.randn(2, 2).T, requires_grad=False)
        self.register_buffer("count", torch.arange(5))
        self.register_buffer("flags", torch.tensor([True, False]))


def test_tensors_of_all_kinds_return(tmp_path: Path):
    model = Several.build()
    model.save(tmp_path)
    loaded = Several.load(tmp_path)
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = loaded.state_dict(keep_vars=True)[name]
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype
        assert found.requires_grad == tensor.requires_grad and type(found) is type(tensor)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "do not fit its config: inner.weight is missing"),
        ({"inner.weight": torch.zeros(3, 4)}, r"inner.weight must have the shape \(3, 3\), got \(3, 4\)"),
        ({"inner.weight": torch.zeros(3, 3), "more": torch.zeros(1)}, "more is not among its tensors"),
        ({"tied.weight": torch.zeros(3, 3, dtype=torch.int64)}, "is damaged: Only Tensors of floating point"),
    ],
    ids=["missing", "shape", "more", "whole numbers"],
)
def test_weights_that_do_not_fit_the_config(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str):
    model = Square.build(dim=3)
    model.save(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    save_config(model, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Square.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "5", '{"config": [1]}', '{"type": 5}'])
def test_a_config_that_is_json_but_none_is_refused(tmp_path: Path, content: str):
    Square.build(dim=3).save(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    changed = json.loads(content)
    (tmp_path / "config.json").write_text(json.dumps(facts | changed if isinstance(changed, dict) else changed))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is damaged"):
        Square.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_returns_with_its_dtype_and_draws_no_random_numbers(tmp_path: Path, dtype: torch.dtype):
    model = Square.build(dim=3).to(dtype)
    model.save(tmp_path)
    before = torch.get_rng_state()
    loaded = Square.load(tmp_path)
    assert loaded.inner.weight.dtype == dtype and torch.equal(loaded.inner.weight, model.inner.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_part_is_named_with_its_install_command(tmp_path: Path):
    Square.build(dim=3).save(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    facts["parts"] = [{"group": "norm", "key": "n", "distribution": "axon-not-here", "version": "1.2"}]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"needs parts that are not installed: pip install axon-not-here==1.2"):
        Square.load(tmp_path)


def test_a_model_of_another_class_or_nowhere(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no model folder"):
        Square.load(tmp_path / "nowhere")
    with MODELS.override(square=Square):
        Square.build(dim=3).save(tmp_path)

        class Other(Model):
            """Something else."""

        with pytest.raises(CheckpointError, match="of the class Square, but Other is needed here"):
            Other.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"distribution": "x; rm -rf ~"},
        {"distribution": "--index-url=http://evil"},
        {"distribution": None},
        {"version": "1 --pre evil"},
        {"version": "1;x"},
    ],
)
def test_parts_are_names_before_they_stand_in_a_line_to_paste(change: dict, tmp_path: Path) -> None:
    import json

    part = {"group": "norm", "key": "x", "distribution": "axon-x", "version": "1.0", **change}
    part = {name: value for name, value in part.items() if value is not None}
    facts = {"type": "x", "config": {}, "parts": [part], "sha256": ""}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: parts\.0") as caught:
        load_config(tmp_path, Model)
    assert "pip install" not in str(caught.value)
