"""The order of examples: each once an epoch, and entered anywhere."""

import pytest
import torch

from axon_core.errors import UsageError
from axon_core.randomness import Key
from axon_core.text.order import Order


def test_every_epoch_visits_everything_once_in_an_order_of_its_own():
    order = Order(7, Key((0,)))
    steps = [order.batch(step, 3) for step in range(7)]
    epochs = torch.cat(steps).split(7)
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert torch.equal(Order(7, Key((0,))).batch(5, 3), steps[5])
    assert Order(7, Key((1,))).batch(5, 3).tolist() != steps[5].tolist()


def test_a_step_may_be_longer_than_an_epoch():
    assert sorted(Order(4, Key((0,))).batch(2, 12).tolist()) == sorted(3 * [0, 1, 2, 3])


def test_a_batch_of_too_many_epochs_is_refused_at_once() -> None:
    order = Order(2, Key((0,)))
    assert len(order.batch(0, 2 * 100)) == 200
    with pytest.raises(UsageError, match="a batch of 9,223,372,036,854,775,807 goes through these 2 more often"):
        order.batch(0, (1 << 63) - 1)
