"""Mistral's checkpoints beside transformers: logits, greedy tokens, both ways."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from axon_core import CheckpointError
from axon_core.generation import Sampling, decode
from axon_core.text import ByteTokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint
from axon_xllama.checkpoints.hugging_face import config_from_hugging_face, from_hugging_face, to_hugging_face

SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def pair(**options) -> tuple[MistralForCausalLM, XLlama]:
    torch.manual_seed(0)
    theirs = MistralForCausalLM(MistralConfig(**SIZES, **HEADS, **options, initializer_range=0.1)).eval()
    config = config_from_hugging_face(theirs.config.to_dict())
    ours = XLlama(config).eval()
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), config))
    return theirs, ours


@pytest.mark.parametrize("window", [4, 33, None])
@pytest.mark.parametrize("options", [{}, {"head_dim": 24}, {"tie_word_embeddings": True}], ids=str)
@torch.no_grad()
def test_logits_and_greedy_tokens_equal(window, options):
    theirs, ours = pair(sliding_window=window, **options)
    tokens = torch.randint(97, (2, 60))
    expected = theirs(tokens).logits
    assert (ours(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert ours.config.attention.options.get("window") == window
    back = to_hugging_face(ours.state_dict(), ours.config)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in back.items())
    prompt = tokens[:1, :40]
    asked = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)[0, 40:].tolist()
    greedy = decode(ours, prompt.tolist(), [0], max_new_tokens=60, sampling=Sampling(temperature=0))
    assert [token for (token,) in greedy] == wanted


def test_an_absent_window_is_4096_and_a_null_one_is_none():
    values = MistralConfig(**SIZES, **HEADS).to_dict()
    assert config_from_hugging_face({**values, "sliding_window": None}).attention.type == "GQA"
    del values["sliding_window"]
    assert config_from_hugging_face(values).attention.options["window"] == 4096
    with pytest.raises(CheckpointError, match=r"sliding_window must be a number .* got 'wide'"):
        config_from_hugging_face({**values, "sliding_window": "wide"})


@torch.no_grad()
def test_a_model_trained_here_is_a_mistral_in_transformers(tmp_path):
    spec = {"type": "SWA", "window": 5, "n_kv_heads": 2}
    ours = XLlama.build(vocab_size=258, context=64, dim=32, n_layers=2, n_heads=4, attention=spec).eval()
    ours.save(tmp_path / "run", ByteTokenizer())
    export_checkpoint(tmp_path / "run", tmp_path / "hf", format="hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["sliding_window"] == 5
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert type(theirs) is MistralForCausalLM
    tokens = torch.randint(258, (2, 40))
    expected = theirs(tokens).logits
    assert (ours(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()
