"""Models that no other program would run as Axon does are not exported."""

import json

import pytest

from axon_core import ATTENTIONS, MODELS, NORMS, ROTARY_EMBEDDINGS, CheckpointError
from axon_core.cli import main
from axon_core.text import CharTokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint
from axon_xllama.checkpoints.families import family_of
from axon_xllama.gguf.writing import export_gguf

HALF = {"layers": [{"every": 2, "rotary": "none"}]}


@pytest.mark.parametrize(
    ("changes", "format", "message"),
    [
        ({"norm": "layernorm"}, "hf", "norm must be axon-rmsnorm:rmsnorm .* axon-transformer:layernorm"),
        ({"norm": {"type": "rmsnorm", "partial": 0.5}}, "hf", "partial must be 1"),
        ({"attention": {"type": "MHA", "bias": True}}, "meta", "projection.bias', which a Llama .* cannot store"),
        ({"attention": {"type": "GQA", "bias": "qkv"}}, "meta", "must be a Llama .* all four projections"),
        (
            {"attention": {"type": "GQA", "bias": "qkv", "qk_norm": "rmsnorm"}},
            "hf",
            "no family .* in llama, qwen2 no query or key head has a norm; in qwen3 all four projections",
        ),
        ({"attention": {"type": "GQA", "qk_norm": "rmsnorm"}}, "meta", "must be a Llama .* no query or key head"),
        ({"attention": {"type": "MHA", "qk_norm": "layernorm"}}, "hf", "norm must be axon-rmsnorm:rmsnorm .*layernorm"),
        ({"attention": {"type": "GQA", "qk_norm": {"type": "rmsnorm", "partial": 0.5}}}, "hf", "partial must be 1"),
        (
            {"attention": {"type": "GQA", "qk_norm": {"type": "rmsnorm", "eps": 1e-3}}},
            "hf",
            "ε of qk_norm.*0.001 and 1e",
        ),
        ({"rotary": {"type": "linear", "factor": 2.0}}, "meta", "rotary embedding must be .*:rotary .*:linear"),
        (
            {"rotary": "dynamic", "attention": {"type": "GQA", "head_dim": 2}},
            "hf",
            "head_dim must be above 2 for a dyn",
        ),
        ({"attention": {"type": "GQA", "head_dim": 4}}, "meta", "head_dim must be dim / n_heads"),
        (
            {"feed_forward": "relu2"},
            "hf",
            "in llama, qwen2, .* the feed forward must be axon-xllama:swiglu, got axon-xllama:relu2",
        ),
        ({**HALF, "n_layers": 2}, "meta", "must be a Llama .* all layers have the same parts"),
        *[
            (changes, format, f"rotary embedding must be .* for the format '{format}', got none")
            for changes in ({"rotary": "none"}, {"layers": [{"rotary": "none"}]})
            for format in ("hf", "meta", "gguf")
        ],
        (
            {**HALF, "n_layers": 2},
            "hf",
            "no family .* in llama,[^;]* all layers have the same parts$",
        ),
    ],
    ids=str,
)
def test_models_that_are_no_llama(tmp_path, changes, format, message):
    model = XLlama.build(**{"vocab_size": 5, "context": 16, "dim": 16, "n_layers": 1, "n_heads": 2} | changes)
    model.save(tmp_path / "run")
    CharTokenizer("abcde").save(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        if format == "gguf":
            export_gguf(tmp_path / "run", tmp_path / "out")
        else:
            export_checkpoint(tmp_path / "run", tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_a_family_says_what_it_lacks_without_a_rotary_embedding():
    model = XLlama.build(vocab_size=5, context=16, dim=16, n_layers=1, n_heads=2, rotary="none")
    with pytest.raises(CheckpointError, match=r"in llama,[^;]* there is a rotary embedding"):
        family_of(model)


@pytest.mark.parametrize("format", ["hf", "meta"])
def test_damaged_weights_are_not_exported(tmp_path, format):
    XLlama.build(vocab_size=5, context=16, dim=16, n_layers=1, n_heads=2).save(tmp_path / "run")
    CharTokenizer("abcde").save(tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: it does not match the checksum"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


class GQA(ATTENTIONS["GQA"]):
    """Another's attention: the tensors of grouped-query attention, and other scores."""


class RMSNorm(NORMS["rmsnorm"]):
    """Another's norm."""


class Linear(ROTARY_EMBEDDINGS["linear"]):
    """Another's rotary embedding."""


@pytest.mark.parametrize(
    ("registry", "field", "key", "part"),
    [
        (ATTENTIONS, "attention", "GQA", GQA),
        (NORMS, "norm", "rmsnorm", RMSNorm),
        (ROTARY_EMBEDDINGS, "rotary", "linear", Linear),
    ],
    ids=["attention", "norm", "rotary"],
)
def test_parts_of_others_are_told_by_who_offers_them(tmp_path, registry, field, key, part):
    with registry.override(**{key: part}):
        model = XLlama.build(vocab_size=5, context=16, dim=16, n_layers=1, n_heads=2, **{field: key})
        model.save(tmp_path / "run")
        CharTokenizer("abcde").save(tmp_path / "run")
        with pytest.raises(CheckpointError, match=rf"got \(this session\):{key}"):
            export_checkpoint(tmp_path / "run", tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()


def test_models_of_others_are_told_by_their_class(tmp_path):
    class Own(XLlama):
        """Another's model: the tensors of an X-Llama."""

    with MODELS.override(own=Own):
        Own.build(vocab_size=5, context=16, dim=16, n_layers=1, n_heads=2).save(tmp_path / "run")
        CharTokenizer("abcde").save(tmp_path / "run")
        with pytest.raises(CheckpointError, match="the model must be an XLlama for the format 'hf', got a Own"):
            export_checkpoint(tmp_path / "run", tmp_path / "out", format="hf")


def test_what_the_command_line_says(llama, hf_folder, tmp_path, capsys):
    source = hf_folder(llama())
    values = json.loads((source / "config.json").read_text())
    longrope = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}
    (source / "config.json").write_text(json.dumps(values | longrope))
    assert main(["import", str(source), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "Error: rope scaling 'longrope' is not supported; known: default, linear, dynamic, yarn, llama3" in error
    assert main(["import", str(source)]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), "--format", "hf", "--out", str(tmp_path / "out")]) == 1
    assert "is not a run folder" in capsys.readouterr().err
