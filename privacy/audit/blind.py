"""The blind baseline: can images alone, without any model, tell members from non-members?

Coin flips make both groups alike. If a rule that never saw the model tells them apart, then the
groups differ by more than their training, and what the other scores find is no sign of a leak
(Das et al., Blind baselines beat membership inference attacks, 2024): the audit is invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional

from ...study.errors import VolumeError
from .scores.fusion import PERMUTATIONS, Flags, Fused, Values, check, fuse

if TYPE_CHECKING:
    from torch import Tensor

FOREGROUND = -0.9  # of intensities in [-1, 1]; what is darker is air
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GRID = 4  # cells along each axis
COMPONENTS = 5  # of the grid's cells, which are too many to fit a rule on


def blind_baseline(
    patients: Sequence[Sequence[Tensor]],
    members: Flags,
    seed: int,
    *,
    permutations: int = PERMUTATIONS,
) -> Fused:
    """Returns how well images alone tell members from non-members, cross-validated by patient.

    A p-value below the level says that the groups differ and the audit is INVALID. For coin flips
    it is exact: the components are fitted on all patients without knowing who trained.

    Args:
        patients: each patient's volumes (1, C, D, H, W) in [-1, 1], in an order that membership
            did not set.
        members: (n,), who trained.
        seed: of the folds and the permutations.
        permutations: the p-value is at least 1 / (permutations + 1).

    Raises:
        VolumeError: a patient has no volume.
        UsageError: too few patients, or a voxel that is not finite.
    """
    looks = np.stack([_mean(volumes, look) for volumes in patients])
    cells = np.stack([_mean(volumes, coarse_grid) for volumes in patients])
    check(np.concatenate([looks, cells], axis=1), members)
    features = np.concatenate([looks, principal_components(cells, COMPONENTS)], axis=1)
    return fuse(features, members, seed, permutations=permutations)


def look(volume: Tensor) -> Values:
    """Returns how a volume (1, C, D, H, W) in [-1, 1] looks, (C x 22,).

    For each channel: mean, standard deviation, skewness and excess kurtosis of the intensities;
    their quantiles; the median step between neighbours along each axis, which noise sets; the
    foreground's share; and along each axis the first and last slice of its box and its centre of
    mass, as shares of the side.
    """
    return np.concatenate([_look(channel) for channel in volume[0].cpu().double().numpy()])


def coarse_grid(volume: Tensor) -> Values:
    """Returns the means of the cells of a coarse grid over a volume, (C x GRID^3,)."""
    found: Values = functional.adaptive_avg_pool3d(volume.double(), GRID).cpu().numpy().ravel()
    return found


def principal_components(table: Values, components: int) -> Values:
    """Returns the first components of a table's rows, (n, F) to (n, at most `components`)."""
    left, lengths, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    found: Values = (left * lengths)[:, :components]
    return found


def _mean(volumes: Sequence[Tensor], features: Callable[[Tensor], Values]) -> Values:
    """Returns the mean of a patient's features over the patient's volumes, (F,)."""
    if not volumes:
        raise VolumeError("a patient has no volume", hint="run the site's check")
    found: Values = np.mean([features(volume) for volume in volumes], axis=0)
    return found


def _look(voxels: Values) -> Values:
    mean, spread = voxels.mean(), voxels.std()
    standard = (voxels - mean) / max(float(spread), 1e-12)
    moments = [mean, spread, (standard**3).mean(), (standard**4).mean() - 3]
    steps = [np.median(np.abs(np.diff(voxels, axis=axis))) for axis in range(3)]
    inside = voxels > FOREGROUND
    quantiles = np.quantile(voxels, QUANTILES)
    return np.concatenate([moments, quantiles, steps, [inside.mean()], _box(inside)])


def _box(inside: Flags) -> list[float]:
    """Returns first and last foreground slice and centre of mass along each axis, as shares."""
    found = []
    for axis, side in enumerate(inside.shape):
        counts = inside.sum(tuple(other for other in range(3) if other != axis))
        (slices,) = np.nonzero(counts)
        if not len(slices):
            found += [0.5, 0.5, 0.5]
            continue
        centre = float(np.dot(counts, np.arange(side) + 0.5) / counts.sum())
        found += [slices[0] / side, (slices[-1] + 1) / side, centre / side]
    return found
