"""StyleGAN2 in three dimensions: styles modulate the convolutions of a learned constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from monai.networks.utils import pixelshuffle
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .conditioning import Conditioning
from .critic import Critic, critic_loss, generator_loss, slopes, trained
from .generator import Smooth

Width = Annotated[int, Field(ge=1, le=1024)]

DECAYS = 0.0, 0.99  # of Adam, as in the paper


class StyleGan2Spec(Table):
    """The settings of a StyleGAN2; with the shape they rebuild it."""

    penalty: float = Field(
        default=1.0, ge=0, le=1e4, description="weight (gamma) of the R1 penalty, e.g. 1"
    )
    critic_turns: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="the critic's turns for each of the generator's, 1 to 100"
    )
    generated: Annotated[int, Field(ge=1, le=256)] = Field(
        default=8, description="volumes that a generator's turn makes up, 1 to 256"
    )
    code: Width = Field(default=64, description="numbers that a style is made from, 1 or more")
    style: Width = Field(default=64, description="numbers in a style, 1 or more")
    mapping_layers: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4, description="linear layers from code to style, 1 to 16"
    )
    channels: tuple[Width, ...] = Field(
        default=(64, 64, 32),
        min_length=1,
        description="the generator's channels, coarse to fine; the grid doubles after each",
    )
    critic_channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 64),
        min_length=1,
        description="the critic's channels at each level; every level halves the volume",
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


class ModulatedConvolution(nn.Module):
    """A convolution whose input channels a style scales, and whose output it keeps at size one.

    Scaling input and output is the same as scaling the weight volume by volume (Karras et al.
    2020, equations 1 and 3), and leaves a plain `nn.Conv3d`.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, *, demodulate: bool):
        super().__init__()
        self.demodulate = demodulate
        self.scale = nn.Linear(style, inputs)
        self.convolution = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.ones_(self.scale.bias)

    def forward(self, volumes: Tensor, styles: Tensor) -> Tensor:
        """Return (B, O, D, H, W) of volumes (B, I, D, H, W) and styles (B, S)."""
        scale = self.scale(styles)
        found: Tensor = self.convolution(volumes * scale[..., None, None, None])
        if not self.demodulate:
            return found
        power = self.convolution.weight.square().sum((2, 3, 4))
        size = functional.linear(scale.square(), power).add(1e-8).rsqrt()
        return found * size[..., None, None, None]


class StyledLayer(nn.Module):
    """A modulated convolution, noise of a learned strength at each voxel, a bias and a kink."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.modulated = ModulatedConvolution(inputs, outputs, 3, style, demodulate=True)
        self.strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1, 1))

    def forward(self, volumes: Tensor, styles: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (B, O, D, H, W); the noise is the generator's, and there is none without one."""
        found = self.modulated(volumes, styles)
        if generator is not None:
            shape = len(found), 1, *found.shape[2:]
            noise = torch.randn(shape, generator=generator, device=generator.device).to(found)
            found = found + self.strength * noise
        return functional.leaky_relu(found + self.bias, 0.2) * math.sqrt(2)


class Synthesis(nn.Module):
    """Paints volumes from a learned constant, coarse to fine.

    Each level's grid has two styled layers and adds its part of the volume at twice its own
    resolution, eight channels folded into cubes of voxels. A side that is no multiple of the
    doublings is grown past its end and cut.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int], style: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.start = (channels[0], *(-(-side >> len(channels)) for side in shape))
        self.constant = nn.Linear(1, math.prod(self.start), bias=False)
        nn.init.normal_(self.constant.weight)
        pairs = list(pairwise((channels[0], *channels)))
        self.first = nn.ModuleList(StyledLayer(wide, narrow, style) for wide, narrow in pairs)
        self.second = nn.ModuleList(StyledLayer(width, width, style) for width in channels)
        self.paint = nn.ModuleList(
            ModulatedConvolution(width, 8, 1, style, demodulate=False) for width in channels
        )
        self.smooth = Smooth()

    def forward(self, styles: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return volumes (B, 1, D, H, W) of styles (B, S), without noise if nothing draws it."""
        grid = self.constant(styles.new_ones(len(styles), 1)).reshape(-1, *self.start)
        volumes: Tensor | None = None
        for first, second, paint in zip(self.first, self.second, self.paint, strict=True):
            if volumes is not None:
                grid = functional.interpolate(grid, scale_factor=2, mode="trilinear")
            grid = second(first(grid, styles, generator), styles, generator)
            part = self.smooth(pixelshuffle(paint(grid, styles), 3, 2))
            if volumes is not None:
                part = part + functional.interpolate(volumes, scale_factor=2, mode="trilinear")
            volumes = part
        depth, height, width = self.shape
        grown: Tensor = part
        return grown[..., :depth, :height, :width]


class StyleGan2(Family):
    """A mapping network, a synthesis network and a critic (Karras et al. 2020, Hong et al. 2021).

    The critic is held smooth by R1 on each volume of its own; only it reads patients. Left out:
    the minibatch standard deviation, which mixes patients; what keeps a running average, namely
    path-length regularisation, truncation and the averaged generator; and style mixing.
    """

    stages = ("adversarial",)
    spec: StyleGan2Spec

    def __init__(self, spec: StyleGan2Spec) -> None:
        super().__init__()
        self.spec = spec
        conditions = spec.conditioning.numbers
        layers: list[nn.Module] = []
        for number in range(spec.mapping_layers):
            inputs = spec.style if number else spec.code + conditions
            layers += [nn.Linear(inputs, spec.style), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*layers)
        for layer in self.mapping:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, 0.2)
        self.synthesis = Synthesis(spec.shape, spec.channels, spec.style)
        self.critic = Critic(spec.shape, spec.critic_channels, conditions=conditions)

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the critic's turns, which read patients, and the generator's, which does not.

        Raises:
            PlanError: the stage is not "adversarial".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        generator = trained(self, "mapping", "synthesis")
        turns = self.spec.critic_turns
        return (
            Step("critic", trained(self, "critic"), True, self.critic_loss, turns, DECAYS),
            Step("generator", generator, False, self.generator_loss, decays=DECAYS),
        )

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the logistic loss of each volume beside a fake, with its R1 penalty, (B,).

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1], with the spec's condition.
            generator: the only source of codes and noise.
        """
        real = batch.volumes
        told = self._told(batch.condition, len(real))
        with torch.no_grad():
            fake = self._generate(len(real), told, generator)
        loss = critic_loss("logistic", self.critic(real, told), self.critic(fake, told))
        steep = slopes(lambda volumes: self.critic(volumes, told), real)
        return loss + self.spec.penalty / 2 * steep.square()

    def generator_loss(self, batch: None, generator: torch.Generator) -> Tensor:
        """Return the loss of volumes that the generator makes up, (generated,); reads nobody."""
        n = self.spec.generated
        told = self._told(self.spec.conditioning.prior(n, generator), n)
        return generator_loss("logistic", self.critic(self._generate(n, told, generator), told))

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Generate `n` volumes, (n, 1, D, H, W) in [-1, 1], of the condition's n rows.

        Raises:
            PlanError: the condition is missing, does not fit, or is not the spec's.
        """
        return self._generate(n, self._told(condition, n), generator).clamp(-1, 1)

    @torch.no_grad()
    def criticise(self, batch: Batch) -> Tensor:
        """Return the critic's scores (B,), higher where a volume looks real."""
        told = self._told(batch.condition, len(batch.volumes))
        scores: Tensor = self.critic(batch.volumes, told)
        return scores

    def codes(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` codes of the normal prior, (n, K)."""
        drawn = torch.randn(n, self.spec.code, generator=generator, device=generator.device)
        return drawn.to(self.synthesis.constant.weight)

    def decode(self, codes: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Return the volumes (n, 1, D, H, W) of codes (n, K) without noise, with their gradient.

        Raises:
            PlanError: the condition is missing, does not fit, or is not the spec's.
        """
        return self._painted(codes, self._told(condition, len(codes)), None)

    def _generate(self, n: int, told: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return `n` volumes of codes and noise drawn now, (n, 1, D, H, W)."""
        return self._painted(self.codes(n, generator), told, generator)

    def _painted(
        self, codes: Tensor, told: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        codes = codes * codes.square().mean(1, keepdim=True).add(1e-8).rsqrt()
        styles = self.mapping(codes if told is None else torch.cat([codes, told], 1))
        volumes: Tensor = self.synthesis(styles, generator)
        return volumes

    def _told(self, condition: Condition, n: int) -> Tensor | None:
        told = self.spec.conditioning.told(condition, n)
        return None if told is None else told.to(self.synthesis.constant.weight)
