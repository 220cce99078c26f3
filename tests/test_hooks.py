"""Hooks run through pluggy: their order, wrappers around others, and those that fail."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest
from toy_trainer import Toy

from axon_core.errors import DataError
from axon_core.training.hooks import hook
from axon_core.training.loop import fit


def test_hooks_run_in_the_order_given_but_for_those_that_ask_to_be_first_or_last():
    order = []

    def noting(name: str, **options: bool) -> object:
        class Noting:
            @hook(**options)
            def fit_end(self):
                order.append(name)

        return Noting()

    fit(Toy.make(), hooks=[noting("late", trylast=True), noting("a"), noting("b"), noting("early", tryfirst=True)])
    assert order == ["early", "a", "b", "late"]


def test_a_wrapper_sees_what_other_hooks_ask_for_and_may_change_it():
    class Asking:
        @hook
        def step_end(self, fit):
            return "stop" if fit.state.step in (2, 4) else None

    class Doubting:
        asked: ClassVar = []

        @hook(wrapper=True)
        def step_end(self, fit):
            answers = yield
            self.asked += answers
            return [] if fit.state.step == 2 else answers

    assert fit(Toy.make(), hooks=[Doubting(), Asking()]).step == 4
    assert Doubting.asked == ["stop", "stop"]


@pytest.mark.parametrize("before", [True, False])
def test_a_wrapper_that_fails_is_switched_off_too(caplog, before):
    class Asking:
        @hook
        def step_end(self, fit):
            return "stop" if fit.state.step == 3 else None

    class Failing:
        @hook(wrapper=True)
        def step_end(self):
            if before:
                raise ValueError("broken")
            yield
            raise ValueError("broken")

    with caplog.at_level(logging.WARNING, "axon"):
        assert fit(Toy.make(), hooks=[Failing(), Asking()]).step == 3
    assert caplog.text.count("hook Failing failed at step_end and is switched off") == 1


def test_an_error_of_axon_passes_through_a_wrapper_that_cleans_up():
    class Ending:
        @hook
        def step_end(self):
            raise DataError("no more")

    class Cleaning:
        cleaned = False

        @hook(wrapper=True)
        def step_end(self):
            try:
                return (yield)
            finally:
                Cleaning.cleaned = True

    with pytest.raises(DataError, match="no more"):
        fit(Toy.make(), hooks=[Cleaning(), Ending()])
    assert Cleaning.cleaned
