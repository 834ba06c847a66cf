"""The Haar transform is PyWavelets', keeps the sum of squares, and is undone exactly."""

import numpy as np
import pytest
import pywt
import torch
from voxfed.models.haar import haar, inverse_haar

ORDER = ("aaa", "aad", "ada", "add", "daa", "dad", "dda", "ddd")
SHAPES = [(2, 2, 2), (4, 6, 10), (14, 2, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_are_those_of_pywavelets(shape: tuple[int, int, int]) -> None:
    """Oracle: a second library, on any even side and on several channels."""
    volumes = torch.randn(2, 3, *shape, dtype=torch.float64)
    found = haar(volumes).reshape(2, 8, 3, *(side // 2 for side in shape))
    for n in range(2):
        for channel in range(3):
            expected = pywt.dwtn(volumes[n, channel].numpy(), "haar")
            for k, name in enumerate(ORDER):
                np.testing.assert_allclose(found[n, k, channel].numpy(), expected[name], atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_gives_the_volume_back(shape: tuple[int, int, int]) -> None:
    volumes = torch.randn(2, 3, *shape, dtype=torch.float64)
    assert torch.allclose(inverse_haar(haar(volumes)), volumes, atol=1e-13, rtol=0)
    coefficients = torch.randn(2, 8, *shape, dtype=torch.float64)
    assert torch.allclose(haar(inverse_haar(coefficients)), coefficients, atol=1e-13, rtol=0)


def test_the_sum_of_squares_is_kept() -> None:
    """Orthonormal: white noise in voxels is white noise in coefficients."""
    volumes = torch.randn(1, 1, 8, 4, 6, dtype=torch.float64)
    assert torch.isclose(haar(volumes).square().sum(), volumes.square().sum())


def test_the_first_coefficient_is_the_scaled_mean_of_a_cube() -> None:
    """By hand: 8 voxels of value 1 give 8 / sqrt(8) in aaa and nothing elsewhere."""
    found = haar(torch.ones(1, 1, 2, 2, 2)).flatten()
    assert torch.allclose(found, torch.tensor([8**0.5, 0, 0, 0, 0, 0, 0, 0]))
