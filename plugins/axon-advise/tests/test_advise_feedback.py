"""Sources of feedback, beliefs about them, other packages' parts, bad input, and what is said of each."""

import json
import textwrap

import numpy as np
import pytest
import torch

from axon_advise.feedback import FEEDBACKS, Changing, Contrary, Oracle, Silent, checked_rates
from axon_advise.people import PersonalAnswer, append_answer, read_answers
from axon_advise.reliability import RELIABILITIES
from axon_advise.report import describe_trainers, report_set
from axon_advise.tabular import TabularEnvironment, TransitionTable
from axon_core import ConfigError, ContractError, DataError
from axon_core.training import Recipe, build_trainer, fit
from axon_ppo import ENVIRONMENTS

OPTIMAL = np.array([[True, False], [False, True]])
GRID = {"type": "grid", "size": 3, "limit": 20}


def trainer_of(sets, environment=None, **settings):
    options = {"type": "advise", "batch_size": 4, "episodes": 5, "steps": 4, "evaluated": 1, **settings}
    tables = {"trainer": options, "data": {"environment": environment or GRID, "sets": sets}}
    return build_trainer(Recipe.of(tables, "small", "small.toml"))


def test_rates_of_the_sources():
    good, bad = Oracle(Oracle.Config(speaks=0.5, right=0.8)).rates(OPTIMAL, 0)
    assert good == pytest.approx(np.where(OPTIMAL, 0.4, 0.1)) and good + bad == pytest.approx(0.5)
    good, bad = Contrary(Contrary.Config(speaks=1)).rates(OPTIMAL, 0)
    assert (good == ~OPTIMAL).all() and (bad == OPTIMAL).all()
    assert not np.any(Silent(Silent.Config()).rates(OPTIMAL, 0))
    changing = Changing(Changing.Config(right=0.9, later=0.1, over=100))
    assert [changing.consistency(n) for n in (0, 50, 100, 1000)] == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_beliefs_start_where_they_should():
    truth = [0.9, None, 0.0]
    starts = {key: RELIABILITIES.build(key).start(truth).tolist() for key in ("em", "vi", "equal", "known")}
    assert starts == {"em": [0.5] * 3, "vi": [0.5] * 3, "equal": [0.8] * 3, "known": [0.9, 0.5, 0.001]}
    assert RELIABILITIES.build({"type": "vi", "alpha": 9}).start(truth).tolist() == [0.9] * 3


def test_trainers_are_told_apart_on_a_grid():
    """A contrary trainer and a good one are found out; the estimates are those of a majority's truth."""
    sets = {"mixed": {"trainers": [{"type": "oracle", "right": 0.9}, {"type": "oracle", "right": 0.2}, "silent"]}}
    trainer = trainer_of(sets, steps=30)
    fit(trainer, progress=False)
    good, adversary, silent = trainer.reports()["mixed"].trainers
    assert good.reliability == pytest.approx(0.9, abs=0.05) and good.answers > 100
    assert adversary.reliability == pytest.approx(0.2, abs=0.07)
    assert silent.reliability is None
    said = trainer.sample()
    assert "trainer 2 (oracle): reliability 0." in said and "answers against the others" in said
    assert "trainer 3 (silent): never answered, reliability unknown" in said


def test_several_optimal_actions_are_right():
    trainer = trainer_of({"one": {"trainers": ["oracle"]}}, several_optimal=True)
    assert trainer.optimal.sum(1).max() == 4 or trainer.optimal[0].sum() == 2
    assert trainer_of({"one": {"trainers": ["oracle"]}}).optimal.sum(1).max() == 1


def test_feedback_alone_teaches():
    trainer = trainer_of({"good": {"trainers": [{"type": "oracle", "speaks": 1, "right": 1}]}}, rewards=False, steps=12)
    fit(trainer, progress=False)
    assert not trainer.tables.q.any()
    assert trainer.evaluate()["return/good"] == pytest.approx(7)  # four moves, the last one earns 10


def test_asking_only_where_answers_are_undecided_saves_answers():
    oracle = {"type": "oracle", "speaks": 1, "right": 0.9}
    sets = {name: {"trainers": [oracle], "confidence": c, "reliability": "known"} for name, c in (("a", 1), ("b", 0.9))}
    trainer = trainer_of(sets, steps=10)
    fit(trainer, progress=False)
    answers = {name: report.trainers[0].answers for name, report in trainer.reports().items()}
    assert answers["b"] < answers["a"] / 3
    assert trainer.evaluate()["return/b"] == pytest.approx(7)


def test_no_feedback_and_adversaries_alone_are_explained():
    trainer = trainer_of({"quiet": {"trainers": ["silent"]}, "none": {}, "bad": {"trainers": ["contrary", "contrary"]}})
    fit(trainer, progress=False)
    said = trainer.sample()
    assert "no trainer answered, so that learners had rewards alone" in said and "none: no trainers" in said
    zeros = np.zeros((1, 1, 2, 1), dtype=int)
    report = report_set(["a", "b"], [None, None], np.array([[0.1, 0.3]]), zeros + 3, zeros)
    assert "their good and bad are swapped" in "\n".join(describe_trainers("x", report))
    contradictory = report_set(["a"], [None], np.array([[0.5]]), zeros[:, :, :1] + 1, zeros[:, :, :1] + 2)
    assert "1 actions were called both good and bad" in "\n".join(describe_trainers("x", contradictory))


@pytest.mark.parametrize(
    ("sets", "environment", "said"),
    [
        ({"a": {"trainers": [{"type": "oracle", "right": 1.5}]}}, None, r"sets\.a\.trainers\.0\.right"),
        ({"a\n": {}}, None, "a name has 1 to 40 letters"),
        ({}, None, "sets"),
        ({"a": {}}, {"type": "steering"}, "must be an environment with a table"),
        ({"a": {"confidence": 0}}, None, "confidence"),
    ],
)
def test_bad_recipes_are_refused(sets, environment, said):
    with pytest.raises(ConfigError, match=said):
        trainer_of(sets, environment)


class NanReward(TabularEnvironment):
    """An environment whose second state earns NaN."""

    def build(self):
        shape = (2, 1, 1)
        reward = np.array([[[0.0]], [[np.nan]]])
        table = TransitionTable(np.ones(shape, dtype=np.int64), np.ones(shape), reward, np.zeros(shape, bool))
        return table, np.array([1.0, 0.0])


def test_nan_rewards_are_refused():
    with ENVIRONMENTS.override(nan=NanReward), pytest.raises(ContractError, match="rewards must be finite numbers"):
        trainer_of({"a": {}}, {"type": "nan"})


class Corridor(TabularEnvironment):
    """Another package's environment: three cells, of which the last one earns 1 and ends."""

    def build(self):
        shape = (3, 2, 1)
        following = np.array([[[0], [1]], [[0], [2]], [[2], [2]]])
        reward = (following == 2).astype(float)
        return TransitionTable(following, np.ones(shape), reward, following == 2), np.array([1.0, 0.0, 0.0])


SOURCE = textwrap.dedent(
    """
    import numpy as np
    from axon_advise import AnswerRates, FeedbackSource

    class Parrot(FeedbackSource):
        "Calls everything good."

        def rates(self, optimal, episode):
            return AnswerRates(np.ones(optimal.shape), np.zeros(optimal.shape))

    class Loud(FeedbackSource):
        "Breaks the rule of probabilities."

        def rates(self, optimal, episode):
            return AnswerRates(np.ones(optimal.shape), np.ones(optimal.shape))
    """
)


@pytest.fixture
def out_of_tree(tmp_path, monkeypatch):
    """An installed distribution with sources of feedback of its own."""
    from axon_core.registry import refresh

    info = tmp_path / "axon_parrots-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: axon-parrots\nVersion: 1.0\n")
    entries = "[axon.v1.feedback]\nparrot = advise_parrots:Parrot\nloud = advise_parrots:Loud\n"
    (info / "entry_points.txt").write_text(entries)
    (tmp_path / "advise_parrots.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    refresh()
    yield
    monkeypatch.undo()
    refresh()


def test_sources_and_environments_of_other_packages(out_of_tree):
    assert "parrot" in FEEDBACKS
    with ENVIRONMENTS.override(corridor=Corridor):
        trainer = trainer_of({"a": {"trainers": ["parrot", "oracle"]}}, {"type": "corridor", "limit": 20})
        fit(trainer, progress=False)
        assert trainer.tables.good[:, :, 0].sum() > 0 and trainer.tables.bad[:, :, 0].sum() == 0
        assert trainer.evaluate()["return/a"] == 1.0
    with pytest.raises(ConfigError, match="whose sum is at most 1"):
        checked_rates(FEEDBACKS.build("loud"), OPTIMAL, 0)


def test_answers_are_only_added_and_a_torn_line_is_dropped(tmp_path):
    file = tmp_path / "feedback.jsonl"
    assert read_answers(file, 2, 2) == []
    one, two = (PersonalAnswer(trainer="ann", state=s, action=1, good=True) for s in (0, 1))
    append_answer(file, one)
    with file.open("a") as out:
        out.write('{"trainer": "an')  # killed here
    assert read_answers(file, 2, 2) == [one]
    append_answer(file, two)
    assert read_answers(file, 2, 2) == [one, two]
    assert [json.loads(line)["state"] for line in file.read_text().splitlines()] == [0, 1]
    with pytest.raises(DataError, match="line 2: states are numbered below 1"):
        read_answers(file, 1, 2)
    file.write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is not an answer"):
        read_answers(file, 2, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from axon_core.cli import main

    folder = tmp_path_factory.mktemp("advise")
    (folder / "small.toml").write_text(
        '[data.environment]\ntype = "grid"\nsize = 3\n[data.sets.good]\ntrainers = ["oracle"]\n[data.sets.none]\n'
        '[trainer]\ntype = "advise"\nsteps = 20\nbatch_size = 3\n'
    )
    assert main(["train", str(folder / "small.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def played(run, *arguments, keys=""):
    from click.testing import CliRunner

    from axon_core.cli.app import cli

    return CliRunner().invoke(cli, ["advise", *arguments, str(run)], input=keys)


def test_a_run_leaves_its_report_and_pictures(run):
    report = json.loads((run / "trainers.json").read_text())
    assert report["good"]["trainers"][0]["truth"] == 0.9 and report["none"]["trainers"] == []
    pytest.importorskip("PIL")
    assert (run / "advise.gif").read_bytes().startswith(b"GIF8")
    pytest.importorskip("matplotlib")
    assert (run / "advise.png").read_bytes().startswith(b"\x89PNG")


def test_people_play_and_are_judged(run):
    """Two people watch; the one who says the opposite of what earns is found out. A later call continues."""
    env = trainer_of({"a": {"trainers": ["oracle"]}}).environment
    optimal = trainer_of({"a": {"trainers": ["oracle"]}}, several_optimal=True).optimal
    found = played(run, "play", "--as", "ann", "--as", "bob", keys="y\nn\ny\nn\nq\n")
    assert found.exit_code == 0, found.output
    answers = read_answers(run / "feedback.jsonl", env.table.n_states, env.table.n_actions)
    assert [(a.trainer, a.good) for a in answers] == [("ann", True), ("bob", False)] * 2
    assert "trainer 1 (ann): reliability" in found.output
    for state in range(env.table.n_states - 1):  # as if both had watched for long
        for action in range(4):
            right = bool(optimal[state, action])
            append_answer(run / "feedback.jsonl", PersonalAnswer(trainer="ann", state=state, action=action, good=right))
            append_answer(
                run / "feedback.jsonl", PersonalAnswer(trainer="bob", state=state, action=action, good=not right)
            )
    judged = played(run, "report", "--learner", "good")
    assert "answers against the others" in judged.output, judged.output
    as_json = json.loads(played(run, "report", "--json").output)
    ann, bob = as_json["trainers"]
    assert ann["reliability"] > 0.6 > 0.4 > bob["reliability"]
    assert 0 < ann["spread"] < 0.2
    assert "Nobody" not in played(run, "play", keys="").output  # the end of the input ends the episode


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--learner", "best"], "--learner must be one of good, none"), (["--as", " "], "--as needs")],
)
def test_bad_options_are_refused(run, arguments, said):
    found = played(run, "play", *arguments)
    assert found.exit_code != 0
    assert said in str(found.exception) + found.output


def test_exports_hold_the_first_learner_of_each_set(run):
    from axon_advise.tables import AdviceTables

    tables = AdviceTables.load(run / "model")
    assert len(tables.q) == 2 and tables.good[1].sum() == 0 < tables.good[0].sum()
    states = torch.arange(9).expand(2, 9)
    assert torch.equal(tables(states)[1], tables.q[1])
