"""The settings of a page: how tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio

__all__ = ["SamplingForm"]


class SamplingForm:
    """The components in the bar at the side, and their values as parameters of the API.

    Args:
        context: the model's context, in tokens.
        published: fields of `Sampling` that the model was published with.
    """

    def __init__(self, context: int, published: Mapping[str, Any]) -> None:
        first = {"temperature": 0.8, "top_p": 1, "top_k": None, "min_p": 0, "repetition_penalty": 1, **published}
        heat, top_p, top_k, min_p, penalty = first.values()
        with gradio.Sidebar(open=True, width=300, elem_classes="axon-side"):
            self.top = gradio.Column(min_width=0)
            with gradio.Accordion("Sampling", open=False):
                usual = min(200, max(context // 2, 1))
                self.inputs: list[Any] = [
                    gradio.Slider(1, context, usual, step=1, label="Most tokens"),
                    gradio.Slider(
                        0, max(heat, 2), heat, step=0.05, label="Temperature", info="0 takes the likeliest token."
                    ),
                    gradio.Slider(
                        0, 1, top_p, step=0.01, label="Top p", info="Likeliest tokens with this probability."
                    ),
                    gradio.Number(top_k, label="Top k", precision=0, info="Only the k likeliest tokens; empty: all."),
                    gradio.Slider(
                        0, 1, min_p, step=0.01, label="Min p", info="Tokens this likely beside the likeliest."
                    ),
                    gradio.Slider(
                        *(min(penalty, 1), max(penalty, 2), penalty),
                        step=0.05,
                        label="Repetition penalty",
                        info="1 is none.",
                    ),
                    gradio.Number(None, label="Seed", precision=0, info="Repeats a text; empty: another each time."),
                ]

    @staticmethod
    def parameters(values: Sequence[Any]) -> dict[str, Any]:
        """Return the values of `inputs` as parameters; a seed that is left empty is not among them."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        given.setdefault("top_k", 0)  # all, whatever the model was published with
        whole = {name: int(given[name]) for name in ("max_tokens", "top_k", "seed") if name in given}
        return {name: float(value) for name, value in given.items()} | whole
