"""Alignment: a mask or a source on the very grid of the image that it lies beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..study.condition import ConditionSettings
from ..study.errors import VolumeError
from ..study.plan import VolumeSettings
from .nifti import Grid, read_grid, read_volume
from .volumes import BACKGROUND, grid_of, interpolate, to_unit_range

Labels = npt.NDArray[np.int16]
Voxels = npt.NDArray[np.float32]

_APART = "make sure that both are of one session, or register one to the other and export it again"


def align(
    image: Path, beside: Path, settings: VolumeSettings, condition: ConditionSettings
) -> Labels | Voxels:
    """Reads what lies beside an image and puts it where `preprocess` puts the image's voxels.

    Both headers say where voxels lie in the scanner's mm; nothing is registered. A source is
    interpolated linearly and mapped to [-1, 1] by its own intensities; at each voxel of a mask the
    structure with the largest share wins. Outside what was scanned both are background.

    Returns:
        (1, D, H, W): int16 structures of a mask, or the float32 source in [-1, 1].

    Raises:
        VolumeError: a file cannot be used, a mask holds other labels than the plan says, or the two
            do not lie in one place.
    """
    check_pair(read_grid(image), read_grid(beside))
    volume = read_volume(beside, constant=condition.kind == "mask")
    grid = grid_of(image, settings)
    # rounded, so that equal grids give equal voxels
    step = np.round(np.linalg.solve(volume.grid.affine, grid.affine), 9)
    matrix, offset = step[:3, :3], step[:3, 3]
    places = np.tensordot(matrix, np.indices(grid.shape), 1) + offset[:, None, None, None]
    ends = np.array(volume.grid.shape)[:, None, None, None] - 0.5
    inside = ((places >= -0.5) & (places <= ends)).all(axis=0)
    if not inside.any():
        raise VolumeError("it lies beside the part of the image that is read", hint=_APART)
    if condition.kind == "mask":
        check_labels(volume.voxels, condition.structures)
        return np.where(inside, _structures(volume.voxels, matrix, offset, grid.shape), 0)[None]
    moved = interpolate(volume.voxels, matrix, offset, grid.shape)
    source = np.full(grid.shape, BACKGROUND, dtype=np.float32)
    source[inside] = to_unit_range(moved[inside], condition)
    return source[None]


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
        raise VolumeError("it lies in another place than the image", hint=_APART)


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
