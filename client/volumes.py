"""Bringing a scan to the plan's grid and to [-1, 1]."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..study.condition import ConditionSettings
from ..study.errors import VolumeError
from ..study.plan import VolumeSettings
from .nifti import MAX_VOXELS, Grid, Volume, read_volume

BACKGROUND = -1.0
APART = "make sure that both are of one session, or register one to the other and export it again"

_Voxels = npt.NDArray[np.float32]


def preprocess(path: Path, settings: VolumeSettings, around: Grid | None = None) -> _Voxels:
    """Reads a scan and returns it as (1, D, H, W) in [-1, 1] on the plan's grid, axes R, A, S.

    The grid of `settings.spacing` mm is centred on the volume, then cropped or padded with
    background round the middle of the foreground. Nothing is estimated over more than this file.

    Args:
        path: the scan.
        settings: the plan's grid and intensity.
        around: where the voxels lie instead, in a study whose crop is that of a mask or source.

    Raises:
        VolumeError: the file cannot be used, nothing varies in the part that is kept, or the scan
            shows nothing of `around`.
    """
    volume = read_volume(path)
    if around is not None:
        return place(volume, around, settings)
    voxels, start, _ = _cropped(volume.voxels, volume.grid, settings)
    inside: list[slice] = []
    outside: list[slice] = []
    for length, begin, wanted in zip(voxels.shape, start, settings.shape, strict=True):
        first, last = max(begin, 0), min(begin + wanted, length)
        inside.append(slice(first, last))
        outside.append(slice(first - begin, last - begin))
    placed = np.full((1, *settings.shape), BACKGROUND, dtype=np.float32)
    placed[0][tuple(outside)] = to_unit_range(voxels[tuple(inside)], settings)
    return placed


def crop(voxels: _Voxels, grid: Grid, settings: VolumeSettings) -> Grid:
    """Returns the plan's grid round the middle of the foreground of (D, H, W), along its axes.

    Raises:
        VolumeError: the volume would have too many voxels at the plan's spacing.
    """
    return _cropped(voxels, grid, settings)[2]


def _cropped(
    voxels: _Voxels, grid: Grid, settings: VolumeSettings
) -> tuple[_Voxels, list[int], Grid]:
    """Returns the volume at the plan's spacing, the first voxel of the crop, and its grid."""
    resampled = resample(voxels, grid.spacing, settings.spacing)
    bounds = zip(*foreground_box(resampled), settings.shape, strict=True)
    start = [(low + high - wanted) // 2 for low, high, wanted in bounds]
    factors = _factors(grid.spacing, settings.spacing)
    step = np.diag([*factors, 1.0])
    step[:3, 3] = _offset(voxels.shape, resampled.shape, factors) + factors * start
    return resampled, start, Grid(settings.shape, grid.affine @ step, grid.oriented)


def place(volume: Volume, grid: Grid, settings: VolumeSettings | ConditionSettings) -> _Voxels:
    """Returns a volume in [-1, 1] on another grid, (1, D, H, W), background where it shows nothing.

    Raises:
        VolumeError: it shows nothing of the grid, or nothing varies in what it shows.
    """
    matrix, offset, inside = places(volume.grid, grid)
    moved = interpolate(volume.voxels, matrix, offset, grid.shape)
    placed = np.full((1, *grid.shape), BACKGROUND, dtype=np.float32)
    placed[0][inside] = to_unit_range(moved[inside], settings)
    return placed


def places(
    old: Grid, new: Grid
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Returns where new voxels lie among the old: (3, 3), offset (3,), which inside (D, H, W).

    Raises:
        VolumeError: not one of them lies inside.
    """
    # rounded, so that equal grids give equal voxels
    step = np.round(np.linalg.solve(old.affine, new.affine), 9)
    matrix, offset = step[:3, :3], step[:3, 3]
    found = np.tensordot(matrix, np.indices(new.shape), 1) + offset[:, None, None, None]
    ends = np.array(old.shape)[:, None, None, None] - 0.5
    inside = np.asarray(((found >= -0.5) & (found <= ends)).all(axis=0))
    if not inside.any():
        raise VolumeError("the image shows nothing of the part that is read", hint=APART)
    return matrix, offset, inside


def inspect(path: Path) -> None:
    """Reads the whole file and refuses one that cannot be trained on.

    Raises:
        VolumeError: with the reason, and the remedy as its hint.
    """
    read_volume(path)


def resample(
    voxels: _Voxels,
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float],
) -> _Voxels:
    """Returns (D, H, W) at the wanted spacing in mm, linearly interpolated, with the same centre.

    Before an axis is thinned it is smoothed by the Gaussian that widens a voxel of the old size to
    one of the new, FWHM for FWHM (Cardoso et al., Scale factor point spread function matching,
    2015).

    Raises:
        VolumeError: the result would have more than `MAX_VOXELS` voxels.
    """
    factors = _factors(spacing, wanted)
    if (factors == 1.0).all():
        return voxels
    shape = tuple(max(1, round(float(n))) for n in np.array(voxels.shape) / factors)
    if math.prod(shape) > MAX_VOXELS:
        raise VolumeError(
            "the image is too large at the plan's spacing",
            got=f"{' x '.join(map(str, shape))} voxels",
            expected=f"at most {MAX_VOXELS}",
            hint="crop the image, or leave it out",
        )
    return interpolate(voxels, factors, _offset(voxels.shape, shape, factors), shape)


def interpolate(
    voxels: _Voxels,
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    shape: tuple[int, ...],
) -> _Voxels:
    """Returns voxels at `matrix` times a new index plus `offset`, smoothed as `resample` says.

    Args:
        voxels: (D, H, W).
        matrix: (3, 3), or its diagonal (3,).
        offset: (3,), in voxels.
        shape: of the result.
    """
    # the width of a new voxel along each old axis, in old voxels
    steps = np.abs(matrix) if matrix.ndim == 1 else np.linalg.norm(matrix, axis=1)
    sigma = np.sqrt(np.maximum(steps**2 - 1, 0)) / (2 * math.sqrt(2 * math.log(2)))
    smooth = ndimage.gaussian_filter(voxels, sigma, mode="nearest")
    moved = ndimage.affine_transform(
        smooth, matrix, offset, output_shape=shape, order=1, mode="nearest"
    )
    return np.asarray(moved, dtype=np.float32)


def _factors(
    spacing: tuple[float, float, float], wanted: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """Returns the step over old voxels from one new voxel to the next, on each axis."""
    factors = np.array(wanted) / np.array(spacing)
    # headers keep spacing in float32, rounded by the exporter
    return np.ones(3) if np.allclose(factors, 1.0, atol=1e-3) else factors


def _offset(
    old: tuple[int, ...], new: tuple[int, ...], factors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the old index of the first new voxel, where both grids have one centre."""
    offset: npt.NDArray[np.float64] = (np.array(old) - 1) / 2 - factors * (np.array(new) - 1) / 2
    return offset


def foreground_box(voxels: _Voxels) -> tuple[list[int], list[int]]:
    """Returns the foreground's first voxel, and the one after its last, on each axis of (D, H, W).

    Foreground is what lies above a tenth of the range between the 1st and 99th percentile: that
    parts air from body in CT and noise from tissue in MR. Specks, the outer 0.5 %, are left out.
    Of one value throughout, all is foreground: its middle is the field of view's.
    """
    low, high = (float(value) for value in np.percentile(voxels, (1.0, 99.0)))
    if high <= low:  # nearly all background: what differs from it is the foreground
        low, high = float(voxels.min()), float(voxels.max())
    if high <= low:
        return [0, 0, 0], list(voxels.shape)
    mask = voxels > low + 0.1 * (high - low)
    lower, upper = [], []
    for axis in range(3):
        other = tuple(i for i in range(3) if i != axis)
        share = np.cumsum(mask.sum(axis=other)) / max(int(mask.sum()), 1)
        lower.append(int(np.searchsorted(share, 0.005)))
        upper.append(min(int(np.searchsorted(share, 0.995)) + 1, mask.shape[axis]))
    return lower, upper


def to_unit_range(voxels: _Voxels, settings: VolumeSettings | ConditionSettings) -> _Voxels:
    """Maps a window in HU, or the volume's own percentiles, linearly to [-1, 1] and clips.

    Raises:
        VolumeError: the two percentiles of the volume are equal.
    """
    if settings.intensity == "window":
        low, high = settings.window
    else:
        low, high = (float(value) for value in np.percentile(voxels, settings.percentiles))
        if high <= low:
            raise VolumeError(
                "nearly all voxels of the image are equal",
                hint="leave the image out: it may be a mask, or its field of view is empty",
            )
    scaled = (voxels - low) * (2.0 / (high - low)) - 1.0
    return np.asarray(np.clip(scaled, -1.0, 1.0), dtype=np.float32)
