"""The mean volume, learned fast, so that networks need only learn what differs from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

MEAN_GAIN = 8.0  # it learns this much faster than other weights
DARK = -0.5  # where it starts, between air and tissue


class MeanVolume(nn.Module):
    """A smooth shade, one number a cube, plus a number a voxel.

    Both are linear layers of a constant, which every per-sample gradient method knows.

    Args:
        shape: of a volume, (D, H, W).
        side: of the cubes, in voxels, a divisor of the shape.
    """

    def __init__(self, shape: Sequence[int], side: int) -> None:
        super().__init__()
        self.shape, self.cubes = tuple(shape), tuple(length // side for length in shape)
        self.shade = nn.Linear(1, math.prod(self.cubes), bias=False)
        self.voxels = nn.Linear(1, math.prod(self.shape), bias=False)
        nn.init.constant_(self.shade.weight, DARK / MEAN_GAIN)
        nn.init.zeros_(self.voxels.weight)

    def forward(self, n: int) -> Tensor:
        """Return the mean volume `n` times, (n, 1, D, H, W)."""
        constant = self.voxels.weight.new_full((n, 1), MEAN_GAIN)
        shade = self.shade(constant).reshape(n, 1, *self.cubes)
        smooth = functional.interpolate(shade, size=self.shape, mode="trilinear")
        both: Tensor = smooth + self.voxels(constant).reshape(smooth.shape)
        return both
