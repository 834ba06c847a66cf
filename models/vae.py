"""The variational autoencoder: MONAI's AutoencoderKL with GroupNorm, beside a linear code."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple, cast

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional

from ..study.errors import PlanError
from ..study.tables import Table
from .base import NO_CONDITION, Batch, Condition, Family, Step
from .groups import Groups

Width = Annotated[int, Field(ge=1, le=1024)]

MEAN_GAIN = 8.0  # the mean volume learns this much faster than other weights
FIRST_LOG_VARIANCE = -1.0
LEAST_SCALE = 1e-6
"""Of a likelihood, where the KL weighs nothing and no scale follows from it."""


class VaeSpec(Table):
    """The settings of a VAE; with the shape they rebuild it."""

    channels: tuple[Width, ...] = Field(
        default=(16, 32, 64, 64),
        min_length=1,
        description="channels at each level; every level but the last halves the volume",
    )
    patch: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description="side of the cubes folded into channels before the first level, 1 to 8",
    )
    code: Width = Field(
        default=32, description="length of the code that carries the overall anatomy, 1 or more"
    )
    latent_channels: Width = Field(default=8, description="channels of the latent grid, 1 or more")
    groups: Groups = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    kl_weight: float = Field(
        default=0.2, ge=0, le=1e3, description="weight of the KL in nats per voxel, e.g. 0.2"
    )
    reconstruction: Literal["l1", "l2"] = Field(default="l1", description='"l1" or "l2"')
    shape: tuple[Width, Width, Width] = Field(description="three voxel counts, as (D, H, W)")

    @field_validator("shape")
    @classmethod
    def _halves(cls, shape: tuple[int, ...], known: ValidationInfo) -> tuple[int, ...]:
        levels = len(known.data.get("channels", (1,)))
        multiple = known.data.get("patch", 1) << (levels - 1)
        if any(side % multiple for side in shape):
            raise ValueError(f"patch and levels need sides that are multiples of {multiple}")
        return shape

    @property
    def reduction(self) -> int:
        """Voxels of a side that become one voxel of the latent grid."""
        return self.patch << (len(self.channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The latent grid of one volume, as (C, D, H, W)."""
        depth, height, width = (side // self.reduction for side in self.shape)
        return self.latent_channels, depth, height, width


class Gaussian(NamedTuple):
    """A diagonal Gaussian, the posterior of one latent: mean and standard deviation."""

    mean: Tensor
    deviation: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return a draw that keeps the gradient of mean and deviation."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.deviation * noise.to(self.mean)

    def nats(self) -> Tensor:
        """Return the KL divergence from the standard normal, (B,), in nats."""
        terms = 0.5 * (self.mean.square() + self.deviation.square() - 1) - self.deviation.log()
        return terms.flatten(1).sum(1)

    def log_density(self, drawn: Tensor) -> Tensor:
        """Return the log density of what was drawn, (B,), in nats."""
        terms: Tensor = torch.distributions.Normal(*self).log_prob(drawn)
        return terms.flatten(1).sum(1)


def normal_log_density(latents: Tensor) -> Tensor:
    """Return the log density of the standard normal prior at latents (B, ...), (B,), in nats."""
    return -(latents.square() / 2 + math.log(2 * math.pi) / 2).flatten(1).sum(1)


def laplace_log_density(volumes: Tensor, drawn: Tensor, scale: float) -> Tensor:
    """Return the log density of volumes under a Laplace round drawn ones, (B,), in nats."""
    scale = max(scale, LEAST_SCALE)
    return -((volumes - drawn).abs() / scale + math.log(2 * scale)).flatten(1).sum(1)


class Vae(Family):
    """A VAE with two Gaussian latents, decoded to volumes that are added.

    A code, one vector a volume between two linear layers, carries the overall anatomy, and is what
    a prior sample takes its shape from; a grid, between the convolutions of MONAI's AutoencoderKL,
    carries the detail (Kingma and Welling 2014; AutoencoderKL is Rombach et al. 2022). The linear
    path learns in hundreds of steps what the convolutions alone need tens of thousands for. There
    are no batch statistics and no buffers, and nothing is drawn from global randomness.
    """

    stages = ("autoencoder",)
    biases = ("mean_shade.weight",)
    spec: VaeSpec

    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        self.spec = spec
        levels = len(spec.channels)
        self.network = AutoencoderKL(
            spatial_dims=3,
            in_channels=spec.patch**3,
            out_channels=spec.patch**3,
            channels=spec.channels,
            latent_channels=spec.latent_channels,
            num_res_blocks=(1,) * levels,
            attention_levels=(False,) * levels,
            norm_num_groups=spec.groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        voxels = math.prod(spec.shape)
        self.code_mean = nn.Linear(voxels // spec.patch**3, spec.code)
        self.code_log_variance = nn.Linear(voxels // spec.patch**3, spec.code)
        self.code_decoder = nn.Linear(spec.code, voxels, bias=False)
        self.mean_volume = nn.Linear(1, voxels, bias=False)
        self.mean_shade = nn.Linear(1, voxels // spec.patch**3, bias=False)
        self._start_calm()

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return the one turn of the autoencoder, which reads patients.

        Raises:
            PlanError: the stage is not "autoencoder".
        """
        if stage not in self.stages:
            raise PlanError("unknown stage", got=stage, expected=" or ".join(self.stages))
        names = tuple(name for name, weight in self.named_parameters() if weight.requires_grad)
        return (Step(stage, names, reads_patients=True, loss=self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the negative evidence bound of each volume, (B,), up to scale and a constant.

        It is the mean over voxels of the absolute (L1) or squared (L2) error at one draw of the
        latents, plus `kl_weight` times the KL divergence from the standard normal in nats per
        voxel. With L1 this is the bound of a Laplace likelihood of scale `kl_weight`, with L2 that
        of a Gaussian of variance `kl_weight / 2`, whatever the shape.

        Args:
            batch: volumes (B, 1, D, H, W) in [-1, 1].
            generator: the only source of the latents' noise.
        """
        code, grid = self._encode(batch.volumes)
        error = self._decode(code.draw(generator), grid.draw(generator)) - batch.volumes
        size = error.abs() if self.spec.reconstruction == "l1" else error.square()
        nats_per_voxel = (code.nats() + grid.nats()) / batch.volumes[0].numel()
        return size.flatten(1).mean(1) + self.spec.kl_weight * nats_per_voxel

    @torch.no_grad()
    def log_weight(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return log p(x, z) - log q(z | x) at one draw of both latents, (B,), in nats.

        The likelihood is a Laplace of scale `kl_weight` or a Gaussian of variance `kl_weight / 2`,
        as in `loss`.
        """
        posterior = self._encode(batch.volumes)
        drawn = [latent.draw(generator) for latent in posterior]
        volumes = self._decode(*drawn)
        if self.spec.reconstruction == "l1":
            worth = laplace_log_density(batch.volumes, volumes, self.spec.kl_weight)
        else:
            deviation = math.sqrt(max(self.spec.kl_weight, LEAST_SCALE) / 2)
            round_volumes = Gaussian(volumes, torch.full_like(volumes, deviation))
            worth = round_volumes.log_density(batch.volumes)
        for latent, value in zip(posterior, drawn, strict=True):
            worth = worth + normal_log_density(value) - latent.log_density(value)
        return worth

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Return the posterior means of code and grid as rows, (B, K + C d h w)."""
        return torch.cat([latent.mean.flatten(1) for latent in self._encode(batch.volumes)], dim=1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return the decoded posterior means, (B, 1, D, H, W) in [-1, 1]; nothing is drawn."""
        code, grid = self._encode(batch.volumes)
        return self._decode(code.mean, grid.mean).clamp(-1, 1)

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        """Decode `n` draws of the standard normal prior to (n, 1, D, H, W) in [-1, 1].

        Raises:
            PlanError: a condition is given.
        """
        if condition != NO_CONDITION:
            raise PlanError("the family vae takes no condition", hint="sample without one")
        here = self.code_decoder.weight
        shapes = (n, self.spec.code), (n, *self.spec.latent_shape)
        code, grid = (
            torch.randn(shape, generator=generator, device=generator.device).to(here)
            for shape in shapes
        )
        return self._decode(code, grid).clamp(-1, 1)

    def _encode(self, volumes: Tensor) -> tuple[Gaussian, Gaussian]:
        """Return the posteriors of the code (B, K) and of the grid (B, C, D, H, W).

        What is encoded is the difference from the mean volume, so that codes stay round zero.
        """
        p = self.spec.patch
        change = volumes - self._mean(len(volumes)).detach()
        cubes = change.unfold(2, p, p).unfold(3, p, p).unfold(4, p, p)
        folded = cubes.flatten(5).squeeze(1).movedim(-1, 1).contiguous()
        coarse = folded.mean(1).flatten(1)
        coarse = coarse / math.sqrt(coarse.shape[1])
        # the same bounds as AutoencoderKL's own
        log_variance = self.code_log_variance(coarse).clamp(-30, 20)
        code = Gaussian(self.code_mean(coarse), torch.exp(log_variance / 2))
        return code, Gaussian(*self.network.encode(folded))

    def _decode(self, code: Tensor, grid: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) of a code (B, K) and a grid (B, C, D, H, W)."""
        p = self.spec.patch
        cubes = self.network.decode(grid)
        cubes = cubes.reshape(-1, 1, p, p, p, *(side // p for side in self.spec.shape))
        detail = cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(-1, 1, *self.spec.shape)
        anatomy: Tensor = self.code_decoder(code)
        return self._mean(len(code)) + anatomy.reshape(detail.shape) + detail

    def _mean(self, n: int) -> Tensor:
        """Return the learned mean volume `n` times, (n, 1, D, H, W).

        It is a smooth shade, one number a cube, plus a number a voxel, both linear layers of a
        constant, which every per-sample gradient method knows.
        """
        constant = self.mean_volume.weight.new_full((n, 1), MEAN_GAIN)
        cubes = [side // self.spec.patch for side in self.spec.shape]
        shade = self.mean_shade(constant).reshape(n, 1, *cubes)
        smooth = functional.interpolate(shade, size=self.spec.shape, mode="trilinear")
        both: Tensor = smooth + self.mean_volume(constant).reshape(smooth.shape)
        return both

    def _start_calm(self) -> None:
        """Set first weights from which all paths learn at once: codes of size one, no detail."""
        nn.init.orthogonal_(self.code_mean.weight, gain=5 * math.sqrt(self.code_mean.in_features))
        nn.init.zeros_(self.code_mean.bias)
        for layer in (self.code_log_variance, _last_convolution(self.network.quant_conv_log_sigma)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(cast(Tensor, layer.bias), FIRST_LOG_VARIANCE)
        nn.init.normal_(self.code_decoder.weight, std=0.01)
        nn.init.constant_(self.mean_shade.weight, -0.5 / MEAN_GAIN)
        nn.init.zeros_(self.mean_volume.weight)
        for weight in _last_convolution(self.network.decoder).parameters():
            nn.init.zeros_(weight)


def _last_convolution(network: nn.Module) -> nn.Conv3d:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)][-1]
