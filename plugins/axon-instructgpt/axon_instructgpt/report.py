"""The stage `report`: policies against the one they began as, by a known reward and by the reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from axon_core.config import Spec, at
from axon_core.errors import UsageError
from axon_core.interfaces.model import CausalLM
from axon_core.prompts import Prompt, check_room
from axon_core.randomness import Key
from axon_core.records import Ranking, read_records
from axon_core.registry import registry_of
from axon_core.run import RunFolder
from axon_core.saved import load, place, tokenizer_difference
from axon_core.scoring import Scorer, scored
from axon_core.storage import whole_folder
from axon_core.tokenizer import Tokenizer
from axon_instructgpt.frontier import best_of_n, optimum, win_rate
from axon_instructgpt.page import draw, page
from axon_instructgpt.responses import asked, every_response, logprobs, sampled, texts
from axon_instructgpt.selection import best_of_n_kl
from axon_instructgpt.stage import Stage

__all__ = ["Measured", "Report"]

_ENUMERABLE = 20_000  # responses to a prompt that are enumerated rather than sampled


@dataclass(frozen=True)
class Measured:
    """What a policy's responses are like; means over prompts."""

    reward: float
    """By the known reward."""
    kl: float
    """KL(policy ‖ reference) of a response, in nats."""
    kl_error: float
    """Standard error of that."""
    length: float
    """Tokens of a response."""
    win_rate: float
    """How often a response beats the reference's by the known reward; equal ones count half."""
    model_reward: float | None
    """By the reward model."""
    model_win_rate: float | None
    """As `win_rate`, by the reward model."""


class _Drawn(NamedTuple):
    """Responses to the prompts, and what they are worth."""

    tokens: list[list[list[int]]]
    written: list[list[str]]
    rewards: Float[Tensor, "p n"]
    judged: Float[Tensor, "p n"] | None


class Report(Stage):
    """Compares policies with the model they began as, on prompts that no stage has seen.

    Writes `report.json`, `report.md` and, where matplotlib is installed, `frontier.png`: reward against KL divergence
    of every checkpoint of every policy, of best-of-n, and of the optimum π* ∝ π_ref exp(r/β). The last two are exact
    where all responses can be enumerated, and otherwise those of a sample.
    """

    class Config(Stage.Config):
        """What is compared, and how thoroughly."""

        reference: str
        """The folder of the run or the model that the policies began as."""
        policies: dict[str, str]
        """The folder of each policy, by the name it has in the report."""
        prompts: str
        """JSON lines, each with a `prompt`."""
        reward: Spec
        """The known reward, by `type`."""
        reward_model: str | None = None
        """The folder of the reward model, which then judges too."""
        rankings: str | None = None
        """A folder of the stage `comparisons`, which no stage has learned from: the reward model's accuracy on it."""
        budget: PositiveFloat | None = None
        """The KL divergence of a response, in nats, that a policy may spend on its win; left out, none is checked."""
        responses: PositiveInt = 8
        """Responses of each policy to each prompt."""
        response_tokens: PositiveInt = 64
        """The longest response."""
        pool: PositiveInt = 256
        """Responses of the reference to each prompt from which the best are chosen, where they are not enumerated."""
        best_of: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16)
        """The n of best-of-n."""
        betas: tuple[PositiveFloat, ...] = (2.0, 1.0, 0.5, 0.25, 0.125)
        """The β of the optimum, in units of the known reward."""
        samples: PositiveInt = 5
        """Prompts whose responses are shown side by side."""
        seed: int = 0
        """What all random numbers derive from."""

    config: Config

    def run(self, out: Path) -> None:
        """Measure, and write the report.

        Raises:
            UsageError: a policy or the reward model has another tokenizer than the reference.
            ContextError: a prompt and its response do not fit into a model; the message names it.
            TrainingError: a reward fails, or is no finite number; the message names the prompt.
        """
        facts = self._measure()
        with whole_folder(out) as folder:
            (folder / "report.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
            (folder / "report.md").write_text(page(facts), encoding="utf-8")
            draw(facts, folder / "frontier.png")

    def _measure(self) -> dict[str, Any]:
        c = self.config
        with at("reward"):
            reward = registry_of("reward").build(c.reward)
        judge = (
            registry_of("reward").build({"type": "reward_model", "path": c.reward_model}) if c.reward_model else None
        )
        reference, tokenizer = _causal(place(c.reference))
        if c.reward_model:
            _same("reward_model", Tokenizer.load(place(c.reward_model)), tokenizer)
        prompts = asked(c.prompts, tokenizer, reference, c.response_tokens)
        bench = _Bench(c, reward, judge, reference, tokenizer, prompts)
        base = bench.draw(reference)
        policies: dict[str, Any] = {"reference": asdict(bench.measure(reference, base, base))}
        frontier: dict[str, Any] = {}
        samples = [
            {"prompt": prompt.text, "reference": base.written[i][0]} for i, prompt in enumerate(prompts[: c.samples])
        ]
        for name, folder in c.policies.items():
            policy, other = _causal(place(folder))
            _same(name, other, tokenizer)
            check_room(prompts, c.response_tokens, policy.context, name)
            drawn = bench.draw(policy)
            policies[name] = asdict(bench.measure(policy, drawn, base))
            frontier[name] = [bench.point(step, model) for step, model in _checkpoints(Path(folder))]
            for i, sample in enumerate(samples):
                sample[name] = drawn.written[i][0]
        rewards, probabilities, exact = bench.reference_distribution()
        for kind, values in (("best_of_n", c.best_of), ("optimum", c.betas)):
            find = best_of_n if kind == "best_of_n" else optimum
            points = [(value, *find(rewards, probabilities, value)) for value in values]  # type: ignore[arg-type]
            label = "n" if kind == "best_of_n" else "beta"
            frontier[kind] = [{label: v, "reward": r.mean().item(), "kl": kl.mean().item()} for v, r, kl in points]
        for point in frontier["best_of_n"]:
            point["kl_bound"] = best_of_n_kl(point["n"])
        return {
            "prompts": len(prompts),
            "responses": c.responses,
            "policies": policies,
            "budget": _verdict(c.budget, policies),
            "reward_model": bench.accuracy(),
            "frontier": {"exact": exact, **frontier},
            "samples": samples,
        }


@dataclass(frozen=True)
class _Bench:
    """What every policy is measured with."""

    config: Report.Config
    reward: Scorer
    judge: Scorer | None
    reference: CausalLM
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]

    @property
    def named(self) -> list[tuple[str, str]]:
        """The prompts' names and texts."""
        return [prompt.named for prompt in self.prompts]

    def draw(self, policy: CausalLM, n: int | None = None) -> _Drawn:
        """Return n responses of a policy to each prompt."""
        c = self.config
        sizes = {"n": n or c.responses, "response_tokens": c.response_tokens}
        tokens = sampled(policy, self.prompts, self.tokenizer, key=Key((c.seed, "report")), **sizes)
        written = [texts(self.tokenizer, some) for some in tokens]
        judged = None if self.judge is None else scored(self.judge, self.named, written)
        return _Drawn(tokens, written, scored(self.reward, self.named, written), judged)

    def kl(self, policy: CausalLM, drawn: _Drawn) -> Float[Tensor, "p n"]:
        """Return log π − log π_ref of each response: on average KL(π ‖ π_ref)."""
        pairs = [
            (prompt, response) for prompt, some in zip(self.prompts, drawn.tokens, strict=True) for response in some
        ]
        return (logprobs(policy, pairs) - logprobs(self.reference, pairs)).view_as(drawn.rewards)

    def measure(self, policy: CausalLM, drawn: _Drawn, base: _Drawn) -> Measured:
        """Return what a policy's responses are like beside the reference's."""
        kl = self.kl(policy, drawn)
        lengths = [len(response) for some in drawn.tokens for response in some]
        judged = drawn.judged is not None and base.judged is not None
        return Measured(
            reward=drawn.rewards.mean().item(),
            kl=kl.mean().item(),
            kl_error=(kl.std() / kl.numel() ** 0.5).item() if kl.numel() > 1 else 0.0,
            length=sum(lengths) / len(lengths),
            win_rate=win_rate(drawn.rewards, base.rewards).mean().item(),
            model_reward=drawn.judged.mean().item() if drawn.judged is not None else None,
            model_win_rate=win_rate(drawn.judged, base.judged).mean().item() if judged else None,  # type: ignore[arg-type]
        )

    def point(self, step: int, folder: Path) -> dict[str, float]:
        """Return where a checkpoint stands."""
        policy = _causal(folder)[0]
        drawn = self.draw(policy)
        return {"step": step, "reward": drawn.rewards.mean().item(), "kl": self.kl(policy, drawn).mean().item()}

    def reference_distribution(self) -> tuple[Float[Tensor, "p y"], Float[Tensor, "p y"], bool]:
        """Return rewards and probabilities of the reference's responses, and whether they are all that there are."""
        c = self.config
        if self.reference.config.vocab_size**c.response_tokens > _ENUMERABLE:
            rewards = self.draw(self.reference, c.pool).rewards
            return rewards, torch.full_like(rewards, 1 / c.pool), False
        found = [every_response(self.reference, prompt, self.tokenizer, c.response_tokens) for prompt in self.prompts]
        rewards = scored(self.reward, self.named, [texts(self.tokenizer, responses) for responses, _ in found])
        return rewards, torch.stack([probabilities for _, probabilities in found]), True

    def accuracy(self) -> Mapping[str, float] | None:
        """Return how often the reward model orders a pair as the rankings do, beside the known reward itself."""
        if self.config.rankings is None or self.judge is None:
            return None
        folder = Path(self.config.rankings)
        records = read_records(folder / "rankings.jsonl", Ranking)
        named = [(f"line {i} of {folder / 'rankings.jsonl'}", record.prompt) for i, record in enumerate(records, 1)]
        ranked = [[record.responses[i] for i in record.ranking] for record in records]
        found = {
            name: _accuracy(scored(scorer, named, ranked))
            for name, scorer in (("accuracy", self.judge), ("known_reward_accuracy", self.reward))
        }
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return {**found, "bayes_accuracy": facts["bayes_accuracy"], "prompts": len(records)}


def _accuracy(scores: Float[Tensor, "b k"]) -> float:
    """Return how many pairs, the better one first, have the higher score first; equal ones count half."""
    k = scores.shape[1]
    i, j = torch.triu_indices(k, k, offset=1)
    gaps = scores[:, i] - scores[:, j]
    return ((gaps > 0).double() + (gaps == 0).double() / 2).mean().item()


def _verdict(budget: float | None, policies: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """Return the budget, and which policies win more often than they lose without spending more than it."""
    if budget is None:
        return None
    wins = {name: p["win_rate"] > 0.5 and p["kl"] <= budget for name, p in policies.items() if name != "reference"}
    return {"kl": budget, "wins": wins}


def _same(name: str, tokenizer: Tokenizer, reference: Tokenizer) -> None:
    if problem := tokenizer_difference(tokenizer, reference):
        raise UsageError(f"{name} and the reference must have the same tokenizer, but {problem}")


def _causal(folder: Path) -> tuple[CausalLM, Tokenizer]:
    model, tokenizer = load(folder, CausalLM)
    return model.eval(), tokenizer


def _checkpoints(path: Path) -> list[tuple[int, Path]]:
    """Return the step and the model of each checkpoint of a run; of a model's folder there are none."""
    if not (path / "run.json").exists():
        return []
    checkpoints = RunFolder.open(path).checkpoints
    return [(int(name.removeprefix("step-")), checkpoints.folder / name / "model") for name in checkpoints.names()]
