"""A volume as a grid of codes: the first stage of the families that model codes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from monai.networks.nets.autoencoderkl import Decoder, Encoder
from pydantic import Field
from torch import Tensor, nn

from ..study.tables import Table
from .codebook import Codebook, Quantised
from .cubes import fold, unfold
from .groups import Groups
from .mean_volume import MeanVolume
from .vae import Width

ERROR_SCALE = 0.1
"""Scale of the Laplace density round a decoded volume, where a likelihood is asked for."""

DECAYS = 0.5, 0.9
"""Of Adam, as Esser et al. 2021 have them: with its usual, longer memory codes learn more slowly
(eight phantoms, 200 steps: SSIM 0.77, with these 0.88)."""


class CodesSpec(Table):
    """The settings of the autoencoder and its codebook, [settings.codes] in a study file."""

    channels: tuple[Width, ...] = Field(
        default=(16, 32),
        min_length=1,
        description="channels at each level; every level but the last halves the volume",
    )
    patch: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2,
        description="side of the cubes folded into channels before the first level, 1 to 8",
    )
    entries: Annotated[int, Field(ge=2, le=65536)] = Field(
        default=256, description="entries of the codebook, 2 or more"
    )
    width: Width = Field(default=8, description="numbers in an entry, few, e.g. 8")
    commitment: float = Field(
        default=0.25, ge=0, le=1e3, description="weight that draws features to entries, e.g. 0.25"
    )
    quantisation: float = Field(
        default=0.1, ge=0, le=1e3, description="weight of the codebook's loss, e.g. 0.1"
    )
    groups: Groups = Field(
        default=8, description="GroupNorm groups, a divisor of every entry of channels"
    )
    reconstruction: Literal["l1", "l2"] = Field(default="l1", description='"l1" or "l2"')

    @property
    def reduction(self) -> int:
        """Voxels of a side that become one code."""
        return self.patch << (len(self.channels) - 1)

    def grid(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the grid of codes of a volume of (D, H, W).

        Raises:
            ValueError: a side is not a multiple of the reduction, or there is but one code.
        """
        if any(side % self.reduction for side in shape):
            raise ValueError(f"the codes need sides that are multiples of {self.reduction}")
        depth, height, width = (side // self.reduction for side in shape)
        if depth * height * width < 2:
            raise ValueError("one code is too little for a volume")
        return depth, height, width


class Codes(nn.Module):
    """MONAI's encoder and decoder of AutoencoderKL with a codebook between them.

    What is encoded is the difference from a learned mean volume. Beside either network runs one
    linear layer over cubes that overlap, which learns in tens of steps what the networks need
    thousands for. No layer has batch statistics.

    Args:
        spec: the settings.
        shape: of a volume, (D, H, W).
    """

    def __init__(self, spec: CodesSpec, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.spec, self.grid = spec, spec.grid(shape)
        levels, cube = len(spec.channels), spec.patch**3
        common: dict[str, Any] = {
            "spatial_dims": 3,
            "channels": spec.channels,
            "num_res_blocks": (1,) * levels,
            "norm_num_groups": spec.groups,
            "norm_eps": 1e-6,
            "attention_levels": (False,) * levels,
            "with_nonlocal_attn": False,
        }
        self.encoder = Encoder(in_channels=cube, out_channels=spec.width, **common)
        self.codebook = Codebook(spec.entries, spec.width, spec.commitment)
        self.decoder = Decoder(in_channels=spec.width, out_channels=cube, **common)
        self.mean = MeanVolume(shape, spec.patch)
        side = spec.reduction
        cubes: dict[str, Any] = {"kernel_size": 3 * side, "stride": side, "padding": side}
        self.see = nn.Conv3d(1, spec.width, **cubes)
        self.draw_cubes = nn.ConvTranspose3d(spec.width, 1, **cubes, bias=False)
        with torch.no_grad():
            nn.init.orthogonal_(self.see.weight.view(spec.width, -1))
        nn.init.normal_(self.draw_cubes.weight, std=0.02)
        last = [layer for layer in self.decoder.modules() if isinstance(layer, nn.Conv3d)][-1]
        for weight in last.parameters():
            nn.init.zeros_(weight)

    def encode(self, volumes: Tensor) -> Quantised:
        """Return the codes of volumes (B, 1, D, H, W)."""
        change = volumes - self.mean(len(volumes)).detach()
        features = self.encoder(fold(change, self.spec.patch)) + self.see(change)
        quantised: Quantised = self.codebook(features)
        return quantised

    def decode(self, vectors: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) of entries (B, C, d, h, w)."""
        change = unfold(self.decoder(vectors), self.spec.patch) + self.draw_cubes(vectors)
        volumes: Tensor = self.mean(len(vectors)) + change
        return volumes

    def draw(self, indices: Tensor) -> Tensor:
        """Return the volumes (B, 1, D, H, W) of codes (B, d, h, w), in [-1, 1]."""
        return self.decode(self.codebook.look_up(indices)).clamp(-1, 1)

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoded volumes and what each volume pays, (B,): its error and its codes'."""
        quantised = self.encode(volumes)
        decoded = self.decode(quantised.vectors)
        error = (decoded - volumes).flatten(1)
        size = error.abs() if self.spec.reconstruction == "l1" else error.square()
        return decoded, size.mean(1) + self.spec.quantisation * quantised.error

    @torch.no_grad()
    def log_density(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(volume | its codes), (B,), in nats, and the codes (B, d, h, w).

        The density is a Laplace of scale `ERROR_SCALE` round the decoded volume.
        """
        indices = self.encode(volumes).indices
        error = (self.draw(indices) - volumes).abs().flatten(1) / ERROR_SCALE
        return -(error + math.log(2 * ERROR_SCALE)).sum(1), indices
