"""What a condition says about a volume: its mean, and the prior of the latents it is drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.nets.autoencoderkl import Encoder
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from .cubes import unfold
from .vae import Gaussian

BOUND = 10.0
"""Of a prior's log variance either way, so that no condition makes a draw certain or boundless."""


class Latents(NamedTuple):
    """Gaussians of the code (B, K) and of the grid (B, C, D, H, W)."""

    code: Gaussian
    grid: Gaussian

    def nats_from(self, prior: Latents) -> Tensor:
        """Return the KL divergence from the prior, (B,), in nats."""
        return nats_from(self.code, prior.code) + nats_from(self.grid, prior.grid)


def nats_from(one: Gaussian, other: Gaussian) -> Tensor:
    """Return the KL divergence of a diagonal Gaussian from another, (B,), in nats."""
    ratio = one.deviation / other.deviation
    shift = (one.mean - other.mean) / other.deviation
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).flatten(1).sum(1)


class NumbersGuide(nn.Module):
    """What a class or a few numbers say: linear layers that are zero at first.

    Args:
        features: numbers in a row.
        code: length of the code.
        grid: the latent grid, (C, d, h, w).
        shape: of a volume, (D, H, W).
        gain: how much faster than other weights the volume is learned.
    """

    def __init__(
        self, features: int, code: int, grid: Sequence[int], shape: Sequence[int], gain: float
    ) -> None:
        super().__init__()
        self.shape, self.latent_shape, self.gain = tuple(shape), tuple(grid), gain
        self.volume = nn.Linear(features, math.prod(shape), bias=False)
        self.code = nn.Linear(features, 2 * code)
        self.grid = nn.Linear(features, 2 * math.prod(grid))
        _still(self.volume, self.code, self.grid)

    def forward(self, told: Tensor) -> tuple[Tensor, Latents]:
        """Return the mean volume (B, 1, D, H, W) and the prior that rows (B, F) ask for."""
        volume: Tensor = self.gain * self.volume(told)
        grid = self.grid(told).reshape(len(told), -1, *self.latent_shape[1:])
        prior = Latents(_gaussian(self.code(told)), _gaussian(grid))
        return volume.reshape(len(told), 1, *self.shape), prior


class ImageGuide(nn.Module):
    """What an image says: MONAI's UNet draws the mean volume, an encoder gives the prior.

    Args:
        planes: channels of the folded image.
        patch: side of the cubes that were folded.
        channels: of the UNet and of the encoder; every level but the last halves the image.
        groups: of GroupNorm.
        code: length of the code.
        grid: the latent grid, (C, d, h, w).
    """

    def __init__(
        self,
        planes: int,
        patch: int,
        channels: Sequence[int],
        groups: int,
        code: int,
        grid: Sequence[int],
    ) -> None:
        super().__init__()
        self.patch = patch
        self.drawing = UNet(
            spatial_dims=3,
            in_channels=planes,
            out_channels=channels[0],
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            num_res_units=1,
            act="RELU",
            norm=("GROUP", {"num_groups": groups}),
        )
        # the image beside its drawing: normalisation loses how bright it was
        self.volume = nn.Conv3d(channels[0] + planes, patch**3, 1)
        self.encoder = Encoder(
            spatial_dims=3,
            in_channels=planes,
            channels=channels,
            out_channels=channels[0],
            num_res_blocks=(1,) * len(channels),
            norm_num_groups=groups,
            norm_eps=1e-6,
            attention_levels=(False,) * len(channels),
            with_nonlocal_attn=False,
        )
        self.grid = nn.Conv3d(channels[0], 2 * grid[0], 1)
        self.code = nn.Linear(channels[0] * math.prod(grid[1:]), 2 * code)
        _still(self.volume, self.code, self.grid)

    def forward(self, told: Tensor) -> tuple[Tensor, Latents]:
        """Return the mean volume (B, 1, D, H, W) and the prior that folded images ask for."""
        volume = unfold(self.volume(torch.cat([self.drawing(told), told], dim=1)), self.patch)
        seen = self.encoder(told)
        return volume, Latents(_gaussian(self.code(seen.flatten(1))), _gaussian(self.grid(seen)))


def _gaussian(numbers: Tensor) -> Gaussian:
    """Return a Gaussian of twice as many channels (B, 2C, ...): means, then log variances."""
    mean, log_variance = numbers.chunk(2, dim=1)
    return Gaussian(mean, torch.exp(log_variance.clamp(-BOUND, BOUND) / 2))


def _still(*layers: nn.Module) -> None:
    for layer in layers:
        for weight in layer.parameters():
            nn.init.zeros_(weight)
