"""Causal 3D convolutions: every output voxel sees only what comes before it in raster order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNELS = ((2, 3, 3), (1, 2, 3), (1, 1, 2))
PLACES = 8  # learned numbers that tell a voxel where it is


class Stream(nn.Module):
    """Sees what lies before a voxel along one axis: past slices, past rows, or past voxels.

    Kernels reach back along the axis and both ways along later axes; a volume is padded in front
    and shifted by one, so that the weights are plain convolutions without a mask (van den Oord et
    al. 2016, Salimans et al. 2017, here with a third stream).

    Args:
        axis: 0, 1 or 2 of (D, H, W).
        inputs: channels of a volume.
        channels: inside.
        dilations: one a layer.
    """

    def __init__(self, axis: int, inputs: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.axis, self.dilations = axis, tuple(dilations)
        kernel = KERNELS[axis]
        self.first = nn.Conv3d(inputs, channels, kernel)
        self.place = nn.Conv3d(PLACES, channels, 1)
        self.layers = nn.ModuleList(
            nn.Conv3d(channels, 2 * channels, kernel, dilation=d) for d in dilations
        )
        links = len(dilations) if axis else 0
        self.links = nn.ModuleList(nn.Conv3d(channels, 2 * channels, 1) for _ in range(links))

    def forward(self, volumes: Tensor, place: Tensor, above: Sequence[Tensor]) -> list[Tensor]:
        """Return the features (B, C, D, H, W) after each layer.

        Args:
            volumes: (B, inputs, D, H, W).
            place: (B, PLACES, D, H, W).
            above: the features of the stream along the axis before, none for the first axis.
        """
        shifted = self._padded(volumes, 1, shift=1).narrow(
            2 + self.axis, 0, volumes.shape[2 + self.axis] + 1
        )
        features = self.first(shifted) + self.place(place)
        found = []
        for number, (layer, dilation) in enumerate(zip(self.layers, self.dilations, strict=True)):
            change = layer(self._padded(functional.elu(features), dilation))
            if self.links:
                change = change + self.links[number](functional.elu(above[number]))
            features = features + functional.glu(change, dim=1)
            found.append(features)
        return found

    def _padded(self, volumes: Tensor, dilation: int, shift: int = 0) -> Tensor:
        edges = [(0, 0)] * self.axis + [(dilation + shift, 0)]
        edges += [(dilation, dilation)] * (2 - self.axis)
        return functional.pad(volumes, [side for pair in reversed(edges) for side in pair])


class CausalNetwork(nn.Module):
    """Three streams, each fed by the one before: slices, then rows, then voxels.

    Rows of one slice are independent given the stream of slices, and voxels of one row given the
    stream of rows: drawing computes each stream only where something has changed.

    Args:
        shape: of a volume, (D, H, W).
        inputs: channels of a volume.
        channels: inside.
        outputs: numbers for each voxel.
        dilations: one a layer.
    """

    def __init__(
        self,
        shape: Sequence[int],
        inputs: int,
        channels: int,
        outputs: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.places = nn.Embedding(math.prod(shape), PLACES)
        self.streams = nn.ModuleList(Stream(x, inputs, channels, dilations) for x in range(3))
        self.last = nn.Conv3d(channels, outputs, 1)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return (B, outputs, D, H, W) of volumes (B, inputs, D, H, W)."""
        place = self._places(len(volumes))
        above: list[Tensor] = []
        for stream in self.streams:
            above = stream(volumes, place, above)
        outputs: Tensor = self.last(functional.elu(above[-1]))
        return outputs

    @torch.no_grad()
    def draw(self, n: int, inputs: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Draw volumes (n, inputs, D, H, W) voxel by voxel.

        Args:
            n: how many.
            inputs: channels of a volume.
            choose: from the outputs (n, outputs) of one voxel to its drawn inputs (n, inputs).
        """
        depth, height, width = self.shape
        slices, rows, voxels = self.streams
        place = self._places(n)
        drawn = place.new_zeros((n, inputs, *self.shape))
        for d in range(depth):
            past = [x[:, :, d:] for x in slices(drawn[:, :, : d + 1], place[:, :, : d + 1], [])]
            here, there = drawn[:, :, d : d + 1], place[:, :, d : d + 1]
            for h in range(height):
                upper = [x[:, :, :, : h + 1] for x in past]
                found = rows(here[:, :, :, : h + 1], there[:, :, :, : h + 1], upper)
                before = [x[:, :, :, h:] for x in found]
                row, position = here[:, :, :, h : h + 1], there[:, :, :, h : h + 1]
                for w in range(width):
                    left = [x[..., : w + 1] for x in before]
                    last = voxels(row[..., : w + 1], position[..., : w + 1], left)[-1]
                    outputs = self.last(functional.elu(last[..., -1:]))
                    drawn[:, :, d, h, w] = choose(outputs.flatten(1))
        return drawn

    def _places(self, n: int) -> Tensor:
        numbers = torch.arange(math.prod(self.shape), device=self.places.weight.device)
        rows: Tensor = self.places(numbers.expand(n, -1))
        return rows.transpose(1, 2).reshape(n, PLACES, *self.shape)
