"""The settings of a page: how tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio

__all__ = ["SamplingForm"]


class SamplingForm:
    """The components in the bar at the side, and their values as parameters of the API.

    Args:
        context: the model's context, in tokens.
    """

    def __init__(self, context: int) -> None:
        with gradio.Sidebar(open=True, width=300, elem_classes="axon-side"):
            self.top = gradio.Column(min_width=0)
            with gradio.Accordion("Sampling", open=False):
                usual = min(200, max(context // 2, 1))
                self.inputs: list[Any] = [
                    gradio.Slider(1, context, usual, step=1, label="Most tokens"),
                    gradio.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0 takes the likeliest token."),
                    gradio.Slider(0, 1, 1, step=0.01, label="Top p", info="Likeliest tokens with this probability."),
                    gradio.Number(None, label="Top k", precision=0, info="Only the k likeliest tokens; empty: all."),
                    gradio.Slider(0, 1, 0, step=0.01, label="Min p", info="Tokens this likely beside the likeliest."),
                    gradio.Slider(1, 2, 1, step=0.05, label="Repetition penalty", info="1 is none."),
                    gradio.Number(None, label="Seed", precision=0, info="Repeats a text; empty: another each time."),
                ]

    @staticmethod
    def parameters(values: Sequence[Any]) -> dict[str, Any]:
        """Return the values of `inputs` as parameters; what is left empty is not among them."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        whole = {name: int(given[name]) for name in ("max_tokens", "top_k", "seed") if name in given}
        return {name: float(value) for name, value in given.items()} | whole
