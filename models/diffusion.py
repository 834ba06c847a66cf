"""The diffusion model on voxels: DDPM with epsilon or v prediction, or rectified flow."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Exposed, Family, Step
from .conditioning import Conditioning, Kind
from .cubes import fold, unfold
from .denoiser import Denoiser, DenoiserSpec, Width


class DiffusionSpec(Table):
    """The settings of a diffusion model; with the shape they rebuild it."""

    condition: Kind = Field(
        default="none", description='"none", "class", "attributes", "mask" or "source"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description="classes, or structures of a mask with the background, 2 or more"
    )
    attributes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="numbers that a volume is told, 1 or more"
    )
    patch: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description="side of the cubes folded into channels before the first level, 1 to 8",
    )
    denoiser: DenoiserSpec = Field(
        default=DenoiserSpec(), description="a table: channels, prediction, sampler, guidance, ..."
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _holds_cubes(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        patch = known.data.get("patch", 1)
        if any(side % patch for side in shape):
            raise ValueError(f"patch needs sides that are multiples of {patch}")
        return shape

    @property
    def conditioning(self) -> Conditioning:
        """How conditions are told."""
        return Conditioning(self.condition, self.classes, self.attributes, self.shape)


class Diffusion(Family):
    """A denoiser of whole volumes (Ho et al. 2020; in 3D Dorjsembe et al. 2022).

    A mask or a source is seen as further channels (Med-DDPM, Dorjsembe et al. 2024), a class or
    numbers through the time embedding.
    """

    stages = ("diffusion",)
    spec: DiffusionSpec

    def __init__(self, spec: DiffusionSpec) -> None:
        super().__init__()
        self.spec, self.conditioning = spec, spec.conditioning
        cube = spec.patch**3
        self.denoiser = Denoiser(
            spec.denoiser,
            channels=cube,
            sides=tuple(side // spec.patch for side in spec.shape),
            numbers=self.conditioning.numbers,
            planes=cube * self.conditioning.planes,
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
        return self.denoiser.loss(fold(batch.volumes, self.spec.patch), told, generator)

    @torch.no_grad()
    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise at a time in (0, 1), (B,)."""
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.error(fold(batch.volumes, self.spec.patch), told, time, generator)

    def exposed(self, batch: Batch) -> Exposed:
        """Return the volumes, folded into cubes, with what the denoiser says of them noised."""
        told = self._told(batch.condition, len(batch.volumes))
        return self.denoiser.exposed(fold(batch.volumes, self.spec.patch), told)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Make `n` volumes of noise, (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: the condition is missing, does not fit, or has not `n` rows.
        """
        cubes = self.denoiser.sample(
            (n, self.spec.patch**3, *(side // self.spec.patch for side in self.spec.shape)),
            self._told(condition, n),
            generator,
            bound=lambda volumes: volumes.clamp(-1, 1),
        )
        return unfold(cubes, self.spec.patch)

    def _told(self, condition: Condition, n: int) -> Tensor | None:
        """Return the condition as numbers (n, F), or planes (n, P, D, H, W) folded into cubes."""
        told = self.conditioning.told(condition, n)
        return (
            fold(told, self.spec.patch) if told is not None and self.conditioning.planes else told
        )
