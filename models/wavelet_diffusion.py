"""The wavelet diffusion model: the eight Haar coefficients of a volume, at half its sides."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Exposed, Family, Step
from .conditioning import Conditioning, Kind
from .denoiser import Denoiser, DenoiserSpec, Width
from .haar import haar, inverse_haar

LOWEST_SCALE = 3.0  # the mean of a cube, times the root of 8, lies in [-2.83, 2.83]


class WaveletDiffusionSpec(Table):
    """The settings of a wavelet diffusion model; with the shape they rebuild it."""

    condition: Kind = Field(
        default="none", description='"none", "class", "attributes", "mask" or "source"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description="classes, or structures of a mask with the background, 2 or more"
    )
    attributes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="numbers that a volume is told, 1 or more"
    )
    denoiser: DenoiserSpec = Field(
        default=DenoiserSpec(), description="a table: channels, prediction, sampler, guidance, ..."
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @property
    def conditioning(self) -> Conditioning:
        """How conditions are told."""
        return Conditioning(self.condition, self.classes, self.attributes, self.shape)


class WaveletDiffusion(Family):
    """WDM: a denoiser of Haar coefficients (Friedrich et al. 2024).

    The transform halves every side and loses nothing, so that there is no autoencoder to spend
    privacy budget on. An image condition is seen as its own coefficients. An odd side is padded by
    one voxel.
    """

    stages = ("diffusion",)
    spec: WaveletDiffusionSpec

    def __init__(self, spec: WaveletDiffusionSpec) -> None:
        super().__init__()
        self.spec, self.conditioning = spec, spec.conditioning
        self.sides = tuple(-(-side // 2) for side in spec.shape)
        self.denoiser = Denoiser(
            spec.denoiser,
            channels=8,
            sides=self.sides,
            numbers=self.conditioning.numbers,
            planes=8 * self.conditioning.planes,
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the one turn of the denoiser, which reads patients.

        Raises:
            PlanError: the stage is not "diffusion".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = tuple(name for name, weight in self.named_parameters() if weight.requires_grad)
        return (Step(stage, names, reads_patients=True, loss=self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the prediction at one drawn time a volume, (B,).

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.loss(self._encode(batch.volumes), told, generator)

    @torch.no_grad()
    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise at a time in (0, 1), (B,)."""
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.error(self._encode(batch.volumes), told, time, generator)

    def exposed(self, batch: Batch) -> Exposed:
        """Return the scaled coefficients, with what the denoiser says of them noised."""
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.exposed(self._encode(batch.volumes), told)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Make `n` volumes of noise, (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: the condition is missing, does not fit, or has not `n` rows.
        """
        coefficients = self.denoiser.sample(
            (n, 8, *self.sides),
            self._told(condition, n),
            generator,
            bound=lambda found: _scaled(haar(_volumes(found).clamp(-1, 1))),
        )
        depth, height, width = self.spec.shape
        return _volumes(coefficients)[:, :, :depth, :height, :width].clamp(-1, 1).contiguous()

    def _told(self, condition: Condition, n: int) -> Tensor | None:
        """Return the condition as numbers (n, F), or as the coefficients of its planes."""
        told = self.conditioning.told(condition, n)
        return self._encode(told) if told is not None and self.conditioning.planes else told

    def _encode(self, volumes: Tensor) -> Tensor:
        """Return the scaled coefficients (B, 8 C, ...) of volumes, padded where a side is odd."""
        ends = [end for side in reversed(self.spec.shape) for end in (0, side % 2)]
        return _scaled(haar(functional.pad(volumes, ends, mode="replicate")))


def _scaled(coefficients: Tensor) -> Tensor:
    lowest = coefficients.shape[1] // 8
    parts = coefficients[:, :lowest] / LOWEST_SCALE, coefficients[:, lowest:]
    return torch.cat(parts, dim=1)


def _volumes(scaled: Tensor) -> Tensor:
    return inverse_haar(torch.cat([scaled[:, :1] * LOWEST_SCALE, scaled[:, 1:]], dim=1))
