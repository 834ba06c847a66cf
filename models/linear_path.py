"""The linear path of a denoiser: the overall anatomy, learned long before its detail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mean_volume import MEAN_GAIN

SCALES = 1, 2, 4  # coarseness of the bands
BAND_GAIN = 4.0  # gains learn this much faster than other weights: they may reach ten
WAVES = 8  # cosines of time that the gains of a code are made of
CELLS = 4096  # at most, that the linear path sees of a channel


class TimedFilters(nn.Module):
    """Filters a noised grid in a few bands, with gains that know the time.

    For a Gaussian that looks the same everywhere the best word on a noised grid is of this form:
    the noise is what is left when each band is weakened by its share of noise (Wiener).

    Args:
        channels: of the grid.
        seen: channels of the noised grid with what stands beside it.
    """

    def __init__(self, channels: int, seen: int) -> None:
        super().__init__()
        self.shape = len(SCALES), channels, seen
        self.gains = nn.Linear(WAVES, math.prod(self.shape))
        nn.init.zeros_(self.gains.weight)
        nn.init.zeros_(self.gains.bias)

    def forward(self, seen: Tensor, time: Tensor) -> Tensor:
        """Return the filtered grids (B, C, *sides) of what is seen (B, S, *sides)."""
        sides = list(seen.shape[2:])
        gains = BAND_GAIN * self.gains(waves(time)).reshape(-1, *self.shape)
        parts = []
        for number, scale in enumerate(SCALES):
            coarse = [max(side // scale, 1) for side in sides]
            mixed = (gains[:, number] @ resized(seen, coarse).flatten(2)).unflatten(2, coarse)
            parts.append(enlarged(mixed, sides))
        return torch.stack(parts).sum(0)


def waves(time: Tensor) -> Tensor:
    """Return cosines of times (B,), from which gains are made, (B, WAVES)."""
    return (time[:, None] * torch.arange(WAVES, device=time.device) * math.pi).cos()


def resized(grids: Tensor, sides: Sequence[int]) -> Tensor:
    """Return grids averaged to smaller sides."""
    return functional.interpolate(grids, list(sides), mode="area")


def enlarged(grids: Tensor, sides: Sequence[int]) -> Tensor:
    """Return grids interpolated to larger sides."""
    mode = "trilinear" if len(sides) == 3 else "bilinear"
    return functional.interpolate(grids, list(sides), mode=mode)


class LinearPath(nn.Module):
    """Guesses the volume behind a noised grid through a short code, whose gains know the time.

    For a Gaussian of few directions the best guess is of this form, with the principal components
    as directions. It learns the overall anatomy in hundreds of steps, where convolutions need tens
    of thousands. Large grids are seen and guessed coarsely.

    Args:
        code: its length.
        channels: of the grid.
        seen: channels of the noised grid with what stands beside it.
        sides: of the grid.
        numbers: that a volume is told, 0 for none.
    """

    def __init__(
        self, code: int, channels: int, seen: int, sides: tuple[int, ...], numbers: int
    ) -> None:
        super().__init__()
        while math.prod(sides) > CELLS:
            sides = tuple(-(-side // 2) for side in sides)
        self.sides = sides
        cells = channels * math.prod(sides)
        self.reader = nn.Linear(seen * math.prod(sides), code, bias=False)
        self.timing = nn.Linear(WAVES, 2 * code)
        self.told = nn.Linear(numbers + 1, code, bias=False) if numbers else None
        self.writer = nn.Linear(code + 1, cells, bias=False)
        nn.init.orthogonal_(self.reader.weight)
        nn.init.normal_(self.writer.weight, std=0.01)
        nn.init.zeros_(self.timing.weight)
        nn.init.zeros_(self.timing.bias)

    def forward(self, seen: Tensor, time: Tensor, numbers: Tensor | None) -> Tensor:
        """Return the guess (B, C, *sides), from what is seen (B, S, *sides) and the times (B,)."""
        sides = seen.shape[2:]
        code = self.reader(resized(seen, self.sides).flatten(1))
        gain, shift = self.timing(waves(time)).chunk(2, dim=1)
        code = (1 + gain) * code + shift
        if numbers is not None and self.told is not None:
            code = code + self.told(numbers)
        constant = code.new_full((len(code), 1), MEAN_GAIN)
        guess = self.writer(torch.cat([code, constant], dim=1))
        return enlarged(guess.reshape(len(code), -1, *self.sides), sides)
