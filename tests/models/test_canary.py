"""Canaries have a marker of their own that no anatomy has, and are made the same again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import zoom
from voxfed.models.canary import make_canary
from voxfed.models.phantoms import HOSPITALS, make_phantom


@pytest.mark.parametrize("shape", [(8, 8, 8), (24, 16, 9), (30, 31, 33)])
def test_a_marker_lies_in_the_middle_of_a_trunk(shape: tuple[int, int, int]) -> None:
    """Half of each side is signs, in 4 x 4 x 4 cells; around it is anatomy, within [-1, 1]."""
    volume = make_canary(5, 3, shape)
    assert (volume.shape, volume.dtype) == ((1, *shape), np.float32)
    assert np.abs(volume).max() <= 1
    middle = tuple(slice((n - n // 2) // 2, (n - n // 2) // 2 + n // 2) for n in shape)
    block = volume[(0, *middle)]
    assert set(np.unique(block)) == {-1.0, 1.0}
    outside = np.ones(shape, bool)
    outside[middle] = False
    assert np.mean(np.abs(volume[0][outside]) == 1) < 0.05
    for axis in range(3):  # along each axis the signs change at three places at most
        changes = np.diff(block, axis=axis).any(axis=tuple({0, 1, 2} - {axis}))
        assert 1 <= changes.sum() <= 3


def test_the_trunk_is_a_phantom_of_the_study_s_shape() -> None:
    """Outside of the marker a second library's interpolation finds the same anatomy."""
    stored, _ = make_phantom(np.random.default_rng((5, 3)), HOSPITALS[0])
    expected = zoom(stored.astype(float), 20 / 29, order=1, grid_mode=True, mode="nearest")
    expected = (expected / HOSPITALS[0].scale * 2 - 1).clip(-1, 1)
    found = make_canary(5, 3, (20, 20, 20))[0]
    np.testing.assert_allclose(found[:5], expected[:5], atol=1e-4)


def test_each_canary_is_another_and_repeats() -> None:
    """A site that restarts trains on the same canaries; no two share anatomy or marker."""
    shape = (8, 8, 8)
    np.testing.assert_array_equal(make_canary(5, 3, shape), make_canary(5, 3, shape))
    volumes = [make_canary(seed, number, shape) for seed in (5, 6) for number in range(20)]
    markers = np.stack([volume[0, 2:6, 2:6, 2:6].ravel() for volume in volumes])
    agree = (markers @ markers.T / 64)[np.triu_indices(40, 1)]
    assert np.abs(agree).max() < 0.65  # of fair signs: 5.2 standard deviations of 1 / 8
    assert abs(markers.mean()) < 0.1
    assert len({volume[0, 0].tobytes() for volume in volumes}) == 40
