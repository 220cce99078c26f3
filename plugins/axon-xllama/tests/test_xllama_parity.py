"""X-Llama against `transformers.LlamaForCausalLM` with the same random weights."""

import itertools

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from axon_core import CheckpointError, UsageError
from axon_core.generation import Sampling, decode
from axon_xllama import XLlama
from axon_xllama.checkpoints.hugging_face import config_from_hugging_face, from_hugging_face, to_hugging_face

KV_HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}
ROPE = {
    "plain": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
GRID = list(itertools.product(KV_HEADS, ROPE, (False, True)))


def pair(heads: str, rope: str, tied: bool, *, dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, XLlama]:
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=KV_HEADS[heads],
            max_position_embeddings=32,
            rope_parameters=ROPE[rope],
            tie_word_embeddings=tied,
            initializer_range=0.1,
            rms_norm_eps=1e-5,
        )
    )
    theirs = theirs.to(dtype).eval()
    config = config_from_hugging_face(theirs.config.to_dict())
    ours = XLlama(config).to(dtype).eval()
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), config))
    return theirs, ours


@pytest.mark.parametrize("length", [7, 32, 50], ids="n={}".format)
@pytest.mark.parametrize(("heads", "rope", "tied"), GRID)
@torch.no_grad()
def test_logits_equal(heads, rope, tied, length):
    theirs, ours = pair(heads, rope, tied)
    tokens = torch.randint(97, (2, length))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "rope"), [("MHA", "plain"), ("GQA", "llama3"), ("MQA", "linear"), ("GQA", "yarn")])
@torch.no_grad()
def test_greedy_tokens_equal(heads, rope):
    theirs, ours = pair(heads, rope, False)
    prompt = torch.randint(97, (1, 5))
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=27,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 5:]
    greedy = decode(ours, prompt.tolist(), [0], max_new_tokens=27, sampling=Sampling(temperature=0))
    assert [token for (token,) in greedy] == expected.tolist()


@pytest.mark.parametrize(("heads", "rope", "tied"), GRID)
def test_weights_return_unchanged(heads, rope, tied):
    theirs, ours = pair(heads, rope, tied)
    back = to_hugging_face(ours.state_dict(), ours.config)
    theirs.load_state_dict(back, strict=not tied)
    expected = {k: v for k, v in theirs.state_dict().items() if not (tied and k == "lm_head.weight")}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in back)


def test_documents_cannot_be_cached():
    _, ours = pair("GQA", "plain", False)
    tokens = torch.randint(97, (1, 6))
    with pytest.raises(UsageError, match="a cache holds one document per row"):
        ours(tokens, documents=torch.tensor([[0, 0, 0, 1, 1, 1]]), cache=ours.new_cache(1, 6))


FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": False, "sliding_window": 4}),
    "qwen2 with windows from a later layer on": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24, "attention_bias": True}),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_families_with_biases_equal_transformers(family, tied):
    """Qwen2 sees the whole text whatever `sliding_window` says, unless `use_sliding_window` is true."""
    kind, model, options = FAMILIES[family]
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    theirs = model(kind(**sizes, **heads, **options, tie_word_embeddings=tied, initializer_range=0.1)).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):  # which begin at zero
            parameter.normal_(std=0.5)
    config = config_from_hugging_face(theirs.config.to_dict())
    ours = XLlama(config).eval()
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), config))
    tokens = torch.randint(97, (2, 50))
    expected = theirs(tokens).logits
    assert (ours(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()
    back = to_hugging_face(ours.state_dict(), config)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in back.items())
    assert len(back) == len(dict(theirs.named_parameters()))


@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("whole", [0, 1, 2, 3])
def test_a_qwen_is_read_if_no_layer_has_a_window(kind, window, whole):
    given = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": whole}
    theirs = kind(num_hidden_layers=2, **given)
    values = theirs.to_dict() | given
    del values["layer_types"]  # which older files do not have
    if "sliding_attention" in theirs.layer_types:
        with pytest.raises(CheckpointError, match=f"max_window_layers at least num_hidden_layers, 2, got {whole}"):
            config_from_hugging_face(values)
    else:
        assert config_from_hugging_face(values).attention.type == "GQA"
