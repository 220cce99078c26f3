"""Reward models: the loss, the score's place, normalisation, invariances, resumption, use by PPO, and bad input."""

import json
import math
from itertools import combinations

import pytest
import torch

from axon_core import MODELS, AxonError, CheckpointError, ContextError, DataError, fit
from axon_core.alignment import Sequences, encode_completion
from axon_core.interfaces import Model
from axon_core.registry import registry_of
from axon_core.training import Recipe, build_trainer, evaluate
from axon_instructgpt import RewardModel, RewardTrainer, ranking_loss
from axon_instructgpt.ranking import LARGE_MARGINS, SMALL_MARGINS

LLAMA = {"type": "xllama", "dim": 16, "n_layers": 2, "n_heads": 2, "context": 24}


def rankings(n=12, k=(2, 3, 4)):
    """Answers of a's; the more, the better."""
    found = []
    for i in range(n):
        size = k[i % len(k)]
        responses = ["a" * (j + 1) + "b" * (i % 3) for j in range(size)]
        found.append({"prompt": f"say {i}", "responses": responses, "ranking": list(range(size))[::-1]})
    return found


def comparisons(n=12):
    return [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no" * (1 + i % 3), "margin": i / n} for i in range(n)]


@pytest.fixture
def trainer(tmp_path):
    """Return what makes a trainer of records, from tables of the recipe."""

    def make(records=None, model=None, data=None, saved=None, **options):
        path = tmp_path / "records.jsonl"
        records = rankings() if records is None else records
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        tables = {
            "model": model or LLAMA,
            "trainer": {"type": "reward", "batch_size": 4, **options},
            "data": {"path": str(path), **(data or {})},
        }
        return build_trainer(Recipe.of(tables, "r", "recipe"), saved)

    return make


def stirred(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.double().eval()


def test_known_answers_at_equal_rewards():
    losses = ranking_loss(torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.bool), torch.tensor(sorted(SMALL_MARGINS)))
    torch.testing.assert_close(losses, torch.tensor([0.6931, 0.8736, 1.0810, 1.3133]), rtol=0, atol=5e-5)
    assert LARGE_MARGINS == tuple(3 * margin for margin in SMALL_MARGINS)


def test_the_loss_is_the_mean_over_a_prompts_pairs_of_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64) * 4
    sizes, margin = (5, 2, 3), torch.tensor([0.0, 1.5, 0.0], dtype=torch.float64)
    present = torch.arange(5) < torch.tensor(sizes)[:, None]
    expected = [
        sum(-math.log(1 / (1 + math.exp(-(row[i] - row[j] - m)))) for i, j in combinations(range(k), 2))
        / math.comb(k, 2)
        for row, k, m in zip(scores.tolist(), sizes, margin.tolist(), strict=True)
    ]
    assert ranking_loss(scores, present, margin).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_large_gaps_stays_finite():
    scores = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    loss = ranking_loss(scores, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1))
    loss.sum().backward()
    assert loss.item() == 1000 and scores.grad.tolist() == [[-1, 1]]


def test_parity_with_trl(monkeypatch):
    """TRL's `RewardTrainer.compute_loss`, on the same rewards and margins."""
    import trl

    generator = torch.Generator().manual_seed(0)
    rewards, margin = torch.randn(16, generator=generator), torch.rand(8, generator=generator)

    class Plain:
        training = False

        def __call__(self, **inputs):
            return type("Out", (), {"logits": rewards[:, None]})()

    fake = type("Fake", (), {})()
    fake.args = type("Args", (), {"center_rewards_coefficient": None, "disable_gradient_checkpointing": True})()
    fake.accelerator = type("A", (), {"gather_for_metrics": lambda self, x: x, "gather": lambda self, x: x})()
    fake.model = type("M", (), {"training": False})()
    fake._metrics = {mode: __import__("collections").defaultdict(list) for mode in ("train", "eval")}
    fake._total_train_tokens = 0
    inputs = {"input_ids": torch.zeros(16, 2, dtype=torch.long), "attention_mask": torch.ones(16, 2), "margin": margin}
    theirs = trl.RewardTrainer.compute_loss(fake, Plain(), inputs)
    ours = ranking_loss(torch.stack(rewards.chunk(2), 1), torch.ones(8, 2, dtype=torch.bool), margin).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_a_prompts_answers_are_one_element_and_each_runs_once(trainer, monkeypatch):
    made = trainer()
    batch = made.batch(0)
    picked = int(batch["valid"].any(-1).sum())
    ran = []
    whole = made.model.whole
    monkeypatch.setattr(made.model, "whole", lambda tokens, valid: ran.append(len(tokens)) or whole(tokens, valid))
    made.loss(batch)
    assert len(batch["margin"]) == 4 and ran == [picked]
    assert made.counts(batch) == {"loss": 4, "rewards/accuracies": 4, "rewards/margins": 4}


def test_a_score_is_that_of_the_answer_alone_at_its_end(trainer):
    """Padding side and length, and the order of the batch, change nothing."""
    model = stirred(trainer().model)
    pairs = [([1, 2, 3], [4, 5]), ([1], [7]), ([9, 8, 7, 6], [5, 4, 3, 257])]
    alone = torch.cat([model.whole(r.tokens, r.valid) for r in (Sequences.of([pair]) for pair in pairs)])
    for pad in ("left", "right"):
        for length in (8, 13):
            rows = Sequences.of(pairs, padding=pad, length=length)
            tokens, valid = rows.tokens, rows.valid
            torch.testing.assert_close(model.whole(tokens, valid), alone, rtol=0, atol=1e-9)
            torch.testing.assert_close(model.whole(tokens.flip(0), valid.flip(0)), alone.flip(0))
    every = model(Sequences.of(pairs).tokens, valid=Sequences.of(pairs).valid)
    ends = torch.tensor([len(prompt) + len(answer) - 1 for prompt, answer in pairs])
    torch.testing.assert_close(every.gather(1, ends[:, None])[:, 0], alone)
    # An id that others pad with counts where it is part of the text.
    shown = Sequences.of([([1, 2], [3, 0]), ([1, 2], [3])])
    assert model.whole(shown.tokens.clamp(min=0), shown.valid).diff().abs() > 1e-6


@pytest.mark.parametrize("records", [rankings(), comparisons()])
def test_micro_batches_and_order_change_nothing(trainer, records):
    made = trainer(records, batch_size=6)
    stirred(made.model)
    batch = made.batch(0)
    whole = made.loss(batch)
    for name, total in whole.items():
        pieces = [{part: rows[i::2] for part, rows in batch.items()} for i in range(2)]
        assert sum(made.loss(piece)[name] for piece in pieces).item() == pytest.approx(total.item(), abs=1e-6)
        assert made.loss({part: rows.flip(0) for part, rows in batch.items()})[name].item() == pytest.approx(
            total.item(), abs=1e-6
        )
    wider = {"margin": batch["margin"]}
    for name, fill in (("tokens", -1), ("valid", False)):
        wider[name] = torch.nn.functional.pad(batch[name], (0, 5, 0, 2), value=fill)
    assert made.loss(wider)["loss"].item() == pytest.approx(whole["loss"].item(), abs=1e-6)


def test_margins_are_those_of_the_records(trainer):
    made = trainer(comparisons(), batch_size=1)
    stirred(made.model)
    for step in range(4):
        batch = made.batch(step)
        (scores,), _ = made.scores(batch)
        expected = math.log1p(math.exp(-(scores[0] - scores[1] - batch["margin"][0]).item()))
        assert made.loss(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert {round(made.batch(step)["margin"].item() * 12) for step in range(11)} == set(range(11))


def test_the_head_begins_as_the_paper_says():
    trunk = MODELS.build({**LLAMA, "dim": 2048, "n_layers": 1, "n_heads": 8}, vocab_size=5)
    torch.manual_seed(0)
    head = RewardModel.of(trunk).head
    assert head.std().item() * math.sqrt(2049) == pytest.approx(1, abs=0.05) and abs(head.mean().item()) < 2e-3


def test_it_learns_resumes_bit_for_bit_and_is_centred_on_the_demonstrations(trainer, tmp_path):
    options = {"steps": 40, "save_every": 10, "optimizer": {"lr": 3e-3, "weight_decay": 0.0}}
    whole = trainer(**options)
    before = evaluate(whole)
    after = fit(whole, tmp_path / "a").metrics
    assert after["loss"] < before["loss"] * 0.7 and after["rewards/accuracies"] > 0.9
    fit(trainer(**options), tmp_path / "b", stop_at=20)
    again = trainer(**options, saved=tmp_path / "b" / "checkpoints" / "step-20" / "model")
    fit(again, tmp_path / "b", resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    loaded = Model.load(tmp_path / "a" / "model").eval()
    assert isinstance(loaded, RewardModel) and loaded.bias.item() != 0
    tokenizer = whole.data.tokenizer
    reward = registry_of("reward").build({"type": "reward_model", "path": str(tmp_path / "a")})
    best = [(r["prompt"], r["responses"][r["ranking"][0]]) for r in rankings()[:11]]
    scores = reward(*zip(*best, strict=True))
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-5)
    # What PPO is given is the score at the end of the response, less the mean.
    rows = Sequences.of([(tokenizer.encode_prompt(best[0][0]), encode_completion(tokenizer, best[0][1]))])
    with torch.no_grad():
        assert scores[0] == pytest.approx((loaded.whole(rows.tokens, rows.valid) - loaded.bias).item(), abs=1e-5)
    # A reward model may be trained further.
    further = trainer(model={"init": str(tmp_path / "a")})
    assert evaluate(further)["rewards/margins"] == pytest.approx(after["rewards/margins"], rel=1e-4)


def test_given_demonstrations_are_scored_0_on_average(trainer, tmp_path):
    path = tmp_path / "demonstrations.jsonl"
    given = [{"prompt": "say x", "completion": "c" * i} for i in range(1, 6)]
    path.write_text("".join(json.dumps(record) + "\n" for record in given))
    fit(trainer(data={"demonstrations": str(path)}, steps=2), tmp_path / "run")
    reward = registry_of("reward").build({"type": "reward_model", "path": str(tmp_path / "run")})
    scores = reward(["say x"] * 5, [record["completion"] for record in given])
    assert sum(scores) == pytest.approx(0, abs=1e-5) and max(scores) > 1e-4


def test_it_starts_from_a_language_model(trainer, tmp_path):
    records = tmp_path / "sft.jsonl"
    records.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    tables = {"model": LLAMA, "trainer": {"type": "sft", "steps": 2, "batch_size": 1}, "data": {"path": str(records)}}
    sft = build_trainer(Recipe.of(tables, "sft", "recipe"))
    fit(sft, tmp_path / "sft")
    made = trainer(model={"init": str(tmp_path / "sft")})
    for name, tensor in sft.model.state_dict().items():
        assert torch.equal(tensor, made.model.trunk.state_dict()[name])


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, DataError, ["line 3", "differ"]),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, DataError, ["line 3", "prompt"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, DataError, ["line 3", "margin"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, DataError, ["line 3"]),
        ({"prompt": "a" * 30, "chosen": "b", "rejected": "c"}, ContextError, ["line 3", "24"]),
        ({"prompt": "a", "responses": ["b", "c"], "ranking": [0, 1]}, DataError, ["line 3"]),
    ],
)
def test_bad_records_are_refused_by_name(trainer, record, error, words):
    with pytest.raises(error) as caught:
        trainer([*comparisons(2), record])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_bad_rankings_are_refused_by_name(trainer):
    with pytest.raises(DataError, match=r"line 2.*ranking"):
        trainer([*rankings(1), {"prompt": "a", "responses": ["b", "c"], "ranking": [0, 0]}])
    with pytest.raises(DataError, match=r"line 2.*differ"):
        trainer([*rankings(1), {"prompt": "a", "responses": ["b", "b"], "ranking": [0, 1]}])


def test_a_damaged_model_is_refused(trainer, tmp_path):
    fit(trainer(steps=1), tmp_path / "run")
    file = tmp_path / "run" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"damaged|checksum"):
        trainer(model={"init": str(tmp_path / "run")})


def test_a_model_of_another_kind_is_refused(trainer):
    with pytest.raises(AxonError, match="RewardModel"):
        RewardTrainer(RewardTrainer.Config(), {"model": torch.nn.Linear(1, 1)}, trainer().data)
    with pytest.raises(AxonError, match="CausalLM"):
        RewardModel.build(trunk={"type": "perceptron", "inputs": 1, "outputs": 1}, dim=3)
