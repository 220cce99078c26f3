"""The state of a training, and what it refuses to take over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the toy that several test modules share
from toy_trainer import Toy

from axon_core.errors import CheckpointError
from axon_core.training.train_state import TrainState


@pytest.mark.parametrize("name", ["step", "data", "models", "lr", "trainer"])
def test_a_state_that_lacks_something_is_refused_in_words(name: str):
    state = TrainState(Toy.make())
    kept = state.state_dict()
    TrainState(Toy.make()).load_state_dict(kept)
    del kept[name]
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks {name}: another version wrote it"):
        state.load_state_dict(kept)
