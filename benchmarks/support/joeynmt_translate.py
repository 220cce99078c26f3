"""JoeyNMT's part of `benchmarks/translate.py`, for an interpreter that has it: FOLDER in, FOLDER/result.json out."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from joeynmt.batch import Batch
from joeynmt.model import build_model
from joeynmt.search import search
from joeynmt.vocabulary import Vocabulary
from torch import nn

SPECIALS = SimpleNamespace(
    **{"unk_id": 0, "pad_id": 1, "bos_id": 2, "eos_id": 3, "sep_id": None, "sep_token": None, "lang_tags": []},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
)


def build(job: dict, weights: dict) -> nn.Module:
    """Return JoeyNMT's model of the same sizes and with the same weights."""
    sizes = job["sizes"]
    parts = {
        part: {
            "type": "transformer",
            "num_layers": job["layers"][part],
            "num_heads": sizes["heads"],
            "embeddings": {"embedding_dim": sizes["dim"], "scale": True, "dropout": 0.0},
            "hidden_size": sizes["dim"],
            "ff_size": sizes["hidden"],
            "dropout": 0.0,
            "layer_norm": job["norm_position"],
        }
        for part in ("encoder", "decoder")
    }
    vocabulary = Vocabulary([f"token{i}" for i in range(4, sizes["vocab"])], SPECIALS)
    model = build_model({**parts, "tied_embeddings": True, "tied_softmax": True}, vocabulary, vocabulary)
    state = model.state_dict()
    for name, tensor in state.items():
        if "_att." in name and name.endswith(".bias"):
            state[name] = torch.zeros_like(tensor)
        elif not name.endswith(".pe"):
            state[name] = weights[name]
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model.eval()


def translate(model: nn.Module, sources: list[list[int]], how: dict) -> list[list[int]]:
    """Return the translations of one batch, up to the end marker."""
    lengths = [len(row) for row in sources]
    rows = torch.tensor([row + [1] * (max(lengths) - len(row)) for row in sources])
    numbers, device = torch.arange(len(rows)), torch.device("cpu")
    batch = Batch(rows, torch.tensor(lengths), None, None, None, numbers, device, 1, 3, False)
    found, _, _ = search(model, batch, max(lengths) + how["longer"], how["beam"], how["alpha"])
    return [[token for token in row[: [*row, 3].index(3)] if token > 1] for row in found.tolist()]


def main() -> None:
    """Translate the batches of the job and write seconds and tokens."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    model = build(job, torch.load(folder / "weights.pt", weights_only=True))
    translate(model, job["batches"][-1], job["search"])  # to warm up
    begun = time.perf_counter()
    tokens = [translate(model, batch, job["search"]) for batch in job["batches"]]
    seconds = time.perf_counter() - begun
    (folder / "result.json").write_text(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
