"""A `UNet2DModel` of any options is loaded as the same model, or refused by the option that `unet` cannot compute."""

import inspect
import json
import random

import pytest
import torch

from axon_core import CheckpointError, ConfigError, UsageError
from axon_ddpm.diffusers_config import UNet2DOptions
from axon_ddpm.interop import load_diffusers

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
"""Sizes, so that the rest has diffusers' defaults."""
OTHER = {
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 24,
    "mid_block_type": None,
    "mid_block_scale_factor": 1.5,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift",
    "add_attention": False,
    "class_embed_type": "timestep",
    "attn_norm_num_groups": 2,
    "num_class_embeds": 1,
    "block_out_channels": (8, 12),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D"),
}
"""What diffusers takes and `unet` cannot compute, option by option."""


@pytest.fixture(scope="module")
def unet2d():
    from diffusers import UNet2DModel

    return UNet2DModel


def make(unet2d, options, seed=0):
    """Return a `UNet2DModel` whose weights all matter."""
    torch.manual_seed(seed)
    model = unet2d(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def difference(theirs, mine, seed=0) -> tuple[float, float]:
    """Return the largest difference of two models' outputs, and the largest output."""
    c, generator = theirs.config, torch.Generator().manual_seed(seed)
    size = c.sample_size if isinstance(c.sample_size, int) else c.sample_size[0]
    x = torch.randn(3, c.in_channels, size, size, generator=generator)
    t = torch.tensor([0, 7, 999])
    classes = torch.tensor([0, 1, c.num_class_embeds - 1]) if c.num_class_embeds else None
    with torch.no_grad():
        expected, found = theirs(x, t, class_labels=classes).sample, mine.eval()(x, t, classes)
    return (found - expected).abs().max().item(), expected.abs().max().item()


def drawn(pick: random.Random) -> dict:
    """Return random options that `unet` computes."""
    levels, width = pick.choice((1, 2, 3)), pick.choice((8, 16, 24))
    channels = (width, *(width * pick.choice((1, 2, 3)) for _ in range(levels - 1)))
    attended = [pick.random() < 0.5 for _ in channels]
    options = {
        "sample_size": pick.choice((4, 8, (12, 12))),
        "in_channels": pick.choice((1, 3)),
        "out_channels": pick.choice((1, 3, 6)),
        "block_out_channels": channels,
        "down_block_types": ["AttnDownBlock2D" if yes else "DownBlock2D" for yes in attended],
        "up_block_types": ["AttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attended)],
        "layers_per_block": pick.choice((1, 2)),
        "norm_num_groups": pick.choice((1, 4, 8)),
        "flip_sin_to_cos": pick.choice((True, False)),
        "freq_shift": pick.choice((0, 1, 0.5)),
        "downsample_padding": pick.choice((0, 1)),
        "attention_head_dim": pick.choice((None, 1, 4, 8)),
        "norm_eps": pick.choice((1e-6, 1e-5, 1e-2)),
        "dropout": pick.choice((0.0, 0.3)),
        "act_fn": pick.choice(("silu", "swish")),
        "num_class_embeds": pick.choice((None, 2, 5)),
        "num_train_timesteps": pick.choice((None, 1000)),
        "time_embedding_dim": pick.choice((None, 4 * width)),
    }
    options["attn_norm_num_groups"] = pick.choice((None, options["norm_num_groups"]))
    return {name: value for name, value in options.items() if name in SMALL or pick.random() < 0.7}


def test_one_with_the_defaults_of_diffusers_is_the_same_model(unet2d):
    theirs = make(unet2d, SMALL)
    off, size = difference(theirs, load_diffusers(theirs.config, theirs.state_dict()))
    assert off <= 1e-5 and size > 0.5, (off, size)


@pytest.mark.parametrize("seed", range(40))
def test_random_options_are_computed_or_refused_by_name(unet2d, seed):
    pick = random.Random(seed)
    options = drawn(pick)
    wrong = {name: OTHER[name] for name in pick.sample(sorted(OTHER), 1)} if seed % 3 == 0 else {}
    config = json.loads(json.dumps({**options, **wrong}))  # as a config.json has them
    if wrong:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            load_diffusers(config, {})
        return
    theirs = make(unet2d, options, seed)
    off, size = difference(theirs, load_diffusers(config, theirs.state_dict()), seed)
    assert off <= 1e-5 * max(1.0, size), (off, size, options)


@pytest.mark.parametrize("option", OTHER)
def test_an_option_that_unet_cannot_compute_is_refused_by_its_name(unet2d, option):
    theirs = unet2d(**{**SMALL, "num_train_timesteps": 10, option: OTHER[option]})  # diffusers takes it
    with pytest.raises(ConfigError, match=rf"in the config of diffusers' U-Net: .*{option}"):
        load_diffusers(theirs.config, theirs.state_dict())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample_size": None}, "sample_size: must be the height and width of square pictures, got None; set it in"),
        ({"sample_size": (8, 4)}, r"sample_size: must be the height and width of square pictures, got \(8, 4\)"),
        ({"sample_size": 7}, "sample_size must be a multiple of 2, got 7"),
        ({"attention_head_dim": 3}, "attention_head_dim must divide the channels of attentions, 16, got 3"),
        ({"freq_shift": 4}, "freq_shift must be less than half the width, 4, got 4"),
        ({"norm_num_groups": 3}, "norm_num_groups must divide block_out_channels, got 3"),
        ({"downsample_padding": 2}, "downsample_padding: must be 0 or 1, got 2"),
        ({"act_fn": "relu"}, "act_fn: must be 'silu' or 'swish', got 'relu'"),
        ({"a_new_option": 1}, "a_new_option: unknown field 'a_new_option'"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types must be as many as block_out_channels, 2, got 1"),
    ],
)
def test_the_message_says_the_rule_and_the_value(changed, message):
    with pytest.raises(ConfigError, match=message):
        load_diffusers({**SMALL, **changed}, {})


def test_every_option_of_diffusers_is_known_with_its_default(unet2d):
    theirs = {name: p.default for name, p in inspect.signature(unet2d.__init__).parameters.items() if name != "self"}
    mine = {name: field.default for name, field in UNet2DOptions.model_fields.items()}
    assert mine.keys() == theirs.keys()
    assert {**mine, "sample_size": None} == theirs


def test_the_first_files_of_diffusers_had_other_names(unet2d):
    theirs = make(unet2d, SMALL)
    weights = theirs.state_dict()
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
    assert "mid_block.attentions.0.proj_attn.weight" in weights
    blocks = {name: [f"UNetRes{kind}" for kind in SMALL[name]] for name in ("down_block_types", "up_block_types")}
    config = {**SMALL, **blocks, "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4"}
    assert difference(theirs, load_diffusers(config, weights))[0] <= 1e-5


def test_weights_that_are_not_those_of_the_config_are_refused(unet2d):
    weights = make(unet2d, SMALL).state_dict()
    with pytest.raises(UsageError, match=r"must fit this U-Net, but conv_in.bias is \(8,\) there and \(16,\) here"):
        load_diffusers({**SMALL, "block_out_channels": (16, 16)}, weights)
    with pytest.raises(CheckpointError, match="much larger model"):
        load_diffusers({**SMALL, "block_out_channels": (8, 8 * 10**6)}, weights)
    with pytest.raises(UsageError, match="must be of a UNet2DModel, got one of a UNet2DConditionModel"):
        load_diffusers({**SMALL, "_class_name": "UNet2DConditionModel"}, weights)


def test_loading_draws_no_random_numbers_of_the_callers(unet2d):
    theirs = make(unet2d, SMALL)
    before = torch.random.get_rng_state()
    load_diffusers(theirs.config, theirs.state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
