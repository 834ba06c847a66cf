"""The Wasserstein GAN with gradient penalty, also as a spectral-norm hinge or least-squares GAN."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .conditioning import Conditioning
from .critic import Critic, between, critic_loss, generator_loss, slopes, trained
from .generator import VolumeGenerator
from .groups import Groups

Width = Annotated[int, Field(ge=1, le=1024)]

DECAYS = 0.0, 0.9  # of Adam, as in the paper


class WganGpSpec(Table):
    """The settings of a WGAN-GP; with the shape they rebuild it."""

    loss: Literal["wasserstein", "hinge", "least-squares"] = Field(
        default="wasserstein",
        description='"wasserstein" (with gradient penalty), "hinge" or "least-squares" (both with '
        "spectral norm)",
    )
    penalty: float = Field(
        default=10.0, ge=0, le=1e4, description="weight of the gradient penalty, e.g. 10"
    )
    critic_turns: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="the critic's turns for each of the generator's, 1 to 100"
    )
    generated: Annotated[int, Field(ge=1, le=256)] = Field(
        default=8, description="volumes that a generator's turn makes up, 1 to 256"
    )
    code: Width = Field(default=64, description="numbers that a volume is made from, 1 or more")
    channels: tuple[Width, ...] = Field(
        default=(128, 64, 32),
        min_length=1,
        description="the generator's channels, coarse to fine; the grid doubles after each",
    )
    critic_channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 64),
        min_length=1,
        description="the critic's channels at each level; every level halves the volume",
    )
    groups: Groups = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    condition: Literal["none", "class", "attributes"] = Field(
        default="none", description='"none", "class" or "attributes"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description='classes, where condition is "class", 2 or more'
    )
    attributes: Width = Field(
        default=1, description='numbers, where condition is "attributes", 1 or more'
    )
    weights: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        default=(), description="how often the generator is told each class; none for all alike"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        least = 1 << len(known.data.get("critic_channels", ()))
        if min(shape) < least:
            raise ValueError(f"the critic's levels need sides of at least {least}")
        return shape

    @property
    def conditioning(self) -> Conditioning:
        """What a volume is told; a generator's turn draws it uniformly, and reads nobody."""
        return Conditioning(self.condition, self.classes, self.attributes, self.shape, self.weights)


class WganGp(Family):
    """A generator of codes and a critic of volumes (Gulrajani et al. 2017).

    Only the critic reads patients; the generator sees noise, conditions of the prior and the
    critic, and is post-processing. The penalty is taken on the line from a volume to a fake of its
    own, so that no two patients mix.
    """

    stages = ("adversarial",)
    spec: WganGpSpec

    def __init__(self, spec: WganGpSpec) -> None:
        super().__init__()
        self.spec = spec
        numbers = spec.conditioning.numbers
        self.generator = VolumeGenerator(
            spec.shape, spec.code + numbers, spec.channels, spec.groups
        )
        self.critic = Critic(
            spec.shape,
            spec.critic_channels,
            conditions=numbers,
            spectral=spec.loss != "wasserstein",
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the critic's turns, which read patients, and the generator's, which does not.

        Raises:
            PlanError: the stage is not "adversarial".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        return (
            Step(
                "critic",
                trained(self, "critic"),
                reads_patients=True,
                loss=self.critic_loss,
                repeats=self.spec.critic_turns,
                decays=DECAYS,
            ),
            Step(
                "generator",
                trained(self, "generator"),
                reads_patients=False,
                loss=self.generator_loss,
                decays=DECAYS,
            ),
        )

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the critic's loss of each volume beside one fake of the same condition, (B,).

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1], with the spec's condition.
            generator: the only source of the codes and of the points of the penalty.
        """
        real = batch.volumes
        told = self._told(batch.condition, len(real))
        with torch.no_grad():
            fake = self._generate(len(real), told, generator)
        loss = critic_loss(self.spec.loss, self.critic(real, told), self.critic(fake, told))
        if self.spec.loss != "wasserstein":
            return loss
        points = between(real, fake, generator)
        steep = slopes(lambda volumes: self.critic(volumes, told), points)
        return loss + self.spec.penalty * (steep - 1).square()

    def generator_loss(self, batch: None, generator: torch.Generator) -> Tensor:
        """Return the generator's loss of volumes that it makes up, (generated,); reads nobody."""
        n = self.spec.generated
        told = self._told(self.spec.conditioning.prior(n, generator), n)
        return generator_loss(self.spec.loss, self.critic(self._generate(n, told, generator), told))

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Generate `n` volumes, (n, 1, D, H, W) in [-1, 1], of the condition's n rows.

        Raises:
            PlanError: the condition is missing, does not fit, or is not the spec's.
        """
        return self._generate(n, self._told(condition, n), generator)

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the critic's scores (B,), higher where a volume looks real."""
        told = self._told(batch.condition, len(batch.volumes))
        scores: Tensor = self.critic(batch.volumes, told)
        return scores

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` codes of the normal prior, (n, K)."""
        drawn = torch.randn(n, self.spec.code, generator=generator, device=generator.device)
        return drawn.to(self.generator.seed.weight)

    def decode(self, codes: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Return the volumes (n, 1, D, H, W) of codes (n, K), with their gradient.

        Raises:
            PlanError: the condition is missing, does not fit, or is not the spec's.
        """
        return self._painted(codes, self._told(condition, len(codes)))

    def _generate(self, n: int, told: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return `n` volumes of codes drawn now, with what they are told beside the codes."""
        return self._painted(self.codes(n, generator), told)

    def _painted(self, codes: Tensor, told: Tensor | None) -> Tensor:
        volumes: Tensor = self.generator(codes if told is None else torch.cat([codes, told], 1))
        return volumes

    def _told(self, condition: Condition, n: int) -> Tensor | None:
        told = self.spec.conditioning.told(condition, n)
        return None if told is None else told.to(self.generator.seed.weight)
