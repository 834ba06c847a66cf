"""The VQ-GAN: a VQ-VAE whose decoded volumes a patch critic judges, both under the engine."""

from __future__ import annotations

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.func import functional_call

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .causal_codes import CausalCodes
from .codes import DECAYS, Codes, CodesSpec
from .critic import critic_loss, generator_loss, patch_critic, trained
from .groups import Groups
from .vae import Width


class CriticSpec(Table):
    """The settings of a patch critic, [settings.critic] in a study file."""

    channels: Width = Field(default=16, description="channels of the first layer, 1 or more")
    layers: int = Field(default=2, ge=1, le=5, description="layers that halve the volume, 1 to 5")
    groups: Groups = Field(default=8, description="GroupNorm groups, a divisor of channels")
    weight: float = Field(
        default=0.02, ge=0, le=1e3, description="weight of its verdict on the codes, e.g. 0.02"
    )


class CodesCritic(nn.Module):
    """A patch critic of the volumes that codes decode to (Esser et al. 2021).

    Args:
        spec: the settings.
    """

    def __init__(self, spec: CriticSpec) -> None:
        super().__init__()
        self.weight = spec.weight
        self.network = patch_critic(1, spec.channels, spec.layers, spec.groups)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the scores (B, 1, d, h, w) of volumes (B, 1, D, H, W)."""
        scores: Tensor = self.network(volumes)[-1]
        return scores

    def codes_loss(self, codes: Codes, volumes: Tensor) -> Tensor:
        """Return each volume's error, what its codes pay, and the critic's verdict, (B,).

        The verdict has a fixed weight: the usual one compares gradients of the whole batch.
        """
        decoded, loss = codes.forward(volumes)
        still = {name: weight.detach() for name, weight in self.named_parameters()}
        verdict = functional_call(self, still, (decoded,))
        return loss + self.weight * generator_loss("hinge", verdict)

    def critic_loss(self, codes: Codes, volumes: Tensor) -> Tensor:
        """Return the hinge loss of each volume and its own decoded self, (B,)."""
        with torch.no_grad():
            decoded, _ = codes(volumes)
        return critic_loss("hinge", self(volumes), self(decoded))


def judged_steps(family: Family, codes: Codes, critic: CodesCritic) -> tuple[Step, Step]:
    """Return the turns of a family's `codes` and `critic`; both read patients."""

    def codes_loss(batch: Batch, _: torch.Generator) -> Tensor:
        return critic.codes_loss(codes, batch.volumes)

    def judge_loss(batch: Batch, _: torch.Generator) -> Tensor:
        return critic.critic_loss(codes, batch.volumes)

    return (
        Step("codes", trained(family, "codes"), True, codes_loss, decays=DECAYS),
        Step("critic", trained(family, "critic"), True, judge_loss, decays=DECAYS),
    )


class VqganSpec(Table):
    """The settings of a VQ-GAN; with the shape they rebuild it."""

    codes: CodesSpec = Field(default=CodesSpec(), description="the table [settings.codes]")
    critic: CriticSpec = Field(default=CriticSpec(), description="the table [settings.critic]")
    prior_channels: Width = Field(
        default=32, description="channels of the prior's causal convolutions, 1 or more"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _fits(cls, shape: tuple[int, int, int], known: ValidationInfo) -> tuple[int, int, int]:
        known.data.get("codes", CodesSpec()).grid(shape)
        return shape


class Vqgan(Family):
    """A VQ-VAE with a patch critic, its codes drawn from causal convolutions (Khader et al. 2023).

    The critic's turn reads patients, and so does the codes': their error touches the volume.
    """

    stages = ("codes", "prior")
    biases = ("codes.mean.shade.weight",)
    spec: VqganSpec

    def __init__(self, spec: VqganSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codes = Codes(spec.codes, spec.shape)
        self.critic = CodesCritic(spec.critic)
        self.prior = CausalCodes(self.codes.grid, spec.codes.entries, spec.prior_channels)

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turns of codes and critic, or the one turn of the prior.

        Raises:
            PlanError: the stage is not "codes" or "prior".
        """
        if stage == "codes":
            return judged_steps(self, self.codes, self.critic)
        if stage != "prior":
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        return (Step(stage, trained(self, stage), reads_patients=True, loss=self.prior_loss),)

    def prior_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what each volume's codes are worth, (B,), nats a code; nothing is drawn."""
        with torch.no_grad():
            indices = self.codes.encode(batch.volumes).indices
        worth: Tensor = self.prior(indices)
        return -worth / indices[0].numel()

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the critic's mean score of each volume, (B,), higher where it looks real."""
        scores: Tensor = self.critic(batch.volumes)
        return scores.flatten(1).mean(1)

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
            raise PlanError("the family vqgan takes no condition", hint="sample without one")
        return self.codes.draw(self.prior.draw(n, generator))
