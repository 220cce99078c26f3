"""Learning equals a naive loop over all states; learners are independent; runs resume bit for bit."""

import numpy as np
import pytest
import torch
from naive_advise import naive_learner

from axon_advise.feedback import Oracle
from axon_advise.grid import Grid
from axon_advise.learning import Dynamics, Learners, LearningSettings, play_episodes
from axon_advise.pacman import PacMan
from axon_advise.shaping import log_odds
from axon_advise.tabular import optimal_actions, value_iteration
from axon_core.training import Recipe, build_trainer, fit


class Recorder:
    """Uniform numbers that are kept for the naive loop."""

    def __init__(self, seed):
        self.generator, self.drawn = np.random.default_rng(seed), []

    def __call__(self, shape):
        self.drawn.append(self.generator.random(shape))
        return self.drawn[-1]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("confidence", [1.0, 0.8])
@pytest.mark.parametrize("env", [PacMan(PacMan.Config(ghost="turning", limit=60)), Grid(Grid.Config(slip=0.2))])
def test_learning_equals_the_naive_loop(env, confidence, several):
    settings = LearningSettings(limit=env.config.limit, several=several)
    table, learners, episodes = env.table, 3, 6
    right = np.array([0.9, 0.3])
    weight = np.tile(log_odds(right), (learners, 1))
    optimal = optimal_actions(value_iteration(table, 0.9), several=several)
    sources = [Oracle(Oracle.Config(speaks=0.6, right=c)).rates(optimal, 0) for c in right]
    rates = np.stack([np.stack([source[i] for source in sources], -1) for i in (0, 1)])
    shape = (learners, table.n_states, 2, table.n_actions)
    state = Learners(
        np.zeros((learners, table.n_states, table.n_actions)),
        np.zeros((learners, table.n_states, table.n_actions)),
        np.zeros(shape, dtype=np.int32),
        np.zeros(shape, dtype=np.int32),
        np.zeros(shape[:2], dtype=np.int32),
        weight,
    )
    dynamics = Dynamics(
        table,
        env.start.cumsum(),
        rates[0][None],
        rates.sum(0)[None],
        np.zeros(learners, dtype=np.int64),
        np.full(learners, confidence),
    )
    uniform = Recorder(1)
    played = play_episodes(state, dynamics, settings, episodes, uniform)
    first, *blocks = uniform.drawn
    numbers = np.concatenate(blocks)
    assert played.steps.max() > 64  # more than one block of random numbers
    for t in range(learners):
        q, good, bad, returns = naive_learner(
            table,
            env.start.cumsum(),
            rates,
            weight[t],
            settings,
            episodes,
            confidence,
            lambda step, t=t: numbers[step, :, t],
            first[:, t],
        )
        assert played.returns[t] == pytest.approx(returns)
        assert (state.good[t] == np.array(good)).all() and (state.bad[t] == np.array(bad)).all()
        assert state.q[t] == pytest.approx(np.array(q), abs=1e-9)
        assert (state.answers[t] == (state.good[t] + state.bad[t]).sum((1, 2))).all()
        delta = (state.good[t] - state.bad[t]).astype(float)
        assert state.scores[t] == pytest.approx(np.einsum("sma,m->sa", delta, weight[t]), abs=1e-9)


TABLES = {
    "trainer": {"type": "advise", "batch_size": 4, "episodes": 3, "steps": 6, "evaluated": 2},
    "data": {
        "environment": {"type": "pacman", "limit": 40},
        "sets": {
            "none": {},
            "learnt": {"trainers": [{"type": "oracle"}, {"type": "changing", "over": 6}, "silent"]},
            "vi": {"trainers": [{"type": "oracle", "right": 0.2}], "reliability": {"type": "vi", "alpha": 9}},
            "any": {"trainers": ["contrary"], "confidence": 0.9},
        },
    },
}


def trained(out, stop_at=None, resume=False, **settings):
    tables = {**TABLES, "trainer": {**TABLES["trainer"], **settings}}
    recipe = Recipe.of(tables, "small", "small")
    trainer = build_trainer(recipe)
    fit(trainer, out, recipe={"name": "small", **recipe.tables}, resume=resume, stop_at=stop_at, progress=False)
    return trainer


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop_at=3)
    parts = trained(tmp_path / "parts", resume=True)
    for name, tensor in whole.tables.state_dict().items():
        assert torch.equal(tensor, parts.tables.state_dict()[name]), name
    assert whole.tables.q.any() and whole.tables.good.any()
    for name, rows in whole.history.items():
        assert len(rows) == 6 and torch.equal(torch.stack(rows), torch.stack(parts.history[name]))
    assert whole.evaluate() == parts.evaluate()


def test_other_sets_change_nothing_for_the_trainers(tmp_path):
    """Reliabilities are estimated from a set's own learners; the seed alone decides."""
    one, again = trained(None), trained(None)
    other = trained(None, seed=1)
    assert torch.equal(one.tables.q, again.tables.q) and not torch.equal(one.tables.q, other.tables.q)
    assert (one.tables.good[:4].sum(), one.tables.bad[:4].sum()) == (0, 0)
    assert one.tables.good[one.rows("learnt"), :, 2].sum() == 0  # the silent trainer
