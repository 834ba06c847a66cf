"""Pix2pix: paired translation from another modality, or from a mask of structures."""

from __future__ import annotations

from typing import Annotated, Literal

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


class Pix2PixSpec(Table):
    """The settings of a pix2pix; with the shape they rebuild it."""

    condition: Literal["source", "mask"] = Field(
        default="source", description='what is translated, "source" or "mask"'
    )
    classes: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=2, description='structures with the background, where condition is "mask"'
    )
    reconstruction: float = Field(
        default=100.0, ge=0, le=1e4, description="weight of the mean absolute error, e.g. 100"
    )
    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 128),
        min_length=2,
        description="the U-Net's channels at each level; every level but the last halves",
    )
    critic_channels: Width = Field(
        default=16, description="channels of the patch critic's first level, 1 or more"
    )
    critic_layers: Annotated[int, Field(ge=1, le=6)] = Field(
        default=2, description="levels of the patch critic after its first, 1 to 6"
    )
    groups: Annotated[Groups, divides("critic_channels")] = Field(
        default=8, description="GroupNorm groups, a divisor of channels and critic_channels"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @property
    def conditioning(self) -> Conditioning:
        """What is translated."""
        return Conditioning(self.condition, self.classes, 0, self.shape)


class Pix2Pix(Family):
    """A translator and a critic of pairs, by patches (Isola et al. 2017, least-squares scores).

    Both turns read patients: a source or a mask is a patient's too. Nothing is drawn, so that a
    source has one translation: the paper's dropout noise added next to no variety.
    """

    stages = ("adversarial",)
    spec: Pix2PixSpec

    def __init__(self, spec: Pix2PixSpec) -> None:
        super().__init__()
        self.spec = spec
        self.translator = Translator(spec.conditioning.planes, spec.channels, spec.groups)
        self.critic = patch_critic(
            spec.conditioning.planes + 1, spec.critic_channels, spec.critic_layers, spec.groups
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the translator's turn and the critic's; both read patients.

        Raises:
            PlanError: the stage is not "adversarial".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = trained(self, "translator")
        return (
            Step("translator", names, True, self.translator_loss, decays=DECAYS),
            Step("critic", trained(self, "critic"), True, self.critic_loss, decays=DECAYS),
        )

    def translator_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the translator's loss of each pair, (B,); nothing is drawn.

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1] with the spec's condition.
            generator: left alone.
        """
        given = self._given(batch.condition, len(batch.volumes))
        made = self.translator(given)
        error: Tensor = (made - batch.volumes).abs().flatten(1).mean(1)
        deceived = generator_loss("least-squares", self._scores(given, made))
        return deceived + self.spec.reconstruction * error

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the critic's loss of each true pair beside the translated one, (B,)."""
        given = self._given(batch.condition, len(batch.volumes))
        with torch.no_grad():
            made = self.translator(given)
        real, fake = self._scores(given, batch.volumes), self._scores(given, made)
        return critic_loss("least-squares", real, fake)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the translations (B, 1, D, H, W) of the conditions: what was learned of a pair."""
        volumes: Tensor = self.translator(self._given(batch.condition, len(batch.volumes)))
        return volumes

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the mean of each pair's patch scores (B,), higher where it looks real."""
        given = self._given(batch.condition, len(batch.volumes))
        scores: Tensor = self._scores(given, batch.volumes)
        return scores.flatten(1).mean(1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Translate `n` sources or masks to (n, 1, D, H, W) in [-1, 1]; nothing is drawn.

        Raises:
            PlanError: the condition is missing, does not fit, or is not the spec's.
        """
        given = self._given(condition, n)
        volumes: Tensor = self.translator(given)
        return volumes

    def _given(self, condition: Condition, n: int) -> Tensor:
        """Return what is translated, (n, F, D, H, W): the source, or a channel a structure."""
        given = self.spec.conditioning.told(condition, n)
        assert given is not None  # noqa: S101, the spec always has a condition
        return given.to(self.translator.last.weight)

    def _scores(self, given: Tensor, volumes: Tensor) -> Tensor:
        """Return the patch scores (B, 1, d, h, w) of pairs."""
        scores: Tensor = self.critic(torch.cat([given, volumes], 1))[-1]
        return scores
