"""The variational autoencoder: MONAI's AutoencoderKL with GroupNorm and a noise source of ours."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from ..study.errors import PlanError
from ..study.tables import Table
from .base import Batch, Family, Step

Width = Annotated[int, Field(ge=1, le=1024)]


class VaeSpec(Table):
    """The settings of a VAE; with the shape they rebuild it."""

    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 64),
        min_length=1,
        description="channels at each level; every level but the last halves the volume",
    )
    patch: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description="side of the cubes folded into channels before the first level, 1 to 8",
    )
    latent_channels: Width = Field(default=8, description="channels of the latent grid, 1 or more")
    groups: Width = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    kl_weight: float = Field(
        default=0.05, ge=0, le=1e3, description="weight of the KL in nats per voxel, e.g. 0.05"
    )
    reconstruction: Literal["l1", "l2"] = Field(default="l1", description='"l1" or "l2"')
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("groups")
    @classmethod
    def _divides_channels(cls, groups: int, known: ValidationInfo) -> int:
        odd = [width for width in known.data.get("channels", ()) if width % groups]
        if odd:
            raise ValueError(f"does not divide channels {odd}")
        return groups

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        levels = len(known.data.get("channels", (1,)))
        multiple = known.data.get("patch", 1) << (levels - 1)
        if any(side % multiple for side in shape):
            raise ValueError(f"patch and levels need sides that are multiples of {multiple}")
        return shape

    @property
    def reduction(self) -> int:
        """Voxels of a side that become one voxel of the latent grid."""
        return self.patch << (len(self.channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The latent grid of one volume, as (C, D, H, W)."""
        depth, height, width = (side // self.reduction for side in self.shape)
        return self.latent_channels, depth, height, width


class Vae(Family):
    """A Gaussian VAE on a latent grid (Kingma and Welling 2014; network of Rombach et al. 2022).

    It has no batch statistics and no buffers, and it draws nothing from global randomness.
    """

    stages = ("autoencoder",)
    spec: VaeSpec

    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        self.spec = spec
        levels = len(spec.channels)
        self.network = AutoencoderKL(
            spatial_dims=3,
            in_channels=spec.patch**3,
            out_channels=spec.patch**3,
            channels=spec.channels,
            latent_channels=spec.latent_channels,
            num_res_blocks=(1,) * levels,
            attention_levels=(False,) * levels,
            norm_num_groups=spec.groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

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

        It is the mean over voxels of the absolute (L1) or squared (L2) error at one draw of the
        latent, plus `kl_weight` times the KL divergence from the standard normal in nats per
        voxel. With L1 this is the bound of a Laplace likelihood of scale `kl_weight`, with L2 that
        of a Gaussian of variance `kl_weight / 2`, whatever the shape.

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1].
            generator: the only source of the latent's noise.
        """
        mean, deviation = self._encode(batch.volumes)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        decoded = self._decode(mean + deviation * noise.to(mean))
        error = decoded - batch.volumes
        size = error.abs() if self.spec.reconstruction == "l1" else error.square()
        nats = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
        voxels = batch.volumes[0].numel()
        return size.flatten(1).mean(1) + self.spec.kl_weight * nats.flatten(1).sum(1) / voxels

    @torch.no_grad()
    def reconstruct(self, volumes: Tensor) -> Tensor:
        """Return the decoded posterior mean, (B, 1, D, H, W) in [-1, 1]; nothing is drawn."""
        mean, _ = self._encode(volumes)
        return self._decode(mean).clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Tensor | None = None, generator: torch.Generator
    ) -> Tensor:
        """Decode `n` draws of the standard normal prior to (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: a condition is given.
        """
        if condition is not None:
            raise PlanError("the family vae takes no condition", hint="sample without one")
        shape = (n, *self.spec.latent_shape)
        latent = torch.randn(shape, generator=generator, device=generator.device)
        here = next(self.parameters())
        return self._decode(latent.to(here)).clamp(-1, 1)

    def _encode(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latent, each (B, C, D, H, W)."""
        p = self.spec.patch
        cubes = volumes.unfold(2, p, p).unfold(3, p, p).unfold(4, p, p)
        return self.network.encode(cubes.flatten(5).squeeze(1).movedim(-1, 1).contiguous())

    def _decode(self, latent: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) of latents, cubes of voxels unfolded again."""
        cubes = self.network.decode(latent)
        p = self.spec.patch
        parts = cubes.unflatten(1, (1, p, p, p)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)
