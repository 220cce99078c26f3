"""Environments as tables: values that are known, the authors' rules step by step, and Gymnasium's own steps."""

import numpy as np
import pytest
import torch

from axon_advise.grid import Grid
from axon_advise.gym_table import GymnasiumTable
from axon_advise.pacman import PacMan
from axon_advise.tabular import TransitionTable, optimal_actions, value_iteration
from axon_core import ConfigError, ContractError


@pytest.mark.parametrize(
    ("ghost", "gamma", "value"),
    [
        ("published", 0.9, 94.6225),
        ("published", 1.0, 503.9643),
        ("turning", 0.9, 80.5566),
        ("turning", 1.0, 500.8962),
    ],
)
def test_value_of_the_start(ghost, gamma, value):
    env = PacMan(PacMan.Config(ghost=ghost))
    q = value_iteration(env.table, gamma, 1e-8)
    assert q.max(1) @ env.start == pytest.approx(value, abs=1e-4)


def naive_step(maze, ghost, heading, man, pellets, action, turns, rng):
    """One step by the rules, with cells as (row, column) inside a wall."""
    ways = ((-1, 0), (1, 0), (0, 1), (0, -1))

    def moved(cell, way):
        new = (cell[0] + ways[way][0], cell[1] + ways[way][1])
        return cell if maze[new[0]][new[1]] == "#" else new

    new_man = moved(man, action)
    if moved(ghost, heading) == ghost or rng.random() < turns:
        heading = rng.choice([way for way in range(4) if moved(ghost, way) != ghost])
    new_ghost = moved(ghost, heading)
    reward, over = 0, False
    if new_man == new_ghost or (new_man == ghost and new_ghost == man):
        reward, over = -500, True
    if new_man in pellets:
        pellets = pellets - {new_man}
        reward += 10
        if not pellets:
            reward, over = reward + 500, True
    else:
        reward -= 1
    return new_ghost, heading, new_man, pellets, reward, over


@pytest.mark.parametrize(("ghost", "size"), [("published", "small"), ("turning", "small"), ("turning", "medium")])
def test_pacman_plays_by_the_rules(ghost, size):
    """Outcomes of the table, as pictures, are those of a plain loop, with its frequencies."""
    env = PacMan(PacMan.Config(ghost=ghost, map=size))
    rng, states = np.random.default_rng(0), np.arange(env.table.n_states)
    turns = 0.5 if ghost == "turning" else 0.0
    for state in rng.choice(states, 25, replace=False):
        maze = env.draw(state).split("\n")
        where = {mark: (y, x) for y, row in enumerate(maze) for x, mark in enumerate(row) if mark in "PG"}
        if len(where) < 2:
            continue
        number = env._numbers[state]
        _, heading, _, left = np.unravel_index(number, env._sizes)
        pellets = {tuple(1 + np.array(env._cells[c])) for i, c in enumerate(env._pellets) if left >> i & 1}
        action = int(rng.integers(4))
        seen = {}
        for _ in range(400):
            g, _, m, p, r, o = naive_step(maze, where["G"], heading, where["P"], pellets, action, turns, rng)
            seen[g, m, len(p), r, o] = seen.get((g, m, len(p), r, o), 0) + 1 / 400
        want = {}
        for k in np.flatnonzero(env.table.probability[state, action]):
            end = bool(env.table.terminated[state, action, k])
            key = (float(env.table.reward[state, action, k]), end)
            want[key] = want.get(key, 0) + env.table.probability[state, action, k]
        got = {}
        for (*_, r, o), p in seen.items():
            got[r, o] = got.get((r, o), 0) + p
        assert got == pytest.approx(want, abs=0.12)


def test_the_table_and_the_environment_agree():
    env = PacMan(PacMan.Config(limit=30))
    env.reset(range(64))
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        before = env._state.clone()
        actions = torch.randint(4, (64,), generator=rng)
        found = env.step(actions)
        for row in range(64):
            s, a = int(before[row]), int(actions[row])
            fits = (
                (env.table.probability[s, a] > 0)
                & (env.table.following[s, a] == int(env._state[row]))
                & (env.table.reward[s, a] == float(found.reward[row]))
                & (env.table.terminated[s, a] == bool(found.terminated[row]))
            )
            assert fits.any()
            if found.terminated[row] | found.truncated[row]:
                env.restart(row, row)
        assert found.observation.shape == (64, env.n_observed)
    start = torch.tensor([int(env.start.argmax())])
    assert env.observe(start).sum() == 3 + 2  # two cells, a heading, two pellets


def test_a_grid_has_several_optimal_actions():
    env = Grid(Grid.Config(size=3))
    q = value_iteration(env.table, 0.9)
    assert q[0].max() == pytest.approx(-1 - 0.9 - 0.81 + 0.729 * 10)
    several = optimal_actions(q, several=True)
    assert several[0].tolist() == [False, True, True, False] and several[2].tolist() == [False, True, False, False]
    assert optimal_actions(q, several=False).sum(1).tolist() == [1] * 9
    assert env.draw(0) == "A..\n...\n..x"


@pytest.mark.parametrize("name", ["FrozenLake", "Taxi"])
def test_gymnasium_steps_as_its_table_says(name):
    gymnasium = pytest.importorskip("gymnasium")
    id_ = max(key for key in gymnasium.registry if key.startswith(f"{name}-v"))
    env, real = GymnasiumTable(GymnasiumTable.Config(id=id_)), gymnasium.make(id_)
    state, _ = real.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = int(rng.integers(env.n_actions))
        after, reward, over, cut, _ = real.step(action)
        outcomes = zip(
            *(part[state, action] for part in (env.table.following, env.table.reward, env.table.terminated)),
            env.table.probability[state, action],
            strict=True,
        )
        assert any(p > 0 and (s, r, bool(o)) == (after, reward, over) for s, r, o, p in outcomes)
        state = after if not (over or cut) else real.reset(seed=int(rng.integers(1000)))[0]


def test_frozen_lake_is_solved_by_value_iteration():
    pytest.importorskip("gymnasium")
    env = GymnasiumTable(GymnasiumTable.Config(options={"is_slippery": False}))
    assert value_iteration(env.table, 0.9)[0].max() == pytest.approx(0.9**5)  # six steps, a reward of 1 at the end


@pytest.mark.parametrize("id_", ["CartPole-v1", "Blackjack-v1", "NoSuch-v1"])
def test_environments_without_a_table_are_refused(id_):
    pytest.importorskip("gymnasium")
    with pytest.raises(ConfigError, match=id_):
        GymnasiumTable(GymnasiumTable.Config(id=id_))


def test_bad_tables_are_refused():
    whole = np.zeros((2, 1, 1), dtype=np.int64), np.ones((2, 1, 1)), np.zeros((2, 1, 1)), np.zeros((2, 1, 1), bool)
    TransitionTable(*whole)
    with pytest.raises(ContractError, match=r"rewards must be finite numbers.* in state 1 for action 0"):
        TransitionTable(whole[0], whole[1], np.array([[[0.0]], [[np.nan]]]), whole[3])
    with pytest.raises(ContractError, match="add up to 1"):
        TransitionTable(whole[0], whole[1] / 2, whole[2], whole[3])
    with pytest.raises(ContractError, match="0 to 1"):
        TransitionTable(whole[0] + 2, *whole[1:])
    endless = TransitionTable(whole[0], whole[1], whole[2] + 1, whole[3])
    with pytest.raises(ContractError, match="do not converge"):
        value_iteration(endless, 1.0)
