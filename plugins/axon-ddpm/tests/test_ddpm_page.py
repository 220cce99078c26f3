"""Dali's page: the pictures are those of the command, and the way there is an animation."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from pathlib import Path

import gradio
import pytest
from PIL import Image

from axon_core.training import model_folder
from axon_ddpm import Dali
from axon_ddpm.classes import captions
from axon_ddpm.page import SamplerPage
from axon_ddpm.pictures import encoded, grid, to_bytes
from axon_ddpm.samplers import last_frame
from axon_llamachat import PAGES


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    return model_folder(run)


@pytest.fixture(scope="module")
def page(folder: Path) -> SamplerPage:
    made = PAGES["unet"].load(folder, name="small", device="cpu")
    assert isinstance(made, SamplerPage)
    return made


def data(shown: str) -> bytes:
    found = re.fullmatch(r'<img src="data:image/\w+;base64,([^"]+)" alt="[^"]*">', shown)
    return base64.b64decode(found[1])


def test_the_pictures_are_those_of_the_sampler_and_end_in_an_animation(page, folder):
    shown = list(page.paint(4, "each in turn", 4, "ddim", 1.0, 3))
    dali = Dali.load(folder, seed=3, steps=4)
    known = dali.model.config.n_classes
    x = last_frame(dali.sample(4, [i % known for i in range(4)] if known else None))
    assert data(shown[-1][0]) == encoded(grid(to_bytes(x), captions=captions(4, dali.class_names)))
    assert [way for _, way in shown[:-1]] == [""] * (len(shown) - 1)
    with Image.open(io.BytesIO(data(shown[-1][1]))) as animation:
        assert animation.n_frames >= 2


def test_what_cannot_be_painted_is_told(page):
    with pytest.raises(gradio.Error, match="classes of this model"):
        list(page.paint(1, "<none>", 2, "ddim", 1.0, 0))


def test_it_has_a_title(page):
    async def title() -> str:  # within a loop, or gradio would make loops that it never closes
        return page.blocks().title

    assert asyncio.run(title()) == "small · Dali"
