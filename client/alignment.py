"""Alignment: an image and its mask or source on one grid, which the mask or source alone gives.

A sample starts from a mask or source that lies beside no image, so that in training, too, the crop
is round what that file shows: the nonzero labels of a mask, the foreground of a source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..study.condition import ConditionSettings
from ..study.errors import VolumeError
from ..study.plan import VolumeSettings
from .nifti import Grid, Volume, read_grid, read_volume
from .volumes import APART, crop, interpolate, place, places, preprocess

Labels = npt.NDArray[np.int16]
Voxels = npt.NDArray[np.float32]


def preprocess_beside(
    image: Path, beside: Path, settings: VolumeSettings, condition: ConditionSettings
) -> Voxels:
    """Reads an image as `preprocess` does, on the grid where `align` puts its mask or source.

    Both headers say where voxels lie in the scanner's mm; nothing is registered.

    Returns:
        (1, D, H, W) in [-1, 1]; background outside what was scanned.

    Raises:
        VolumeError: a file cannot be used, or the two do not lie in one place.
    """
    check_pair(read_grid(image), read_grid(beside))
    return preprocess(image, settings, around=grid_of(beside, settings, condition))


def align(beside: Path, settings: VolumeSettings, condition: ConditionSettings) -> Labels | Voxels:
    """Reads a mask or source on the plan's grid, round what it shows itself.

    A source is interpolated linearly and mapped to [-1, 1] by its own intensities; at each voxel of
    a mask the structure with the largest share wins. Outside what was scanned is background.

    Returns:
        (1, D, H, W): int16 structures of a mask, or the float32 source in [-1, 1].

    Raises:
        VolumeError: the file cannot be used, or a mask holds other labels than the plan says.
    """
    volume = _read(beside, condition)
    grid = _grid(volume, settings, condition)
    if condition.kind == "source":
        return place(volume, grid, condition)
    matrix, offset, inside = places(volume.grid, grid)
    return np.where(inside, _structures(volume.voxels, matrix, offset, grid.shape), 0)[None]


def grid_of(beside: Path, settings: VolumeSettings, condition: ConditionSettings) -> Grid:
    """Returns where the crop of a mask or source lies: round its foreground, along its axes.

    A mask without a structure has the middle of its field of view.

    Raises:
        VolumeError: the file cannot be used, or a mask holds other labels than the plan says.
    """
    return _grid(_read(beside, condition), settings, condition)


def _read(beside: Path, condition: ConditionSettings) -> Volume:
    volume = read_volume(beside, constant=condition.kind == "mask")
    if condition.kind == "mask":
        check_labels(volume.voxels, condition.structures)
    return volume


def _grid(volume: Volume, settings: VolumeSettings, condition: ConditionSettings) -> Grid:
    shown = volume.voxels
    if condition.kind == "mask":  # which structure it is must not weigh
        shown = (shown != 0).astype(np.float32)
    return crop(shown, volume.grid, settings)


def check_pair(image: Grid, beside: Grid) -> None:
    """Refuse two images whose headers do not put them in one place.

    Raises:
        VolumeError: a header states no orientation while the grids differ, or the two lie apart.
    """
    same = image.shape == beside.shape and np.allclose(image.affine, beside.affine, atol=1e-3)
    if not same and not (image.oriented and beside.oriented):
        raise VolumeError(
            "a header states no orientation, so that the two cannot be put in one place",
            hint="export both again with their orientation, for instance with dcm2niix",
        )
    corners = np.array(np.meshgrid(*((-0.5, side - 0.5) for side in image.shape))).reshape(3, -1)
    step = np.linalg.solve(beside.affine, image.affine)
    places = step[:3, :3] @ corners + step[:3, 3:]
    if (places.max(1) < -0.5).any() or (places.min(1) > np.array(beside.shape) - 0.5).any():
        raise VolumeError("it lies in another place than the image", hint=APART)


def check_labels(voxels: Voxels, structures: int) -> None:
    """Refuse a mask, (D, H, W), with other labels than 0 to `structures` - 1.

    Raises:
        VolumeError: with the smallest and largest label, and the range that the plan says.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if low < 0 or high >= structures or (voxels != np.round(voxels)).any():
        raise VolumeError(
            "the mask holds other labels than the study's structures",
            got=f"{low:g} to {high:g}",
            expected=f"whole numbers from 0 to {structures - 1}",
            hint="number the structures as the study asks, or ask for another plan",
        )


def _structures(
    voxels: Voxels,
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
) -> Labels:
    """Returns the structure with the largest share at each voxel; the lower label where equal."""
    largest = np.zeros(shape, dtype=np.float32)
    structures = np.zeros(shape, dtype=np.int16)
    for label in np.unique(voxels):
        share = interpolate((voxels == label).astype(np.float32), matrix, offset, shape)
        wins = share > largest
        structures[wins], largest[wins] = label, share[wins]
    return structures
