"""Checkpoints that are incomplete, damaged, dangerous or something else: refused in words, before any work."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axon_core import CheckpointError, ConfigError, UsageError
from axon_core.cli import main
from axon_xllama import XLlama
from axon_xllama.checkpoints import import_checkpoint, layout

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}

LLAMA3 = {"rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def refused(source: Path, message: str, **options) -> None:
    """Check that the import raises `message`, before it reads a weight, and leaves nothing behind."""
    out = source.parent / "out"
    before = set(source.parent.iterdir())
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(source, out, progress=lambda written, total: pytest.fail("the work began"), **options)
    assert set(source.parent.iterdir()) == before


def edit(file: Path, **changes) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn' must have a factor"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": None}},
            "'yarn' must have a factor, or max_position_embeddings and original_max_position_embeddings",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}},
            "'llama3' must have the setting low_freq_factor",
        ),
        ({"rope_scaling": {"type": ["yarn"], "factor": 2.0}}, r"\['yarn'\] is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "so"}}, "are inconsistent.*truncate"),
        ({"rope_parameters": ..., "rope_scaling": LONGROPE}, "'longrope' is not supported"),
        ({"rope_parameters": LONGROPE}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "'mrope' is not supported"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": [2.0]}},
            "rope_parameters must be one object of numbers",
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "'linear' must have a factor"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": None}},
            "'linear' must have a factor",
        ),
        *[
            ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, name: None}}, f"must have the setting {name}")
            for name in ("low_freq_factor", "high_freq_factor")
        ],
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -1}}, "are inconsistent.*factor"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "inconsistent.*factor: must be a finite number"),
        (
            {"rope_scaling": "linear"},
            "rope_scaling must be one object of numbers and texts, for all layers, got 'linear'",
        ),
        ({"rope_parameters": [1]}, "rope_parameters must be one object"),
        ({"rope_parameters": {"full": {"rope_type": "yarn"}}}, "rope_parameters must be one object"),
        ({"num_key_value_heads": 0}, "n_kv_heads"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        ({"model_type": "bert"}, "model_type must be 'llama', .*'qwen2' or 'qwen3' .*'bert'"),
        ({"model_type": "gemma2"}, "a gemma2 is not an X-Llama: its embeddings are multiplied by √dim"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"attention_bias": True}, "has no tensor 'model.layers.0.self_attn.q_proj.bias'"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false in config.json, got 'yes'"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
            "use_sliding_window must be false, or max_window_layers at least num_hidden_layers, 2, got 1: the later",
        ),
        ({"model_type": "qwen2"}, "has no tensor 'model.layers.0.self_attn.q_proj.bias'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be absent"),
        ({"hidden_size": ...}, "must contain hidden_size"),
        ({"hidden_size": "big", "head_dim": None}, "does not describe a Llama: dim"),
        ({"num_attention_heads": 0}, "does not describe a Llama: n_heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}, "dim must be a multiple of n_heads"),
        ({"num_hidden_layers": -1}, "does not describe a Llama: n_layers"),
        ({"num_hidden_layers": 3}, "no tensor 'model.layers.2.self_attn.q_proj.weight'"),
        ({"num_hidden_layers": 1}, "has a tensor 'model.layers.1.*not part of a Llama"),
        ({"num_key_value_heads": 3}, "n_kv_heads must divide n_heads"),
        ({"intermediate_size": 96}, r"shape of 'model.layers.0.mlp.gate_proj.weight' must be \(96, 64\).*\(112, 64\)"),
        ({"vocab_size": 399}, "399 and the tokenizer 400"),
        ({"vocab_size": 401}, r"shape of 'model.embed_tokens.weight' must be \(401, 64\)"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": "all"},
            "use_sliding_window must be false.* got 'all'",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must all be 'full_attention'"),
        ({"max_position_embeddings": ...}, "must contain max_position_embeddings, but does not; --context sets it"),
    ],
    ids=str,
)
def test_config(llama, hf_folder, changes, message):
    source = hf_folder(llama())
    edit(source / "config.json", **changes)
    refused(source, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 60_000}, "no tensor 'model.layers.2.self_attn.q_proj.weight'"),
        ({"num_hidden_layers": 10**9}, "n_layers: must be less than or equal to 65536, got 1000000000"),
        ({"num_attention_heads": 10**18 + 1}, "n_heads: must be less than or equal to 65536, got 1000000000000000001"),
        ({"num_attention_heads": 10**26}, "n_heads must fit 64 bits, got 10000000000000000000…"),
        ({"max_position_embeddings": 10**26}, "context must fit 64 bits, got 10000000000000000000…"),
        ({"num_hidden_layers": 10**26}, "n_layers must fit 64 bits"),
        ({"head_dim": 10**11}, r"shape of 'model.layers.0.self_attn.o_proj.weight' must be \(64, 400000000000\)"),
        ({"hidden_size": 10**11}, r"shape of 'model.embed_tokens.weight' must be \(400, 100000000000\)"),
        ({"intermediate_size": 10**11}, r"shape of 'model.layers.0.mlp.gate_proj.weight' must be \(100000000000, 64\)"),
    ],
    ids=str,
)
def test_sizes_that_no_tensor_has_are_refused_before_a_model_is_built(llama, hf_folder, monkeypatch, changes, message):
    source = hf_folder(llama())
    edit(source / "config.json", **changes)
    monkeypatch.setattr(layout, "skeleton", lambda *given: pytest.fail("a model was built"))
    refused(source, message)


def test_a_last_layer_does_not_stand_for_those_before_it(llama, hf_folder):
    source = hf_folder(llama())
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".1.", ".59999.")] = tensors[name].clone()
    save_file(tensors, source / "model.safetensors")
    edit(source / "config.json", num_hidden_layers=60_000)
    refused(source, "no tensor 'model.layers.2.self_attn.q_proj.weight'")


def test_a_model_larger_than_any_tensor():
    with pytest.raises(CheckpointError, match="no model can have the checkpoint's sizes"):
        layout.skeleton(XLlama.Config(vocab_size=10, context=8, dim=10**12, n_layers=1, n_heads=1))


@pytest.mark.parametrize(
    ("context", "message"),
    [(0, "context: must be greater than 0, got 0"), (-1, "context: .*got -1"), ("many", "context: .*got 'many'")],
)
def test_contexts_that_are_none(llama, hf_folder, tmp_path, context, message):
    source = hf_folder(llama())
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(source, tmp_path / "out", context=context)
    assert not (tmp_path / "out").exists()


def test_config_that_is_no_json(llama, hf_folder):
    source = hf_folder(llama())
    for text in ("{", "[" * 100_000):
        (source / "config.json").write_text(text)
        refused(source, r"config.json cannot be read")
    (source / "config.json").write_text("[]")
    refused(source, r"must contain a JSON object, got a list")


def test_missing_shard(llama, hf_folder):
    source = hf_folder(llama(), max_shard_size="60KB")
    shard = max(source.glob("model-*.safetensors"))
    shard.unlink()
    refused(source, f"{shard.name} is missing")


def test_shard_without_its_tensor(llama, hf_folder):
    source = hf_folder(llama(), max_shard_size="60KB")
    places = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = load_file(source / places["model.norm.weight"])
    del tensors["model.norm.weight"]
    save_file(tensors, source / places["model.norm.weight"])
    refused(source, r"must contain 'model.norm.weight'")


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "..", "a/b.safetensors", "..\\x", ""])
def test_index_that_leaves_the_folder(llama, hf_folder, place):
    source = hf_folder(llama(), max_shard_size="60KB")
    index = source / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=places | {"model.norm.weight": place})
    refused(source, "names .*, which is not a file in that folder")


@pytest.mark.parametrize("weight_map", [None, 3, {"model.norm.weight": 3}])
def test_index_without_a_map(llama, hf_folder, weight_map):
    source = hf_folder(llama(), max_shard_size="60KB")
    edit(source / "model.safetensors.index.json", weight_map=weight_map)
    refused(source, "has no weight_map of file names")


def test_links_of_a_download_cache_are_followed(llama, hf_folder, tmp_path):
    source = hf_folder(llama())
    (tmp_path / "blob").write_bytes((source / "model.safetensors").read_bytes())
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("../blob")
    import_checkpoint(source, tmp_path / "ours")
    assert XLlama.load(tmp_path / "ours").config.dim == 64


@pytest.mark.parametrize("size", [0, 5, 100, 5000, -1])
def test_truncated_safetensors(llama, hf_folder, size):
    source = hf_folder(llama())
    file = source / "model.safetensors"
    os.truncate(file, size % file.stat().st_size)
    refused(source, "model.safetensors is damaged or truncated")


def test_folders_without_weights(llama, hf_folder):
    source = hf_folder(llama())
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, "has no weights.*convert its pytorch_model.bin to safetensors")
    (source / "pytorch_model.bin").unlink()
    refused(source, "has no weights: neither model.safetensors nor")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.norm.weight", torch.ones(63), r"shape of 'model.norm.weight' must be \(64,\).*got \(63,\)"),
        ("model.norm.weight", torch.ones(64, 1), r"must be \(64,\)"),
        ("model.norm.weight", torch.ones(64, dtype=torch.int8), "'model.norm.weight'.* is I8.*before quantisation"),
        ("model.norm.weight", torch.ones(64, dtype=torch.float64), r"is float64, but .*model.float\(\).save_pre"),
        ("model.layers.0.self_attn.k_proj.bias", torch.ones(32), "k_proj.bias', which is not part of a Llama"),
    ],
)
def test_tensors(llama, hf_folder, name, tensor, message):
    source = hf_folder(llama())
    save_file(load_file(source / "model.safetensors") | {name: tensor}, source / "model.safetensors")
    refused(source, message)


def test_tokenizer(llama, hf_folder, words, more_words, tmp_path):
    source = hf_folder(llama())
    (source / "tokenizer.model").write_bytes(b"no model")
    refused(source, "is not a sentencepiece model")
    (source / "tokenizer.model").write_bytes(b"")
    refused(source, "tokenizer.model .*it is empty")
    (source / "tokenizer.model").unlink()
    refused(source, "400 and the tokenizer 450", tokenizer=more_words)
    refused(source, "tokenizer .*tokenizer.model is missing; give .* with --tokenizer$")
    (source / "tokenizer.json").write_text("{}")
    refused(source, "tokenizer.json is not a tokenizer.json that can be used: it has no model")
    refused(source, "tokenizer.json is not a tokenizer.json that can", tokenizer=source / "tokenizer.json")
    (source / "tokenizer.json").unlink()
    import_checkpoint(source, tmp_path / "ours", tokenizer=words)
    (source / "tokenizer_config.json").write_text('{"add_bos_token": "no"}')
    refused(source, "add_bos_token must be true or false in .*tokenizer_config.json, got 'no'", tokenizer=words)
    (source / "tokenizer_config.json").write_text("no JSON")
    refused(source, "tokenizer_config.json cannot be read", tokenizer=words)


@pytest.mark.parametrize("ids", ["2", [2, "3"], True, {}])
def test_ends_that_are_no_ids(llama, hf_folder, ids):
    source = hf_folder(llama())
    edit(source / "generation_config.json", eos_token_id=ids)
    refused(source, "eos_token_id must be an id or a list of ids in .*generation_config.json, got ")


def test_places(llama, hf_folder, tmp_path):
    source = hf_folder(llama())
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "nothing", "there is neither a file nor a folder .*nothing here")
    refused(source / "model.safetensors", "is a file; give the checkpoint's folder")
    refused(tmp_path / "empty", "neither a config.json .* nor a params.json")
    (tmp_path / "quantised").mkdir()
    (tmp_path / "quantised" / "a.gguf").touch()
    refused(tmp_path / "quantised", "is a folder of GGUF files; give one of them, such as .*a.gguf$")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    for out in (tmp_path / "full", tmp_path / "full" / "precious"):
        with pytest.raises(UsageError, match="is not empty, and nothing is overwritten"):
            import_checkpoint(source, out)
    assert (tmp_path / "full" / "precious").read_text() == "x"
    import_checkpoint(source, tmp_path / "empty")


def test_a_gguf_file_has_its_tokenizer_inside(words, tmp_path, capsys):
    (tmp_path / "tiny.gguf").touch()
    command = ["import", str(tmp_path / "tiny.gguf"), "--out", str(tmp_path / "ours"), "--tokenizer"]
    for tokenizer in (words, tmp_path / "nothing"):
        assert main([*command, str(tokenizer)]) == 2
        assert (
            f"a GGUF file has its tokenizer inside; leave out --tokenizer, got {tokenizer}" in capsys.readouterr().err
        )


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_pickle_with_code(llama, meta_folder, tmp_path):
    source = meta_folder(llama())
    torch.save({"norm.weight": Attack(tmp_path / "attacked")}, source / "consolidated.00.pth")
    refused(source, r"00.pth is refused: it contains more than tensors, and reading it might run code \(.*mkdir\)$")
    (source / "consolidated.00.pth").write_bytes(pickle.dumps({"norm.weight": Attack(tmp_path / "attacked")}))
    refused(source, r"consolidated.00.pth is refused: [^;]*$")  # and nothing about how to read it all the same
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("pickled", "error"),
    [
        pytest.param(b"\x80\x02.", IndexError, id="nothing on the stack"),
        pytest.param(b"\x80\x02h\x07.", KeyError, id="nothing in the memo"),
        pytest.param(b"\x80\x02}]K\x01s.", TypeError, id="a list as a key"),
        pytest.param(b"\x80\x02K\x01Q.", AssertionError, id="a number as a storage"),
        pytest.param(b"\x80\x02)K\x01K\x02s.", pickle.UnpicklingError, id="an item of a tuple"),
    ],
)
def test_malformed_pickle(llama, meta_folder, pickled, error):
    source = meta_folder(llama())
    file = source / "consolidated.00.pth"
    with zipfile.ZipFile(file) as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(file, "w") as damaged:
        for name, data in entries.items():
            damaged.writestr(name, pickled if name.endswith("data.pkl") else data)
    with pytest.raises(error):
        torch.load(file, weights_only=True, mmap=True)
    refused(source, "consolidated.00.pth is refused: it is damaged(, | or contains more than tensors)")


def test_metas_tensors_that_hold_fewer_numbers_than_they_have(llama, meta_folder):
    source = meta_folder(llama())
    torch.save({"tok_embeddings.weight": torch.ones(1).expand(10**9, 10**9)}, source / "consolidated.00.pth")
    refused(source, "consolidated.00.pth must contain tensors by name")


def test_metas_shards(llama, meta_folder, tmp_path):
    source = meta_folder(llama(), shards=2)
    first, second = source / "consolidated.00.pth", source / "consolidated.01.pth"
    second.rename(tmp_path / "aside")
    refused(source, r"shape of 'tok_embeddings.weight' must be \(400, 64\).* got \(400, 32\).*is a file missing")
    (tmp_path / "aside").rename(second)
    first.rename(tmp_path / "aside")
    refused(source, "consolidated.00.pth is missing")
    (tmp_path / "aside").rename(first)
    shard = torch.load(second, weights_only=True)
    torch.save({**shard, "norm.weight": shard["norm.weight"][:3].clone()}, second)
    refused(source, "the shards of 'norm.weight' differ")
    del shard["norm.weight"]
    torch.save(shard, second)
    refused(source, "only one of them has 'norm.weight'")
    torch.save([1, 2], second)
    refused(source, "must contain tensors by name, got a list")
    torch.save(shard, second, _use_new_zipfile_serialization=False)
    refused(source, "consolidated.01.pth is refused: it is damaged, truncated, or not a file of tensors")
    for odd in ({1: torch.ones(2)}, {"a": torch.ones(2, 2).to_sparse()}):
        torch.save(odd, second)
        refused(source, "consolidated.01.pth must contain tensors by name")
    for file in (first, second):
        torch.save({"layers.0.feed_forward.w1.weight": torch.ones(())}, file)
    refused(source, "params.json does not describe a Llama: hidden_dim")
    for odd in (torch.ones(()), torch.ones(2, 2, 2)):
        for file in (first, second):
            torch.save({"odd": odd}, file)
        refused(source, "is incomplete")
    os.truncate(first, first.stat().st_size // 2)
    refused(source, "consolidated.00.pth is refused: it is damaged, truncated")
    first.unlink()
    second.unlink()
    refused(source, "has no weights")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"dim": ...}, "'dim' is missing"),
        ({"dim": "many"}, "does not describe a Llama: dim"),
        ({"dim": 128}, r"must be \(400, 128\)"),
        ({"n_layers": 3}, "no tensor 'layers.2"),
        ({"n_kv_heads": 4}, "shape of 'layers.0.attention.wk.weight' must be"),
        ({"vocab_size": 399}, "399 and the tokenizer 400"),
        ({"vocab_size": 32000}, r"shape of 'tok_embeddings.weight' must be \(32000, 64\)"),
    ],
    ids=str,
)
def test_params(llama, meta_folder, changes, message):
    source = meta_folder(llama())
    edit(source / "params.json", **changes)
    refused(source, message)


def test_llama2c(llama, llama2c_file):
    file = llama2c_file(llama())
    data = file.read_bytes()
    for changed, message in (
        (data[:-4], "must have .* bytes by its header, got"),
        (data[:-1], "must have .* bytes by its header, got"),
        (data + b"\0" * 4, "must have .* bytes by its header, got"),
        (data[:9], "it has 9 bytes, fewer than a header"),
        (struct.pack("<7i", 64, 112, 60_000, 2, 2, 400, 64) + data[28:], "must have .* bytes by its header, got"),
        (
            struct.pack("<7i", 64, 112, 2**30, 2, 2, 400, 64) + data[28:],
            "n_layers: must be less than or equal to 65536",
        ),
        (b"GGUF" + data[4:], "not a llama2.c checkpoint"),
        (struct.pack("<7i", 64, 112, 2, 0, 2, 400, 256) + data[28:], "not a llama2.c checkpoint: its header"),
        (struct.pack("<Ii", 0x616B3432, 1) + data[8:], "of version 1; only version 0"),
    ):
        file.write_bytes(changed)
        refused(file, message)
