"""The 3D PixelCNN: each voxel's shade is drawn given all voxels before it."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .causal import CausalNetwork
from .critic import trained
from .vae import Width

NARROWEST, WIDEST = -7.0, 7.0  # log scales of a logistic
FIRST_LOG_SCALE = -1.5


class PixelCnnSpec(Table):
    """The settings of a 3D PixelCNN; with the shape they rebuild it."""

    channels: Width = Field(default=16, description="of the causal convolutions, 1 or more")
    dilations: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(1, 2, 4, 1, 2, 4),
        min_length=1,
        description="how far apart each layer's voxels lie, e.g. [1, 2, 4, 1, 2, 4]",
    )
    mixture: Annotated[int, Field(ge=1, le=64)] = Field(
        default=5, description="logistic curves that a voxel's shade is drawn from, 1 to 64"
    )
    shades: Annotated[int, Field(ge=2, le=65536)] = Field(
        default=64, description="steps from -1 to 1, e.g. 64"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")


class PixelCnn(Family):
    """Causal 3D convolutions with a discretised mixture of logistics, for small volumes.

    The mixture is that of PixelCNN++ (Salimans et al. 2017). The probability of a volume is exact;
    drawing one takes a network's pass a voxel.
    """

    stages = ("pixels",)
    spec: PixelCnnSpec

    def __init__(self, spec: PixelCnnSpec) -> None:
        super().__init__()
        self.spec = spec
        outputs = 3 * spec.mixture
        self.network = CausalNetwork(spec.shape, 1, spec.channels, outputs, spec.dilations)
        bias = self.network.last.bias
        with torch.no_grad():
            if bias is not None:
                weights, means, log_scales = bias.chunk(3)
                weights.zero_()
                means.copy_(torch.linspace(-1, 1, spec.mixture))
                log_scales.fill_(FIRST_LOG_SCALE)

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the one turn, which reads patients.

        Raises:
            PlanError: the stage is not "pixels".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = trained(self, "network")
        return (Step(stage, names, reads_patients=True, loss=self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the negative log probability of each volume, (B,), in nats a voxel.

        Shades are rounded to the nearest of `shades` steps; nothing is drawn.
        """
        return -self._log_probability(batch.volumes).flatten(1).mean(1)

    @torch.no_grad()
    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a lower bound on each volume's log density, (B,), in nats.

        A step's probability is spread evenly over the shades that are rounded to it, of which the
        first and the last step have half as many: hence the bound.
        """
        width = 2 / (self.spec.shades - 1)
        return (self._log_probability(batch.volumes) - math.log(width)).flatten(1).sum(1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Draw `n` volumes voxel by voxel, (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: a condition is given.
        """
        if condition != NO_CONDITION:
            raise PlanError("the family pixel-cnn takes no condition", hint="sample without one")
        return self.network.draw(n, 1, lambda outputs: self._choose(outputs, generator))

    def _log_probability(self, volumes: Tensor) -> Tensor:
        """Return the log probability of every voxel's step, (B, D, H, W)."""
        volumes = rounded(volumes, self.spec.shades)
        return log_probability(self.network(volumes), volumes, self.spec.shades)

    def _choose(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one voxel's shade, (n, 1), from the outputs (n, 3 mixture)."""
        weights, means, log_scales = outputs.to(generator.device).chunk(3, dim=1)
        which = torch.multinomial(weights.softmax(1), 1, generator=generator)
        uniform = torch.rand(which.shape, generator=generator, device=generator.device)
        noise = torch.logit(uniform, eps=1e-6)
        scale = log_scales.gather(1, which).clamp(NARROWEST, WIDEST).exp()
        shade = means.gather(1, which) + scale * noise
        return rounded(shade.clamp(-1, 1), self.spec.shades).to(outputs)


def rounded(volumes: Tensor, shades: int) -> Tensor:
    """Return volumes with every shade at the nearest of `shades` steps from -1 to 1."""
    steps = shades - 1
    return ((volumes.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1


def log_probability(outputs: Tensor, volumes: Tensor, shades: int) -> Tensor:
    """Return the log probability of each voxel's step under a mixture of logistics, (B, D, H, W).

    A step has the mass between the middles to its neighbours; the first and the last have all
    that lies beyond them, so that the probabilities of all steps add up to one.

    Args:
        outputs: (B, 3 K, D, H, W): logits, means and log scales of K logistics.
        volumes: (B, 1, D, H, W), at the steps.
        shades: how many steps there are.
    """
    weights, means, log_scales = outputs.chunk(3, dim=1)
    half, scale = 1 / (shades - 1), log_scales.clamp(NARROWEST, WIDEST).exp()
    upper, lower = ((volumes + edge - means) / scale for edge in (half, -half))
    # log(sigmoid(upper) - sigmoid(lower)), exact also where both are near 0 or 1
    between = functional.logsigmoid(upper) + functional.logsigmoid(-lower)
    inner = between + torch.log(-torch.expm1(lower - upper))
    first, last = volumes < half - 1, volumes > 1 - half
    mass = torch.where(first, functional.logsigmoid(upper), inner)
    mass = torch.where(last, functional.logsigmoid(-lower), mass)
    return torch.logsumexp(weights.log_softmax(1) + mass, dim=1)
