"""Tensor parallelism: processes that compute each example together make the updates of a single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sharded_workers
import tensor_workers
import torch

from axon_core import TRAINERS
from axon_core.checkpoint.row_order import divided_order, in_model_order
from axon_core.config import validate
from axon_core.errors import UsageError
from axon_core.training.parallel.config import Parallel

# Hidden features that two processes have an odd number of, which two workers do not divide.
MODEL = {"type": "xllama", "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 30, "context": 8}
GROUPED = {**MODEL, "attention": {"type": "GQA", "n_kv_heads": 2}}
NORMED = {**MODEL, "attention": {"type": "GQA", "n_kv_heads": 2, "bias": True, "qk_norm": "rmsnorm"}}
CAUSAL = {"type": "causal_lm", "batch_size": 5}
PPO = {"type": "ppo", "batch_size": 4, "response_tokens": 4, "entropy_weight": 0.01}
REWARD = {"type": "regex", "pattern": "[a-z]"}
TRANSFORMER = {"type": "transformer", "dim": 16, "n_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
CASES = {
    "adamw": (2, {"model": NORMED, "trainer": CAUSAL}, {}),
    "muon": (4, {"model": GROUPED, "trainer": {**CAUSAL, "optimizer": {"type": "muon"}}}, {"shard": 2}),
    "replicated": (4, {"model": GROUPED, "trainer": CAUSAL}, {"replicate": 2, "activation_checkpointing": True}),
    "roll-outs": (2, {"model": {"policy": {**GROUPED, "context": 16}, "reward": REWARD}, "trainer": PPO}, {}),
    "attention to a memory": (2, {"model": TRANSFORMER, "trainer": {"type": "translation", "batch_size": 64}}, {}),
    "nothing declared": (2, TRAINERS["ppo_control"].examples[0], {}),
}

UNDECLARED = (
    "trainer.parallel.tensor: Perceptron of axon-ppo does not say how it is divided, or has weights of another part, "
    "so each of 2 processes computes its 4 matrices whole"
)


def tables(given: dict[str, Any], parallel: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    """Return a recipe in float64, with all that is computed from every gradient and every process."""
    usual = {"steps": 10, "micro_batches": 2, "max_grad_norm": 0.5, "ema": 0.9, "device": "cpu", "precision": "fp64"}
    divided = {} if parallel is None else {"parallel": {"strategy": "fsdp", "tensor": 2, **parallel}}
    example = TRAINERS[given["trainer"]["type"]].examples[0]
    return {**example, **given, "trainer": {**usual, **given["trainer"], **divided, **options}}


def train(
    folder: Path, size: int, recipe: dict[str, Any], out: Path | None = None, stop: int | None = None
) -> list[Any]:
    return sharded_workers.run(size, tensor_workers.train, recipe, out, stop, folder=folder)


def assert_same(found: Any, expected: Any) -> None:
    assert isinstance(found, dict) and isinstance(expected, dict), (found, expected)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, values in expected["weights"].items():
        ours, theirs = (torch.tensor(numbers, dtype=torch.float64) for numbers in (found["weights"][name], values))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_after_ten_steps_are_those_of_one_process(case: str, tmp_path: Path):
    size, given, parallel = CASES[case]
    steps = {"steps": 4} if case == "roll-outs" else {}
    (one,) = train(tmp_path, 1, tables(given, None, **steps))
    said = [UNDECLARED] if case == "nothing declared" else []
    for found in train(tmp_path, size, tables(given, parallel, **steps)):
        assert_same(found, one)
        assert found["said"] == said


def test_other_processes_continue_what_a_divided_training_saved(tmp_path: Path):
    trainer = {**CAUSAL, "optimizer": {"type": "muon"}, "steps": 6, "checkpoint_in_background": True, "save_every": 1}
    given = {"model": NORMED, "trainer": trainer}
    (one,) = train(tmp_path, 1, tables(given, None))
    out = tmp_path / "run"
    train(tmp_path, 2, tables(given, {}), out, 2)
    train(tmp_path, 1, tables(given, None), out, 3)
    train(tmp_path, 2, tables(given, {"tensor": 1}), out, 4)
    for found in train(tmp_path, 4, tables(given, {"shard": 2}), out):
        assert_same(found, one)


def test_each_example_counts_once_where_two_processes_compute_it(tmp_path: Path):
    found = sharded_workers.run(4, tensor_workers.count, folder=tmp_path)
    assert [each["rows"] for each in found] == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6], [4, 5, 6]]
    for each in found:
        assert each["sums"] == [21, 21, 1]
        assert each["restored"] == [0, 10, 20]
        assert each["assembled"] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": {**MODEL, "attention": {"type": "GQA", "n_kv_heads": 1}}, "trainer": CAUSAL},
            "trainer.parallel.tensor must divide the key/value heads of GroupedQueryAttention of axon-gqa, but 1 % 2 = "
            "1; change one of them",
        ),
        (
            {"model": {**GROUPED, "hidden_dim": 15}, "trainer": CAUSAL},
            "trainer.parallel.tensor must divide the hidden features of SwiGLU of axon-xllama, but 15 % 2 = "
            "1; change one of them",
        ),
    ],
)
def test_units_that_cannot_be_divided_are_refused(given: dict[str, Any], message: str, tmp_path: Path):
    assert train(tmp_path, 2, tables(given, {})) == [f"UsageError: {message}"] * 2


def test_a_compiled_loss_is_refused(tmp_path: Path):
    message = (
        "UsageError: trainer.compile does not work with trainer.parallel.tensor, which is 2: set one of them back to "
        "its default"
    )
    assert train(tmp_path, 2, tables({"model": GROUPED, "trainer": {**CAUSAL, "compile": True}}, {})) == [message] * 2


def test_a_batch_has_an_example_for_each_worker(tmp_path: Path):
    recipe = tables({"model": GROUPED, "trainer": {**CAUSAL, "batch_size": 1, "micro_batches": 1}}, {"shard": 2})
    message = (
        "UsageError: trainer.batch_size 1 is less than the number of groups of 2 processes, 2, so that some would have "
        "nothing to do: enlarge it, or start fewer"
    )
    assert train(tmp_path, 4, recipe) == [message] * 4


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ({"tensor": 3}, "replicate 1 × tensor 3 must divide"),
        ({"shard": 2, "tensor": 4}, "replicate 1 × shard 2 × tensor 4 must be"),
        ({"replicate": 3}, "replicate 3 must divide"),
    ],
)
def test_the_sizes_make_up_the_number_of_processes(sizes: dict[str, int], given: str):
    with pytest.raises(UsageError) as caught:
        validate(Parallel, {"strategy": "fsdp", **sizes}).sizes(4)
    assert str(caught.value) == (
        f"trainer.parallel: {given} the number of processes, 4; change it, or start another number of processes"
    )


def test_the_size_left_out_is_what_the_others_leave():
    assert validate(Parallel, {"strategy": "fsdp", "replicate": 2, "tensor": 2}).sizes(12) == (2, 3, 2)


def test_each_process_has_a_part_of_every_stacked_matrix():
    order = divided_order([4, 2, 2], 2)
    assert order.tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    rows = torch.arange(8.0)[:, None].expand(8, 3)
    assert torch.equal(in_model_order(rows[order], order), rows)
