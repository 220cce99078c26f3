"""Noise, embeddings of the time and mixtures are float32's, whatever torch's default dtype is."""

import pytest
import torch

from axon_core import Key
from axon_ddpm import Dali, Diffusion, UNet
from axon_ddpm.samplers import last_frame


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def half(request):
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver"])
def test_the_same_pictures_are_drawn_and_mixed(sampler, half, stirred):
    model = stirred(UNet.build(size=8, width=8, groups=4, multipliers=(1, 2), attention_at=(4,))).eval()
    dali = Dali(model, Diffusion.build(), Dali.Config(sampler=sampler, steps=3), seed=0)
    one, other = torch.linspace(-1, 1, 192).view(3, 8, 8), torch.linspace(1, -1, 192).view(3, 8, 8)

    def pictures():
        return last_frame(dali.sample(2)), last_frame(dali.interpolate(one, other, [0.1, 0.3]))

    before = pictures()
    torch.set_default_dtype(half)
    for drawn, expected in zip(pictures(), before, strict=True):
        assert torch.equal(drawn, expected)


def test_training_draws_the_same_noise(trainer, half):
    tiny = trainer()
    key, batch = Key((0, "collect")), tiny.batch(0)
    before = tiny.collect(batch, key)
    torch.set_default_dtype(half)
    for name, rows in tiny.collect(batch, key).items():
        assert torch.equal(rows, before[name])
