"""A small 3D encoder that volumes of any size can pass."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (16, 32, 64, 64)
FEATURES = 64
LEAST_SIDE = 16
"""Voxels of the shortest side that the encoder can pass."""


class Encoder(nn.Module):
    """Three halvings, then the mean over each octant and a linear layer; 214,000 parameters.

    The octants keep where things are, which a mean over the whole volume forgets. GroupNorm (Wu
    and He 2018) keeps each volume's features its own.

    Args:
        outputs: numbers a volume becomes.
    """

    def __init__(self, outputs: int = FEATURES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, (wide, narrow) in enumerate(pairwise((1, *CHANNELS))):
            stride = 2 if place < 3 else 1
            layers += [
                nn.Conv3d(wide, narrow, 3, stride=stride, padding=1),
                nn.GroupNorm(8, narrow),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten())
        self.last = nn.Linear(8 * CHANNELS[-1], outputs)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return (B, outputs) for volumes (B, 1, D, H, W) in [-1, 1] with sides of 16 or more."""
        features: Tensor = self.last(self.body(volumes))
        return features


class OnSphere(nn.Module):
    """Gives every row the length of the root of its numbers.

    Contrast learns directions and leaves lengths to chance: unscaled, one strange volume can
    outweigh all others in KID's cubic kernel, which lies between 0 and 8 on this sphere.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, F) for (B, F)."""
        return functional.normalize(rows, dim=1) * math.sqrt(rows.shape[1])
