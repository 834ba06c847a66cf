"""How well a segmentation fits: Dice and the 95th percentile Hausdorff distance, by structure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ...study.errors import UsageError

Mask = npt.NDArray[np.integer]
Structure = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
FAR = 95.0  # percent of the surface


def dice(found: Mask, expected: Mask, structures: int) -> list[float | None]:
    """Return the Dice overlap of each structure, from 0 to 1 (Dice 1945).

    Args:
        found: (D, H, W) labels, 0 for the background.
        expected: (D, H, W) labels.
        structures: labels with the background; the background has no figure.

    Returns:
        `structures` - 1 numbers; None where neither mask has the structure, 0 where only one has.

    Raises:
        UsageError: masks differ in shape, or are not three-dimensional.
    """
    _check(found, expected)
    figures: list[float | None] = []
    for one, other in _structures(found, expected, structures):
        voxels = int(one.sum()) + int(other.sum())
        figures.append(2 * int((one & other).sum()) / voxels if voxels else None)
    return figures


def hd95(found: Mask, expected: Mask, structures: int, spacing: Spacing) -> list[float | None]:
    """Return the 95th percentile Hausdorff distance of each structure's surfaces, in mm.

    Distances go from each surface voxel to the nearest of the other surface; the percentile is
    taken each way and the larger is told. A surface voxel has a face neighbour outside its
    structure; what touches the border of the volume ends there.

    Args:
        found: (D, H, W) labels, 0 for the background.
        expected: (D, H, W) labels.
        structures: labels with the background; the background has no figure.
        spacing: mm between voxels along D, H, W.

    Returns:
        `structures` - 1 numbers; None where a mask lacks the structure: no distance is defined.

    Raises:
        UsageError: as in `dice`.
    """
    _check(found, expected)
    return [
        max(_reach(_surface(one), _surface(other), spacing) for one, other in (pair, pair[::-1]))
        if pair[0].any() and pair[1].any()
        else None
        for pair in _structures(found, expected, structures)
    ]


def _structures(found: Mask, expected: Mask, structures: int) -> list[tuple[Structure, Structure]]:
    return [(found == label, expected == label) for label in range(1, structures)]


def _surface(structure: Structure) -> Structure:
    return np.asarray(structure & ~ndimage.binary_erosion(structure))


def _reach(one: Structure, other: Structure, spacing: Spacing) -> float:
    """Return the percentile of distances from one surface to the other."""
    distances = ndimage.distance_transform_edt(~other, sampling=spacing)
    return float(np.percentile(distances[one], FAR))


def _check(found: Mask, expected: Mask) -> None:
    if found.shape != expected.shape or found.ndim != 3:
        raise UsageError(
            "masks do not fit",
            got=f"{found.shape} and {expected.shape}",
            expected="twice the same (D, H, W)",
        )
