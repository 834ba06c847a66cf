"""The network that translates one volume into another: MONAI's residual U-Net at any shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn import functional

from .critic import LEAKY


class Translator(nn.Module):
    """A U-Net between volumes in [-1, 1]; nothing is drawn.

    Sides that the levels do not divide are filled up with -1 at their ends and cut again.

    Args:
        inputs: channels of what is translated.
        channels: at each level; every level but the last halves the volume.
        groups: of GroupNorm.
    """

    def __init__(self, inputs: int, channels: Sequence[int], groups: int) -> None:
        super().__init__()
        halvings = len(channels) - 1
        self.multiple = 1 << halvings
        self.network = UNet(
            spatial_dims=3,
            in_channels=inputs,
            out_channels=channels[0],
            channels=tuple(channels),
            strides=(2,) * halvings,
            num_res_units=1,
            norm=("GROUP", {"num_groups": groups}),
            act=LEAKY,
        )
        self.last = nn.Conv3d(channels[0], 1, 1)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return volumes (B, 1, D, H, W) in (-1, 1) of volumes (B, C, D, H, W)."""
        depth, height, width = volumes.shape[2:]
        edges = [edge for side in (width, height, depth) for edge in (0, -side % self.multiple)]
        translated: Tensor = self.last(self.network(functional.pad(volumes, edges, value=-1.0)))
        return torch.tanh(translated[..., :depth, :height, :width])
