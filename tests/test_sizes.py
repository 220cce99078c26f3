"""Configs that ask for more than the file holds: stopped before memory or time is spent."""

import json

import pytest
import torch
from torch import nn

from axon_core.checkpoint.weights import weightless
from axon_core.cli import main
from axon_core.config import Config, validate
from axon_core.documents import integer
from axon_core.errors import CheckpointError, ConfigError

HELD = [16 * 16] * 4


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(1 << 31, 4),
        lambda: nn.Linear(1 << 40, 1 << 20),
        lambda: nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in iter(int, 1)),
        lambda: nn.ParameterList(nn.Parameter(torch.zeros(0)) for _ in iter(int, 1)),
        lambda: torch.arange(1 << 33),
        lambda: torch.arange(0, 1 << 33, 2, dtype=torch.float32),
        lambda: torch.arange(1 << 20)[:, None] * torch.arange(1 << 20),
        lambda: torch.ones(1 << 20, 1 << 14),
    ],
)
def test_a_model_larger_than_its_file_is_stopped(build):
    with pytest.raises(CheckpointError, match=r"much larger model than the one in the file \(1,024 numbers\)"):
        with weightless(HELD):
            build()


def test_a_model_as_large_as_its_file_is_built():
    with weightless(HELD):
        layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))
        tied = nn.Linear(16, 16, bias=False)
        tied.weight = layers[0].weight
        table = torch.arange(1000)[:, None] * torch.arange(1000)  # of positions: no file holds it
    assert tied.weight.is_meta and tied.weight is layers[0].weight
    assert table.sum() == 499_500**2


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "1" + "0" * 3000])
def test_an_integer_beyond_64_bits_is_no_size(text):
    with pytest.raises(ValueError, match=f"an integer must fit 64 bits, got {text[:19]}"):
        json.loads(f"[{text}]", parse_int=integer)
    assert json.loads("[9223372036854775807, -12]", parse_int=integer) == [(1 << 63) - 1, -12]


def test_a_model_may_join_tensors_while_it_is_built():
    with weightless(HELD):
        table = torch.stack((torch.arange(2.0), torch.arange(2.0)), -1)
        assert torch.cat([table, table]).shape == (4, 2)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("model.n_layers=60000", "at most 8,192 tensors"),
        ("model.n_layers=1000000000000", "must be less than or equal to 65536"),
        ("model.dim=2147483648", "memory"),
        ("model.hidden_dim=1000000000", "memory"),
    ],
)
def test_a_recipe_beyond_the_machine_is_refused_before_it_is_built(capsys, tmp_path, setting, rule):
    assert main(["train", "xllama-tiny", "--set", setting, "--out", str(tmp_path / "run")]) in (1, 2)
    assert rule in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_integer_inside_a_list_or_a_table_fits_64_bits_too_and_is_named_by_where_it_stands():
    class Layers(Config):
        hidden: tuple[int, ...] = ()
        part: dict[str, int]

    with pytest.raises(ConfigError, match=r"hidden\.1 must fit 64 bits"):
        validate(Layers, {"hidden": [3, 10**30], "part": {}})
    with pytest.raises(ConfigError, match=r"part\.n_heads must fit 64 bits"):
        validate(Layers, {"part": {"n_heads": 10**26}})
