"""The generator that adversarial families share: from a code to a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.upsample import SubpixelUpsample
from torch import Tensor, nn
from torch.nn import functional

LEAKY = ("LEAKYRELU", {"negative_slope": 0.2})
DARK = -0.9  # where volumes start before tanh: a grey start is so far off that critics win at once


class Smooth(nn.Module):
    """Averages each voxel with its neighbours below: a period of two voxels vanishes.

    Sub-pixel convolutions leave that chequerboard, which a critic's gradient feeds.
    """

    def forward(self, volumes: Tensor) -> Tensor:
        """Return (B, C, D, H, W), each value the mean of 2 x 2 x 2."""
        edged = functional.pad(volumes, (1, 0) * 3, mode="replicate")
        return functional.avg_pool3d(edged, 2, stride=1)


class VolumeGenerator(nn.Module):
    """A linear layer to a coarse grid, then levels that double the grid and convolve it.

    The last doubling is a sub-pixel convolution (Shi et al. 2016): most of the time would go into
    convolutions at full size. A side that is no multiple of the doublings is grown past its end
    and cut.

    Args:
        shape: (D, H, W) of a volume.
        inputs: numbers in a code.
        channels: of the coarse grid, then after each doubling but the last.
        groups: of GroupNorm.
    """

    def __init__(
        self, shape: Sequence[int], inputs: int, channels: Sequence[int], groups: int
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        levels = len(channels)
        self.start = (channels[0], *(-(-side >> levels) for side in shape))
        self.seed = nn.Linear(inputs, math.prod(self.start))
        norm = ("GROUP", {"num_groups": groups})
        layers: list[nn.Module] = [nn.GroupNorm(groups, channels[0]), nn.LeakyReLU(0.2)]
        for wide, narrow in pairwise(channels):
            layers.append(nn.Upsample(scale_factor=2, mode="trilinear"))
            layers.append(Convolution(3, wide, narrow, norm=norm, act=LEAKY))
        last = SubpixelUpsample(3, channels[-1], 1, apply_pad_pool=False)
        nn.init.constant_(last.conv_block.bias, DARK)
        layers += [last, Smooth(), nn.Tanh()]
        self.body = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Return volumes (B, 1, D, H, W) in (-1, 1) of codes (B, K)."""
        depth, height, width = self.shape
        grid = self.seed(codes).reshape(-1, *self.start)
        grown: Tensor = self.body(grid)
        return grown[..., :depth, :height, :width]
