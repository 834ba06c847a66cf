"""The 2.5D diffusion model: axial slices made a few at a time, each after its predecessors."""

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

Few = Annotated[int, Field(ge=1, le=64)]

FAULT = 0.05
"""Deviation of the noise on predecessors in training, so that faults of made slices do not add up
(Ho et al. 2022, cascaded diffusion)."""


class Diffusion25dSpec(Table):
    """The settings of a 2.5D diffusion model; with the shape they rebuild it."""

    condition: Kind = Field(
        default="none", description='"none", "class", "attributes", "mask" or "source"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description="classes, or structures of a mask with the background, 2 or more"
    )
    attributes: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="numbers that a volume is told, 1 or more"
    )
    slices: Few = Field(default=4, description="slices made at a time, 1 to 64")
    predecessors: Few = Field(default=4, description="slices before them that are seen, 1 to 64")
    denoiser: DenoiserSpec = Field(
        default=DenoiserSpec(), description="a table: channels, prediction, sampler, guidance, ..."
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @property
    def conditioning(self) -> Conditioning:
        """How conditions are told."""
        return Conditioning(self.condition, self.classes, self.attributes, self.shape)


class Diffusion25d(Family):
    """A 2D denoiser of slabs of axial slices, given the slices before them and their height.

    As Peng et al. 2023 a 2D network learns to make some slices of a volume from others, so that
    memory does not grow with the volume; here the others are always the predecessors. A volume is
    made from foot to head. The slices lie across the last axis; a last slab that is too thick
    repeats the last slice.
    """

    stages = ("diffusion",)
    spec: Diffusion25dSpec

    def __init__(self, spec: Diffusion25dSpec) -> None:
        super().__init__()
        self.spec, self.conditioning = spec, spec.conditioning
        self.slabs = -(-spec.shape[2] // spec.slices)
        self.denoiser = Denoiser(
            spec.denoiser,
            channels=spec.slices,
            sides=spec.shape[:2],
            numbers=self.conditioning.numbers,
            planes=spec.slices * self.conditioning.planes,
            beside=spec.predecessors + 1,
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
        """Return the mean squared error on one drawn slab a volume, (B,).

        Raises:
            PlanError: the condition is missing or does not fit.
        """
        n = len(batch.volumes)
        told = self.conditioning.told(batch.condition, n)
        slices = self._slices(batch.volumes)
        drawn = torch.randint(self.slabs, (n,), generator=generator, device=generator.device)
        slab = drawn.to(slices.device)
        fault = torch.randn(slices.shape, generator=generator, device=generator.device).to(slices)
        beside = self._beside(slices + FAULT * fault, slab)
        return self.denoiser.loss(
            self._slab(slices, slab), self._told(told, slab), generator, beside
        )

    @torch.no_grad()
    def denoising_error(self, batch: Batch, time: float, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise at a time in (0, 1), (B,).

        It is the mean over all slabs, each given its true predecessors.
        """
        n = len(batch.volumes)
        told = self.conditioning.told(batch.condition, n)
        slices = self._slices(batch.volumes)
        errors = []
        for number in range(self.slabs):
            slab = torch.full((n,), number, device=slices.device)
            beside = self._beside(slices, slab)
            grid = self._slab(slices, slab)
            errors.append(
                self.denoiser.error(grid, self._told(told, slab), time, generator, beside)
            )
        return torch.stack(errors).mean(0)

    def exposed(self, batch: Batch) -> Exposed:
        """Return all slabs (B, slabs, slices C, D, H), each with its true predecessors beside."""
        n = len(batch.volumes)
        told = self.conditioning.told(batch.condition, n)
        slices = self._slices(batch.volumes).repeat_interleave(self.slabs, 0)
        slab = torch.arange(self.slabs, device=slices.device).repeat(n)
        told = None if told is None else self._told(told.repeat_interleave(self.slabs, 0), slab)
        rows = self.denoiser.exposed(self._slab(slices, slab), told, self._beside(slices, slab))

        def predict(state: Tensor, time: float) -> Tensor:
            eps: Tensor = rows.predict(state.flatten(0, 1), time)
            return eps.reshape(state.shape)

        return Exposed(rows.clean.unflatten(0, (n, self.slabs)), rows.level, predict)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Make `n` volumes of noise, slab after slab, (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: the condition is missing, does not fit, or has not `n` rows.
        """
        told = self.conditioning.told(condition, n)
        here = next(self.parameters())
        depth, height, width = self.spec.shape
        made = here.new_zeros((n, self.slabs * self.spec.slices, 1, depth, height))
        for number in range(self.slabs):
            slab = torch.full((n,), number, device=here.device)
            found = self.denoiser.sample(
                (n, self.spec.slices, depth, height),
                self._told(told, slab),
                generator,
                bound=lambda slices: slices.clamp(-1, 1),
                beside=self._beside(made, slab),
            )
            first = number * self.spec.slices
            made[:, first : first + self.spec.slices, 0] = found
        return made[:, :width].movedim(1, -1).contiguous()

    def _slices(self, volumes: Tensor) -> Tensor:
        """Return volumes (B, C, D, H, W) as slices (B, S, C, D, H), the last repeated to fill."""
        missing = self.slabs * self.spec.slices - self.spec.shape[2]
        full = functional.pad(volumes, (0, missing, 0, 0, 0, 0), mode="replicate")
        return full.movedim(-1, 1)

    def _slab(self, slices: Tensor, slab: Tensor) -> Tensor:
        """Return the slices of each volume's slab, (B, slices C, D, H)."""
        steps = torch.arange(self.spec.slices, device=slab.device)
        return _taken(slices, slab[:, None] * self.spec.slices + steps)

    def _beside(self, slices: Tensor, slab: Tensor) -> Tensor:
        """Return each slab's predecessors, zero where there are none, and a plane of its height."""
        steps = torch.arange(-self.spec.predecessors, 0, device=slab.device)
        where = slab[:, None] * self.spec.slices + steps
        there = (where >= 0)[:, :, None, None].to(slices)
        before = _taken(slices, where.clamp(min=0)) * there
        height = (2 * slab.to(slices) + 1) / self.slabs - 1
        return torch.cat([before, height[:, None, None, None].expand_as(before[:, :1])], dim=1)

    def _told(self, told: Tensor | None, slab: Tensor) -> Tensor | None:
        """Return the condition as numbers (n, F), or the planes of the slab's slices."""
        if told is None or not self.conditioning.planes:
            return told
        return self._slab(self._slices(told.to(slab.device)), slab)


def _taken(slices: Tensor, where: Tensor) -> Tensor:
    """Return slices (B, S, C, D, H) at each volume's own places (B, K), as (B, K C, D, H)."""
    rows = torch.arange(len(slices), device=slices.device)[:, None]
    return slices[rows, where].flatten(1, 2)
