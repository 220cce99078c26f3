"""How samples compare with the data: Fréchet distance, recognised classes, and the nearest training pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from axon_core import Key, UsageError
from axon_ddpm.classifier import train_classifier, turned
from axon_ddpm.pictures import to_bytes

__all__ = ["FRECHET", "comparison", "frechet_distance", "nearest_neighbours", "with_nearest", "with_nearest_captions"]

FRECHET = "frechet_distance_small_classifier"
"""The name of the metric, which says whose features it uses: it is not an FID."""


def frechet_distance(a: Float64[Tensor, "n f"], b: Float64[Tensor, "m f"]) -> float:
    """Return |μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½), the Fréchet distance of two sets' normal approximations.

    tr (C_a C_b)^½ is the sum of the singular values of C_a^½ C_b^½. Its values depend on the features: with those of
    Inception it is the FID (arXiv 1706.08500), with others it is not.

    Raises:
        UsageError: a set has fewer than two members, and so no covariance.
    """
    if (fewest := min(len(a), len(b))) < 2:
        raise UsageError(f"a Fréchet distance needs sets of at least 2 pictures, got {fewest}")
    means, roots, traces = zip(*(_moments(x) for x in (a, b)), strict=True)
    cross = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    return ((means[0] - means[1]).square().sum() + traces[0] + traces[1] - 2 * cross).item()


def _moments(x: Float64[Tensor, "n f"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, the root of the covariance and its trace."""
    mean = x.double().mean(0)
    covariance = (x - mean).mT @ (x - mean) / (len(x) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, (vectors * values.clamp(min=0).sqrt()) @ vectors.mT, covariance.trace()


def nearest_neighbours(
    x: Float[Tensor, "n c h w"], among: Float[Tensor, "m c h w"], k: int = 1
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Return the k pictures of `among` nearest to each of `x`: their root mean square differences and indices."""
    distances = torch.cdist(x.flatten(1), among.flatten(1)) / x[0].numel() ** 0.5
    found = distances.topk(min(k, len(among)), largest=False)
    return found.values, found.indices


def with_nearest(x: Float[Tensor, "n c h w"], among: Float[Tensor, "m c h w"]) -> UInt8[Tensor, "k c h w"]:
    """Return each of `x`, over [−1, 1], followed by the picture of `among` that is nearest to it."""
    return to_bytes(torch.stack((x, among[nearest_neighbours(x, among)[1][:, 0]]), 1).flatten(0, 1))


def with_nearest_captions(names: Sequence[str]) -> list[str]:
    """Return the captions of what `with_nearest` returns, given the `names` of its first argument's pictures."""
    return [text for name in names for text in (name, "nearest")]


def comparison(
    samples: Float[Tensor, "n c h w"],
    real: Float[Tensor, "n c h w"],
    train: Float[Tensor, "m c h w"],
    classes: tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None,
    key: Key,
) -> dict[str, float]:
    """Return how samples compare with as many held-out pictures, `real`, and with the training pictures.

    The features are those of a small classifier, which predicts the class or, if there are none, which way up a picture
    is. It learns from half of the training pictures, so that the other half, to which everything is compared, is as new
    to it as held-out pictures and samples are. If fewer than 2 pictures can be compared or fewer than 4 were trained
    on, there is no such classifier, and only the distances from training pictures are returned.

        frechet_distance_small_classifier       of samples and training pictures in these features
        frechet_distance_small_classifier_real  of as many held-out pictures and training pictures: the floor
        nearest_training                        mean distance of a sample from the nearest of all training pictures
                                                (root mean square, over a range of 2)
        nearest_training_real                   the same for held-out pictures
        recognised                              share of samples that the classifier takes for the class they were
                                                asked for
        recognised_real                         its accuracy on held-out pictures

    Args:
        samples: what the model painted, over [−1, 1] like all pictures here.
        real: held-out pictures.
        train: the pictures it was trained on.
        classes: the classes of the samples, which are also those of `real`, and of `train`, if there are any.
        key: the key of the classifier's randomness.
    """
    with torch.autocast(samples.device.type, enabled=False):  # the judge is not part of what is trained in bf16
        found = {
            f"nearest_training{name}": nearest_neighbours(pictures, train)[0].mean().item()
            for name, pictures in (("", samples), ("_real", real))
        }
        if len(real) >= 2 and len(train) >= 4:
            found |= _classifier_metrics(samples, real, train, classes, key)
    return found


def _classifier_metrics(
    samples: Tensor, real: Tensor, train: Tensor, classes: tuple[Tensor, Tensor] | None, key: Key
) -> dict[str, float]:
    """Return the metrics by a classifier that learns from the first half of the training pictures."""
    half = len(train) // 2
    lesson = turned(train[:half]) if classes is None else (train[:half], classes[1][:half])
    judge = train_classifier(*lesson, key)
    reference = judge.features(train[half:])
    found: dict[str, float] = {}
    for name, pictures in (("", samples), ("_real", real)):
        found[f"{FRECHET}{name}"] = frechet_distance(judge.features(pictures), reference)
        if classes is not None:
            found[f"recognised{name}"] = (judge.classify(pictures) == classes[0]).double().mean().item()
    return found
