"""Scores that need only samples: how near they come to a scan, and how many come near.

Black-box GAN-Leaks (Chen et al., CCS 2020) and the Monte Carlo attack (Hilprecht et al., PoPETs
2019). A plain scan is near to all, so where scans of other patients are at hand the distance to
samples is measured in the distance to those: as a ratio, since a difference was simulated to find
less than no calibration does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Family
    from .score import Measure

NEAREST = 5
QUERIES = 64
LEAST = 1e-6  # of a distance, so that the log of a scan given back bit by bit is a number


def distances(volume: Tensor, others: Tensor) -> Tensor:
    """Returns the root mean squared difference to each of M others, (M,), in intensities.

    Args:
        volume: (1, C, D, H, W).
        others: (M, C, D, H, W).
    """
    gaps = torch.cat([(part - volume).flatten(1).square().mean(1) for part in others.split(64)])
    return gaps.sqrt()


def mean_nearest(found: Tensor) -> Tensor:
    """Returns the mean of the NEAREST least of M distances, or of all where M is less, (1,)."""
    least, _ = found.sort()
    return least[:NEAREST].mean().reshape(1)


def radius(made: Tensor) -> Tensor:
    """Returns the median distance of a sample to its nearest other, a scalar.

    The paper takes it over the scans that are compared; then a patient's score would depend on who
    else is compared.

    Args:
        made: samples (M, C, D, H, W), two at least; the first QUERIES of them stand for scans.
    """
    rows = [distances(one, made).sort().values[1:2] for one in made[:QUERIES].split(1)]
    return torch.cat(rows).median()


def _samples(family: Family, context: Context) -> Tensor:
    """Returns the samples on the model's device."""
    assert context.made is not None  # noqa: S101, `needs` sees to it
    return context.made.volumes.to(next(family.parameters()).device)


def _nearest(family: Family, context: Context) -> Measure:
    made = _samples(family, context)
    others = torch.cat([made[:0], *(one.volumes.to(made) for one in context.reference)])

    def closeness(volume: Tensor, known: Tensor) -> Tensor:
        return -mean_nearest(distances(volume, known)).clamp_min(LEAST).log()

    def measure(batch: Batch) -> Tensor:
        found = closeness(batch.volumes, made)
        return found - closeness(batch.volumes, others) if len(others) else found

    return measure


def _monte_carlo(family: Family, context: Context) -> Measure:
    made = _samples(family, context)
    within = radius(made)
    return lambda batch: (distances(batch.volumes, made) <= within).double().mean().reshape(1)


SCORES = (
    Score(
        "nearest sample",
        Threat.SAMPLES,
        "how near the five nearest samples come to the scan",
        "Chen et al., GAN-Leaks, CCS 2020",
        lambda _: True,
        _nearest,
        needs=("made",),
    ),
    Score(
        "Monte Carlo",
        Threat.SAMPLES,
        "how many samples lie near the scan",
        "Hilprecht et al., PoPETs 2019",
        lambda _: True,
        _monte_carlo,
        needs=("made",),
    ),
)
