"""Cubes of voxels as channels and back: a halving or more that costs nothing and loses nothing."""

from __future__ import annotations

from torch import Tensor


def fold(volumes: Tensor, side: int) -> Tensor:
    """Return (B, C, D, H, W) as (B, C side^3, D / side, H / side, W / side)."""
    n, channels, *sides = volumes.shape
    depth, height, width = (length // side for length in sides)
    cubes = volumes.reshape(n, channels, depth, side, height, side, width, side)
    return cubes.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, -1, depth, height, width)


def unfold(cubes: Tensor, side: int) -> Tensor:
    """Return (B, C side^3, D, H, W) as (B, C, side D, side H, side W): `fold` undone."""
    n, _, depth, height, width = cubes.shape
    parts = cubes.reshape(n, -1, side, side, side, depth, height, width)
    volumes = parts.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return volumes.reshape(n, -1, depth * side, height * side, width * side)
