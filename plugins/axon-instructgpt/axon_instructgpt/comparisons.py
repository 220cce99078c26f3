"""The stage `comparisons`: rankings of a model's own responses by a known reward, with noise of a known size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor

from axon_core import Count, DataError, Key, at, to_json
from axon_core.alignment import is_finished, score_responses
from axon_core.checkpoint import new_folder
from axon_core.interfaces import CausalLM
from axon_core.registry import Spec, registry_of
from axon_core.training import load_pretrained, named_model_folder
from axon_instructgpt.excerpts import write_lines
from axon_instructgpt.responses import asked, sampled, texts
from axon_instructgpt.stage import Computing

__all__ = ["Comparisons", "bayes_accuracy", "noisy_ranking"]


def noisy_ranking(utilities: Float[Tensor, "b k"], generator: torch.Generator) -> Int[Tensor, "b k"]:
    """Return a ranking of each row, the best first, by the Plackett–Luce model: utility plus Gumbel noise, sorted.

    Of any two, the first comes before the second with probability σ(u_1 − u_2), the Bradley–Terry model.
    """
    uniform = torch.rand(utilities.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return (utilities.double() - (-uniform.log()).log()).argsort(-1, descending=True)


def bayes_accuracy(utilities: Float[Tensor, "b k"]) -> float:
    """Return the accuracy, over all pairs, of a judge who knows the utilities: the mean of σ(|u_i − u_j|)."""
    k = utilities.shape[1]
    i, j = torch.triu_indices(k, k, offset=1)
    return (utilities[:, i] - utilities[:, j]).double().abs().sigmoid().mean().item()


class Comparisons(Computing):
    """Samples responses of a model, and ranks them by a reward with Bradley–Terry noise.

    Writes `rankings.jsonl`, all responses to a prompt in order; `comparisons.jsonl`, the first two responses to each
    prompt, the better one chosen; and `facts.json`, with the noise and the Bayes accuracy. A prompt that yields the
    same text twice, or an empty one, is left out. A response that was cut off at `response_tokens` is marked as
    `unfinished`, so that no model learns that it ends there; `facts.json` has their number.
    """

    class Config(Computing.Config):
        """Whose responses, to what, and who ranks them how."""

        policy: str
        """The folder of the run or the model that responds."""
        prompts: str
        """JSON lines, each with a `prompt`."""
        reward: Spec
        """The known reward, by `type`."""
        noise: PositiveFloat = 1.0
        """What a difference of rewards is divided by before it decides: P(1 before 2) = σ((r_1 − r_2) / noise)."""
        responses: int = Field(default=2, ge=2)
        """Responses to each prompt."""
        response_tokens: Count = 64
        """The longest response."""
        temperature: PositiveFloat = 1.0
        """What logits are divided by."""
        seed: int = 0
        """What all random numbers derive from."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with at("reward"):
            registry_of("reward").config(config.reward)

    def run(self, out: Path) -> None:
        """Sample, rank and write. Raises `DataError` if no prompt has different responses."""
        c, key = self.config, Key((self.config.seed, "comparisons"))
        with at("reward"):
            reward = registry_of("reward").build(c.reward)
        model, tokenizer = load_pretrained(named_model_folder(c.policy), CausalLM)
        prompts = asked(c.prompts, tokenizer, model, c.response_tokens)
        sizes: dict[str, Any] = {"response_tokens": c.response_tokens, "temperature": c.temperature}
        drawn = sampled(model.eval().to(c.device), prompts, tokenizer, n=c.responses, key=key("respond"), **sizes)
        written = [texts(tokenizer, *each) for each in zip(prompts, drawn, strict=True)]
        kept = [i for i, found in enumerate(written) if len(set(found)) == c.responses and all(found)]
        if not kept:
            raise DataError(
                f"none of the {len(prompts)} prompts gave {c.responses} different responses; raise the temperature, "
                "or lower responses"
            )
        ends = [[is_finished(tokenizer.ends, response) for response in drawn[i]] for i in kept]
        utilities = (
            score_responses(reward, [prompts[i].named for i in kept], [written[i] for i in kept], ends) / c.noise
        )
        order = noisy_ranking(utilities, key("rank").generator()).tolist()
        rankings, comparisons = list[dict[str, Any]](), list[dict[str, Any]]()
        for i, these, ranking in zip(kept, ends, order, strict=True):
            better, worse = (n for n in ranking if n < 2)
            prompt, found = prompts[i].text, written[i]
            cut_off = [n for n, end in enumerate(these) if not end]
            both = {"chosen": better, "rejected": worse}
            pair_cut_off = [name for name, n in both.items() if n in cut_off]
            rankings.append(_line({"prompt": prompt, "responses": found, "ranking": ranking}, cut_off))
            comparisons.append(_line({"prompt": prompt, **{name: found[n] for name, n in both.items()}}, pair_cut_off))
        facts = {
            "reward": c.reward.model_dump(mode="json"),
            "noise": c.noise,
            "prompts": len(kept),
            "left_out": len(prompts) - len(kept),
            "responses": sum(map(len, ends)),
            "unfinished": sum(not end for these in ends for end in these),
            "bayes_accuracy": bayes_accuracy(utilities),
        }
        with new_folder(out) as folder:
            write_lines(folder / "rankings.jsonl", rankings)
            write_lines(folder / "comparisons.jsonl", comparisons)
            (folder / "facts.json").write_text(to_json(facts, indent=1), encoding="utf-8")


def _line(record: dict[str, Any], unfinished: Sequence[int | str]) -> dict[str, Any]:
    """Return a record, with its responses that were cut off, if there are any."""
    return {**record, "unfinished": list(unfinished)} if unfinished else record
