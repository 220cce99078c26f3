"""Translating with beam 4: batches and a cache, beside the same model without either, and beside JoeyNMT.

All decode the same weights, those of a run of recipe `multi30k-de-en`, with the same length penalty and limits. JoeyNMT
(https://github.com/joeynmt/joeynmt), where it is installed, runs in its own interpreter, on the same batches; its
translations score the same BLEU, to ties and rounding. The plain search is slow, so it takes every n-th sentence.

    AXON_DATA_DIR=... python benchmarks/translate.py [RUN] [--joeynmt PYTHON]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axon_core.training.build import build_trainer
from axon_core.training.loop import fit
from axon_core.training.pretrained import model_folder
from axon_core.training.recipe import Recipe
from axon_transformer import Search, Transformer, Translator, beam_search, bleu
from axon_transformer.corpus import read_lines

BATCH = 64


class PlainScorer:
    """Scores one sentence's rows by running all their tokens again."""

    def __init__(self, model: Transformer, source: list[int]) -> None:
        self.model, self.source = model, torch.tensor([source])

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the logits of the token that follows each row."""
        return self.model(self.source.expand(len(rows), -1), rows)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Keep nothing that had to be reordered."""

    def keep(self, rows: Tensor, sentences: Tensor) -> None:
        """Keep nothing that had to be dropped."""


def plain(translator: Translator, texts: list[str], search: Search) -> list[str]:
    """Translate one sentence after another, without a cache."""
    found: list[str] = []
    for source in translator.encode(texts):
        limit = min(len(source) + search.longer, translator.model.config.context)
        scorer = PlainScorer(translator.model, source)
        ((best,),) = beam_search(scorer, [limit], search, bos=translator.bos, eos=translator.eos)
        found.append(translator.tokenizer.decode(best.tokens))
    return found


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
        script = Path(__file__).with_name("support") / "joeynmt_translate.py"
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


def trained(run: Path | None) -> Translator:
    """Return the translator of a run, or of a training of a few minutes."""
    if run is not None:
        translator = Translator.load(model_folder(run))
    else:
        trainer: Any = build_trainer(Recipe.load("multi30k-de-en", ["trainer.steps=300", "trainer.eval_every=300"]))
        fit(trainer, progress=False)
        translator = Translator(trainer.model, trainer.tokenizer)
    translator.model.eval()
    return translator


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run of recipe multi30k-de-en; left out, one of 300 steps")
    parser.add_argument("--sentences", type=int, default=1000, help="how many of the test sentences")
    parser.add_argument("--plain-every", type=int, default=20, help="the plain search takes every n-th of them")
    parser.add_argument("--joeynmt", metavar="PYTHON", help="an interpreter that has JoeyNMT")
    options = parser.parse_args()
    texts, references = (
        read_lines(f"$AXON_DATA_DIR/multi30k/test_2016_flickr.{side}.gz")[: options.sentences] for side in ("de", "en")
    )
    translator, search = trained(options.run), Search(beam=4)
    translator.translate(texts[:8], search)  # to warm up
    rows: list[tuple[str, int, float, str]] = []

    begun = time.perf_counter()
    found = [best.text for best, *_ in translator.translate(texts, search, batch_size=BATCH)]
    rows.append(
        ("Axon: cache, batches of 64", len(texts), time.perf_counter() - begun, f"{bleu(found, references).score:.2f}")
    )

    few = texts[:: options.plain_every]
    begun = time.perf_counter()
    slow = plain(translator, few, search)
    same = sum(a == b for a, b in zip(slow, found[:: options.plain_every], strict=True))
    rows.append(("Axon: no cache, no batches", len(few), time.perf_counter() - begun, f"{same} of {len(few)} the same"))

    if options.joeynmt:
        seconds, theirs = joeynmt(options.joeynmt, translator, texts, search)
        rows.append(("JoeyNMT, batches of 64", len(texts), seconds, f"{bleu(theirs, references).score:.2f}"))
    base = rows[0][2] / rows[0][1]
    print(f"{'':28}{'sentences':>10}{'seconds':>9}{'ms each':>9}{'times as long':>15}  BLEU")
    for name, count, seconds, score in rows:
        each = seconds / count
        print(f"{name:28}{count:10,}{seconds:9.1f}{1e3 * each:9.1f}{each / base:15.1f}  {score}")
    size, threads = translator.model.n_parameters, torch.get_num_threads()
    print(f"{size:,} parameters, beam 4, {threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
