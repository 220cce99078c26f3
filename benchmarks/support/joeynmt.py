"""JoeyNMT, in its own interpreter, with the weights of an Axon model."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_transformer import Search, Transformer, Translator
from support.translators import BATCH


def joeynmt(python: str, translator: Translator, texts: list[str], search: Search) -> tuple[float, list[str]]:
    """Have JoeyNMT translate with the same weights; return its seconds and translations.

    Its vocabulary begins with unknown, padding, begin, end, so that ours moves by one.
    """
    sources = translator.encode(texts)
    order = sorted(range(len(texts)), key=lambda i: -len(sources[i]))
    numbers = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    c = translator.model.config
    job = {
        "sizes": {"dim": c.dim, "heads": c.n_heads, "hidden": c.hidden_dim, "vocab": c.vocab_size + 1},
        "layers": {"encoder": c.encoder_layers, "decoder": c.decoder_layers},
        "norm_position": c.norm_position,
        "batches": [[[token + 1 for token in sources[i]] for i in batch] for batch in numbers],
        "search": {"beam": search.beam, "alpha": search.length_penalty, "longer": search.longer},
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.json").write_text(json.dumps(job))
        torch.save(joeynmts_weights(translator.model), Path(folder, "weights.pt"))
        script = Path(__file__).with_name("joeynmt_translate.py")
        run = subprocess.run([python, str(script), folder], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"JoeyNMT failed:\n{run.stderr[-2000:]}")
        result: Any = json.loads(Path(folder, "result.json").read_text())
    found = [""] * len(texts)
    for i, tokens in zip(order, (row for batch in result["tokens"] for row in batch), strict=True):
        found[i] = translator.tokenizer.decode([token - 1 for token in tokens])
    return result["seconds"], found


def joeynmts_weights(model: Transformer) -> dict[str, Tensor]:
    """Return the weights under JoeyNMT's names; its biases of attention, which ours has not, are left out."""
    names = {
        "encoder": {
            "attention": "src_src_att",
            "residuals.0.norm": "layer_norm",
            "residuals.1.norm": "feed_forward.layer_norm",
        },
        "decoder": {
            "attention": "trg_trg_att",
            "cross": "src_trg_att",
            "residuals.0.norm": "x_layer_norm",
            "residuals.1.norm": "dec_layer_norm",
            "residuals.2.norm": "feed_forward.layer_norm",
        },
    }
    state = model.state_dict()
    embedding = state.pop("embedding.weight")
    # Padding is never a target, and neither is the begin marker, whose row is taken for it.
    embedding = torch.cat((embedding[:1], embedding[1:2], embedding[1:]))
    weights = dict.fromkeys(("src_embed.lut.weight", "trg_embed.lut.weight", "decoder.output_layer.weight"), embedding)
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part in ("encoder_norm", "decoder_norm"):
            weights[f"{part.removesuffix('_norm')}.layer_norm.{rest}"] = tensor
            continue
        layer, _, rest = rest.partition(".")
        for ours, theirs in names[part].items():
            if rest.startswith(f"{ours}."):
                rest = theirs + rest.removeprefix(ours)
                break
        rest = rest.replace("feed_forward.up", "feed_forward.pwff_layer.0")
        rest = rest.replace("feed_forward.down", "feed_forward.pwff_layer.3").replace(".out.", ".output_layer.")
        if rest.endswith("qkv.projection.weight"):
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{part}.layers.{layer}.{rest.replace('qkv.projection', f'{letter}_layer')}"] = rows
        else:
            weights[f"{part}.layers.{layer}.{rest}"] = tensor
    return weights
