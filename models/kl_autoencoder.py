"""An autoencoder with a Gaussian grid of latents: the first stage of latent diffusion."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn

from ..study.tables import Table
from .base import Batch
from .cubes import fold, unfold
from .groups import Groups
from .mean_volume import MeanVolume
from .vae import Gaussian, Width, laplace_log_density, normal_log_density

FIRST_LOG_VARIANCE = -3.0


class KlAutoencoderSpec(Table):
    """The settings of the autoencoder, [settings.autoencoder] in a study file."""

    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64),
        min_length=1,
        description="channels at each level; every level but the last halves the volume",
    )
    patch: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description="side of the cubes folded into channels before the first level, 1 to 8",
    )
    latent_channels: Width = Field(default=8, description="channels of the latent grid, 1 or more")
    groups: Groups = Field(
        default=8,
        description="GroupNorm groups, a divisor of every entry of channels",
    )
    kl_weight: float = Field(
        default=0.02,
        ge=0,
        le=1e3,
        description="weight of the KL in nats per voxel, small, e.g. 0.02",
    )

    @property
    def reduction(self) -> int:
        """Voxels of a side that become one voxel of the latent grid."""
        return self.patch << (len(self.channels) - 1)


class KlAutoencoder(nn.Module):
    """MONAI's AutoencoderKL beside a linear path, round a learned mean volume.

    The linear path is one strided convolution each way: principal components of blocks, learned
    long before the other convolutions say anything. The KL holds the latents near the standard
    normal, so that no statistic of them needs to be read from patients (Rombach et al. 2022).

    Args:
        spec: the settings.
        shape: of a volume, (D, H, W), multiples of the reduction.
    """

    def __init__(self, spec: KlAutoencoderSpec, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.spec = spec
        depth, cube = len(spec.channels), spec.patch**3
        self.network = AutoencoderKL(
            spatial_dims=3,
            in_channels=cube,
            out_channels=cube,
            channels=spec.channels,
            latent_channels=spec.latent_channels,
            num_res_blocks=(1,) * depth,
            attention_levels=(False,) * depth,
            norm_num_groups=spec.groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        block = 1 << (depth - 1)
        self.reader = nn.Conv3d(cube, spec.latent_channels, block, stride=block)
        self.writer = nn.ConvTranspose3d(spec.latent_channels, cube, block, stride=block)
        self.mean = MeanVolume(shape, spec.patch)
        spread = [x for x in self.network.quant_conv_log_sigma.modules() if _is_convolution(x)][-1]
        nn.init.zeros_(cast(Tensor, spread.weight))
        nn.init.constant_(cast(Tensor, spread.bias), FIRST_LOG_VARIANCE)
        last = [layer for layer in self.network.decoder.modules() if _is_convolution(layer)][-1]
        for weight in (*last.parameters(), cast(Tensor, self.writer.bias)):
            nn.init.zeros_(weight)

    def posterior(self, volumes: Tensor) -> Gaussian:
        """Return the Gaussian of the latents (B, C, d, h, w) of volumes (B, 1, D, H, W)."""
        cubes = fold(volumes - self.mean(len(volumes)).detach(), self.spec.patch)
        mean, deviation = self.network.encode(cubes)
        return Gaussian(mean + self.reader(cubes), deviation)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) of latents (B, C, d, h, w)."""
        cubes = self.network.decode(latents) + self.writer(latents)
        volumes: Tensor = self.mean(len(latents)) + unfold(cubes, self.spec.patch)
        return volumes

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean absolute error at one draw, plus the weighted KL per voxel, (B,)."""
        posterior = self.posterior(batch.volumes)
        error = (self.decode(posterior.draw(generator)) - batch.volumes).abs().flatten(1).mean(1)
        return error + self.spec.kl_weight * posterior.nats() / batch.volumes[0].numel()

    def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return log p(x, z) - log q(z | x) at one draw, (B,), in nats, as `loss` weighs them."""
        posterior = self.posterior(batch.volumes)
        latents = posterior.draw(generator)
        scale = self.spec.kl_weight
        worth = laplace_log_density(batch.volumes, self.decode(latents), scale)
        return worth + normal_log_density(latents) - posterior.log_density(latents)


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv3d)
