"""Baselines: what any generative model of volumes has to beat, and what must never pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...study.errors import UsageError
from .similarity import Numbers, Volumes


@dataclass(frozen=True)
class ProbabilisticPca:
    """A Gaussian whose covariance is of low rank but for one variance along all other directions.

    Attributes:
        mean: (C, D, H, W), the mean volume.
        loadings: (q, C * D * H * W), along each principal direction the deviation beyond sigma.
        sigma: standard deviation along every direction.
    """

    mean: Numbers
    loadings: Numbers
    sigma: float

    def sample(self, n: int, generator: np.random.Generator) -> Volumes:
        """Return float32 (n, C, D, H, W), cut to [-1, 1]."""
        codes = generator.normal(size=(n, len(self.loadings)))
        noise = generator.normal(0.0, self.sigma, (n, self.loadings.shape[1]))
        drawn = (codes @ self.loadings + noise).reshape(n, *self.mean.shape) + self.mean
        return np.clip(drawn, -1, 1).astype(np.float32)


def fit_pca(volumes: npt.NDArray[np.floating], components: int) -> ProbabilisticPca:
    """Return the most likely probabilistic PCA of volumes, in closed form.

    With the covariance's eigenvalues in falling order, sigma squared is the mean of those after
    the first q, zeros included, and each loading an eigenvector times the root of its eigenvalue
    less sigma squared (Tipping and Bishop 1999, equations 7 and 8).

    Args:
        volumes: (n, C, D, H, W).
        components: q, 1 or more, less than n and than the voxels.

    Raises:
        UsageError: there are not so many components.
    """
    voxels = math.prod(volumes.shape[1:])
    if not 0 < components < min(len(volumes), voxels):
        raise UsageError(
            "as many components as asked for are not there",
            got=components,
            expected=f"1 to {min(len(volumes), voxels) - 1}",
        )
    rows = volumes.reshape(len(volumes), voxels).astype(np.float64)
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    values = singular**2 / len(rows)
    variance = values[components:].sum() / (voxels - components)
    scale = np.sqrt(values[:components] - variance)
    loadings = scale[:, None] * directions[:components]
    return ProbabilisticPca(mean.reshape(volumes.shape[1:]), loadings, math.sqrt(variance))


def noisy_copies(volumes: Volumes, n: int, sigma: float, generator: np.random.Generator) -> Volumes:
    """Return n different volumes with Gaussian noise: of high quality, and no privacy at all.

    Args:
        volumes: (N, C, D, H, W) in [-1, 1].
        n: at most N.
        sigma: standard deviation of the noise, in units of [-1, 1].
        generator: of the choice and the noise.
    """
    chosen = volumes[generator.choice(len(volumes), n, replace=False)]
    return np.clip(chosen + generator.normal(0.0, sigma, chosen.shape), -1, 1).astype(np.float32)
