"""A small classifier of the data at hand, to judge samples where no pretrained network is available."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from axon_core import Key
from axon_core.training import track_progress

__all__ = ["Classifier", "train_classifier", "turned"]

_STEPS, _BATCH, _ROWS = 600, 64, 512


class Classifier(nn.Module):
    """One to three pairs of convolutions, the second of stride 2, a layer of features, and a score for each class."""

    def __init__(self, channels: int, size: int, n_classes: int, features: int = 64) -> None:
        super().__init__()
        widths = [32, 64, 96][: max(1, size.bit_length() - 3)]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        side = -(-size // 2 ** len(widths))
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, features), nn.ReLU())
        self.head = nn.Linear(features, n_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the score of each class."""
        return self.head(self.body(x))

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Return the features before the scores, in float64, without gradients."""
        with torch.no_grad():
            return torch.cat([self.body(rows) for rows in x.split(_ROWS)]).double()

    def classify(self, x: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
        """Return the most likely class of each picture."""
        with torch.no_grad():
            return torch.cat([self(rows) for rows in x.split(_ROWS)]).argmax(1)


def turned(x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
    """Return the pictures in all four quarter turns, and the turns: labels where there are no classes (1803.07728)."""
    return torch.cat([x.rot90(k, (2, 3)) for k in range(4)]), torch.arange(4).repeat_interleave(len(x))


def train_classifier(x: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], key: Key) -> Classifier:
    """Train a classifier on pictures over [−1, 1], in float32 on the CPU; equal keys give equal classifiers."""
    with key.seeded("cpu"), torch.autocast("cpu", enabled=False), torch.enable_grad():
        model = Classifier(x.shape[1], x.shape[-1], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in track_progress(range(_STEPS), _STEPS, lambda _: 1, "classifier"):
            pick = torch.randint(len(x), (min(_BATCH, len(x)),))
            optimizer.zero_grad()
            cross_entropy(model(x[pick]), labels[pick]).backward()
            optimizer.step()
            rate.step()
    return model.eval()
