"""CycleGAN: translation between two modalities whose volumes need not correspond."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .conditioning import Conditioning
from .critic import critic_loss, generator_loss, patch_critic, trained
from .groups import Groups, divides
from .translator import Translator

Width = Annotated[int, Field(ge=1, le=1024)]

DECAYS = 0.5, 0.999  # of Adam, as in the paper


class CycleGanSpec(Table):
    """The settings of a CycleGAN; with the shape they rebuild it."""

    cycle: float = Field(
        default=10.0, ge=0, le=1e4, description="weight of the way there and back, e.g. 10"
    )
    identity: float = Field(
        default=0.0,
        ge=0,
        le=1e4,
        description="weight of leaving a volume of the wanted modality as it is, e.g. 5; 0 for "
        "modalities with opposite contrast",
    )
    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64),
        min_length=2,
        description="each U-Net's channels at each level; every level but the last halves",
    )
    critic_channels: Width = Field(
        default=16, description="channels of each patch critic's first level, 1 or more"
    )
    critic_layers: Annotated[int, Field(ge=1, le=6)] = Field(
        default=2, description="levels of each patch critic after its first, 1 to 6"
    )
    groups: Annotated[Groups, divides("critic_channels")] = Field(
        default=8, description="GroupNorm groups, a divisor of channels and critic_channels"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @property
    def conditioning(self) -> Conditioning:
        """What is translated: a source."""
        return Conditioning("source", 0, 0, self.shape)


class CycleGan(Family):
    """Two translators, there and back, each with a critic by patches (Zhu et al. 2017).

    A row of a batch holds a volume and a source of one patient, of which no voxel need lie where
    the other's does: no loss compares the two. Every turn reads patients. The paper's store of
    earlier translations is left out, since it would carry one patient's volume into another's
    loss; GroupNorm in U-Nets stands for its InstanceNorm in residual networks.
    """

    stages = ("adversarial",)
    spec: CycleGanSpec

    def __init__(self, spec: CycleGanSpec) -> None:
        super().__init__()
        self.spec = spec
        self.there = Translator(1, spec.channels, spec.groups)
        self.back = Translator(1, spec.channels, spec.groups)
        settings = 1, spec.critic_channels, spec.critic_layers, spec.groups
        self.critic = patch_critic(*settings)
        self.source_critic = patch_critic(*settings)

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turn of both translators and that of both critics; each reads patients.

        Raises:
            PlanError: the stage is not "adversarial".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        translators = trained(self, "there", "back")
        critics = trained(self, "critic", "source_critic")
        return (
            Step("translators", translators, True, self.translators_loss, decays=DECAYS),
            Step("critics", critics, True, self.critics_loss, decays=DECAYS),
        )

    def translators_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return both translators' loss of each row, (B,); nothing is drawn.

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1], with a source (B, 1, D, H, W) beside each.
            generator: left alone.
        """
        volumes = batch.volumes
        source = self._source(batch.condition, len(volumes))
        made, made_source = self.there(source), self.back(volumes)
        loss = generator_loss("least-squares", self.critic(made)[-1])
        loss = loss + generator_loss("least-squares", self.source_critic(made_source)[-1])
        cycles = _error(self.back(made), source) + _error(self.there(made_source), volumes)
        loss = loss + self.spec.cycle * cycles
        if not self.spec.identity:
            return loss
        same = _error(self.there(volumes), volumes) + _error(self.back(source), source)
        return loss + self.spec.identity * same

    def critics_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return both critics' loss of each row, (B,)."""
        volumes = batch.volumes
        source = self._source(batch.condition, len(volumes))
        with torch.no_grad():
            made, made_source = self.there(source), self.back(volumes)
        pairs = (self.critic, volumes, made), (self.source_critic, source, made_source)
        first, second = (
            critic_loss("least-squares", critic(real)[-1], critic(fake)[-1])
            for critic, real, fake in pairs
        )
        return first + second

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the volumes (B, 1, D, H, W) translated back and there again."""
        rebuilt: Tensor = self.there(self.back(batch.volumes))
        return rebuilt

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the mean of each volume's patch scores (B,), higher where it looks real."""
        scores: Tensor = self.critic(batch.volumes)[-1]
        return scores.flatten(1).mean(1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Translate `n` sources to volumes (n, 1, D, H, W) in [-1, 1]; nothing is drawn.

        Raises:
            PlanError: the source is missing or does not fit, or there is another condition.
        """
        volumes: Tensor = self.there(self._source(condition, n))
        return volumes

    def _source(self, condition: Condition, n: int) -> Tensor:
        source = self.spec.conditioning.told(condition, n)
        assert source is not None  # noqa: S101, the spec always has a condition
        return source.to(self.there.last.weight)


def _error(first: Tensor, second: Tensor) -> Tensor:
    """Return each volume's mean absolute difference, (B,)."""
    return (first - second).abs().flatten(1).mean(1)
