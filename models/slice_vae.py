"""A 2D VAE of slices, and a Gaussian over the stack of slice codes that makes volumes of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from monai.networks.nets.varautoencoder import VarAutoEncoder
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .critic import trained
from .groups import Groups
from .mean_volume import DARK
from .vae import FIRST_LOG_VARIANCE, Gaussian, Width, laplace_log_density

NEIGHBOUR = 0.8  # how much of a slice's code the slice before tells, at first
FIRST_LOG_DEVIATION = -0.5
LEAST, MOST = -6.0, 3.0  # log deviations of a code given the slices before


class SliceVaeSpec(Table):
    """The settings of a slice VAE; with the shape they rebuild it."""

    axis: Literal[0, 1, 2] = Field(
        default=2, description="the axis that slices lie across, 0, 1 or 2 (axial)"
    )
    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64),
        min_length=1,
        description="channels at each level; every level halves the slice",
    )
    code: Width = Field(default=32, description="numbers in a slice's code, 1 or more")
    groups: Groups = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    kl_weight: float = Field(
        default=0.2, gt=0, le=1e3, description="weight of the KL in nats per voxel, e.g. 0.2"
    )
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        multiple = 1 << len(known.data.get("channels", ()))
        axis = known.data.get("axis", 2)
        if any(side % multiple for place, side in enumerate(shape) if place != axis):
            raise ValueError(f"the levels need slices whose sides are multiples of {multiple}")
        return shape

    @property
    def slices(self) -> int:
        """Slices of a volume."""
        return self.shape[self.axis]

    @property
    def plane(self) -> tuple[int, int]:
        """Voxels of a slice, (rows, columns)."""
        first, second = (side for place, side in enumerate(self.shape) if place != self.axis)
        return first, second


class SliceCoder(nn.Module):
    """The VAE of slices: MONAI's VarAutoEncoder in two dimensions, with GroupNorm.

    A linear decoder beside it learns the coarse look at once.

    Args:
        spec: the settings.
    """

    def __init__(self, spec: SliceVaeSpec) -> None:
        super().__init__()
        self.network = VarAutoEncoder(
            spatial_dims=2,
            in_shape=(1, *spec.plane),
            out_channels=1,
            latent_size=spec.code,
            channels=spec.channels,
            strides=(2,) * len(spec.channels),
            act="LEAKYRELU",
            norm=("GROUP", {"num_groups": spec.groups}),
            use_sigmoid=False,
        )
        self.decoder = nn.Linear(spec.code, math.prod(spec.plane))
        nn.init.normal_(self.decoder.weight, std=0.01)
        nn.init.constant_(self.decoder.bias, DARK)
        nn.init.zeros_(self.network.logvar.weight)
        nn.init.constant_(self.network.logvar.bias, FIRST_LOG_VARIANCE)

    def encode(self, slices: Tensor) -> Gaussian:
        """Return the posterior of the codes (N, K) of slices (N, 1, H, W)."""
        mean, log_variance = self.network.encode_forward(slices)
        # the same bounds as AutoencoderKL's
        return Gaussian(mean, torch.exp(log_variance.clamp(-30, 20) / 2))

    def decode(self, codes: Tensor) -> Tensor:
        """Return the slices (N, 1, H, W) of codes (N, K)."""
        detail = self.network.decode_forward(codes, use_sigmoid=False)
        coarse: Tensor = self.decoder(codes)
        return detail + coarse.reshape(detail.shape)


class Stack(nn.Module):
    """A Gaussian over the codes of all slices, each number of a code by itself.

    A code is a linear function of the codes of all slices before it, plus noise: any covariance
    over the slices is one of these, as its Cholesky factor.

    Args:
        slices: of a volume.
        code: numbers in a slice's code.
    """

    def __init__(self, slices: int, code: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(slices, code))
        self.log_deviation = nn.Parameter(torch.full((slices, code), FIRST_LOG_DEVIATION))
        before = NEIGHBOUR * torch.ones(slices - 1).diag(-1)
        self.before = nn.Parameter(before.repeat(code, 1, 1))

    def log_density(self, codes: Tensor) -> Tensor:
        """Return the log density of stacks of codes (B, S, K), (B,), in nats."""
        change = codes - self.mean
        told = torch.einsum("kst,btk->bsk", self.before.tril(-1), change)
        log_deviation = self.log_deviation.clamp(LEAST, MOST)
        squares = ((change - told) / log_deviation.exp()).square()
        terms = squares / 2 + log_deviation + math.log(2 * math.pi) / 2
        return -terms.flatten(1).sum(1)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw stacks of codes (n, S, K), slice after slice."""
        noise = torch.randn((n, *self.mean.shape), generator=generator, device=generator.device)
        noise = noise.to(self.mean) * self.log_deviation.clamp(LEAST, MOST).exp()
        change = torch.zeros_like(noise)
        for number in range(len(self.mean)):
            told = torch.einsum("kt,btk->bk", self.before[:, number, :number], change[:, :number])
            change[:, number] = told + noise[:, number]
        return change + self.mean


class SliceVae(Family):
    """A VAE that knows slices alone, and a Gaussian that stacks them (Volokitin et al. 2020).

    The paper takes mean and covariance of the codes from all patients; here they are weights of a
    stage of their own, trained by gradient under the engine.
    """

    stages = ("slices", "stack")
    biases = ("stack.mean",)
    spec: SliceVaeSpec

    def __init__(self, spec: SliceVaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.slices = SliceCoder(spec)
        self.stack = Stack(spec.slices, spec.code)

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the one turn of a stage, which reads patients.

        Raises:
            PlanError: the stage is not "slices" or "stack".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        loss = self.slices_loss if stage == "slices" else self.stack_loss
        return (Step(stage, trained(self, stage), reads_patients=True, loss=loss),)

    def slices_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the negative evidence bound of each volume's slices, (B,), as `vae` has it.

        It is the mean absolute error over voxels at one draw of the codes, plus `kl_weight` times
        the KL divergence from the standard normal in nats per voxel.
        """
        posterior = self._encode(batch.volumes)
        error = (self._decode(posterior.draw(generator)) - batch.volumes).abs()
        nats_per_voxel = posterior.nats() / batch.volumes[0].numel()
        return error.flatten(1).mean(1) + self.spec.kl_weight * nats_per_voxel

    def stack_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what a draw of each volume's codes is worth, (B,), nats a number."""
        with torch.no_grad():
            codes = self._encode(batch.volumes).draw(generator)
        return -self.stack.log_density(codes) / codes[0].numel()

    @torch.no_grad()
    def likelihood_bound(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a lower bound on each volume's log density, (B,), in nats, at one draw.

        The prior is the stack's Gaussian, the likelihood a Laplace of scale `kl_weight`.
        """
        return self.log_weight(batch, generator)

    @torch.no_grad()
    def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return log p(x, z) - log q(z | x) at one draw of all slices' codes, (B,), in nats."""
        posterior = self._encode(batch.volumes)
        codes = posterior.draw(generator)
        worth = laplace_log_density(batch.volumes, self._decode(codes), self.spec.kl_weight)
        return worth + self.stack.log_density(codes) - posterior.log_density(codes)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the posterior means of all slices' codes as rows, (B, S K); nothing is drawn."""
        return self._encode(batch.volumes).mean.flatten(1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the decoded posterior means, (B, 1, D, H, W) in [-1, 1]; nothing is drawn."""
        return self._decode(self._encode(batch.volumes).mean).clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Decode `n` stacks of codes to (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: a condition is given.
        """
        if condition != NO_CONDITION:
            raise PlanError("the family slice-vae takes no condition", hint="sample without one")
        return self._decode(self.stack.draw(n, generator)).clamp(-1, 1)

    def _encode(self, volumes: Tensor) -> Gaussian:
        """Return the posterior of the codes of each slice alone, (B, S, K)."""
        slices = volumes.movedim(2 + self.spec.axis, 1).flatten(0, 1)
        shape = len(volumes), self.spec.slices, self.spec.code
        return Gaussian(*(part.reshape(shape) for part in self.slices.encode(slices)))

    def _decode(self, codes: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) of codes (B, S, K)."""
        slices: Tensor = self.slices.decode(codes.flatten(0, 1))
        stacked = slices.reshape(len(codes), self.spec.slices, 1, *self.spec.plane)
        return stacked.movedim(1, 2 + self.spec.axis)
