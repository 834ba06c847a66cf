"""The orthonormal 3D Haar transform: a volume as eight half-size volumes, and back."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 0.5**1.5  # 1 / sqrt(2) for each of three axes


def haar(volumes: Tensor) -> Tensor:
    """Return the coefficients (B, 8 C, D/2, H/2, W/2) of volumes (B, C, D, H, W), even sides.

    The order of the eight is PyWavelets' aaa, aad, ada, add, daa, dad, dda, ddd, each with all
    channels. The transform keeps the sum of squares (Haar 1910; for diffusion Friedrich et al.
    2024).
    """
    n, channels, depth, height, width = volumes.shape
    corners = volumes.reshape(n, channels, depth // 2, 2, height // 2, 2, width // 2, 2)
    for axis in (3, 5, 7):
        first, second = corners.unbind(axis)
        corners = torch.stack((first + second, first - second), axis)
    eight = corners.permute(0, 3, 5, 7, 1, 2, 4, 6)
    return HALF * eight.reshape(n, 8 * channels, depth // 2, height // 2, width // 2)


def inverse_haar(coefficients: Tensor) -> Tensor:
    """Return the volumes (B, C, D, H, W) of their coefficients (B, 8 C, D/2, H/2, W/2)."""
    n, channels, depth, height, width = coefficients.shape
    eight = coefficients.reshape(n, 2, 2, 2, channels // 8, depth, height, width)
    corners = eight.permute(0, 4, 5, 1, 6, 2, 7, 3)
    for axis in (3, 5, 7):
        low, high = corners.unbind(axis)
        corners = torch.stack((low + high, low - high), axis)
    return HALF * corners.reshape(n, channels // 8, 2 * depth, 2 * height, 2 * width)
