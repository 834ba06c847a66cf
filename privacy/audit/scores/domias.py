"""DOMIAS: samples lie denser around a patient than other patients' scans do.

After van Breugel et al. (AISTATS 2023), in the embedding of an extractor. Both densities are sums
of Gaussians of one width in whitened principal components, so that what smoothing does to one it
does to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp

from .score import Context, Score, Threat

if TYPE_CHECKING:
    from torch import Tensor

    from ....models.base import Batch, Family
    from .score import Measure

DIMENSIONS = 20
PER_DIMENSION = 5  # points of the smaller set for each dimension, at least
Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Whitening:
    """From features to principal components of variance 1.

    Attributes:
        centre: (F,).
        axes: (F, K), each divided by the standard deviation along it.
    """

    centre: Rows
    axes: Rows

    @classmethod
    def of(cls, rows: Rows, dimensions: int) -> Whitening:
        """Returns the first components of rows (n, F); those without variance are left out."""
        centre = rows.mean(0)
        _, lengths, axes = np.linalg.svd(rows - centre, full_matrices=False)
        spread = lengths / math.sqrt(max(len(rows) - 1, 1))
        kept = min(dimensions, int(np.sum(spread > 1e-6 * max(spread[0], 1e-12))))
        return cls(centre, axes[:kept].T / spread[:kept])

    def __call__(self, rows: Rows) -> Rows:
        """Returns the components of rows (n, F), (n, K)."""
        found: Rows = (rows - self.centre) @ self.axes
        return found


def scott_width(n: int, dimensions: int) -> float:
    """Returns the width of the Gaussians for n points of variance 1 (Scott 1992)."""
    return float(n ** (-1 / (dimensions + 4)))


def log_density(points: Rows, known: Rows, width: float) -> Rows:
    """Returns the log of the mean of Gaussians around known points, (n,).

    Args:
        points: where, (n, K).
        known: (m, K).
        width: standard deviation of each Gaussian along each axis.
    """
    gaps = np.square(points[:, None] - known[None]).sum(-1) / (2 * width**2)
    scale = math.log(len(known)) + known.shape[1] * math.log(width * math.sqrt(2 * math.pi))
    found: Rows = logsumexp(-gaps, axis=1) - scale
    return found


@dataclass(frozen=True)
class DensityRatio:
    """How much denser samples are than real scans, anywhere in the space of features.

    Attributes:
        whitening: fitted on both sets together.
        made: the samples' components, (M, K).
        reference: the real scans' components, (R, K).
    """

    whitening: Whitening
    made: Rows
    reference: Rows

    @classmethod
    def of(cls, made: Rows, reference: Rows) -> DensityRatio:
        """Returns the ratio for features of samples (M, F) and of real scans (R, F)."""
        fewest = min(len(made), len(reference))
        dimensions = max(1, min(DIMENSIONS, fewest // PER_DIMENSION))
        whitening = Whitening.of(np.concatenate([made, reference]), dimensions)
        return cls(whitening, whitening(made), whitening(reference))

    def __call__(self, rows: Rows) -> Rows:
        """Returns log p(made) - log p(reference) of features (n, F), (n,), in nats."""
        points = self.whitening(rows)
        fewest = min(len(self.made), len(self.reference))
        width = scott_width(fewest, points.shape[1])
        return log_density(points, self.made, width) - log_density(points, self.reference, width)


def _prepare(_: Family, context: Context) -> Measure:
    assert context.made is not None  # noqa: S101, `needs` sees to it
    assert context.extractor is not None  # noqa: S101
    extract = context.extractor

    def features(volumes: Tensor) -> Rows:
        return np.concatenate([np.asarray(extract(x), np.float64) for x in volumes.split(16)])

    reference = torch.cat([one.volumes for one in context.reference])
    ratio = DensityRatio.of(features(context.made.volumes), features(reference))

    def measure(batch: Batch) -> Tensor:
        return torch.from_numpy(ratio(features(batch.volumes)))

    return measure


SCORES = (
    Score(
        "DOMIAS",
        Threat.SAMPLES,
        "how much denser samples lie around the scan than other patients' scans do",
        "van Breugel et al., AISTATS 2023",
        lambda _: True,
        _prepare,
        needs=("made", "reference", "extractor"),
    ),
)
