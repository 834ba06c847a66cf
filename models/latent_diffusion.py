"""The latent diffusion model: an autoencoder, then a denoiser of its latents."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from torch.nn import functional

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Exposed, Family, Step
from .codes import Codes, CodesSpec
from .conditioning import Conditioning, Kind
from .critic import trained
from .denoiser import Denoiser, DenoiserSpec, Width
from .kl_autoencoder import KlAutoencoder, KlAutoencoderSpec
from .vqgan import CodesCritic, CriticSpec, judged_steps


class LatentDiffusionSpec(Table):
    """The settings of a latent diffusion model; with the shape they rebuild it."""

    condition: Kind = Field(
        default="none", description='"none", "class", "attributes", "mask" or "source"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description="classes, or structures of a mask with the background, 2 or more"
    )
    attributes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="numbers that a volume is told, 1 or more"
    )
    first_stage: Literal["kl", "vqgan"] = Field(default="kl", description='"kl" or "vqgan"')
    autoencoder: KlAutoencoderSpec = Field(
        default=KlAutoencoderSpec(), description="a table, read where first_stage is kl"
    )
    codes: CodesSpec = Field(
        default=CodesSpec(), description="a table, read where first_stage is vqgan"
    )
    critic: CriticSpec = Field(
        default=CriticSpec(), description="a table, read where first_stage is vqgan"
    )
    latent_scale: float = Field(
        default=0.5,
        gt=0,
        le=1e3,
        description="by which latents of a KL autoencoder are multiplied, e.g. 0.5",
    )
    denoiser: DenoiserSpec = Field(
        default=DenoiserSpec(), description="a table: channels, prediction, sampler, guidance, ..."
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _holds_blocks(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        kl = known.data.get("first_stage", "kl") == "kl"
        stage = known.data.get("autoencoder" if kl else "codes")
        if stage is not None and any(side % stage.reduction for side in shape):
            raise ValueError(f"the first stage needs multiples of {stage.reduction}")
        return shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The latents of one volume, as (C, D, H, W)."""
        kl = self.first_stage == "kl"
        reduction = self.autoencoder.reduction if kl else self.codes.reduction
        channels = self.autoencoder.latent_channels if kl else self.codes.width
        return channels, *(side // reduction for side in self.shape)

    @property
    def conditioning(self) -> Conditioning:
        """How conditions are told."""
        return Conditioning(self.condition, self.classes, self.attributes, self.shape)


class LatentDiffusion(Family):
    """LDM: a denoiser of the latents of an autoencoder (Rombach et al. 2022).

    The first stage is a KL autoencoder (in 3D Pinaya et al. 2022) or a VQ-GAN (Khader et al. 2023),
    whose entries the latents are, all of one length, and whose nearest entries samples become. The
    scale of the latents is a setting: to measure it would be a release. Both stages read patients.
    An image condition is averaged to the latent grid.
    """

    stages = ("autoencoder", "diffusion")
    biases = ("codes.mean.shade.weight",)
    spec: LatentDiffusionSpec

    def __init__(self, spec: LatentDiffusionSpec) -> None:
        super().__init__()
        self.spec, self.conditioning = spec, spec.conditioning
        self.codes: KlAutoencoder | Codes
        if spec.first_stage == "kl":
            self.codes = KlAutoencoder(spec.autoencoder, spec.shape)
        else:
            self.codes = Codes(spec.codes, spec.shape)
            self.critic = CodesCritic(spec.critic)
        channels, *sides = spec.latent_shape
        self.denoiser = Denoiser(
            spec.denoiser,
            channels=channels,
            sides=tuple(sides),
            numbers=self.conditioning.numbers,
            planes=self.conditioning.planes,
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turns of a stage, which all read patients.

        Raises:
            PlanError: the stage is not "autoencoder" or "diffusion".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        if stage == "diffusion":
            return (Step(stage, trained(self, "denoiser"), reads_patients=True, loss=self.loss),)
        if isinstance(self.codes, Codes):
            return judged_steps(self, self.codes, self.critic)
        names = trained(self, "codes")
        return (Step(stage, names, reads_patients=True, loss=self.codes.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the denoiser's mean squared error at one drawn time a volume, (B,).

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.loss(self._encode(batch.volumes, generator), told, generator)

    @torch.no_grad()
    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise at a time in (0, 1), (B,)."""
        told = self._told(batch.condition, len(batch.volumes))
        latents = self._encode(batch.volumes, generator)
        return self.denoiser.error(latents, told, time, generator)

    def exposed(self, batch: Batch) -> Exposed:
        """Return the scaled mean latents, with what the denoiser says of them noised."""
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.exposed(self._latents(batch.volumes), told)

    @torch.no_grad()
    def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return log p(x, z) - log q(z | x) of the first stage alone, (B,), in nats.

        A codebook draws nothing: its one code has q = 1, and a prior that is the same for all.
        """
        if isinstance(self.codes, KlAutoencoder):
            return self.codes.log_weight(batch, generator)
        density, indices = self.codes.log_density(batch.volumes)
        return density - indices[0].numel() * math.log(self.spec.codes.entries)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the scaled mean latents as rows, (B, C d h w); nothing is drawn."""
        return self._latents(batch.volumes).flatten(1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the first stage's decoded latents, (B, 1, D, H, W) in [-1, 1]; no draw is made."""
        if isinstance(self.codes, Codes):
            return self.codes.draw(self.codes.encode(batch.volumes).indices)
        return self.codes.decode(self.codes.posterior(batch.volumes).mean).clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Make `n` volumes of noise, (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: the condition is missing, does not fit, or has not `n` rows.
        """
        told = self._told(condition, n)
        return self._decode(self.denoiser.sample((n, *self.spec.latent_shape), told, generator))

    @torch.no_grad()
    def _encode(self, volumes: Tensor, generator: torch.Generator) -> Tensor:
        """Return scaled latents (B, C, d, h, w), drawn where the autoencoder is of kind KL."""
        if isinstance(self.codes, Codes):
            return self.codes.encode(volumes).vectors
        return self.spec.latent_scale * self.codes.posterior(volumes).draw(generator)

    def _latents(self, volumes: Tensor) -> Tensor:
        """Return scaled latents (B, C, d, h, w), the mean where the autoencoder is of kind KL."""
        if isinstance(self.codes, Codes):
            return self.codes.encode(volumes).vectors
        return self.spec.latent_scale * self.codes.posterior(volumes).mean

    def _decode(self, latents: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) in [-1, 1] of scaled latents."""
        if isinstance(self.codes, Codes):
            return self.codes.draw(_nearest(self.codes, latents))
        return self.codes.decode(latents / self.spec.latent_scale).clamp(-1, 1)

    def _told(self, condition: Condition, n: int) -> Tensor | None:
        """Return the condition as numbers (n, F), or as planes on the latent grid."""
        told = self.conditioning.told(condition, n)
        if told is None or not self.conditioning.planes:
            return told
        return functional.interpolate(told, self.spec.latent_shape[1:], mode="area")


def _nearest(codes: Codes, latents: Tensor) -> Tensor:
    """Return which entries latents (B, C, d, h, w) are nearest to, (B, d, h, w), by direction."""
    entries = functional.normalize(codes.codebook.embedding.weight, dim=1)
    return (latents.movedim(1, -1) @ entries.T).argmax(-1)
