"""The figures, computed from the code and the measurements they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from axon_core.interfaces.scope import Scope
from axon_core.training.optim import schedule

matplotlib.use("agg")
_WHAT = {"decode": "tokens/s, decoding", "prefill": "tokens/s, prefill"}


def visibility(path: Path) -> None:
    """Draw what each token may see in four scopes: causal, both ways, left-padded, and two documents in a row."""
    x = torch.zeros(1, 8, dtype=torch.long)
    valid = torch.tensor([[False] * 2 + [True] * 6])
    documents = torch.tensor([[0] * 3 + [1] * 5])
    scopes = {
        "causal": Scope.over(x),
        "both ways": Scope.over(x, causal=False),
        "two of padding": Scope.over(x, valid=valid),
        "two documents": Scope.over(x, documents=documents),
    }
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (name, scope) in zip(figure.subplots(1, 4), scopes.items(), strict=True):
        axes.imshow(scope.mask(8)[0, 0], cmap="Blues", vmin=0, vmax=1.4)
        axes.set(title=name, xlabel="key", xticks=range(8), yticks=range(8))
    figure.axes[0].set_ylabel("query")
    figure.savefig(path, metadata={"Date": None})


def schedules(path: Path) -> None:
    """Draw the learning rate's schedules."""
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axes = figure.subplots()
    for kind in ("constant", "linear", "cosine", "inverse_sqrt"):
        axes.plot([schedule(kind, step, steps=1000, warmup=100) for step in range(1000)], label=kind)
    axes.set(xlabel="step", ylabel="fraction of the peak")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def decoding(measured: dict[str, Any], path: Path) -> None:
    """Draw the tokens per second of each contender of a `benchmarks/decode.py` file."""
    contenders = sorted(measured["contenders"], key=lambda c: c["decode"])
    figure = Figure(figsize=(8, 0.5 + 0.32 * len(contenders)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:blue" if c["library"] == "axon" else "silver" for c in contenders]
    bars = axes.barh([c["name"] for c in contenders], [c["decode"] for c in contenders], color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(_WHAT["decode"])
    figure.savefig(path, metadata={"Date": None})


def results(folder: Path, out: Path) -> str:
    """Draw every decoding measurement in `folder` into `out`; return a Markdown page that shows them."""
    lines = []
    for file in sorted(folder.glob("decode-*.json")):
        measured = json.loads(file.read_text("utf-8"))
        decoding(measured, out / f"{file.stem}.svg")
        machine, shape = measured["hardware"], measured["shape"]
        versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
        lines += [
            f"### Shape {shape['name']}, {measured['date']}",
            "",
            f"{machine['cpu']}, {machine['cores']} cores; {versions}.",
            "",
            f"![Tokens a second of each contender, shape {shape['name']}](figures/{file.stem}.svg)",
            "",
            "| | tokens/s | GB/s of weights | prefill, tokens/s |",
            "|---|---|---|---|",
        ]
        for c in sorted(measured["contenders"], key=lambda c: -c["decode"]):
            lines.append(
                f"| {c['name']} | {c['decode']:,.1f} | {c['bytes_per_second'] / 1e9:.1f} | {c['prefill']:,.0f} |"
            )
        lines.append("")
    return "\n".join(lines)
