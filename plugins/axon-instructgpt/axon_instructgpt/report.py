"""The stage `report`: compares policies with the model they started from, by a known reward and by the reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from axon_core import CheckpointError, Count, DataError, Key, UsageError, at, expanded, parse_json, to_json
from axon_core.checkpoint import new_folder
from axon_core.interfaces import CausalLM
from axon_core.registry import Spec, registry_of
from axon_core.text import Ranking, Tokenizer, check_room, read_records
from axon_core.training import RunFolder, load_pretrained, model_folder, named_model_folder, tokenizer_difference
from axon_instructgpt.bench import Bench
from axon_instructgpt.frontier import best_of_n, optimum
from axon_instructgpt.page import draw_frontier, page
from axon_instructgpt.responses import asked, texts
from axon_instructgpt.selection import best_of_n_kl
from axon_instructgpt.stage import Computing

__all__ = ["Report"]

_TAKEN = ("reference", "prompt", "exact", "best_of_n", "optimum")  # what else the report puts where policies' names are


class Report(Computing):
    """Compares policies with the model they started from, on prompts that no stage has seen.

    Writes `report.json`, `report.md` and, where matplotlib is installed, `frontier.png`: reward against KL divergence
    of every checkpoint of every policy, of best-of-n, and of the optimum π* ∝ π_ref exp(r/β). The last two are exact
    where all responses can be enumerated, and otherwise those of a sample.
    """

    class Config(Computing.Config):
        """What is compared, and how thoroughly."""

        reference: str
        """The folder of the run or the model that the policies started from."""
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
        """The KL divergence of a response, in nats, that a policy may spend on its wins; left out, none is checked."""
        required_win_rate: float = Field(default=0.9, ge=0, le=1)
        """The win rate, by the known reward, that a policy must reach within the budget."""
        responses: Count = 8
        """Responses of each policy to each prompt."""
        response_tokens: Count = 64
        """The longest response."""
        pool: PositiveInt = 256
        """Responses of the reference to each prompt from which the best are chosen, where they are not enumerated."""
        best_of: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16)
        """The n of best-of-n."""
        betas: tuple[PositiveFloat, ...] = (2.0, 1.0, 0.5, 0.25, 0.125)
        """The β of the optimum, in units of the known reward."""
        target_beta: PositiveFloat | None = None
        """The β, in units of the known reward, of the optimum that the policies were trained towards, to be marked.

        Where comparisons have noise and the losses β, it is their product."""
        samples: Count = 5
        """Prompts whose responses are shown side by side."""
        seed: int = 0
        """What all random numbers derive from."""

        @field_validator("policies")
        @classmethod
        def _named(cls, policies: dict[str, str]) -> dict[str, str]:
            if taken := next((name for name in policies if name in _TAKEN), None):
                raise ValueError(f"a policy's name must not be one of {', '.join(_TAKEN)}, got {taken!r}")
            return policies

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with at("reward"):
            registry_of("reward").config(config.reward)

    def run(self, out: Path) -> None:
        """Measure, and write the report.

        Raises:
            UsageError: a policy or the reward model has another tokenizer than the reference.
            CheckpointError: a model cannot be read.
            DataError: prompts or rankings cannot be read.
            ContextError: a prompt and its response do not fit into a model; the message names it.
            TrainingError: a reward fails, or is not a finite number; the message names the prompt.
        """
        facts = self._measure()
        with new_folder(out) as folder:
            (folder / "report.json").write_text(to_json(facts, indent=1, ensure_ascii=False), encoding="utf-8")
            (folder / "report.md").write_text(page(facts), encoding="utf-8")
            draw_frontier(facts, folder / "frontier.png")

    def _measure(self) -> dict[str, Any]:
        """Return all facts; problems with models and files are found before anything is sampled."""
        c = self.config
        bench = self._bench()
        folders = {name: expanded(folder, CheckpointError) for name, folder in c.policies.items()}
        for name, folder in folders.items():
            policy, tokenizer = _causal(model_folder(folder))
            _same(name, tokenizer, bench.tokenizer)
            check_room(bench.prompts, c.response_tokens, policy.context, name)
        rankings = None if c.rankings is None or bench.judge is None else _rankings(expanded(c.rankings))

        base = bench.base()
        policies: dict[str, Any] = {"reference": asdict(bench.measure(bench.reference, base, base))}
        frontier: dict[str, Any] = {}
        first = {"reference": base}
        for name, folder in folders.items():
            policy, _ = _causal(model_folder(folder), c.device)
            first[name] = bench.draw(policy)
            policies[name] = asdict(bench.measure(policy, first[name], base))
            frontier[name] = [_point(bench, step, _causal(model, c.device)[0]) for step, model in _checkpoints(folder)]
        rewards, probabilities, exact = bench.reference_distribution(c.pool)
        betas = sorted({*c.betas, *([c.target_beta] if c.target_beta else [])}, reverse=True)
        for kind, find, label, values in (
            ("best_of_n", best_of_n, "n", c.best_of),
            ("optimum", optimum, "beta", betas),
        ):
            points = [(value, *find(rewards, probabilities, value)) for value in values]  # type: ignore[arg-type]
            frontier[kind] = [{label: v, "reward": r.mean().item(), "kl": kl.mean().item()} for v, r, kl in points]
        for point in frontier["best_of_n"]:
            point["kl_bound"] = best_of_n_kl(point["n"])
        return {
            "prompts": len(bench.prompts),
            "responses": c.responses,
            "policies": policies,
            "budget": _verdict(c.budget, c.required_win_rate, policies),
            "reward_model": rankings and _accuracies(bench, *rankings),
            "frontier": {"exact": exact, **frontier},
            "pool": None if exact else c.pool,
            "target_beta": c.target_beta,
            "samples": [
                {
                    "prompt": prompt.text,
                    **{name: texts(bench.tokenizer, prompt, drawn.tokens[i][:1])[0] for name, drawn in first.items()},
                }
                for i, prompt in enumerate(bench.prompts[: c.samples])
            ],
        }

    def _bench(self) -> Bench:
        c, rewards = self.config, registry_of("reward")
        with at("reward"):
            reward = rewards.build(c.reward)
        reference, tokenizer = _causal(named_model_folder(c.reference), c.device)
        prompts = asked(c.prompts, tokenizer, reference, c.response_tokens)
        judge = None
        if c.reward_model is not None:
            judge = rewards.build({"type": "reward_model", "path": c.reward_model})
            judge.model.to(c.device)
            _same("reward_model", judge.tokenizer, tokenizer)
            if judge.context is not None:
                check_room(prompts, c.response_tokens, judge.context, "reward_model")
        key = Key((c.seed, "report"))
        return Bench(reference, tokenizer, prompts, reward, judge, c.responses, c.response_tokens, key)


def _point(bench: Bench, step: int, policy: CausalLM) -> dict[str, float]:
    """Return where a checkpoint stands."""
    drawn = bench.draw(policy)
    return {"step": step, "reward": drawn.rewards.mean().item(), "kl": bench.kl(policy, drawn).mean().item()}


def _rankings(folder: Path) -> tuple[list[Ranking], Path, float]:
    """Return the rankings that a stage `comparisons` wrote, their file, and the Bayes accuracy."""
    file, facts = folder / "rankings.jsonl", folder / "facts.json"
    try:
        bayes = float(parse_json(facts.read_text(encoding="utf-8-sig"))["bayes_accuracy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {facts}: {error}; give the folder of a stage of type comparisons") from None
    return read_records(file, Ranking), file, bayes


def _accuracies(bench: Bench, rankings: list[Ranking], file: Path, bayes: float) -> dict[str, float]:
    """Return how often the reward model orders a pair as the rankings do, next to the known reward itself."""
    scorers = {"accuracy": bench.judge, "known_reward_accuracy": bench.reward}
    found = {name: bench.accuracy(scorer, rankings, file) for name, scorer in scorers.items() if scorer is not None}
    return {**found, "bayes_accuracy": bayes, "prompts": len(rankings)}


def _verdict(
    budget: float | None, required: float, policies: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    """Return the budget, the required win rate, and which policies reach it within the budget."""
    if budget is None:
        return None
    reached = {
        name: p["win_rate"] >= required and p["kl"] <= budget for name, p in policies.items() if name != "reference"
    }
    return {"kl": budget, "win_rate": required, "reached": reached}


def _same(name: str, tokenizer: Tokenizer, reference: Tokenizer) -> None:
    if problem := tokenizer_difference(tokenizer, reference):
        raise UsageError(f"{name} and the reference must have the same tokenizer, but {problem}")


def _causal(folder: Path, device: str = "cpu") -> tuple[CausalLM, Tokenizer]:
    model, tokenizer = load_pretrained(folder, CausalLM)
    return model.eval().to(device), tokenizer


def _checkpoints(path: Path) -> list[tuple[int, Path]]:
    """Return the step and the model of each checkpoint of a run; a model's folder has none."""
    if not (path / "run.json").exists():
        return []
    checkpoints = RunFolder.open(path).checkpoints
    return [(int(name.removeprefix("step-")), checkpoints.folder / name / "model") for name in checkpoints.names()]
