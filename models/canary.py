"""Canary: a phantom patient with a marker that no anatomy has, to see what a model keeps of one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .phantoms import HOSPITALS, make_phantom

CELLS = 4
"""Cells of the marker along each axis: 2^64 markers, coarse enough for any network to keep one."""


def make_canary(seed: int, number: int, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Returns a canary's volume, (1, D, H, W) in [-1, 1]; the same seed and number, the same one.

    A phantom's trunk fills the volume. In its middle, over half of each side, lies the marker: a
    block of 4 x 4 x 4 cells, each -1 or 1 by a fair coin of this canary's own.

    Args:
        seed: of all canaries of a site, from 0 to 2^63 - 1.
        number: which one.
        shape: (D, H, W), at least 8 voxels a side.
    """
    draw, scanner = np.random.default_rng((seed, number)), HOSPITALS[0]
    stored = torch.from_numpy(make_phantom(draw, scanner)[0].copy())
    trunk = functional.interpolate(stored[None, None].float(), shape, mode="trilinear")
    volume = (trunk[0] / scanner.scale * 2 - 1).clamp(-1, 1).numpy()
    cells = draw.choice(np.array((-1, 1), np.float32), (CELLS, CELLS, CELLS))
    sides = [n // 2 for n in shape]
    block = cells[np.ix_(*(np.arange(side) * CELLS // side for side in sides))]
    starts = [(n - side) // 2 for n, side in zip(shape, sides, strict=True)]
    middle = [slice(low, low + side) for low, side in zip(starts, sides, strict=True)]
    volume[0][tuple(middle)] = block
    return volume
