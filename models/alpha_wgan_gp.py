"""The alpha-WGAN-GP: a generator and an encoder against a critic of volumes and one of codes."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from monai.networks.blocks.convolutions import Convolution
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .critic import LEAKY, Critic, between, critic_loss, generator_loss, slopes, trained
from .generator import VolumeGenerator
from .groups import Groups, divides

Width = Annotated[int, Field(ge=1, le=1024)]

DECAYS = 0.0, 0.9  # of Adam, as for WGAN-GP (Gulrajani et al. 2017)


class AlphaWganGpSpec(Table):
    """The settings of an alpha-WGAN-GP; with the shape they rebuild it."""

    penalty: float = Field(
        default=10.0, ge=0, le=1e4, description="weight of the gradient penalties, e.g. 10"
    )
    reconstruction: float = Field(
        default=100.0,  # the paper's 10 leaves volumes half rebuilt: SSIM 0.49 where 100 has 0.96
        ge=0,
        le=1e4,
        description="weight of the mean absolute error, e.g. 100",
    )
    critic_turns: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="turns of each critic for each of the generator's, 1 to 100"
    )
    code: Width = Field(default=128, description="numbers that a volume is made from, 1 or more")
    channels: tuple[Width, ...] = Field(
        default=(128, 64, 32),
        min_length=1,
        description="the generator's channels, coarse to fine; the grid doubles after each",
    )
    critic_channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 64),
        min_length=1,
        description="the critic's and the encoder's channels; every level halves the volume",
    )
    code_critic_width: Width = Field(
        default=256, description="width of the code critic's two hidden layers, 1 or more"
    )
    groups: Annotated[Groups, divides("critic_channels")] = Field(
        default=8,
        description="GroupNorm groups, a divisor of every entry of channels and critic_channels",
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        least = 1 << len(known.data.get("critic_channels", ()))
        if min(shape) < least:
            raise ValueError(f"the critic's levels need sides of at least {least}")
        return shape


class AlphaWganGp(Family):
    """A Wasserstein GAN whose encoder keeps every volume within reach of a code (Kwon et al. 2019).

    The generator is asked to rebuild each volume from its code, so that it cannot leave modes out,
    and the code critic holds the codes to the normal prior. Every turn reads patients: the
    generator's too, through the reconstruction. GroupNorm stands for the paper's BatchNorm.
    """

    stages = ("adversarial",)
    spec: AlphaWganGpSpec

    def __init__(self, spec: AlphaWganGpSpec) -> None:
        super().__init__()
        self.spec = spec
        wide = spec.code_critic_width
        self.encoder = _encoder(spec)
        self.generator = VolumeGenerator(spec.shape, spec.code, spec.channels, spec.groups)
        self.critic = Critic(spec.shape, spec.critic_channels)
        self.code_critic = nn.Sequential(
            nn.Linear(spec.code, wide),
            nn.LeakyReLU(0.2),
            nn.Linear(wide, wide),
            nn.LeakyReLU(0.2),
            nn.Linear(wide, 1),
            nn.Flatten(0),
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turns of encoder and generator, of the critic and of the code critic.

        Raises:
            PlanError: the stage is not "adversarial".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        turns = self.spec.critic_turns, DECAYS
        made = trained(self, "encoder", "generator")
        return (
            Step("generator", made, True, self.generator_loss, decays=DECAYS),
            Step("critic", trained(self, "critic"), True, self.critic_loss, *turns),
            Step("code critic", trained(self, "code_critic"), True, self.code_critic_loss, *turns),
        )

    def generator_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return encoder's and generator's loss, (B,): rebuild the volume and deceive both critics.

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1].
            generator: the only source of the prior's codes.
        """
        found = self.encoder(batch.volumes)
        rebuilt = self.generator(found)
        drawn = self.generator(self.codes(len(found), generator))
        error: Tensor = (rebuilt - batch.volumes).abs().flatten(1).mean(1)
        scores = self.critic(rebuilt) + self.critic(drawn) + self.code_critic(found)
        return generator_loss("wasserstein", scores) + self.spec.reconstruction * error

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the critic's loss of each volume beside its reconstruction and a fake, (B,)."""
        real = batch.volumes
        with torch.no_grad():
            rebuilt = self.generator(self.encoder(real))
            fake = self.generator(self.codes(len(real), generator))
        score = self.critic(real)
        loss = critic_loss("wasserstein", score, self.critic(rebuilt))
        loss = loss + critic_loss("wasserstein", score, self.critic(fake))
        steep = slopes(self.critic, between(real, fake, generator))
        return loss + self.spec.penalty * (steep - 1).square()

    def code_critic_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the code critic's loss of each volume's code beside one of the prior, (B,)."""
        with torch.no_grad():
            found = self.encoder(batch.volumes)
        prior = self.codes(len(found), generator)
        loss = critic_loss("wasserstein", self.code_critic(prior), self.code_critic(found))
        steep = slopes(self.code_critic, between(prior, found, generator))
        return loss + self.spec.penalty * (steep - 1).square()

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the encoder's codes of volumes, (B, K); nothing is drawn."""
        codes: Tensor = self.encoder(batch.volumes)
        return codes

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the volumes (B, 1, D, H, W) made from the volumes' codes; nothing is drawn."""
        rebuilt: Tensor = self.generator(self.encoder(batch.volumes))
        return rebuilt

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the critic's scores (B,), higher where a volume looks real."""
        scores: Tensor = self.critic(batch.volumes)
        return scores

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Generate `n` volumes, (n, 1, D, H, W) in [-1, 1], from the normal prior.

        Raises:
            PlanError: a condition is given.
        """
        return self.decode(self.codes(n, generator), condition)

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` codes of the normal prior, (n, K)."""
        drawn = torch.randn(n, self.spec.code, generator=generator, device=generator.device)
        return drawn.to(self.generator.seed.weight)

    def decode(self, codes: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Return the volumes (n, 1, D, H, W) of codes (n, K), with their gradient.

        Raises:
            PlanError: a condition is given.
        """
        if condition != NO_CONDITION:
            raise PlanError("the family alpha-wgan-gp takes no condition", hint="sample without")
        volumes: Tensor = self.generator(codes)
        return volumes


def _encoder(spec: AlphaWganGpSpec) -> nn.Sequential:
    """Return the network from volumes (B, 1, D, H, W) to codes (B, K)."""
    norm = ("GROUP", {"num_groups": spec.groups})
    layers: list[nn.Module] = [
        Convolution(3, wide, narrow, strides=2, kernel_size=4, padding=1, act=LEAKY, norm=norm)
        for wide, narrow in pairwise((1, *spec.critic_channels))
    ]
    voxels = 1
    for side in spec.shape:
        voxels *= side >> len(spec.critic_channels)
    linear = nn.Linear(spec.critic_channels[-1] * voxels, spec.code)
    return nn.Sequential(*layers, nn.Flatten(), linear)
