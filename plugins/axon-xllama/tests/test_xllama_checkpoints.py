"""Checkpoints of other projects: bit for bit there and back, and the same model on the way."""

import json
import shlex

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from axon_core.checkpoint import weightless
from axon_core.cli import cli, main
from axon_core.generation import Request, Sampling, complete, decode
from axon_core.text import CharTokenizer, Tokenizer
from axon_xllama import XLlama
from axon_xllama.checkpoints import export_checkpoint, import_checkpoint
from axon_xllama.checkpoints.meta import hidden_settings

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HEADS = pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


@torch.no_grad()
def same_logits(ours: XLlama, theirs: LlamaForCausalLM, n: int = 40) -> None:
    tokens = torch.randint(theirs.config.vocab_size, (2, n), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@TIED
@HEADS
def test_hugging_face_and_back(llama, hf_folder, tmp_path, kv_heads, tied, dtype):
    source = hf_folder(llama(kv_heads, tied=tied, dtype=dtype))
    import_checkpoint(source, tmp_path / "ours")
    assert {p.dtype for p in XLlama.load(tmp_path / "ours").parameters()} == {dtype}
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    same_bits(load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors"))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert {name: after[name] for name in before.keys() & after.keys()} == {
        name: before[name] for name in before.keys() & after.keys()
    }
    loaded, loading = LlamaForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert loaded.dtype == dtype
    assert not any(loading.values())


@TIED
@HEADS
def test_the_model_is_the_same_on_the_way(llama, hf_folder, tmp_path, kv_heads, tied):
    theirs = llama(kv_heads, tied=tied)
    import_checkpoint(hf_folder(theirs, max_shard_size="60KB"), tmp_path / "ours")  # many files and an index
    ours = XLlama.load(tmp_path / "ours").eval()
    assert (ours.head.weight is ours.embedding.weight) == tied
    same_logits(ours, theirs)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    same_logits(ours, LlamaForCausalLM.from_pretrained(tmp_path / "back").eval())


@TIED
@HEADS
def test_greedy_tokens_equal_over_200_steps(llama, hf_folder, tmp_path, kv_heads, tied):
    # Trained on 206 random tokens, as the logits of random weights tie in bfloat16, and then any rounding decides.
    theirs = llama(kv_heads, tied=tied, initializer_range=0.02).train()
    tokens = torch.randint(1, theirs.config.vocab_size, (1, 206), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-2)
    for _ in range(300):
        loss = theirs(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    prompt = tokens[:, :5]
    for dtype in (torch.float32, torch.bfloat16):
        source = hf_folder(theirs.to(dtype), str(dtype))
        theirs = LlamaForCausalLM.from_pretrained(source).eval()  # its angles in float32, which a cast would round
        theirs.generation_config.eos_token_id = None
        theirs.generation_config.pad_token_id = 0
        import_checkpoint(source, tmp_path / f"ours-{dtype}")
        ours = XLlama.load(tmp_path / f"ours-{dtype}")
        mask = torch.ones_like(prompt)
        expected = theirs.generate(prompt, attention_mask=mask, max_new_tokens=200, do_sample=False)[0, 5:].tolist()
        greedy = decode(ours, prompt.tolist(), [0], max_new_tokens=200, sampling=Sampling(temperature=0))
        assert [token for (token,) in greedy] == expected
        assert len(set(expected)) > 100


@HEADS
@torch.no_grad()
def test_bfloat16_is_as_close_to_the_truth_as_transformers(llama, hf_folder, tmp_path, kv_heads):
    source = hf_folder(llama(kv_heads, dtype=torch.bfloat16))
    theirs = LlamaForCausalLM.from_pretrained(source).eval()
    import_checkpoint(source, tmp_path / "ours")
    tokens = torch.randint(400, (4, 100), generator=torch.Generator().manual_seed(1))
    logits = XLlama.load(tmp_path / "ours").eval()(tokens), theirs(tokens).logits
    truth = theirs.double()(tokens).logits
    ours, other = ((each.double() - truth).abs().mean() for each in logits)
    assert ours < 1.1 * other


def test_settings_far_from_the_usual_travel_both_ways(llama, hf_folder, meta_folder, tmp_path):
    """A rotation's base as Code Llama's, another ε and, where a format can have them, heads of another size."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    unusual = {"rope_parameters": rope, "rms_norm_eps": 1e-3}
    theirs = llama(head_dim=24, **unusual)
    import_checkpoint(hf_folder(theirs), tmp_path / "ours")
    same_logits(XLlama.load(tmp_path / "ours").eval(), theirs)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    same_logits(XLlama.load(tmp_path / "ours").eval(), LlamaForCausalLM.from_pretrained(tmp_path / "back").eval())
    theirs = llama(**unusual)
    import_checkpoint(meta_folder(theirs, rope_theta=1e6), tmp_path / "metas", context=256)
    same_logits(XLlama.load(tmp_path / "metas").eval(), theirs)
    export_checkpoint(tmp_path / "metas", tmp_path / "again", format="meta")
    params = json.loads((tmp_path / "again" / "params.json").read_text())
    assert (params["rope_theta"], params["norm_eps"]) == (1e6, 1e-3)


BY_PARTS = {"original_max_position_embeddings": 16}
SCALINGS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 2.0, **BY_PARTS, "attention_factor": 1.2, "beta_fast": 16.0, "beta_slow": 1.5},
    "llama3": {"factor": 2.0, **BY_PARTS, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("legacy", [False, True], ids=["rope_parameters", "rope_scaling"])
def test_rope_scaling_both_ways(llama, hf_folder, tmp_path, kind, legacy):
    rope = {"rope_type": kind, "rope_theta": 50000.0, **SCALINGS[kind]}
    theirs = llama(max_position_embeddings=32, rope_parameters=rope)
    source = hf_folder(theirs)
    if legacy:  # what transformers 4 wrote
        config = json.loads((source / "config.json").read_text())
        del config["rope_parameters"]
        config |= {"rope_theta": 50000.0, "rope_scaling": {"type": kind, **SCALINGS[kind]}}
        (source / "config.json").write_text(json.dumps(config))
    import_checkpoint(source, tmp_path / "ours")
    same_logits(XLlama.load(tmp_path / "ours").eval(), theirs, n=50)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    back = LlamaForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert {name: back.config.rope_parameters[name] for name in rope} == rope
    same_logits(XLlama.load(tmp_path / "ours").eval(), back, n=50)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["rope_scaling"]["type"] == kind and written["rope_theta"] == 50000.0


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 70000.0},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 60000.0}, "rope_theta": 70000.0},
        {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {}},
        {"rope_scaling": None, "rope_theta": 70000.0},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 70000.0},
        {"rope_parameters": None},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},  # the trained context is then max_position_embeddings
        {"rope_scaling": {"type": "yarn", "factor": 4.0, **BY_PARTS, "mscale": 0.7, "mscale_all_dim": 0.5}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, **BY_PARTS, "mscale": 0.7}},
        {"rope_parameters": {"rope_type": "yarn", "factor": None, **BY_PARTS}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **BY_PARTS, "beta_fast": 0, "truncate": False}},
    ],
    ids=str,
)
def test_rope_settings_are_read_as_transformers_reads_them(llama, hf_folder, tmp_path, settings):
    """Also where `rope_scaling`, `rope_parameters` and `rope_theta` disagree."""
    own = {"rope_type": "dynamic", "rope_theta": 50000.0, "factor": 4.0}
    source = hf_folder(llama(max_position_embeddings=32, rope_parameters=own))
    config = json.loads((source / "config.json").read_text())
    assert config["rope_parameters"] == own
    (source / "config.json").write_text(json.dumps(config | settings))
    import_checkpoint(source, tmp_path / "ours")
    theirs = LlamaForCausalLM.from_pretrained(source).eval()
    same_logits(XLlama.load(tmp_path / "ours").eval(), theirs, n=50)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shards", "by_tokens"), [(1, False), (2, False), (2, True)])
def test_meta_and_back(llama, meta_folder, tmp_path, shards, by_tokens, dtype):
    theirs = llama(2, dtype=dtype)
    source = meta_folder(theirs, shards, by_tokens)
    import_checkpoint(source, tmp_path / "ours", context=256)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="meta")
    merged = torch.load(tmp_path / "back" / "consolidated.00.pth", weights_only=True)
    export_checkpoint(tmp_path / "ours", tmp_path / "hf", format="hf")
    same_bits(theirs.state_dict(), load_file(tmp_path / "hf" / "model.safetensors"))  # permuted to the other layout
    if shards == 1:
        original = torch.load(source / "consolidated.00.pth", weights_only=True)
        del original["rope.freqs"]
        same_bits(original, merged)
    import_checkpoint(tmp_path / "back", tmp_path / "again", context=256)
    same_bits(*(load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again")))
    if dtype == torch.float32:
        same_logits(XLlama.load(tmp_path / "ours").eval(), theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@TIED
@HEADS
def test_meta_and_back_for_all_heads(llama, meta_folder, tmp_path, kv_heads, tied, dtype):
    """A tied head is written out in Meta's layout, which cannot tell that it is."""
    source = meta_folder(llama(kv_heads, tied=tied, dtype=dtype))
    import_checkpoint(source, tmp_path / "ours", context=256)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="meta")
    original, back = (
        torch.load(folder / "consolidated.00.pth", weights_only=True) for folder in (source, tmp_path / "back")
    )
    del original["rope.freqs"]
    same_bits(original, back)


@TIED
@HEADS
def test_hugging_face_to_meta_and_back(llama, hf_folder, tmp_path, kv_heads, tied):
    theirs = llama(kv_heads, tied=tied)
    import_checkpoint(hf_folder(theirs), tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "meta", format="meta")
    import_checkpoint(tmp_path / "meta", tmp_path / "again", context=256)
    same_logits(XLlama.load(tmp_path / "again").eval(), theirs)
    export_checkpoint(tmp_path / "again", tmp_path / "back", format="hf")
    same_bits(theirs.state_dict(), load_file(tmp_path / "back" / "model.safetensors"))


@pytest.mark.parametrize(
    ("dim", "hidden_dim"), [(64, 112), (64, 176), (64, 100), (64, 40), (4096, 11008), (5120, 13824)]
)
def test_metas_code_finds_the_hidden_size(dim, hidden_dim):
    settings = hidden_settings(dim, hidden_dim)
    hidden = int(2 * (4 * dim) / 3)  # as Meta's FeedForward computes it
    if (multiplier := settings.get("ffn_dim_multiplier")) is not None:
        hidden = int(multiplier * hidden)
    multiple = settings["multiple_of"]
    assert multiple * ((hidden + multiple - 1) // multiple) == hidden_dim


@pytest.mark.parametrize(("eps", "context"), [(1e-6, 2048), (1e-5, 4096)])
def test_the_context_of_llama_1_and_2(llama, meta_folder, tmp_path, capsys, eps, context):
    folder = meta_folder(llama(4, rms_norm_eps=eps))
    assert import_checkpoint(folder, tmp_path / "ours").config.context == context
    capsys.readouterr()
    assert main(["import", str(folder), "--out", str(tmp_path / "assumed")]) == 0
    assert f"{context:,} tokens of context (assumed: Meta's files do not say" in capsys.readouterr().out
    assert main(["import", str(folder), "--out", str(tmp_path / "told"), "--context", "100"]) == 0
    assert ", 100 tokens of context, in" in capsys.readouterr().out


@TIED
@HEADS
def test_llama2c(llama, llama2c_file, tmp_path, kv_heads, tied):
    theirs = llama(kv_heads, tied=tied)
    import_checkpoint(llama2c_file(theirs), tmp_path / "ours")
    ours = XLlama.load(tmp_path / "ours").eval()
    assert ours.context == 256
    same_logits(ours, theirs)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    expected = {k: v for k, v in theirs.state_dict().items() if not (tied and k == "lm_head.weight")}
    same_bits(expected, load_file(tmp_path / "back" / "model.safetensors"))


def test_old_files_with_rotary_tables_and_the_head_of_a_tied_model(llama, hf_folder, tmp_path):
    theirs = llama(tied=True)
    source = hf_folder(theirs)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, source / "model.safetensors")
    import_checkpoint(source, tmp_path / "ours")
    same_logits(XLlama.load(tmp_path / "ours").eval(), theirs)


def test_a_model_saved_by_axon_is_exported(tmp_path):
    # `save_model` of safetensors keeps one name of tied weights, whichever it likes.
    for tied in (False, True):
        model = XLlama.build(
            vocab_size=5, context=16, dim=16, n_layers=1, n_heads=2, hidden_dim=40, attention="MQA", tie_embeddings=tied
        )
        model.save(tmp_path / f"run-{tied}")
        CharTokenizer("abcde").save(tmp_path / f"run-{tied}")
        assert (
            main(["export", str(tmp_path / f"run-{tied}"), "--format", "hf", "--out", str(tmp_path / f"{tied}")]) == 0
        )
        theirs = LlamaForCausalLM.from_pretrained(tmp_path / f"{tied}").eval()
        assert theirs.config.eos_token_id is None
        tokens = torch.randint(5, (1, 16))
        torch.testing.assert_close(model.eval()(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_the_commands(llama, hf_folder, tmp_path, capsys):
    theirs = llama()
    source, ours, back = hf_folder(theirs), tmp_path / "ours", tmp_path / "back"
    assert main(["import", str(source), "--out", str(ours)]) == 0
    assert f"{theirs.num_parameters():,} parameters" in capsys.readouterr().out
    assert main(["generate", str(ours), "--prompt", "The", "--max-new-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("The")
    assert main(["export", str(ours), "--format", "hf", "--out", str(back)]) == 0
    assert (back / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert json.loads((back / "tokenizer_config.json").read_text())["add_bos_token"] is True
    assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == 2
    assert main(["import", str(source), "--out", str(ours)]) == 2
    assert "is not empty" in capsys.readouterr().err


LLAMA_2 = "{% if system %}{{ '<<SYS>>' + system + '<</SYS>>' }}{% endif %}{{ '[INST] ' + content + ' [/INST]' }}"


@pytest.mark.parametrize(
    ("file", "template", "command"),
    [
        ("tokenizer_config.json", LLAMA_2, "chat"),
        ("chat_template.jinja", LLAMA_2, "chat"),
        ("tokenizer_config.json", "{{ '[INST] ' + content + ' [/INST]' }}", "generate"),  # another format
        ("tokenizer_config.json", None, "generate"),
    ],
)
def test_import_proposes_the_command_of_what_it_imported(llama, hf_folder, tmp_path, capsys, file, template, command):
    source, ours = hf_folder(llama()), tmp_path / "our model"
    if file.endswith("jinja"):
        (source / file).write_text(template)
    else:
        settings = json.loads((source / file).read_text()) if (source / file).exists() else {}
        (source / file).write_text(json.dumps({**settings, "chat_template": template}))
    assert main(["import", str(source), "--out", str(ours)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    axon, name, folder, *rest = shlex.split(line.removeprefix("Next: "))
    assert (axon, name, folder) == ("axon", command, str(ours))
    assert CliRunner().invoke(cli, [name, folder, *rest, "--max-new-tokens", "3"], input="hi\n").exit_code == 0


def test_a_prompt_begins_with_bos(llama, hf_folder, tmp_path):
    import_checkpoint(hf_folder(llama()), tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    assert tokenizer.add_bos
    assert tokenizer.encode_prompt("The")[0] == tokenizer.bos == 1


def test_a_prompt_that_begins_without_bos_does_so_both_ways(llama, hf_folder, tmp_path):
    source = hf_folder(llama())
    (source / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    import_checkpoint(source, tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    assert tokenizer.encode_prompt("The") == tokenizer.encode("The") != []
    export_checkpoint(tmp_path / "ours", tmp_path / "back", format="hf")
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["add_bos_token"] is False
    import_checkpoint(tmp_path / "back", tmp_path / "again")
    assert not Tokenizer.load(tmp_path / "again").add_bos


def test_weightless_models_keep_ties_and_buffers(llama):
    with weightless():
        model = XLlama.build(vocab_size=9, context=8, dim=8, n_layers=1, n_heads=2, tie_embeddings=True)
    assert model.head.weight is model.embedding.weight
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_a_vocabulary_that_was_rounded_up(llama, hf_folder, tmp_path, capsys):
    """448 rows for 400 pieces: all of them are kept, one line says so, and those beyond are never drawn."""
    theirs = llama(vocab_size=448)
    assert main(["import", str(hf_folder(theirs)), "--out", str(tmp_path / "ours")]) == 0
    assert "48 rows more than the tokenizer has tokens; these are never sampled" in capsys.readouterr().err
    ours = XLlama.load(tmp_path / "ours").eval()
    same_logits(ours, theirs)
    requests = [Request(prompt="The ", seed=seed, max_new_tokens=20) for seed in range(20)]
    drawn = complete(ours, Tokenizer.load(tmp_path / "ours"), requests)
    assert max(token for completion in drawn for token in completion.tokens) < 400
