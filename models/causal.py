"""Causal 3D convolutions: every output voxel sees only what comes before it in raster order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNELS = ((2, 3, 3), (1, 2, 3), (1, 1, 2))
PLACES = 8  # learned numbers that tell a voxel where it is


class Past(NamedTuple):
    """What a stream computed at the places before, and what it is told of the stream above.

    Attributes:
        seen: the features that each layer reads, a list of places for each layer.
        told: the part of each layer from above, at all places; none for the first stream.
    """

    seen: list[list[Tensor]]
    told: list[Tensor]


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

    def begin(self, above: Sequence[Tensor]) -> Past:
        """Return what `advance` keeps while it goes along the axis.

        Args:
            above: as in `forward`.
        """
        told = [link(functional.elu(x)) for link, x in zip(self.links, above, strict=True)]
        return Past([[] for _ in self.layers], told)

    def advance(self, before: Tensor, place: Tensor, past: Past) -> list[Tensor]:
        """Return the features (B, C, D, H, W) after each layer at the next place along the axis.

        Args:
            before: volumes at the two places before, two thick along the axis, none before 0.
            place: `self.place` of where it is, one thick.
            past: of all places before; this one is added.
        """
        along, number = 2 + self.axis, len(past.seen[0])
        features = self._here(self.first, before, 1) + place
        found = []
        layers = cast("list[nn.Conv3d]", list(self.layers))
        for n, (layer, dilation) in enumerate(zip(layers, self.dilations, strict=True)):
            seen = past.seen[n]
            seen.append(functional.elu(features))
            early = seen[number - dilation] if number >= dilation else torch.zeros_like(features)
            change = self._here(layer, torch.cat([early, seen[-1]], along), dilation)
            if past.told:
                change = change + past.told[n].narrow(along, number, 1)
            features = features + functional.glu(change, dim=1)
            found.append(features)
        return found

    def _here(self, layer: nn.Conv3d, pair: Tensor, dilation: int) -> Tensor:
        """Return a layer at one place, of the two places that it sees along the axis."""
        reach = [dilation if axis > self.axis else 0 for axis in range(3)]
        wide = [dilation if axis > self.axis else 1 for axis in range(3)]
        return functional.conv3d(pair, layer.weight, layer.bias, padding=reach, dilation=wide)

    def _padded(self, volumes: Tensor, dilation: int, shift: int = 0) -> Tensor:
        edges = [(0, 0)] * self.axis + [(dilation + shift, 0)]
        edges += [(dilation, dilation)] * (2 - self.axis)
        return functional.pad(volumes, [side for pair in reversed(edges) for side in pair])


class CausalNetwork(nn.Module):
    """Three streams, each fed by the one before: slices, then rows, then voxels.

    Rows of one slice are independent given the stream of slices, and voxels of one row given the
    stream of rows: drawing computes each stream once a place and keeps what it computed (Paine et
    al. 2016, Fast WaveNet generation).

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
        streams = cast("list[Stream]", list(self.streams))
        slices, rows, voxels = streams
        places = [stream.place(self._places(n)) for stream in streams]
        # two empty voxels in front of each axis: what lies before the first
        drawn = places[0].new_zeros((n, inputs, depth + 2, height + 2, width + 2))
        made = slices.begin([])
        for d in range(depth):
            before, here = drawn[:, :, d : d + 2, 2:, 2:], drawn[:, :, d + 2 : d + 3]
            slab = rows.begin(slices.advance(before, places[0][:, :, d : d + 1], made))
            for h in range(height):
                before, line = here[:, :, :, h : h + 2, 2:], here[:, :, :, h + 2 : h + 3]
                place = places[1][:, :, d : d + 1, h : h + 1]
                row = voxels.begin(rows.advance(before, place, slab))
                for w in range(width):
                    place = places[2][:, :, d : d + 1, h : h + 1, w : w + 1]
                    last = voxels.advance(line[..., w : w + 2], place, row)[-1]
                    outputs = self.last(functional.elu(last))
                    line[:, :, 0, 0, w + 2] = choose(outputs.flatten(1))
        found: Tensor = drawn[:, :, 2:, 2:, 2:].contiguous()
        return found

    def _places(self, n: int) -> Tensor:
        numbers = torch.arange(math.prod(self.shape), device=self.places.weight.device)
        rows: Tensor = self.places(numbers.expand(n, -1))
        return rows.transpose(1, 2).reshape(n, PLACES, *self.shape)
