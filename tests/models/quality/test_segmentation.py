"""Overlap and surface distance of masks against loops, closed forms and MONAI's metrics."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from voxfed.models.quality.segmentation import Mask, dice, hd95
from voxfed.study.errors import UsageError

SPACING = (1.0, 2.0, 3.5)


def masks() -> tuple[Mask, Mask]:
    """Return two masks with two structures inside a margin: shifted balls of different radii."""
    grid = np.indices((12, 13, 14))
    found, expected = np.zeros((2, 12, 13, 14), np.int64)
    for label, centre, radius in ((1, (4, 4, 4), 3.2), (2, (8, 9, 10), 2.4)):
        for mask, shift, wider in ((found, 0, 0.0), (expected, 1, 0.5)):
            place = np.array(centre).reshape(3, 1, 1, 1) - shift
            mask[np.square(grid - place).sum(0) <= (radius + wider - label / 4) ** 2] = label
    return found, expected


def surface(mask: Mask, label: int) -> list[tuple[int, ...]]:
    """Return the voxels with a face neighbour outside the structure, found one by one."""
    inside = {tuple(map(int, voxel)) for voxel in np.argwhere(mask == label)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return [
        voxel
        for voxel in sorted(inside)
        if any(tuple(a + b for a, b in zip(voxel, s, strict=True)) not in inside for s in steps)
    ]


def reach(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> float:
    """Return the 95th percentile of distances in mm from one surface to the other."""
    nearest = [
        min(
            math.sqrt(sum(((a - b) * mm) ** 2 for a, b, mm in zip(x, y, SPACING, strict=True)))
            for y in other
        )
        for x in one
    ]
    return float(np.percentile(nearest, 95))


def test_dice_counts_voxels() -> None:
    """Twice the shared voxels over all voxels of both, for each structure."""
    found, expected = masks()
    counted = []
    for label in (1, 2):
        one, other = ({tuple(v) for v in np.argwhere(m == label)} for m in (found, expected))
        counted.append(2 * len(one & other) / (len(one) + len(other)))
    assert dice(found, expected, 3) == pytest.approx(counted)
    assert 0 < min(counted) < max(counted) < 1


def test_hd95_is_that_of_a_loop_in_mm() -> None:
    """Surfaces, percentile, direction and unequal spacing are those of the definition."""
    found, expected = masks()
    looped = []
    for label in (1, 2):
        one, other = surface(found, label), surface(expected, label)
        looped.append(max(reach(one, other), reach(other, one)))
    assert hd95(found, expected, 3, SPACING) == pytest.approx(looped)


def test_the_larger_direction_is_told() -> None:
    """A far second blob that only one mask has counts, whichever mask is the found one."""
    one = np.zeros((6, 6, 20), np.int64)
    one[2:4, 2:4, 2:4] = 1
    other = one.copy()
    other[2:4, 2:4, 16:18] = 1
    assert hd95(one, other, 2, (1.0, 1.0, 1.0)) == hd95(other, one, 2, (1.0, 1.0, 1.0)) != [0.0]


def test_a_shift_along_one_axis_is_that_many_mm() -> None:
    """A plate moved two voxels along the last axis is 7 mm away at 3.5 mm a voxel."""
    found, expected = np.zeros((2, 8, 8, 10), np.int64)
    found[2:6, 2:6, 3] = expected[2:6, 2:6, 5] = 1
    assert hd95(found, expected, 2, SPACING) == [7.0]
    assert hd95(found, found, 2, SPACING) == [0.0]


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_both_agree_with_monai() -> None:
    """A second library finds the same numbers on structures that both masks have."""
    found, expected = (
        torch.nn.functional.one_hot(torch.from_numpy(mask), 3).permute(3, 0, 1, 2)[None]
        for mask in masks()
    )
    overlap = compute_dice(found, expected, include_background=False)
    distance = compute_hausdorff_distance(found, expected, percentile=95, spacing=SPACING)
    assert dice(*masks(), 3) == pytest.approx(overlap[0].tolist())
    assert hd95(*masks(), 3, SPACING) == pytest.approx(distance[0].tolist(), rel=1e-5)


def test_an_absent_structure_has_no_figure() -> None:
    """In neither mask: nothing to score. In one only: no overlap, and no distance is defined."""
    found, expected = masks()
    only = np.where(expected == 1, 1, 0)
    assert dice(found, expected, 4)[2] is None
    assert hd95(found, expected, 4, SPACING)[2] is None
    assert dice(found, only, 3)[1] == 0
    assert dice(only, found, 3)[1] == 0
    assert hd95(found, only, 3, SPACING)[1] is None
    assert hd95(only, found, 3, SPACING)[1] is None


def test_unfit_masks_are_refused() -> None:
    """Other shapes and axes get an error of ours."""
    found, expected = masks()
    for bad in (expected[1:], expected[None]):
        with pytest.raises(UsageError):
            dice(found, bad, 3)
        with pytest.raises(UsageError):
            hd95(found, bad, 3, SPACING)
