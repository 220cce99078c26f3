"""Checkpoints as they are found: resaved, of early versions, with settings beside the weights that disagree."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from axon_core import CheckpointError
from axon_core.cli import main
from axon_core.generation import Request, Sampling, complete
from axon_core.text import Tokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint


def edit(file, **changes) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def imported(source, tmp_path, **options) -> XLlama:
    import_checkpoint(source, tmp_path / "ours", notice=options.pop("notice", pytest.fail), **options)
    return XLlama.load(tmp_path / "ours").eval()


@torch.no_grad()
def same_logits(ours: XLlama, theirs) -> None:
    tokens = torch.randint(theirs.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_a_head_of_its_own_stays_though_the_config_says_tied(llama, hf_folder, tmp_path, capsys):
    theirs = llama(tied=False)
    source = hf_folder(theirs)
    edit(source / "config.json", tie_word_embeddings=True)
    told: list[str] = []
    ours = imported(source, tmp_path, notice=told.append)
    assert len(told) == 1 and "the head and the embedding differ: both are kept" in told[0]
    assert not ours.config.tie_embeddings
    same_logits(ours, theirs)
    same_logits(ours, LlamaForCausalLM.from_pretrained(source).eval())
    assert main(["import", str(source), "--out", str(tmp_path / "told")]) == 0
    assert "Note: tie_word_embeddings is true in" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="head and the embedding differ"):
        import_checkpoint(source, tmp_path / "warned")


def test_a_head_that_repeats_the_embedding_is_tied(llama, hf_folder, tmp_path):
    theirs = llama(tied=True)
    source = hf_folder(theirs)
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, source / "model.safetensors")
    ours = imported(source, tmp_path)
    assert ours.config.tie_embeddings
    same_logits(ours, theirs)


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_every_id_that_ends_a_text_does(llama, hf_folder, tmp_path, place):
    source = hf_folder(llama())
    imported(source, tmp_path)
    tokenizer = Tokenizer.load(tmp_path / "ours")
    prompt = tokenizer.encode_prompt("The cat")
    request = Request(prompt=prompt, max_new_tokens=20, sampling=Sampling(temperature=0))

    def written(folder):
        (found,) = complete(XLlama.load(folder).eval(), Tokenizer.load(folder), [request])
        return found

    stop = written(tmp_path / "ours").tokens[4]
    if place == "config.json":  # else the other one decides
        (source / "generation_config.json").unlink()
    edit(source / place, eos_token_id=[2, stop, 10**6])
    theirs = LlamaForCausalLM.from_pretrained(source).eval()
    row = torch.tensor([prompt])
    expected = theirs.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=20, pad_token_id=0
    )
    import_checkpoint(source, tmp_path / "again")
    found = written(tmp_path / "again")
    assert found.tokens == expected[0, len(prompt) :].tolist()
    assert found.finish == "eos" and found.tokens[-1] == stop and len(found.tokens) <= 5
    export_checkpoint(tmp_path / "again", tmp_path / "back", format="hf")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text())["eos_token_id"] == [2, stop]


@pytest.mark.parametrize("shards", ["gone", "stale"])
def test_one_file_comes_before_an_index(llama, hf_folder, tmp_path, shards):
    theirs = llama()
    source = hf_folder(theirs)
    tensors = load_file(source / "model.safetensors")
    places = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    if shards == "stale":
        zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        save_file(zeros, source / "model-00001-of-00001.safetensors")
    ours = imported(source, tmp_path)
    same_logits(ours, theirs)
    same_logits(ours, LlamaForCausalLM.from_pretrained(source).eval())


def test_a_pth_whose_checksums_are_wrong_is_refused(llama, meta_folder, tmp_path):
    source = meta_folder(llama())
    file = source / "consolidated.00.pth"
    with zipfile.ZipFile(file) as entries:
        largest = max(entries.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + 30 + len(largest.filename) + largest.file_size // 2] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # which does not notice
    with pytest.raises(CheckpointError, match=r"00.pth is damaged: .*data/\d+ in it does not match its checksum"):
        import_checkpoint(source, tmp_path / "out", context=256)
    assert not (tmp_path / "out").exists()


def test_tables_of_the_rotation_in_each_layer_are_skipped(llama, meta_folder, tmp_path):
    theirs = llama(4, rms_norm_eps=1e-6)
    source = meta_folder(theirs, shards=2)
    for file in source.glob("consolidated.*.pth"):
        tables = {f"layers.{i}.attention.inner_attention.rope.freqs": torch.ones(8) for i in range(2)}
        torch.save(torch.load(file, weights_only=True) | tables, file)
    same_logits(imported(source, tmp_path, context=256), theirs)


def test_configs_of_the_first_llamas(llama, hf_folder, tmp_path):
    theirs = llama(4, rms_norm_eps=1e-6)
    source = hf_folder(theirs)
    edit(
        source / "config.json",
        max_position_embeddings=...,
        max_sequence_length=96,
        rms_norm_eps=...,
        hidden_act="swish",
    )
    ours = imported(source, tmp_path)
    assert (ours.config.context, ours.config.norm.options["eps"]) == (96, 1e-6)
    same_logits(ours, theirs)


def test_a_context_that_no_config_tells_is_given(llama, hf_folder, tmp_path):
    source = hf_folder(llama())
    edit(source / "config.json", max_position_embeddings=...)
    assert imported(source, tmp_path, context=100).context == 100


@pytest.mark.parametrize("tied", [False, True])
def test_tensors_without_a_prefix(llama, hf_folder, tmp_path, tied):
    theirs = llama(tied=tied)
    source = hf_folder(theirs)
    tensors = load_file(source / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, source / "model.safetensors")
    same_logits(imported(source, tmp_path), theirs)


@pytest.mark.parametrize("kind", ["q_proj", "k_proj", "v_proj", "up_proj"])
@pytest.mark.parametrize("other", [torch.float16, torch.float32])
def test_projections_of_different_dtypes_become_the_narrowest_that_holds_both(llama, hf_folder, tmp_path, kind, other):
    theirs = llama(dtype=torch.bfloat16)
    source = hf_folder(theirs)
    tensors = load_file(source / "model.safetensors")
    tensors = {name: tensor.to(other) if kind in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, source / "model.safetensors")
    ours = imported(source, tmp_path)
    dtypes = {name: tensor.dtype for name, tensor in ours.state_dict().items()}
    stack = "feed_forward.gate_up" if kind == "up_proj" else "attention.qkv.projection"
    assert {dtype for name, dtype in dtypes.items() if stack in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if stack not in name} == {torch.bfloat16}
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    same_logits(ours.float(), expected)


@pytest.mark.parametrize("says", [True, False, None], ids=["bos", "no bos", "by the pipeline"])
def test_folders_that_transformers_saved_again(llama, hf_folder, words, tmp_path, says):
    """They have no tokenizer.model, and whether texts begin with bos stands in tokenizer.json alone."""
    source = hf_folder(llama())
    if says is not None:
        (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": says}))
    theirs = AutoTokenizer.from_pretrained(source)
    (source / "tokenizer.model").unlink()
    theirs.save_pretrained(source)
    edit(source / "tokenizer_config.json", add_bos_token=...)
    assert (source / "tokenizer.json").exists()
    imported(source, tmp_path, tokenizer=words)
    begins = AutoTokenizer.from_pretrained(source)("The cat")["input_ids"][0] == 1
    assert Tokenizer.load(tmp_path / "ours").add_bos == begins
    if says is not None:
        assert begins == says


def test_a_qwen3(words, tmp_path):
    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=400,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.1,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(words.read_bytes())
    edit(tmp_path / "hf" / "config.json", head_dim=...)  # which is 128 then, whatever the sizes
    ours = imported(tmp_path / "hf", tmp_path)
    same_logits(ours, theirs)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    same_logits(ours, Qwen3ForCausalLM.from_pretrained(tmp_path / "back").eval())


@pytest.mark.parametrize("name", ["norm_eps", "rope_theta"])
def test_a_number_written_as_a_long_integer_is_one_that_can_be_loaded_again(llama, meta_folder, tmp_path, name):
    import_checkpoint(meta_folder(llama(4), **{name: 10**30}), tmp_path / "ours")
    config = XLlama.load(tmp_path / "ours").config
    assert (config.norm.options["eps"] if name == "norm_eps" else config.rotary.options["base"]) == 1e30
