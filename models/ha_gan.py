"""HA-GAN: a volume is made whole at low resolution and, slab by slab, at high resolution."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from monai.networks.blocks.convolutions import Convolution
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .critic import LEAKY, Critic, critic_loss, generator_loss, trained
from .groups import Groups

Width = Annotated[int, Field(ge=1, le=1024)]

DECAYS = 0.0, 0.999  # of Adam, as in the paper


class HaGanSpec(Table):
    """The settings of an HA-GAN; with the shape they rebuild it."""

    scale: Literal[2, 4] = Field(
        default=2, description="voxels of a side that become one at low resolution, 2 or 4"
    )
    slabs: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4, description="a slab is this part of the depth, e.g. 4 for a quarter"
    )
    reconstruction: float = Field(
        default=5.0, ge=0, le=1e4, description="weight of the mean absolute errors, e.g. 5"
    )
    code: Width = Field(default=128, description="numbers that a volume is made from, 1 or more")
    channels: tuple[Width, ...] = Field(
        default=(128, 64, 32),
        min_length=1,
        description="channels from code to low resolution; each after the first doubles the grid",
    )
    critic_channels: tuple[Width, ...] = Field(
        default=(16, 32, 64),
        min_length=1,
        description="each critic's channels; every level halves what it sees",
    )
    groups: Groups = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        scale, slabs = known.data.get("scale", 1), known.data.get("slabs", 1)
        multiple = scale << (len(known.data.get("channels", (1,))) - 1)
        if any(side % multiple for side in shape) or shape[0] % (scale * slabs):
            raise ValueError(
                f"scale and channels need sides that are multiples of {multiple}, and slabs a "
                f"depth that is one of {scale * slabs}"
            )
        least = 1 << len(known.data.get("critic_channels", ()))
        if min(shape) // scale < least or shape[0] // slabs < least:
            raise ValueError(f"the critics need slabs and low volumes of at least {least} a side")
        return shape

    @property
    def low_shape(self) -> tuple[int, int, int]:
        """(D, H, W) at low resolution."""
        depth, height, width = (side // self.scale for side in self.shape)
        return depth, height, width

    @property
    def slab_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of a slab at high resolution."""
        return self.shape[0] // self.slabs, self.shape[1], self.shape[2]


class HaGan(Family):
    """A hierarchical amortised GAN with its two autoencoder branches (Sun et al. 2022).

    A code becomes anatomy, features at low resolution. One branch paints the whole volume at low
    resolution from them, the other one slab at high resolution, so that training never holds a
    whole volume's features; a sample takes all of them. Two encoders go the other way. Both turns
    read patients: generator and encoders learn together, through the reconstructions. What works
    at high resolution is not normalised, so that a slab is painted as it is within its volume.
    """

    stages = ("adversarial",)
    spec: HaGanSpec

    def __init__(self, spec: HaGanSpec) -> None:
        super().__init__()
        self.spec = spec
        wide = spec.channels[-1]
        self.anatomy = _anatomy(spec)
        self.low = nn.Sequential(
            Convolution(3, wide, wide, norm=("GROUP", {"num_groups": spec.groups}), act=LEAKY),
            Convolution(3, wide, 1, conv_only=True),
            nn.Tanh(),
        )
        self.high = _high(spec)
        self.encoder = _encoder(spec)
        self.code_encoder = _code_encoder(spec)
        self.low_critic = Critic(spec.low_shape, spec.critic_channels, spectral=True)
        self.slab_critic = Critic(
            spec.slab_shape, spec.critic_channels, conditions=1, spectral=True
        )

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the turn of generator and encoders and that of both critics; each reads patients.

        Raises:
            PlanError: the stage is not "adversarial".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        generator = trained(self, "anatomy", "low", "high", "encoder", "code_encoder")
        critics = trained(self, "low_critic", "slab_critic")
        return (
            Step("generator", generator, True, self.generator_loss, decays=DECAYS),
            Step("critics", critics, True, self.critics_loss, decays=DECAYS),
        )

    def generator_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return generator's and encoders' loss of each volume beside a fake, (B,).

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1].
            generator: the only source of codes and of where slabs start.
        """
        volumes, n = batch.volumes, len(batch.volumes)
        starts, places = self._starts(n, generator)
        anatomy = self.anatomy(self.codes(n, generator))
        made = self.slab_critic(self.high(self._cut(anatomy, starts)), places)
        deceived = generator_loss("logistic", made)
        deceived = deceived + generator_loss("logistic", self.low_critic(self.low(anatomy)))
        slab = self._cut(volumes, starts, self.spec.scale)
        error = _error(self.high(self.encoder(slab)), slab)
        with torch.no_grad():
            features = [self.encoder(slab) for slab in self._slabs(volumes)]
        again = self.anatomy(self.code_encoder(torch.cat(features, 2)))
        error = error + _error(self.low(again), self._lowered(volumes))
        error = error + _error(self.high(self._cut(again, starts)), slab)
        return deceived + self.spec.reconstruction * error

    def critics_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return both critics' loss of each volume and its slab beside a fake's, (B,)."""
        volumes, n = batch.volumes, len(batch.volumes)
        starts, places = self._starts(n, generator)
        with torch.no_grad():
            anatomy = self.anatomy(self.codes(n, generator))
            low, slab = self.low(anatomy), self.high(self._cut(anatomy, starts))
        whole = critic_loss(
            "logistic", self.low_critic(self._lowered(volumes)), self.low_critic(low)
        )
        real = self.slab_critic(self._cut(volumes, starts, self.spec.scale), places)
        return whole + critic_loss("logistic", real, self.slab_critic(slab, places))

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the encoder's codes of volumes, (B, K); nothing is drawn."""
        features = torch.cat([self.encoder(slab) for slab in self._slabs(batch.volumes)], 2)
        codes: Tensor = self.code_encoder(features)
        return codes

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the volumes (B, 1, D, H, W), each slab from its features; nothing is drawn."""
        return torch.cat([self.high(self.encoder(slab)) for slab in self._slabs(batch.volumes)], 2)

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the low critic's score plus the slab critic's mean over all slabs, (B,)."""
        n, coarse = len(batch.volumes), self.spec.low_shape[0] // self.spec.slabs
        scores: Tensor = self.low_critic(self._lowered(batch.volumes))
        for number, slab in enumerate(self._slabs(batch.volumes)):
            places = self._places(torch.full((n,), number * coarse))
            scores = scores + self.slab_critic(slab, places) / self.spec.slabs
        return scores

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Generate `n` whole volumes, (n, 1, D, H, W) in [-1, 1], from the normal prior.

        Raises:
            PlanError: a condition is given.
        """
        return self.decode(self.codes(n, generator), condition)

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` codes of the normal prior, (n, K)."""
        drawn = torch.randn(n, self.spec.code, generator=generator, device=generator.device)
        return drawn.to(next(self.anatomy.parameters()))

    def decode(self, codes: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Return the volumes (n, 1, D, H, W) of codes (n, K), with their gradient.

        Raises:
            PlanError: a condition is given.
        """
        if condition != NO_CONDITION:
            raise PlanError("the family ha-gan takes no condition", hint="sample without one")
        volumes: Tensor = self.high(self.anatomy(codes))
        return volumes

    def _starts(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw where slabs start on the low grid, (n,), and return them with their places."""
        depth = self.spec.low_shape[0]
        last = depth - depth // self.spec.slabs
        starts = torch.randint(last + 1, (n,), generator=generator, device=generator.device)
        return starts, self._places(starts)

    def _places(self, starts: Tensor) -> Tensor:
        """Return where slabs start as numbers in [-1, 1), (n, 1), which their critic is told."""
        places = 2 * starts[:, None] / self.spec.low_shape[0] - 1
        return places.to(next(self.anatomy.parameters()))

    def _cut(self, grids: Tensor, starts: Tensor, scale: int = 1) -> Tensor:
        """Return each grid's own slab along the depth; a voxel of the low grid is `scale` wide."""
        depth = scale * (self.spec.low_shape[0] // self.spec.slabs)
        firsts = [scale * start for start in starts.tolist()]
        return torch.stack(
            [grid[:, first : first + depth] for grid, first in zip(grids, firsts, strict=True)]
        )

    def _slabs(self, volumes: Tensor) -> tuple[Tensor, ...]:
        """Return the slabs that lie side by side in volumes, as encoder and painter know them."""
        return volumes.tensor_split(self.spec.slabs, 2)

    def _lowered(self, volumes: Tensor) -> Tensor:
        return functional.avg_pool3d(volumes, self.spec.scale)


def _anatomy(spec: HaGanSpec) -> nn.Sequential:
    """Return the network from codes (B, K) to features at low resolution."""
    norm = ("GROUP", {"num_groups": spec.groups})
    start = [side >> (len(spec.channels) - 1) for side in spec.low_shape]
    first = spec.channels[0]
    layers: list[nn.Module] = [
        nn.Linear(spec.code, first * math.prod(start)),
        nn.Unflatten(1, (first, *start)),
        nn.GroupNorm(spec.groups, first),
        nn.LeakyReLU(0.2),
    ]
    for wide, narrow in pairwise(spec.channels):
        layers.append(nn.Upsample(scale_factor=2, mode="trilinear"))
        layers.append(Convolution(3, wide, narrow, norm=norm, act=LEAKY))
    return nn.Sequential(*layers)


def _high(spec: HaGanSpec) -> nn.Sequential:
    """Return the network from features to the same part of a volume at high resolution."""
    wide = spec.channels[-1]
    layers: list[nn.Module] = []
    for _ in range(spec.scale.bit_length() - 1):
        layers.append(nn.Upsample(scale_factor=2, mode="trilinear"))
        layers.append(Convolution(3, wide, wide, norm=None, act=LEAKY))
    return nn.Sequential(*layers, Convolution(3, wide, 1, conv_only=True), nn.Tanh())


def _encoder(spec: HaGanSpec) -> nn.Sequential:
    """Return the network from any part of a volume to its features at low resolution."""
    wide = spec.channels[-1]
    layers: list[nn.Module] = []
    for number in range(spec.scale.bit_length() - 1):
        inputs = wide if number else 1
        layers.append(Convolution(3, inputs, wide, strides=2, norm=None, act=LEAKY))
    return nn.Sequential(*layers, Convolution(3, wide, wide, conv_only=True))


def _code_encoder(spec: HaGanSpec) -> nn.Sequential:
    """Return the network from a whole volume's features to codes (B, K)."""
    norm = ("GROUP", {"num_groups": spec.groups})
    narrowest_first = spec.channels[::-1]
    layers: list[nn.Module] = [
        Convolution(3, narrow, wide, strides=2, norm=norm, act=LEAKY)
        for narrow, wide in pairwise(narrowest_first)
    ]
    voxels = math.prod(side >> (len(spec.channels) - 1) for side in spec.low_shape)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(spec.channels[0] * voxels, spec.code))


def _error(first: Tensor, second: Tensor) -> Tensor:
    """Return each volume's mean absolute difference, (B,)."""
    return (first - second).abs().flatten(1).mean(1)
