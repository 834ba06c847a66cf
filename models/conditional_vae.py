"""The conditional VAE: its prior and its mean volume are told a class, numbers or an image."""

from __future__ import annotations

import math
from typing import Annotated, Literal, cast

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .conditioning import Conditioning
from .cubes import fold, unfold
from .groups import Groups
from .guide import ImageGuide, Latents, NumbersGuide
from .mean_volume import MEAN_GAIN, MeanVolume
from .vae import FIRST_LOG_VARIANCE, Gaussian, Width, laplace_log_density


class ConditionalVaeSpec(Table):
    """The settings of a conditional VAE; with the shape they rebuild it."""

    condition: Literal["class", "attributes", "mask", "source"] = Field(
        default="class", description='"class", "attributes", "mask" or "source"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description="classes, or structures of a mask with the background, 2 or more"
    )
    attributes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="numbers that a volume is told, 1 or more"
    )
    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 64),
        min_length=2,
        description="channels at each level; every level but the last halves the volume",
    )
    patch: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description="side of the cubes folded into channels before the first level, 1 to 8",
    )
    code: Width = Field(
        default=32, description="length of the code that carries the overall anatomy, 1 or more"
    )
    latent_channels: Width = Field(default=8, description="channels of the latent grid, 1 or more")
    groups: Groups = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    kl_weight: float = Field(
        default=0.2, gt=0, le=1e3, description="weight of the KL in nats per voxel, e.g. 0.2"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        levels = len(known.data.get("channels", (1,)))
        multiple = known.data.get("patch", 1) << (levels - 1)
        if any(side % multiple for side in shape):
            raise ValueError(f"patch and levels need sides that are multiples of {multiple}")
        return shape

    @property
    def conditioning(self) -> Conditioning:
        """What a volume is told."""
        return Conditioning(self.condition, self.classes, self.attributes, self.shape)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The latent grid of one volume, as (C, D, H, W)."""
        reduction = self.patch << (len(self.channels) - 1)
        depth, height, width = (side // reduction for side in self.shape)
        return self.latent_channels, depth, height, width


class ConditionalVae(Family):
    """A VAE of code and grid, as `vae`, whose prior and mean volume are told the condition.

    The bound is that of p(x | c) with a learned prior p(z | c) (Sohn et al. 2015). A class or a few
    numbers enter by linear layers; a mask or a source image by MONAI's UNet, which draws the mean
    volume, and by an encoder, which gives the prior. The posterior sees an image condition too.
    """

    stages = ("autoencoder",)
    biases = ("mean.shade.weight",)
    spec: ConditionalVaeSpec

    def __init__(self, spec: ConditionalVaeSpec) -> None:
        super().__init__()
        self.spec = spec
        cube, voxels, levels = spec.patch**3, math.prod(spec.shape), len(spec.channels)
        planes = cube * spec.conditioning.planes
        self.network = AutoencoderKL(
            spatial_dims=3,
            in_channels=cube + planes,
            out_channels=cube,
            channels=spec.channels,
            latent_channels=spec.latent_channels,
            num_res_blocks=(1,) * levels,
            attention_levels=(False,) * levels,
            norm_num_groups=spec.groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.code_mean = nn.Linear(voxels // cube, spec.code)
        self.code_log_variance = nn.Linear(voxels // cube, spec.code)
        self.code_decoder = nn.Linear(spec.code, voxels, bias=False)
        self.mean = MeanVolume(spec.shape, spec.patch)
        latents = spec.code, spec.latent_shape
        self.guide = (
            ImageGuide(planes, spec.patch, spec.channels, spec.groups, *latents)
            if planes
            else NumbersGuide(spec.conditioning.numbers, *latents, spec.shape, MEAN_GAIN)
        )
        self._start_calm()

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the one turn of the autoencoder, which reads patients.

        Raises:
            PlanError: the stage is not "autoencoder".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = tuple(name for name, weight in self.named_parameters() if weight.requires_grad)
        return (Step(stage, names, reads_patients=True, loss=self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the negative evidence bound of each volume, (B,), up to scale and a constant.

        It is the mean absolute error over voxels at one draw of the latents, plus `kl_weight`
        times the KL divergence from the conditional prior in nats per voxel: the bound of a
        Laplace likelihood of scale `kl_weight`.

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        told = self._told(batch.condition, len(batch.volumes))
        mean, prior = self._guided(told)
        posterior = self._encode(batch.volumes, mean, told)
        drawn = mean + self._decode(*(latent.draw(generator) for latent in posterior))
        error = (drawn - batch.volumes).abs().flatten(1).mean(1)
        nats_per_voxel = posterior.nats_from(prior) / batch.volumes[0].numel()
        return error + self.spec.kl_weight * nats_per_voxel

    @torch.no_grad()
    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a lower bound on the log density of each volume given its condition, (B,), nats.

        One draw of the latents; the likelihood is a Laplace of scale `kl_weight`.
        """
        scale, voxels = self.spec.kl_weight, batch.volumes[0].numel()
        return -voxels * (self.loss(batch, generator) / scale + math.log(2 * scale))

    @torch.no_grad()
    def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return log p(x, z | c) - log q(z | x, c) at one draw of both latents, (B,), in nats.

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        told = self._told(batch.condition, len(batch.volumes))
        mean, prior = self._guided(told)
        posterior = self._encode(batch.volumes, mean, told)
        drawn = [latent.draw(generator) for latent in posterior]
        volumes = mean + self._decode(*drawn)
        worth = laplace_log_density(batch.volumes, volumes, self.spec.kl_weight)
        for before, after, value in zip(prior, posterior, drawn, strict=True):
            worth = worth + before.log_density(value) - after.log_density(value)
        return worth

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the posterior means of code and grid as rows, (B, K + C d h w).

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        told = self._told(batch.condition, len(batch.volumes))
        posterior = self._encode(batch.volumes, self._guided(told)[0], told)
        return torch.cat([latent.mean.flatten(1) for latent in posterior], dim=1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the decoded posterior means, (B, 1, D, H, W) in [-1, 1]; nothing is drawn.

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        told = self._told(batch.condition, len(batch.volumes))
        mean, _ = self._guided(told)
        posterior = self._encode(batch.volumes, mean, told)
        return (mean + self._decode(*(latent.mean for latent in posterior))).clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Decode a draw of each condition's prior to (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: the condition is missing, does not fit, or has not `n` rows.
        """
        mean, prior = self._guided(self._told(condition, n))
        return (mean + self._decode(*(latent.draw(generator) for latent in prior))).clamp(-1, 1)

    def _told(self, condition: Condition, n: int) -> Tensor:
        """Return the condition as rows (n, F) or folded planes (n, C, d, h, w)."""
        found = cast(Tensor, self.spec.conditioning.told(condition, n))
        told = found.to(self.code_decoder.weight)
        return fold(told, self.spec.patch) if self.spec.conditioning.planes else told

    def _guided(self, told: Tensor) -> tuple[Tensor, Latents]:
        """Return the mean volume (B, 1, D, H, W) of each condition, and the latents' prior."""
        change, prior = self.guide(told)
        return self.mean(len(told)) + change, prior

    def _encode(self, volumes: Tensor, mean: Tensor, told: Tensor) -> Latents:
        """Return the posterior, from what the mean volume leaves and an image condition."""
        folded = fold(volumes - mean.detach(), self.spec.patch)
        coarse = folded.mean(1).flatten(1)
        coarse = coarse / math.sqrt(coarse.shape[1])
        log_variance = self.code_log_variance(coarse).clamp(-30, 20)
        code = Gaussian(self.code_mean(coarse), torch.exp(log_variance / 2))
        seen = torch.cat([folded, told], dim=1) if self.spec.conditioning.planes else folded
        return Latents(code, Gaussian(*self.network.encode(seen)))

    def _decode(self, code: Tensor, grid: Tensor) -> Tensor:
        """Return the difference from the mean volume, (B, 1, D, H, W)."""
        detail = unfold(self.network.decode(grid), self.spec.patch)
        anatomy: Tensor = self.code_decoder(code)
        return detail + anatomy.reshape(detail.shape)

    def _start_calm(self) -> None:
        """Set first weights from which all paths learn at once: codes of size one, no detail."""
        nn.init.orthogonal_(self.code_mean.weight, gain=5 * math.sqrt(self.code_mean.in_features))
        nn.init.zeros_(self.code_mean.bias)
        for layer in (self.code_log_variance, _last_convolution(self.network.quant_conv_log_sigma)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(cast(Tensor, layer.bias), FIRST_LOG_VARIANCE)
        nn.init.normal_(self.code_decoder.weight, std=0.01)
        for weight in _last_convolution(self.network.decoder).parameters():
            nn.init.zeros_(weight)


def _last_convolution(network: nn.Module) -> nn.Conv3d:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)][-1]
