"""How alike two volumes are: error, PSNR and structural similarity of volumes in [-1, 1]."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ...study.errors import UsageError

Volumes = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

DATA_RANGE = 2.0
WINDOW = 11
SIGMA = 1.5
STABILITY = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
LEAST_ERROR = 1e-10
"""Mean square below which PSNR rises no more."""
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of five scales, from the finest (Wang, Simoncelli and Bovik 2003)."""


def mae(found: Volumes, expected: Volumes) -> Numbers:
    """Return the mean absolute error of each pair, (n,), in units of [-1, 1].

    Args:
        found: (n, C, D, H, W), the synthetic volumes.
        expected: (n, C, D, H, W), the real ones.

    Raises:
        UsageError: shapes differ.
    """
    _check_pairs(found, expected)
    return np.asarray(np.abs(_flat(found) - _flat(expected)).mean(axis=1))


def psnr(found: Volumes, expected: Volumes) -> Numbers:
    """Return the peak signal-to-noise ratio of each pair, (n,), in dB, at most 106.

    The peak is the range of [-1, 1], which is 2. The mean square error counts as `LEAST_ERROR` or
    more, so that equal volumes have a number too. Arguments and errors as in `mae`.
    """
    _check_pairs(found, expected)
    errors = np.square(_flat(found) - _flat(expected)).mean(axis=1)
    return np.asarray(10 * np.log10(DATA_RANGE**2 / np.maximum(errors, LEAST_ERROR)))


def ssim(found: Volumes, expected: Volumes) -> Numbers:
    """Return the structural similarity of each pair, (n,), at most 1 (Wang et al. 2004).

    Windows are Gaussian and lie wholly inside the volume; see `window`. Arguments and errors as
    in `mae`.
    """
    _check_pairs(found, expected)
    width = window(found.shape[2:])
    return np.array(
        [
            _compare(_view(one, width), _view(other, width), width)[0]
            for one, other in zip(_grey(found), _grey(expected), strict=True)
        ]
    )


def ms_ssim(volumes: Volumes) -> Numbers:
    """Return the multi-scale SSIM of each pair of volumes, (n, n); the diagonal is 1.

    Each scale halves the last by the mean of 2 x 2 x 2 voxels. There are as many scales of the
    five of Wang, Simoncelli and Bovik (2003) as `scales` tells, with their weights scaled to sum
    1, so that figures compare only at one shape; a negative contrast counts as 0. The mean over
    pairs of samples is the field's figure of diversity: lower is more diverse.

    Args:
        volumes: (n, 1, D, H, W) in [-1, 1].

    Raises:
        UsageError: other channels or axes.
    """
    if volumes.ndim != 5 or volumes.shape[1] != 1:
        raise UsageError("volumes do not fit", got=volumes.shape, expected="(n, 1, D, H, W)")
    width = window(volumes.shape[2:])
    weights = np.array(WEIGHTS[: scales(volumes.shape[2:])])
    weights /= weights.sum()
    views = [_pyramid(volume, width, len(weights)) for volume in volumes[:, 0]]
    table = np.eye(len(volumes))
    for i, j in combinations(range(len(volumes)), 2):
        pairs = [_compare(one, other, width) for one, other in zip(views[i], views[j], strict=True)]
        terms = [contrast for _, contrast in pairs[:-1]] + [pairs[-1][0]]
        table[i, j] = table[j, i] = np.prod(np.maximum(terms, 0) ** weights)
    return table


def window(shape: tuple[int, ...]) -> int:
    """Return the side of SSIM's window in voxels: 11, or the largest odd one of a smaller side."""
    return min(WINDOW, (min(shape) - 1) // 2 * 2 + 1)


def scales(shape: tuple[int, ...]) -> int:
    """Return how often a volume can be halved and still hold a window, plus one, at most 5."""
    return sum(min(shape) >> scale >= window(shape) for scale in range(len(WEIGHTS)))


class _View(NamedTuple):
    """A volume at one scale with its mean and its mean square in each window."""

    voxels: Volumes
    mean: Volumes
    square: Volumes


def _pyramid(volume: Volumes, width: int, levels: int) -> list[_View]:
    views = [_view(volume, width)]
    for _ in range(1, levels):
        fine = views[-1].voxels
        even = fine[tuple(slice(side // 2 * 2) for side in fine.shape)]
        d, h, w = (side // 2 for side in even.shape)
        views.append(_view(even.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5)), width))
    return views


def _view(volume: Volumes, width: int) -> _View:
    return _View(volume, _smooth(volume, width), _smooth(volume * volume, width))


def _smooth(volume: Volumes, width: int) -> Volumes:
    """Return the Gaussian mean of every window that lies inside the volume."""
    reach = width // 2
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SIGMA) ** 2)
    for axis in range(3):
        smooth = ndimage.correlate1d(volume, bell / bell.sum(), axis=axis)
        volume = smooth[(slice(None),) * axis + (slice(reach, volume.shape[axis] - reach),)]
    return np.ascontiguousarray(volume)


def _compare(one: _View, other: _View, width: int) -> tuple[float, float]:
    """Return the mean over windows of the similarity, and of its contrast and structure alone."""
    light, dark = STABILITY
    shared = _smooth(one.voxels * other.voxels, width) - one.mean * other.mean
    spread = one.square - one.mean**2 + other.square - other.mean**2
    contrast = (2 * shared + dark) / (spread + dark)
    means = (2 * one.mean * other.mean + light) / (one.mean**2 + other.mean**2 + light)
    return float((means * contrast).mean()), float(contrast.mean())


def _flat(volumes: Volumes) -> Numbers:
    return volumes.reshape(len(volumes), -1).astype(np.float64)


def _grey(volumes: Volumes) -> Volumes:
    """Return (n, D, H, W) of volumes with one channel."""
    return volumes[:, 0]


def _check_pairs(found: Volumes, expected: Volumes) -> None:
    if found.shape != expected.shape or found.ndim != 5 or found.shape[1] != 1:
        raise UsageError(
            "pairs of volumes do not fit",
            got=f"{found.shape} and {expected.shape}",
            expected="twice the same (n, 1, D, H, W)",
        )
