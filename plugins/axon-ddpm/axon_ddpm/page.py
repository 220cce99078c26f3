"""Dali's page in the browser, which `axon serve RUN` shows: pictures, painted step by step."""

from __future__ import annotations

import html
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from axon_core import AxonError, validate
from axon_ddpm.classes import captions
from axon_ddpm.dali import Dali
from axon_ddpm.denoiser import Denoiser
from axon_ddpm.diffusion import Diffusion
from axon_ddpm.pictures import encoded, encoded_gif, grid, to_bytes
from axon_ddpm.samplers import SAMPLERS
from axon_llamachat import Page, picture

if TYPE_CHECKING:
    import gradio

__all__ = ["SamplerPage"]

_MOST = 64  # pictures at once
_FRAMES = 40  # in an animation, at most
_PACE = 0.2  # seconds between two pictures on the way
_IN_TURN = "each in turn"


class SamplerPage(Page):
    """Paints pictures, which appear while they are painted, and at the end shows the way as an animation.

    Args:
        model: the model that predicts, in evaluation mode.
        diffusion: how to read its output.
        name: what the model is called.
    """

    def __init__(self, model: Denoiser, diffusion: Diffusion, name: str) -> None:
        self.model, self.diffusion, self.name = model, diffusion, name

    @classmethod
    def load(cls, folder: Path, *, name: str, device: str) -> Self:
        """Return the page of a saved denoiser. Raises `CheckpointError` if it is damaged or another model."""
        return cls(Denoiser.load(folder).eval().to(device), Diffusion.load(folder), name)

    def blocks(self) -> gradio.Blocks:
        """Return the page."""
        import gradio

        names, total = Dali(self.model, self.diffusion, Dali.Config()).class_names, len(self.diffusion.process)
        with gradio.Blocks(title=f"{self.name} · Dali") as made:
            with gradio.Row():
                with gradio.Column(scale=1, min_width=260):
                    run = gradio.Button("Paint", variant="primary")
                    stop = gradio.Button("Stop")
                    n = gradio.Slider(1, _MOST, 16, step=1, label="Pictures")
                    classes = [_IN_TURN, *names]
                    label = gradio.Dropdown(classes, value=_IN_TURN, label="Class", visible=bool(names))
                    steps = gradio.Slider(1, total, min(50, total), step=1, label="Steps")
                    sampler = gradio.Dropdown(sorted(SAMPLERS), value="ddim", label="Sampler")
                    guidance = gradio.Slider(
                        *(0, 8, 1),
                        step=0.1,
                        label="Guidance",
                        info="Exaggerates the class; 1 is none.",
                        visible=bool(names) and self.diffusion.config.unlabelled,
                    )
                    seed = gradio.Number(0, label="Seed", precision=0, info="Equal seeds give equal pictures.")
                with gradio.Column(scale=3, min_width=300):
                    seen = gradio.HTML(elem_classes="axon-pictures")
                    way = gradio.HTML(elem_classes="axon-pictures")
            asked = [n, label, steps, sampler, guidance, seed]
            painting = run.click(self.paint, asked, [seen, way], api_visibility="private", show_progress="minimal")
            stop.click(None, cancels=[painting])
        return made

    def paint(
        self, n: int, label: str, steps: int, sampler: str, guidance: float, seed: int | None
    ) -> Generator[tuple[str, str]]:
        """Yield the pictures while they are painted, and then with the animation.

        Raises:
            gradio.Error: the model cannot be sampled from like this.
        """
        import gradio

        count, known = max(1, min(int(n), _MOST)), self.model.config.n_classes
        settings = {"sampler": {"type": sampler}, "steps": int(steps), "guidance": guidance}
        try:
            dali = Dali(self.model, self.diffusion, validate(Dali.Config, settings), seed=int(seed or 0))
            in_turn = [i % known for i in range(count)] if known else None
            frames = dali.sample(count, in_turn if label == _IN_TURN else label)
            written = captions(count, dali.class_names, None if label == _IN_TURN else label)
            about = f"{count} pictures painted by {self.name}"
            every, shown, kept = -(-dali.steps // _FRAMES), time.monotonic(), []
            for number, frame in enumerate(frames, 1):
                if (dali.steps - number) % every and number < dali.steps:
                    continue
                kept.append(grid(to_bytes(frame.x).cpu(), captions=written))
                if time.monotonic() - shown > _PACE or number == dali.steps:
                    shown = time.monotonic()
                    yield picture(encoded(kept[-1]), about), ""
        except AxonError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None
        yield picture(encoded(kept[-1]), about), picture(encoded_gif(kept), f"{about}, step by step", "gif")
