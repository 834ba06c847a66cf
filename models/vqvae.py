"""The vector-quantised VAE: codes of volumes, and causal convolutions that say how likely."""

from __future__ import annotations

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .causal_codes import CausalCodes
from .codes import DECAYS, Codes, CodesSpec
from .critic import trained
from .vae import Width


class VqvaeSpec(Table):
    """The settings of a VQ-VAE; with the shape they rebuild it."""

    codes: CodesSpec = Field(default=CodesSpec(), description="the table [settings.codes]")
    prior_channels: Width = Field(
        default=32, description="channels of the prior's causal convolutions, 1 or more"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _fits(cls, shape: tuple[int, int, int], known: ValidationInfo) -> tuple[int, int, int]:
        known.data.get("codes", CodesSpec()).grid(shape)
        return shape


class Vqvae(Family):
    """A VQ-VAE whose codebook moves by gradient alone (van den Oord et al. 2017).

    The first stage learns codes of volumes, the second how likely a grid of codes is. Both read
    patients, the second by their codes.
    """

    stages = ("codes", "prior")
    biases = ("codes.mean.shade.weight",)
    spec: VqvaeSpec

    def __init__(self, spec: VqvaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codes = Codes(spec.codes, spec.shape)
        self.prior = CausalCodes(self.codes.grid, spec.codes.entries, spec.prior_channels)

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the one turn of a stage, which reads patients.

        Raises:
            PlanError: the stage is not "codes" or "prior".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = trained(self, stage)
        if stage == "prior":
            return (Step(stage, names, reads_patients=True, loss=self.prior_loss),)
        return (Step(stage, names, reads_patients=True, loss=self.codes_loss, decays=DECAYS),)

    def codes_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return each volume's error and what its codes pay, (B,); nothing is drawn."""
        loss: Tensor = self.codes(batch.volumes)[1]
        return loss

    def prior_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what each volume's codes are worth, (B,), nats a code; nothing is drawn."""
        with torch.no_grad():
            indices = self.codes.encode(batch.volumes).indices
        worth: Tensor = self.prior(indices)
        return -worth / indices[0].numel()

    @torch.no_grad()
    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a lower bound on each volume's log density, (B,), in nats.

        It counts, of all codes that could give the volume, only its own.
        """
        density, indices = self.codes.log_density(batch.volumes)
        worth: Tensor = self.prior(indices)
        return density + worth

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the codebook's entries of each volume as rows, (B, C d h w); nothing is drawn."""
        return self.codes.encode(batch.volumes).vectors.flatten(1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the decoded codes, (B, 1, D, H, W) in [-1, 1]; nothing is drawn."""
        return self.codes.draw(self.codes.encode(batch.volumes).indices)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Decode `n` draws of the prior to (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: a condition is given.
        """
        if condition != NO_CONDITION:
            raise PlanError("the family vqvae takes no condition", hint="sample without one")
        return self.codes.draw(self.prior.draw(n, generator))
