"""Translators of one model folder: Axon's, and CTranslate2's with the same weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from axon_core.text import Tokenizer
from axon_transformer import Search, Transformer, Translator, sinusoids
from axon_transformer.corpus import normalised

BATCH = 64

Translate = Callable[[list[str], int, float], "Translated"]
"""Translates texts with a beam and a length penalty."""


class Translated(NamedTuple):
    """Translations, in the order of their texts."""

    seconds: float
    """From texts to texts."""
    tokens: list[list[int]]
    """Tokens of each, without markers."""
    texts: list[str]


def axon(folder: Path, precision: str, threads: int) -> Translate:
    """Return Axon's translator in float32 or int8."""
    torch.set_num_threads(threads)
    translator = Translator.load(folder, quantization=None if precision == "float32" else precision)

    def translate(texts: list[str], beam: int, alpha: float) -> Translated:
        begun = time.perf_counter()
        found = translator.translate(texts, Search(beam=beam, length_penalty=alpha), batch_size=BATCH)
        seconds = time.perf_counter() - begun
        return Translated(seconds, [best.tokens for best, *_ in found], [best.text for best, *_ in found])

    return translate


def ctranslate2(folder: Path, precision: str, threads: int) -> Translate:
    """Return CTranslate2's translator in float32 or int8, around which Axon's tokenizer works.

    It divides a score by the length to the power of its length penalty, where Axon divides by ((5 + length) / 6)^α: the
    two are the same for 0 only. Then, too, both end a sentence when its best candidate has ended.
    """
    import ctranslate2

    model, tokenizer = Transformer.load(folder), Tokenizer.load(folder)
    translator, names = Translator(model, tokenizer), _names(model, tokenizer)
    with tempfile.TemporaryDirectory() as made:
        write_ctranslate2(model, names, Path(made))
        theirs = ctranslate2.Translator(made, "cpu", compute_type=precision, inter_threads=1, intra_threads=threads)
    ids = {name: i for i, name in enumerate(names)}

    def translate(texts: list[str], beam: int, alpha: float) -> Translated:
        begun = time.perf_counter()
        found = theirs.translate_batch(
            [[names[token] for token in source] for source in translator.encode(texts)],
            max_batch_size=BATCH,
            beam_size=beam,
            length_penalty=alpha,
            min_decoding_length=0,
            max_decoding_length=model.config.context,
            suppress_sequences=[[_BEGIN]],
        )
        tokens = [[ids[name] for name in each.hypotheses[0]] for each in found]
        written = [normalised(tokenizer.decode(each)) for each in tokens]
        return Translated(time.perf_counter() - begun, tokens, written)

    return translate


_BEGIN, _END = "<s>", "</s>"


def _names(model: Transformer, tokenizer: Tokenizer) -> list[str]:
    """Return names of all tokens, all that CTranslate2 has to know about a vocabulary."""
    translator = Translator(model, tokenizer)
    names = [str(i) for i in range(model.config.vocab_size)]
    names[translator.bos], names[translator.eos] = _BEGIN, _END
    return names


def write_ctranslate2(model: Transformer, names: list[str], folder: Path) -> None:
    """Write a model of `MHA` and `layernorm` in CTranslate2's format."""
    from ctranslate2.specs import TransformerSpec

    c, w = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    pre = c.norm_position == "pre"
    spec: Any = TransformerSpec.from_config((c.encoder_layers, c.decoder_layers), c.n_heads, pre_norm=pre)
    spec.config.bos_token, spec.config.eos_token, spec.config.decoder_start_token = _BEGIN, _END, _BEGIN
    spec.config.unk_token = next(name for name in names if name not in (_BEGIN, _END))
    spec.config.add_source_bos = spec.config.add_source_eos = False

    def norm(to: Any, name: str) -> None:
        to.gamma, to.beta = w[f"{name}.weight"], w[f"{name}.bias"]

    def linear(to: Any, name: str, rows: slice = slice(None)) -> None:
        to.weight = w[f"{name}.weight"][rows]
        if f"{name}.bias" in w:
            to.bias = w[f"{name}.bias"][rows]

    positions: Tensor = sinusoids(torch.arange(c.context), c.dim)
    for side, part in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        for embeddings in part.embeddings if side == "encoder" else [part.embeddings]:
            embeddings.weight = w["embedding.weight"]
        part.position_encodings.encodings = positions.numpy()
        if pre:
            norm(part.layer_norm, f"{side}_norm")
        for i, layer in enumerate(part.layer):
            name = f"{side}.{i}"
            linear(layer.self_attention.linear[0], f"{name}.attention.qkv.projection")
            linear(layer.self_attention.linear[1], f"{name}.attention.out")
            norm(layer.self_attention.layer_norm, f"{name}.residuals.0.norm")
            if side == "decoder":
                linear(layer.attention.linear[0], f"{name}.cross.qkv.projection", slice(0, c.dim))
                linear(layer.attention.linear[1], f"{name}.cross.qkv.projection", slice(c.dim, None))
                linear(layer.attention.linear[2], f"{name}.cross.out")
                norm(layer.attention.layer_norm, f"{name}.residuals.1.norm")
            linear(layer.ffn.linear_0, f"{name}.feed_forward.up")
            linear(layer.ffn.linear_1, f"{name}.feed_forward.down")
            norm(layer.ffn.layer_norm, f"{name}.residuals.{2 if side == 'decoder' else 1}.norm")
    spec.decoder.projection.weight = w["embedding.weight"]
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.validate()
    spec.save(str(folder))
