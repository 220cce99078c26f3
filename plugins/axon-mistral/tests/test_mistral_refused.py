"""Models that see a whole sentence or picture refuse attention over a window by its name."""

import pytest

from axon_core import MODELS, ConfigError

SMALL = {"size": 8, "width": 8, "groups": 4, "multipliers": [1, 2], "blocks": 1, "attention_at": [4]}
MODELS_THAT_SEE_ALL = {
    "transformer": {"vocab_size": 9, "dim": 16, "n_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
    "unet": SMALL,
}


@pytest.mark.parametrize("model", MODELS_THAT_SEE_ALL)
def test_a_causal_attention_is_refused_by_name(model):
    with pytest.raises(ConfigError, match="attention: 'SWA' is causal only; choose another, such as 'MHA'"):
        MODELS.build({"type": model, **MODELS_THAT_SEE_ALL[model], "attention": "SWA"})
